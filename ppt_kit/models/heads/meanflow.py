"""MeanFlow: the mean velocity between two times, so that one step samples. Geng et al. 2025."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ppt_kit.models.heads.denoising import DenoisingHead, DenoisingOptions, Fixed, Predict, backwards
from ppt_kit.models.heads.head import NOTHING, Given, mean_over_numbers, sum_over_numbers
from ppt_kit.models.heads.options import number, read_options
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import uniform


@dataclass(frozen=True)
class MeanFlowOptions(DenoisingOptions):
    """Attributes:
    equal_share: share of the training samples with r = t, where u is the velocity itself.
    to_zero_share: share of the other samples with r = 0, which is what one step needs.
    adaptive_power: each sample's loss is weighed by its squared error to the power of minus this: 1 as in the paper,
        0 = plain mean squared error.
    """

    num_steps: int = 1
    equal_share: float = 0.5
    to_zero_share: float = 0.5
    adaptive_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("equal_share", self.equal_share, low=0, high=1)
        number("to_zero_share", self.to_zero_share, low=0, high=1)
        number("adaptive_power", self.adaptive_power, low=0, high=1)


class MeanFlowHead(DenoisingHead):
    """Learns u(z, r, t), the mean over [r, t] of the flow's velocity: u = v - (t - r) du/dt along the path.

    The network gives where the chunk would end, z - t u, which one step from t = 1 to 0 is. The derivative is
    forward-mode through the network, exact and about as dear as one more pass.
    """

    num_times = 2

    def __init__(self, sizes: Sizes, **options: Any):
        asked = read_options(MeanFlowOptions, options)
        super().__init__(sizes, asked)
        self.asked = asked
        self.network.forward_derivative = True

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        clean, noise, fixed, counted = self.shown(target, seeds, given)
        begin, end = self._drawn_times(seeds)
        at = end[:, None, None]
        noisy = fixed.held((1 - at) * clean + at * noise)
        velocity = fixed.moving(noise - clean)
        context, times = self.context(tokens, seeds), torch.stack([end, end - begin], dim=-1)
        ends_at, rate = self.network(noisy, fixed.known, times, context, seeds, velocity=velocity)
        # clean - t (u - v), with u = v - (t - r) du/dt and du/dt of u = (z - network) / t
        gone = (end - begin)[:, None, None]
        wanted = clean + gone * (velocity - rate - (noisy - ends_at) / at).detach()
        error = (ends_at - wanted).square()
        total, count = sum_over_numbers(error.detach(), counted)
        weight = (total / count + 1e-3) ** -self.asked.adaptive_power
        return mean_over_numbers(error, counted) * weight[:, None]

    def sampled(
        self, chunk: torch.Tensor, fixed: Fixed, predict: Predict, *, seeds: torch.Tensor, num_steps: int
    ) -> torch.Tensor:
        for now, then in backwards(num_steps):
            mean = (chunk - predict(chunk, now, now - then)) / now
            chunk = fixed.held(chunk + (then - now) * mean)
        return chunk

    def _drawn_times(self, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) r and t, r <= t, float32 in (0, 1); r = t for a share of the samples."""
        # evenly: the paper's logit-normal times hardly ever come near r = 0, t = 1, which is the one step of acting
        begin, end = uniform(seeds, (2,), stream=f"{self.name}.time").aminmax(dim=-1)
        to_zero = uniform(seeds, (), stream=f"{self.name}.to_zero") < self.asked.to_zero_share
        begin = begin.masked_fill(to_zero, 0.0)
        equal = uniform(seeds, (), stream=f"{self.name}.equal") < self.asked.equal_share
        return torch.where(equal, end, begin), end
