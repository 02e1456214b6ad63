"""What stems and heads of ppt_learning are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.part import Sizes


def perceptron(inside: int, widths: Sequence[int], outside: int, *, norm: bool, tanh: bool = False) -> nn.Sequential:
    """ReLU behind every layer but the last; LayerNorm before it from the second layer on where `norm`."""
    layers: list[nn.Module] = [nn.Linear(inside, widths[0]), nn.ReLU()]
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
    layers.append(nn.Linear(widths[-1], outside))
    return nn.Sequential(*layers, *([nn.Tanh()] if tanh else []))


class FrameLatents(nn.Module):
    """Tokens of each frame: learned queries that attend to the frame's local tokens alone; or these, passed through.

    There is no norm and no residual path, and the heads need not be as wide together as a token.

    Args:
        sizes: num_latents is the number of tokens of a *frame*; null = its local tokens.
        num_heads, dim_head: of the attention.
    Source: Perceiver IO, Jaegle et al. 2021, as HPT has it.
    """

    def __init__(self, sizes: Sizes, *, num_heads: int, dim_head: int):
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * dim_head
        self.gathers = sizes.num_latents is not None
        if sizes.num_latents is None:
            return
        self.latents = nn.Parameter(torch.randn(sizes.num_latents, sizes.width) * 0.02)
        self.query = nn.Linear(sizes.width, inner, bias=False)
        self.key_value = nn.Linear(sizes.width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, sizes.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, To, N, width), N local tokens a frame -> (B, To * num_latents, width), frame by frame."""
        if not self.gathers:
            return tokens.flatten(1, 2)
        frames = tokens.flatten(0, 1)
        queries = self.query(self.latents).expand(len(frames), -1, -1)
        parts = (queries, *self.key_value(frames).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(mixed).unflatten(0, tokens.shape[:2]).flatten(1, 2)
