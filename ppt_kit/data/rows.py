"""Rows that lie one after the other in files, as plain bytes.

Small columns are read through memory maps, the fastest way there is. Of large ones, big rows are read with pread: the pages
stay the page cache's, so that the process does not come to hold (and on a cluster is not charged for, or refused) the
dataset it goes through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BIG_ROW_BYTES = 4096  # from here on a Python step a row costs less than numpy's gathering it twice
MAPPED_BYTES = 384 << 20  # columns up to this size are mapped whole


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
        mapped = self.shape[0] * self._row_bytes <= MAPPED_BYTES or self._row_bytes < BIG_ROW_BYTES
        if mapped and len(self.segments) == 1:
            np.take(self._map(0), rows, axis=0, out=out, mode="clip")  # "raise" would gather into a copy first
            return
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        inside = rows - self._starts[owner]
        if self._row_bytes >= BIG_ROW_BYTES:
            self._read_runs(out, owner, inside)
        else:
            for index in np.unique(owner).tolist():
                mine = owner == index
                out[mine] = self._map(index)[inside[mine]]

    def _read_runs(self, out: np.ndarray, owner: np.ndarray, inside: np.ndarray) -> None:
        """One copy a run of rows that follow each other both on disk and in `out`: the frames of a window do."""
        breaks = np.flatnonzero((inside[1:] != inside[:-1] + 1) | (owner[1:] != owner[:-1])) + 1
        begins = np.concatenate([[0], breaks]) if len(inside) else breaks
        places, files, firsts = [*begins.tolist(), len(inside)], owner[begins].tolist(), inside[begins].tolist()
        if self.shape[0] * self._row_bytes <= MAPPED_BYTES:
            maps = {index: self._map(index) for index in set(files)}
            for begin, end, index, first in zip(places, places[1:], files, firsts):
                out[begin:end] = maps[index][first : first + end - begin]
            return
        target, size = out.reshape(-1).view(np.uint8).data, self._row_bytes
        handles = dict.fromkeys(files, -1)
        try:
            for index in handles:
                handles[index] = os.open(self.segments[index].path, os.O_RDONLY)
            for begin, end, index, first in zip(places, places[1:], files, firsts):
                _read_all(handles[index], target[begin * size : end * size], self.segments[index].offset + first * size)
        finally:
            for handle in handles.values():
                if handle >= 0:
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
