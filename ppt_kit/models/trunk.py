"""The transformer that mixes all modalities' tokens, and the attention block stems, trunk and head share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ppt_kit.randomness import dropout


class Attention(nn.Module):
    """Multi-head attention of queries (B, Q, width) over keys (B, K, width)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, Q, width). `mask`: bool, broadcasts to (B, heads, Q, K); False = the key is not looked at."""
        q = self._heads(self.query(queries))
        k, v = (self._heads(part) for part in self.key_value(keys).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention and MLP; over the tokens themselves, or over `keys` when they are given."""

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0, name: str = "block"):
        super().__init__()
        self.dropout, self.name = dropout, name
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor, *, keys: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, width) -> (B, T, width). `seeds` (B,) int64 make the dropout of training."""
        normed = self.norm_attention(tokens)
        tokens = tokens + self._drop(self.attention(normed, normed if keys is None else keys), seeds, "attention")
        return tokens + self._drop(self.mlp(self.norm_mlp(tokens)), seeds, "mlp")

    def _drop(self, x: torch.Tensor, seeds: torch.Tensor, part: str) -> torch.Tensor:
        if not self.training:
            return x
        return dropout(x, seeds, rate=self.dropout, stream=f"{self.name}.{part}")


class Trunk(nn.Module):
    """Transformer over the tokens of all stems."""

    block: type[Block] = Block
    norm: nn.Module

    def __init__(self, *, width: int, depth: int, num_heads: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            self.block(width, num_heads, dropout=dropout, name=f"trunk.{index}") for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        # activation checkpointing: the dropout is counted, so the second pass repeats the first
        self.recompute = False

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, T, width)."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, seeds, use_reentrant=False)
            else:
                tokens = block(tokens, seeds)
        return self.norm(tokens)
