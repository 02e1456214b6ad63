"""Numbers as buffers that keep their precision: the normaliser's, and tables of schedules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


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
