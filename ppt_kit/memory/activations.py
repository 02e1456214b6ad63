"""What a batch takes while it goes forward and back: measured on the policy itself, with two sizes of batch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# of the measuring (s): the second batch is as large as this allows
PATIENCE_S = 10.0
# of the memory that is free: the second batch is as large as this allows
SHARE = 0.25


@dataclass(frozen=True)
class Activations:
    """Bytes that a batch takes beside weights and gradients, as a line through two measured batches.

    Attributes:
        fixed: whatever the batch: the gradient of one tensor among it.
        per_window: of each window more.
        measured: windows of a batch -> bytes.
        device: where it was measured.
    """

    fixed: float
    per_window: float
    measured: dict[int, int]
    device: str

    @classmethod
    def through(cls, measured: dict[int, int], *, device: str) -> Activations:
        """The line through the smallest and the largest batch."""
        small, large = min(measured), max(measured)
        slope = (measured[large] - measured[small]) / max(1, large - small)
        return cls(max(0.0, measured[small] - slope * small), max(0.0, slope), measured, device)

    def of(self, batch_size: int) -> float:
        """Bytes of a batch."""
        return self.fixed + self.per_window * batch_size


def measure(
    policy: nn.Module, batch_of: Callable[[int], dict], *, precision: str, wanted: int, free: float
) -> Activations:
    """The most that forward and backward of the policy hold beside weights and gradients, on its device.

    Gradients are dropped as they come. The weights may be rounded by this.

    Args:
        batch_of: gives a batch of so many windows on that device.
        wanted: windows of the batch that is planned: it is measured itself if it is quick and small enough.
        free: bytes of that device that may be taken.
    """
    measured: dict[int, int] = {}
    with _as_trained(policy, precision):
        first = max(1, min(2, wanted // 2))
        # the first call makes what later ones reuse
        _peak(policy, batch_of(first), precision)
        began = time.monotonic()
        measured[first] = _peak(policy, batch_of(first), precision)
        seconds = (time.monotonic() - began) / first
        bytes_each = max(1.0, measured[first] / first)
        largest = int(min(wanted, PATIENCE_S / 2 / max(seconds, 1e-6), free * SHARE / bytes_each))
        for size in sorted({max(first + 1, largest // 2), max(first + 1, largest)}):
            measured[size] = _peak(policy, batch_of(size), precision)
    sizes = sorted(measured)[-2:]
    device = next(policy.parameters()).device.type
    return Activations.through({size: measured[size] for size in sizes}, device=device)


def _peak(policy: nn.Module, batch: dict, precision: str) -> int:
    device = next(policy.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _forward_and_back(policy, batch, precision)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        seen.start()
    try:
        _forward_and_back(policy, batch, precision)
    finally:
        with _quiet():
            seen.stop()
    return _most_held(seen)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler writes to the process's stderr that it starts and stops."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _most_held(seen: profile) -> int:
    """Of what torch's allocator of host memory gave and took back, in the order it did."""
    results: Any = seen.profiler and seen.profiler.kineto_results
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = most = 0
    for _, count in events:
        held += count
        most = max(most, held)
    return most


def _forward_and_back(policy: nn.Module, batch: dict, precision: str) -> None:
    device = next(policy.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
        loss = policy(batch)["loss"]
    loss.backward()


@contextlib.contextmanager
def _as_trained(policy: nn.Module, precision: str) -> Iterator[None]:
    """Inside, the policy has the precision of a run, is in training mode and keeps no gradient."""

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    kept = {name: value.dtype for name, value in (*policy.named_parameters(), *policy.named_buffers())}
    hooks = [p.register_post_accumulate_grad_hook(drop) for p in policy.parameters() if p.requires_grad]
    mode = policy.training
    if precision in HALF:
        # a processor without fp16 takes as much for bf16
        on_gpu = next(policy.parameters()).device.type == "cuda"
        policy.to(HALF[precision] if on_gpu else torch.bfloat16)
    policy.train()
    try:
        yield
    finally:
        policy.train(mode)
        for hook in hooks:
            hook.remove()
        named: dict[str, Any] = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
        for name, value in named.items():
            value.data = value.data.to(kept[name])
