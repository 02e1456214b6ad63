"""Stems: one modality's readings over the observation horizon -> a few latent tokens for the trunk.

Each stem embeds its readings, adds a time embedding, and lets learned latents gather from them by cross-attention
(Perceiver: Jaegle et al. 2021; in policies: HPT, Wang et al. 2024, and PPT in GenSim2, 2024).
"""

from __future__ import annotations

import torch
from torch import nn


class Latents(nn.Module):
    """Learned queries that gather from (B, To, n, dim) readings: (B, num_latents, width).

    Multi-head cross-attention, arranged so that the many readings are never projected: a query is taken into the
    readings' space instead (q·Wk x = Wk'q · x), and values are projected after they were averaged. With 1024 points a
    sample this is a third of the work, and the same function.
    """

    def __init__(self, dim: int, *, num_latents: int, horizon: int, width: int, num_heads: int):
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        self.latents = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.time = nn.Parameter(torch.randn(horizon, 1, dim) * 0.02)
        self.query = nn.Linear(width, width)
        self.key = nn.Parameter(torch.randn(num_heads, self.head_width, dim) * dim**-0.5)
        self.value = nn.Parameter(torch.randn(num_heads, self.head_width, dim) * dim**-0.5)
        self.out = nn.Linear(width, width)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        keys = (readings + self.time).flatten(1, 2)
        query = self.query(self.latents).unflatten(-1, (self.num_heads, self.head_width))
        probe = torch.einsum("lhw,hwd->hld", query, self.key).flatten(0, 1) * self.head_width**-0.5
        weights = (probe @ keys.transpose(1, 2)).softmax(dim=-1)
        gathered = (weights @ keys).unflatten(1, (self.num_heads, -1))
        mixed = torch.einsum("bhld,hwd->blhw", gathered, self.value).flatten(2)
        return self.latents + self.out(mixed)


class StateStem(nn.Module):
    """Normalised proprioception (B, To, Ds) -> (B, num_latents, width)."""

    def __init__(self, dim: int, *, num_latents: int, horizon: int, width: int, num_heads: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.gather = Latents(width, num_latents=num_latents, horizon=horizon, width=width, num_heads=num_heads)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.gather(self.embed(state).unsqueeze(2))


class CloudStem(nn.Module):
    """Point cloud (B, To, P, C), metres -> (B, num_latents + To, width).

    A shared MLP per point with LayerNorm and without a learned rotation (the DP3 ablation, Ze et al. 2024, Table on
    encoders, finds that BatchNorm and T-Net are what hurts), latents over the points, and each frame's maximum.
    """

    def __init__(self, channels: int, *, num_latents: int, horizon: int, width: int, num_heads: int):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(channels, 64), nn.LayerNorm(64), nn.ReLU(),
            nn.Linear(64, width), nn.LayerNorm(width),
        )  # fmt: skip
        self.gather = Latents(width, num_latents=num_latents, horizon=horizon, width=width, num_heads=num_heads)
        self.project = nn.Linear(width, width)

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        points = self.embed(cloud)
        highest = self.project(points.max(dim=2).values) + self.gather.time.squeeze(1)
        return torch.cat([self.gather(points), highest], dim=1)
