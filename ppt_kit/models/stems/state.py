"""Proprioception."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.gather import Latents
from ppt_kit.models.stems.stem import Stem


class StateStem(Stem):
    """Normalised proprioception (B, To, Ds) -> (B, num_latents, width)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.embed = nn.Sequential(nn.Linear(sizes.spec.state_dim, width), nn.GELU(), nn.Linear(width, width))
        self.gather = Latents(sizes)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return self.gather(self.embed(readings.to(self.gather.dtype)))
