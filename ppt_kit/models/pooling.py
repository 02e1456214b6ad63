"""Between trunk and head: learned places of tokens, and many tokens made few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

POOLINGS = ("none", "mean", "max", "concat", "modal_mean")


class Positions(nn.Module):
    """Adds a learned vector to each token slot: (B, T, width) -> (B, T, width)."""

    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_tokens, width) * 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.position


class Pooling(nn.Module):
    """Tokens (B, T, width) -> fewer.

    Args:
        kind: mean, max -> (B, 1, width), over all tokens; concat -> (B, 1, width), all of them projected; modal_mean
            -> (B, M, width), each modality's mean.
        counts: tokens of each modality, in the order they stand; only concat and modal_mean read them.
    """

    def __init__(self, kind: str, *, counts: Sequence[int], width: int):
        super().__init__()
        self.kind, self.counts = kind, list(counts)
        if kind == "concat":
            self.project = nn.Linear(sum(counts) * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.kind == "concat":
            return self.project(tokens.flatten(1))[:, None]
        if self.kind == "modal_mean":
            return torch.stack([part.mean(1) for part in tokens.split(self.counts, dim=1)], dim=1)
        return tokens.mean(1, keepdim=True) if self.kind == "mean" else tokens.amax(1, keepdim=True)
