"""Rows that lie one after the other in files, as plain bytes.

Small columns are read through memory maps, the fastest way there is. Of large ones, big rows are read with pread: the
pages stay the page cache's, so that the process does not come to hold (and on a cluster is not charged for, or refused)
the dataset it goes through. While reading is slow, because the disk has to be asked, the disk hears of all of a batch's
rows before the first is waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# from here on a Python step a row costs less than numpy's gathering it twice
BIG_ROW_BYTES = 4096
# columns up to this size are mapped
MAPPED_BYTES = 384 << 20
# a run of rows that takes longer than this did not come out of the page cache
SLOW_S = 3e-4
# files of one column that are open at once: a map holds a descriptor too, and 1024 are usual
MOST_OPEN = 64


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
        # until the first read shows how it is
        self._slow = True

    def read_into(self, out: np.ndarray, rows: np.ndarray) -> None:
        """Fills out (M, ...) with the rows (M,), any order, repeats allowed.

        Raises:
            OSError: a file is gone or shorter than it was.
        """
        if not len(rows):
            return
        big, large = self._row_bytes >= BIG_ROW_BYTES, self.shape[0] * self._row_bytes > MAPPED_BYTES
        began, by_calls = time.perf_counter(), len(self._files) > MOST_OPEN or (big and (large or self._slow))
        self._read(out, rows, big=big, by_calls=by_calls)
        self._slow = time.perf_counter() - began > SLOW_S * len(rows)

    def _read(self, out: np.ndarray, rows: np.ndarray, *, big: bool, by_calls: bool) -> None:
        if len(self.segments) == 1 and not by_calls:
            whole = self._map(0)[self._offsets[0] :][: self.shape[0] * self._row_bytes]
            # mode "raise" would gather into a copy first
            np.take(whole.view(self.dtype).reshape(self.shape), rows, axis=0, out=out, mode="clip")
            return
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        files, places = self._file_of[owner], self._offsets[owner] + (rows - self._starts[owner]) * self._row_bytes
        if big or by_calls:
            self._read_runs(out, files, places, from_maps=not by_calls)
        else:
            for number in np.unique(files).tolist():
                mine = files == number
                # one item a byte, each as long as a row: rows are picked in one go, wherever their segments lie
                raw = self._map(number)
                items = np.ndarray(
                    (raw.size - self._row_bytes + 1,), f"V{self._row_bytes}", buffer=raw.data, strides=(1,)
                )
                out[mine] = items[places[mine]].view(self.dtype).reshape(-1, *self.shape[1:])

    def _read_runs(self, out: np.ndarray, files: np.ndarray, places: np.ndarray, *, from_maps: bool) -> None:
        """One copy a run of rows that follow each other both on disk and in `out`: the frames of a window do."""
        size = self._row_bytes
        breaks = np.flatnonzero((places[1:] != places[:-1] + size) | (files[1:] != files[:-1])) + 1
        begins = np.concatenate([[0], breaks])
        edges = [*(begins * size).tolist(), len(places) * size]
        runs = list(zip(edges, edges[1:], files[begins].tolist(), places[begins].tolist()))
        raw = out.reshape(-1).view(np.uint8)
        if from_maps:
            maps = {number: self._map(number) for number in set(files[begins].tolist())}
            for begin, end, number, place in runs:
                raw[begin:end] = maps[number][place : place + end - begin]
            return
        target = raw.data
        handles: dict[int, int] = {}
        try:
            for begin, end, number, place in runs if self._slow and hasattr(os, "posix_fadvise") else ():
                handle = self._handle(handles, number)
                os.posix_fadvise(handle, place, end - begin, os.POSIX_FADV_WILLNEED)
            for begin, end, number, place in runs:
                _read_all(self._handle(handles, number), target[begin:end], place)
        finally:
            for handle in handles.values():
                os.close(handle)

    def _handle(self, handles: dict[int, int], number: int) -> int:
        if number not in handles:
            if len(handles) >= MOST_OPEN:
                os.close(handles.pop(next(iter(handles))))
            handles[number] = os.open(self._files[number], os.O_RDONLY)
        return handles[number]

    def _map(self, number: int) -> np.ndarray:
        """(bytes,) uint8 of one file."""
        if number not in self._maps:
            mapped = np.memmap(self._files[number], np.uint8, "r")
            mine = self._file_of == number
            if (self._offsets[mine] + np.diff(self._starts)[mine] * self._row_bytes).max() > mapped.size:
                raise OSError(f"{self._files[number]} is shorter than its dataset says")
            # np.memmap's own indexing is ten times slower
            self._maps[number] = mapped.view(np.ndarray)
        return self._maps[number]


def bytes_under(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def spread(count: int, total: int) -> np.ndarray:
    """At most `count` of `total` rows, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def _read_all(handle: int, target: memoryview, offset: int) -> None:
    while len(target):
        count = os.preadv(handle, [target], offset)
        if count == 0:
            raise OSError("the file is shorter than its dataset says")
        target, offset = target[count:], offset + count
