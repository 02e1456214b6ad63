"""Layers that several heads are made of: a decoder over the trunk's tokens, and a pool of them."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.trunk import Attention
from ppt_kit.randomness import dropout


class Linear(nn.Linear):
    """torch's own linear layer: ZeRO-3 replaces the function of nn.Linear by one without forward derivatives."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.linear(input, self.weight, self.bias)


class PlainAttention(Attention):
    """Attention in plain operations: it has forward derivatives, which the fused one lacks."""

    def __init__(self, width: int, num_heads: int):
        super().__init__(width, num_heads)
        self.query, self.key_value, self.out = Linear(width, width), Linear(width, 2 * width), Linear(width, width)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, Q, width). `mask` (B, K) bool: the keys that are looked at."""
        q = self._heads(self.query(queries))
        k, v = (self._heads(part) for part in self.key_value(keys).chunk(2, dim=-1))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Pre-norm: the queries among themselves, then over the tokens, then an MLP."""

    def __init__(self, sizes: Sizes, *, name: str):
        super().__init__()
        width = sizes.width
        self.rate, self.name = sizes.dropout, name
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = PlainAttention(width, sizes.num_heads)
        self.cross_attention = PlainAttention(width, sizes.num_heads)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(
        self, queries: torch.Tensor, tokens: torch.Tensor, seeds: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, Q, width) over tokens (B, T, width). `mask` (B, Q) bool: the queries that the others look at."""
        normed = self.norm_self(queries)
        x = queries + self._drop(self.self_attention(normed, normed, mask), seeds, "self")
        x = x + self._drop(self.cross_attention(self.norm_cross(x), tokens), seeds, "cross")
        return x + self._drop(self.mlp(self.norm_mlp(x)), seeds, "mlp")

    def _drop(self, x: torch.Tensor, seeds: torch.Tensor, part: str) -> torch.Tensor:
        return dropout(x, seeds, rate=self.rate if self.training else 0.0, stream=f"{self.name}.{part}")


class Decoder(nn.Module):
    """Queries (B, Q, width) through `num_layers` decoder layers over tokens (B, T, width), normalised at the end."""

    def __init__(self, sizes: Sizes, *, num_layers: int, name: str = "decoder"):
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(sizes, name=f"{sizes.name}.{name}.{index}") for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(sizes.width)

    def forward(
        self, queries: torch.Tensor, tokens: torch.Tensor, seeds: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        for layer in self.layers:
            queries = layer(queries, tokens, seeds, mask)
        return self.norm(queries)


class Pool(nn.Module):
    """The tokens (B, T, width) as one vector (B, width): what four learned queries gather, side by side."""

    num_queries = 4

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.rate, self.name = sizes.dropout, f"{sizes.name}.pool"
        self.queries = nn.Parameter(torch.randn(self.num_queries, sizes.width) * 0.02)
        self.norm = nn.LayerNorm(sizes.width)
        self.attention = PlainAttention(sizes.width, sizes.num_heads)
        self.project = nn.Linear(self.num_queries * sizes.width, sizes.width)

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        gathered = self.attention(self.queries.expand(len(tokens), -1, -1), self.norm(tokens))
        pooled = self.project(gathered.flatten(1))
        return dropout(pooled, seeds, rate=self.rate if self.training else 0.0, stream=self.name)
