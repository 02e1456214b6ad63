"""Point clouds: one vector a frame, the maximum over its points."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.gather import NUM_OCTAVES, Latents, waves
from ppt_kit.models.stems.stem import Stem


class CloudStem(Stem):
    """Point cloud (B, To, P, C) float32, metres -> (B, num_latents, width).

    One MLP for every point, then each frame's maximum. Positions enter with their sines and cosines: an object that
    moves by centimetres inside a scene of a metre changes the maximum of smooth features hardly at all (on
    button-press-topdown the button's place was not learned in 200 steps without them, and to 1 cm with them). LayerNorm
    and no learned rotation: DP3's ablation (Ze et al. 2024) finds that BatchNorm and T-Net are what hurts.
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        hidden = 128
        self.embed = nn.Sequential(
            nn.Linear(sizes.spec.channels + 6 * NUM_OCTAVES, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )
        self.project = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, sizes.width))
        self.gather = Latents(sizes)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        encoded = torch.cat([readings, waves(readings[..., :3])], dim=-1)
        points = self.embed(encoded.to(self.gather.dtype))
        return self.gather(self.project(points.max(dim=2).values))
