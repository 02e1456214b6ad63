"""Numbers of the samples' own seeds, in the ranges that the options name."""

from __future__ import annotations

from typing import Any

import torch

from ppt_kit.randomness import normal

NOISE_CUT = 4.0  # standard deviations: no noise lies farther out


def noise(seeds: torch.Tensor, shape: tuple[int, ...], *, stream: str) -> torch.Tensor:
    """(B, *shape) float32 standard normal, cut at ± NOISE_CUT."""
    return normal(seeds, shape, stream=stream).clamp_(-NOISE_CUT, NOISE_CUT)


def around_zero(u: torch.Tensor, largest: Any) -> torch.Tensor:
    """Numbers in (0, 1) to numbers in ± largest."""
    return (2 * u - 1) * largest


def whole(u: torch.Tensor, largest: int) -> torch.Tensor:
    """Numbers in (0, 1) to whole numbers in -largest … largest, each as likely."""
    return (u * (2 * largest + 1)).long().clamp_(max=2 * largest) - largest
