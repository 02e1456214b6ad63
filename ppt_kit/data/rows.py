"""Rows that lie one after the other in files, as plain bytes.

Big rows are read with pread, not through a memory map: as fast within a quarter, and the pages stay the page cache's, so
that a process does not seem to hold (and on a cluster is not charged for) the dataset it went through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# below this a row is gathered out of a memory map: a system call costs more than its copy
BIG_ROW_BYTES = 4096


@dataclass(frozen=True)
class Segment:
    """`count` rows in a file, from the byte `offset` on."""

    path: Path
    offset: int
    count: int


class PlainRows:
    """Rows in one or many files.

    Args:
        segments: where the rows lie; row 0 is the first of the first.
        row_shape: shape of one row.
        dtype: as on disk.
    """

    def __init__(self, segments: Sequence[Segment], *, row_shape: tuple[int, ...], dtype: np.dtype | str):
        self.segments, self.dtype = list(segments), np.dtype(dtype)
        self._starts = np.concatenate([[0], np.cumsum([segment.count for segment in segments])]).astype(np.int64)
        self.shape = (int(self._starts[-1]), *row_shape)
        self._row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        self._maps: dict[int, np.ndarray] = {}

    def read_into(self, out: np.ndarray, rows: np.ndarray) -> None:
        """Fills out (M, ...) with the rows (M,), any order, repeats allowed.

        Raises:
            OSError: a file is gone or shorter than it was.
        """
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        inside = rows - self._starts[owner]
        if self._row_bytes >= BIG_ROW_BYTES:
            self._pread(out, owner, inside)
        elif len(self.segments) == 1:
            out[:] = self._map(0)[inside]
        else:
            for index in np.unique(owner).tolist():
                mine = owner == index
                out[mine] = self._map(index)[inside[mine]]

    def _pread(self, out: np.ndarray, owner: np.ndarray, inside: np.ndarray) -> None:
        """One system call a run of rows that follow each other both on disk and in `out`."""
        if not len(inside):
            return
        breaks = np.flatnonzero((np.diff(inside) != 1) | (np.diff(owner) != 0)) + 1
        begins = np.concatenate([[0], breaks]).tolist()
        ends = [*begins[1:], len(inside)]
        target, size = out.reshape(-1).view(np.uint8).data, self._row_bytes
        handles: dict[int, int] = {}
        try:
            for begin, end in zip(begins, ends):
                index = int(owner[begin])
                if index not in handles:
                    handles[index] = os.open(self.segments[index].path, os.O_RDONLY)
                offset = self.segments[index].offset + int(inside[begin]) * size
                _read_all(handles[index], target[begin * size : end * size], offset)
        finally:
            for handle in handles.values():
                os.close(handle)

    def _map(self, index: int) -> np.ndarray:
        if index not in self._maps:
            segment = self.segments[index]
            shape = (segment.count, *self.shape[1:])
            mapped = np.memmap(segment.path, self.dtype, "r", offset=segment.offset, shape=shape)
            self._maps[index] = mapped.view(np.ndarray)  # np.memmap's own indexing is ten times slower
        return self._maps[index]


def _read_all(handle: int, target: memoryview, offset: int) -> None:
    while len(target):
        count = os.preadv(handle, [target], offset)
        if count == 0:
            raise OSError("the file is shorter than its dataset says")
        target, offset = target[count:], offset + count
