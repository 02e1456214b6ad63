"""Memory for batches, used again once nobody holds the batch.

Fresh memory costs a page fault every 4 KiB, more than the copy into it (a batch of two cameras: 2-4 times).
"""

from __future__ import annotations

import sys
import threading

import numpy as np

# bytes; below, the allocator keeps what was freed
SMALLEST = 1 << 20
# buffers that may lie ready
MOST_HELD = 16

_held: list[np.ndarray] = []
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.empty; of a large array the memory comes from one that nobody refers to any more."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    with _lock:
        for index in range(len(_held)):
            # every view, and every tensor made from one, holds a reference to the buffer that owns the memory; with the
            # list's and getrefcount's own there are two when none is left
            if size <= _held[index].nbytes <= 2 * size and sys.getrefcount(_held[index]) == 2:
                buffer = _held.pop(index)
                break
        else:
            buffer = np.empty(size, np.uint8)
        _held.append(buffer)
        # the ones that were not asked for for longest go
        del _held[:-MOST_HELD]
        return buffer[:size].view(dtype).reshape(shape)
