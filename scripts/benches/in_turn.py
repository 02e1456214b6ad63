"""Two ways of doing the same, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Pairs = list[tuple[float, float]]


def in_turn(bare: Callable, ours: Callable, *, block: int, rounds: int) -> Pairs:
    """[(seconds a call of `bare`, of `ours`)], measured in turn, so that a machine that slows down slows both."""
    bare(), ours()
    return [(_seconds_a_call(bare, block), _seconds_a_call(ours, block)) for _ in range(rounds)]


def ratio(pairs: Pairs) -> float:
    """Median of ours over bare."""
    return statistics.median(ours / bare for bare, ours in pairs)


def _seconds_a_call(way: Callable, block: int) -> float:
    began = time.perf_counter()
    for _ in range(block):
        way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / block
