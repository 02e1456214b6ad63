"""Point clouds by DP3's encoder: one vector a frame."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.gather import Latents
from ppt_kit.models.stems.options import whole
from ppt_kit.models.stems.stem import Stem


class DP3Stem(Stem):
    """Point cloud (B, To, P, C) float32, metres -> (B, num_latents, width); passed through (B, To, width).

    An MLP of three layers for every point, LayerNorm in each, the maximum over a frame's points, one projection. There
    is no BatchNorm and no learned rotation: the paper's ablation finds that these are what hurts.

    Args:
        hidden: width of the first layer; the second has twice, the third four times as much.
    Source: Ze et al. 2024, 3D Diffusion Policy, section on the DP3 encoder.
    """

    def __init__(self, sizes: Sizes, *, hidden: int = 64):
        super().__init__()
        hidden = whole(sizes, "hidden", hidden, low=4, high=1024)
        widths = [sizes.spec.channels, hidden, 2 * hidden, 4 * hidden]
        layers = [
            nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU())
            for before, after in zip(widths, widths[1:])
        ]
        self.embed = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(widths[-1], sizes.width), nn.LayerNorm(sizes.width))
        self.gather = Latents(sizes)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        points = self.embed(readings.to(self.gather.dtype))
        return self.gather(self.project(points.amax(dim=2)))
