"""Numbers as buffers that keep their precision: the normaliser's, and tables of schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F


class Exact(nn.Module):
    """A module whose buffers stay as they are, float32, whatever the weights are cast to."""

    def _apply(self, fn: Callable, recurse: bool = True) -> Exact:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        # a cast to bfloat16 would round metres to centimetres
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(device=self._buffers[name].device)  # type: ignore[union-attr]
        return self


class Affine(Exact):
    """normalised = (value - offset) * scale."""

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def normalize(self, value: torch.Tensor) -> torch.Tensor:
        return (value - self.offset) * self.scale

    def denormalize(self, value: torch.Tensor) -> torch.Tensor:
        return value / self.scale + self.offset


def normalized_by_row(
    value: torch.Tensor, affines: Sequence[Affine], domain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, W) with each row normalised as its own domain's, and which numbers that domain has, (B, 1, W) bool.

    Numbers that it does not have are zero, whatever they were.

    Args:
        value: (B, T, W) float32, W at least the widest domain's.
        affines: of each domain; narrower ones take the first columns.
        domain: (B,) int64, positions in `affines`.
    """
    width = value.shape[-1]
    wide = lambda numbers: torch.stack([F.pad(each, (0, width - len(each))) for each in numbers])[domain][:, None]
    offset, scale = (wide([getattr(affine, name) for affine in affines]) for name in ("offset", "scale"))
    own = wide([torch.ones_like(affine.offset, dtype=torch.bool) for affine in affines])
    return ((value - offset) * scale).masked_fill(~own, 0.0), own
