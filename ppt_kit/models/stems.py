"""Stems: one modality's readings over the observation horizon -> a few latent tokens for the trunk.

Each stem embeds a frame, adds a time embedding, and lets learned latents gather from the frames by cross-attention
(Perceiver: Jaegle et al. 2021; in policies: HPT, Wang et al. 2024, and PPT in GenSim2, 2024).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ppt_kit.models.trunk import Attention

NUM_OCTAVES = 5  # wavelengths of 2 m down to 12.5 cm


class Latents(nn.Module):
    """Learned queries that gather from frames (B, To, width): (B, num_latents, width)."""

    def __init__(self, *, num_latents: int, horizon: int, width: int, num_heads: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.time = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        queries = self.latents.expand(len(frames), -1, -1)
        return queries + self.attention(queries, self.norm(frames + self.time))


class StateStem(nn.Module):
    """Normalised proprioception (B, To, Ds) -> (B, num_latents, width)."""

    def __init__(self, dim: int, *, num_latents: int, horizon: int, width: int, num_heads: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.gather = Latents(num_latents=num_latents, horizon=horizon, width=width, num_heads=num_heads)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.gather(self.embed(state))


class CloudStem(nn.Module):
    """Point cloud (B, To, P, C) float32, metres -> (B, num_latents, width).

    One MLP for every point, then each frame's maximum. Positions enter with their sines and cosines: an object that
    moves by centimetres inside a scene of a metre changes the maximum of smooth features hardly at all (on
    button-press-topdown the button's place was not learned in 200 steps without them, and to 1 cm with them). LayerNorm
    and no learned rotation: DP3's ablation (Ze et al. 2024) finds that BatchNorm and T-Net are what hurts.
    """

    def __init__(self, channels: int, *, num_latents: int, horizon: int, width: int, num_heads: int):
        super().__init__()
        hidden = 128
        self.embed = nn.Sequential(
            nn.Linear(channels + 6 * NUM_OCTAVES, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.project = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
        self.gather = Latents(num_latents=num_latents, horizon=horizon, width=width, num_heads=num_heads)

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        # made here, in float32: a buffer would be cast with the weights, and training and use would differ
        octaves = math.pi * 2.0 ** torch.arange(NUM_OCTAVES, device=cloud.device)
        angles = (cloud[..., :3, None] * octaves).flatten(-2)
        encoded = torch.cat(
            [cloud, angles.sin(), angles.cos()], dim=-1
        )  # in float32: bfloat16 holds metres to millimetres
        points = self.embed(encoded.to(self.gather.latents.dtype))
        return self.gather(self.project(points.max(dim=2).values))
