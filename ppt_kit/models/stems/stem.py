"""The contract of stems: one modality's readings over the observation horizon -> tokens for the trunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Stem(nn.Module):
    """What turns the readings of one modality of one domain into tokens.

    A stem of yours is derived from this, takes `sizes` (ppt_kit.models.part.Sizes) and options of its own, and says
    `forward(readings, seeds) -> (B, n, width)`. Readings are state (B, To, Ds) float32 normalised, pointcloud
    (B, To, P, C) float32 m, rgb {camera: (B, To, H, W, 3) uint8}, depth {camera: (B, To, H, W, 1) float32 m}, language
    [B sentences]; seeds (B,) int64 make its noise. n must not depend on the readings.

    Attributes:
        takes_missing: whether `forward` has a third argument `missing`: {camera: (B,) bool}, true where the camera was
            not there and its readings are zeros that must enter nothing; never true of all cameras of a sample. None =
            all are there.
    """

    takes_missing = False

    def forward(self, readings: Any, seeds: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
