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
MOST_OPEN = 64  # files of one column that are open at once: a map holds a descriptor too, and 1024 are usual


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
        self._files = list(dict.fromkeys(segment.path for segment in self.segments))
        numbers = {path: number for number, path in enumerate(self._files)}
        self._file_of = np.array([numbers[segment.path] for segment in self.segments], np.int64)
        self._offsets = np.array([segment.offset for segment in self.segments], np.int64)
        self._maps: dict[int, np.ndarray] = {}

    def read_into(self, out: np.ndarray, rows: np.ndarray) -> None:
        """Fills out (M, ...) with the rows (M,), any order, repeats allowed.

        Raises:
            OSError: a file is gone or shorter than it was.
        """
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        inside = rows - self._starts[owner]
        if self._row_bytes >= BIG_ROW_BYTES or len(self._files) > MOST_OPEN:
            self._pread(out, owner, inside)
            return
        file_of, places = self._file_of[owner], self._offsets[owner] + inside * self._row_bytes
        for number in np.unique(file_of).tolist():
            mine = file_of == number
            out[mine] = self._gather(number, places[mine])

    def _pread(self, out: np.ndarray, owner: np.ndarray, inside: np.ndarray) -> None:
        """One system call a run of rows that follow each other both on disk and in `out`."""
        if not len(inside):
            return
        breaks = np.flatnonzero((np.diff(inside) != 1) | (np.diff(owner) != 0)) + 1
        begins = np.concatenate([[0], breaks]).tolist()
        ends = [*begins[1:], len(inside)]
        target, size = memoryview(out.reshape(-1).view(np.uint8)), self._row_bytes
        handles: dict[int, int] = {}
        try:
            for begin, end in zip(begins, ends):
                index = int(owner[begin])
                number = int(self._file_of[index])
                if number not in handles:
                    if len(handles) >= MOST_OPEN:
                        os.close(handles.pop(next(iter(handles))))
                    handles[number] = os.open(self._files[number], os.O_RDONLY)
                offset = self.segments[index].offset + int(inside[begin]) * size
                _read_all(handles[number], target[begin * size : end * size], offset)
        finally:
            for handle in handles.values():
                os.close(handle)

    def _gather(self, number: int, places: np.ndarray) -> np.ndarray:
        """(M, ...) the rows that start at the bytes `places` (M,) of one file."""
        if number not in self._maps:
            mapped = np.memmap(self._files[number], np.uint8, "r")
            mine = self._file_of == number
            counts = np.diff(self._starts)[mine]
            if (self._offsets[mine] + counts * self._row_bytes).max() > mapped.size:
                raise OSError(f"{self._files[number]} is shorter than its dataset says")
            # one item a byte, each as long as a row: rows are picked in one go, wherever their segments lie
            shape = (mapped.size - self._row_bytes + 1,)
            self._maps[number] = np.ndarray(shape, f"V{self._row_bytes}", buffer=mapped, strides=(1,))
        return self._maps[number][places].view(self.dtype).reshape(len(places), *self.shape[1:])


def _read_all(handle: int, target: memoryview, offset: int) -> None:
    while len(target):
        count = os.preadv(handle, [target], offset)
        if count == 0:
            raise OSError("the file is shorter than its dataset says")
        target, offset = target[count:], offset + count
