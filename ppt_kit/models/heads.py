"""Heads: the trunk's tokens -> the next chunk of normalised actions."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.trunk import Block


class RegressionHead(nn.Module):
    """One learned query an action, one block of cross-attention over the trunk's tokens, one linear layer."""

    def __init__(self, dim: int, *, action_horizon: int, width: int, num_heads: int, dropout: float, name: str):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(action_horizon, width) * 0.02)
        self.block = Block(width, num_heads, dropout=dropout, name=name)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor | None) -> torch.Tensor:
        """(B, T, width) -> (B, Ta, Da)."""
        queries = self.queries.expand(len(tokens), -1, -1)
        return self.out(self.block(queries, seeds, keys=tokens))
