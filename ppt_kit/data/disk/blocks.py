"""Rows of a store a block at a time, so that its longest episode need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ppt_kit.data.store import EpisodeStore, metres

# rows of one column in memory at a time
BLOCK_BYTES = 64 << 20


def values_of(store: EpisodeStore, key: str, rows: np.ndarray) -> np.ndarray:
    """Rows of a column as they are written: depths are float32 (n, H, W, 1)."""
    values = store.read(key, rows)
    return metres(values) if key.startswith("obs/depths/") else values


def row_bytes(store: EpisodeStore, key: str) -> int:
    """What one row of a column takes in memory."""
    return int(np.prod(store.shape(key)[1:], dtype=np.int64)) * store.dtype(key).itemsize


def blocks(begin: int, end: int, *, row_bytes: int) -> Iterator[np.ndarray]:
    """The rows from `begin` to `end` in turn, at most BLOCK_BYTES of them at once."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for low in range(begin, end, step):
        yield np.arange(low, min(low + step, end))
