"""Stems: one modality's readings over the observation horizon -> a few latent tokens for the trunk.

Each stem embeds a frame, adds a time embedding, and lets learned latents gather from the frames by cross-attention
(Perceiver: Jaegle et al. 2021; in policies: HPT, Wang et al. 2024, and PPT in GenSim2, 2024).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.trunk import Attention

# wavelengths of 2 m down to 12.5 cm
NUM_OCTAVES = 5


class Latents(nn.Module):
    """Learned queries that gather from frames (B, To, width): (B, num_latents, width)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.latents = nn.Parameter(torch.randn(sizes.num_latents, width) * 0.02)
        self.time = nn.Parameter(torch.randn(sizes.horizon.observation, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, sizes.num_heads)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        queries = self.latents.expand(len(frames), -1, -1)
        return queries + self.attention(queries, self.norm(frames + self.time))


class Stem(nn.Module):
    """What turns the readings of one modality of one domain into tokens.

    A stem of yours is derived from this, takes `sizes` (ppt_kit.models.part.Sizes) and options of its own, and says
    `forward(readings, seeds) -> (B, n, width)`. Readings are state (B, To, Ds) float32 normalised, pointcloud
    (B, To, P, C) float32 m, rgb {camera: (B, To, H, W, 3) uint8}, depth {camera: (B, To, H, W, 1) float32 m}, language
    [B sentences]; seeds (B,) int64 make its noise. n must not depend on the readings.
    """

    def forward(self, readings: Any, seeds: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class StateStem(Stem):
    """Normalised proprioception (B, To, Ds) -> (B, num_latents, width)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.width
        self.embed = nn.Sequential(nn.Linear(sizes.spec.state_dim, width), nn.GELU(), nn.Linear(width, width))
        self.gather = Latents(sizes)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return self.gather(self.embed(readings.to(self.gather.latents.dtype)))


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
        # made here, in float32: a buffer would be cast with the weights, and training and use would differ
        octaves = math.pi * 2.0 ** torch.arange(NUM_OCTAVES, device=readings.device)
        angles = (readings[..., :3, None] * octaves).flatten(-2)
        # in float32: bfloat16 holds metres to millimetres
        encoded = torch.cat([readings, angles.sin(), angles.cos()], dim=-1)
        points = self.embed(encoded.to(self.gather.latents.dtype))
        return self.gather(self.project(points.max(dim=2).values))


STEMS: dict[str, type[Stem]] = {"mlp": StateStem, "points": CloudStem}
