"""Denoising diffusion of chunks: Chi et al. 2023, Diffusion Policy; samplers of Ho et al. 2020 and Song et al. 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ppt_kit.models.heads.denoising import DenoisingHead, DenoisingOptions, Fixed, Predict
from ppt_kit.models.heads.head import NOTHING, Given, mean_over_numbers
from ppt_kit.models.heads.options import number, one_of, read_options, whole
from ppt_kit.models.heads.schedule import Schedule
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import normal, uniform


@dataclass(frozen=True)
class DiffusionOptions(DenoisingOptions):
    """Attributes:
    num_train_steps: levels of noise; num_steps is at most that.
    sampler: "ddim", or "ddpm", which draws noise in each step and needs more of them.
    prediction: what the network gives: "sample" (as DP3), "epsilon" (as Diffusion Policy) or "v".
    betas: the schedule, as diffusers names it.
    clip: bound of a chunk's normalised numbers; 1 fits the normaliser's modes limits and quantiles, None = none.
    """

    num_train_steps: int = 100
    sampler: str = "ddim"
    prediction: str = "sample"
    betas: str = "squaredcos_cap_v2"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("num_train_steps", self.num_train_steps)
        number("num_steps", self.num_steps, low=1, high=self.num_train_steps)
        one_of("sampler", self.sampler, ("ddim", "ddpm"))
        if self.clip is not None:
            number("clip", self.clip, low=1e-6)


class DiffusionHead(DenoisingHead):
    """Learns what noise was put into a chunk, and takes it out step by step."""

    options: type[DiffusionOptions] = DiffusionOptions

    def __init__(self, sizes: Sizes, **options: Any):
        asked = read_options(self.options, options)
        super().__init__(sizes, asked)
        self.sampler = asked.sampler
        self.schedule = Schedule(asked.num_train_steps, betas=asked.betas, prediction=asked.prediction, clip=asked.clip)

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        clean, noise, fixed, counted = self.shown(target, seeds, given)
        drawn = uniform(seeds, (), stream=f"{self.name}.time")
        steps = (drawn * self.schedule.num_train_steps).long()
        noisy = fixed.held(self.schedule.noisy(clean, noise, steps))
        times = ((steps + 1) / self.schedule.num_train_steps)[:, None]
        predicted = self.network(noisy, fixed.known, times, self.context(tokens, seeds), seeds)
        return mean_over_numbers((predicted - self.schedule.wanted(clean, noise, steps)).square(), counted)

    def sampled(
        self, chunk: torch.Tensor, fixed: Fixed, predict: Predict, *, seeds: torch.Tensor, num_steps: int
    ) -> torch.Tensor:
        steps = self.schedule.steps(num_steps)
        for step, then in zip(steps, [*steps[1:], None]):
            clean = self.schedule.clean(chunk, predict(chunk, (step + 1) / self.schedule.num_train_steps), step)
            if self.sampler == "ddim":
                chunk = self.schedule.ddim(chunk, clean, step, then=then)
            else:
                noise = normal(seeds, self.shape, stream=f"{self.name}.sample.{step}")
                chunk = self.schedule.ddpm(chunk, clean, noise, step, then=then)
            chunk = fixed.held(chunk)
        return chunk
