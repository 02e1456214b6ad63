"""Learned latents that gather from what was seen, by cross-attention.

Perceiver: Jaegle et al. 2021; in policies: HPT, Wang et al. 2024, and PPT in GenSim2, 2024.
"""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.trunk import Attention


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
