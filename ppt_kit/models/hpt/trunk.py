"""The trunk of HPT: every attention has one learned key and value more, and there is no norm behind the blocks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.trunk import Attention, Block, Trunk

EPS = 1e-6


class HPTAttention(Attention):
    """Attention over the keys and one that is learned, which looks like no token: torch's add_bias_kv."""

    def __init__(self, width: int, num_heads: int):
        super().__init__(width, num_heads)
        self.more_key, self.more_value = (nn.Parameter(torch.randn(width) * width**-0.5) for _ in range(2))

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, Q, width). `mask`: bool, broadcasts to (B, heads, Q, K); the learned key is always looked at."""
        parts = zip(self.key_value(keys).chunk(2, dim=-1), (self.more_key, self.more_value))
        k, v = (self._heads(torch.cat([part, more.expand(len(part), 1, -1)], dim=1)) for part, more in parts)
        mask = None if mask is None else F.pad(mask, (0, 1), value=True)
        mixed = F.scaled_dot_product_attention(self._heads(self.query(queries)), k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class HPTBlock(Block):
    """Pre-norm, as every block here."""

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0, name: str = "block"):
        super().__init__(width, num_heads, dropout=dropout, name=name)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attention = HPTAttention(width, num_heads)


class HPTTrunk(Trunk):
    """Its blocks, and nothing behind them."""

    block = HPTBlock

    def __init__(self, *, width: int, depth: int, num_heads: int, dropout: float):
        super().__init__(width=width, depth=depth, num_heads=num_heads, dropout=dropout)
        self.norm = nn.Identity()
