"""The averaged weights of a run, whole or in ZeRO-3's shards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


class Averaged:
    """Exponential moving average of the trained weights, in float32; with ZeRO-3 each rank averages its own shard.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that early weights are forgotten soon.
    """

    def __init__(self, policy: nn.Module, *, decay: float):
        trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        self.decay, self.names = decay, [name for name, _ in trained]
        self._sharded = any(hasattr(p, "ds_tensor") for _, p in trained)
        self._live = [getattr(p, "ds_tensor", p) for _, p in trained]
        self.shadow = [tensor.detach().float().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [tensor.detach().float() for tensor in self._live], weight)

    def whole(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """name -> whole averaged tensor, float32, on every rank; every rank must call it."""
        if not self._sharded:
            return dict(zip(self.names, self.shadow))
        gathered = {}
        for name, shard in zip(self.names, self.shadow):
            parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, shard)
            gathered[name] = torch.cat(parts)[: math.prod(shapes[name])].view(shapes[name])
        return gathered

    def load(self, whole: dict[str, torch.Tensor]) -> None:
        """Takes whole averaged tensors, on every rank."""
        for name, shadow in zip(self.names, self.shadow):
            if not self._sharded:
                shadow.copy_(whole[name])
                continue
            shadow.copy_(shard_of(whole[name], size=shadow.numel()))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Swaps the averaged weights in, and the live ones back, also when the block raises."""
        with torch.no_grad():
            kept = [tensor.detach().clone() for tensor in self._live]
            for tensor, average in zip(self._live, self.shadow):
                tensor.data.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(self._live, kept):
                    tensor.data.copy_(value)


def shard_of(whole: torch.Tensor, *, size: int) -> torch.Tensor:
    """(size,) this rank's part of a tensor that ZeRO-3 cuts into equal parts, the last one filled up with zeros."""
    start = size * dist.get_rank()
    part = whole.flatten()[start : start + size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))
