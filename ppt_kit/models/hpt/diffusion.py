"""The diffusion head of ppt_learning: a U-Net over the tokens side by side, sampled as diffusers does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.models.heads.denoising import Fixed, Predict
from ppt_kit.models.heads.diffusion import DiffusionHead, DiffusionOptions
from ppt_kit.models.heads.networks import Network
from ppt_kit.models.heads.options import number, one_of, whole
from ppt_kit.models.hpt.heads import side_by_side
from ppt_kit.models.hpt.unet import HPTUNetNetwork
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import normal


@dataclass(frozen=True)
class HPTDiffusionOptions(DiffusionOptions):
    """Attributes:
    widths: channels of the U-Net's levels.
    prediction: "epsilon" or "sample".
    step_dim: numbers that a step's place among the training steps becomes.
    num_tokens: that there are behind policy.pooling: 1 of a mean.
    eta: of DDIM: share of the noise that is drawn anew in each step.
    start: standard deviation of the noise that sampling starts from.
    """

    widths: list[int] | None = field(default_factory=lambda: [512, 1024, 2048])
    prediction: str = "epsilon"
    step_dim: int = 128
    num_tokens: int = 1
    eta: float = 0.0
    start: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("network", self.network, ("unet",))
        one_of("prediction", self.prediction, ("epsilon", "sample"))
        if self.num_layers is not None or not self.widths:
            raise UserError("policy.head.options: hpt_diffusion is a U-Net, of widths=[512,1024,2048], say.")
        for each in self.widths:
            whole("widths", each)
        whole("step_dim", self.step_dim, low=4)
        if self.step_dim % 2:
            raise UserError(f"policy.head.options.step_dim={self.step_dim}: takes an even number.")
        whole("num_tokens", self.num_tokens)
        number("eta", self.eta, low=0, high=1)
        number("start", self.start, low=0)


class HPTDiffusionHead(DiffusionHead):
    """Known actions stand in the chunk as they are; the network is not told which they are."""

    options = HPTDiffusionOptions

    def __init__(self, sizes: Sizes, **options: Any):
        super().__init__(sizes, **options)
        asked = HPTDiffusionOptions(**options)
        self.eta, self.start = asked.eta, asked.start

    def _networks(self, sizes: Sizes, options: Any) -> tuple[nn.Module, Network]:
        network = HPTUNetNetwork(
            sizes.spec.action_dim, widths=list(options.widths), num_train_steps=options.num_train_steps,
            step_dim=options.step_dim, seen_dim=options.num_tokens * sizes.width,
        )  # fmt: skip
        return SideBySide(options.num_tokens), network

    def sampled(
        self, chunk: torch.Tensor, fixed: Fixed, predict: Predict, *, seeds: torch.Tensor, num_steps: int
    ) -> torch.Tensor:
        """As diffusers' DDIMScheduler and DDPMScheduler step: Song et al. 2021; Ho et al. 2020."""
        chunk, schedule = fixed.held(chunk * self.start), self.schedule
        schedule.check(num_steps)
        # "leading": the first of each share of the training steps
        apart = schedule.num_train_steps // num_steps
        steps = [apart * done for done in reversed(range(num_steps))]
        for step, then in zip(steps, [*steps[1:], None]):
            predicted = predict(chunk, (step + 1) / schedule.num_train_steps)
            clean = schedule.clean(chunk, predicted, step)
            noise = normal(seeds, self.shape, stream=f"{self.name}.sample.{step}")
            if self.sampler == "ddim":
                chunk = self._ddim(chunk, predicted, clean, noise, step, then=then)
            else:
                chunk = schedule.ddpm(chunk, clean, noise, step, then=then)
            chunk = fixed.held(chunk)
        return chunk

    def _ddim(
        self, noisy: torch.Tensor, predicted: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, step: int, *,
        then: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """The next chunk, on the noise that the prediction stands for before its chunk is clipped."""
        a, b = self.schedule.levels[step], 1.0 if then is None else self.schedule.levels[then]
        if self.schedule.prediction == "sample":
            predicted = (noisy - math.sqrt(a) * predicted) / math.sqrt(1 - a)
        spread = self.eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        return math.sqrt(b) * clean + math.sqrt(1 - b - spread**2) * predicted + spread * noise


class SideBySide(nn.Module):
    """What the network needs of the tokens (B, T, width): (B, T * width)."""

    def __init__(self, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return side_by_side(tokens, self.num_tokens)
