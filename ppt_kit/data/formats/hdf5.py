"""What the HDF5 formats share: a group an episode, whose datasets of one name become one column.

Datasets that lie in the file as plain bytes are read without h5py; others are decoded whole chunks at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ppt_kit.data.disk.rows import PlainRows, Segment
from ppt_kit.data.store import Column, DecodedColumn, PlainColumn
from ppt_kit.errors import UserError

# so much is decoded at once: below it the call costs more than the bytes
WHOLE_BYTES = 1 << 18


@dataclass(frozen=True)
class Leaf:
    """One dataset of one episode."""

    shape: tuple[int, ...]
    dtype: np.dtype
    # where its bytes lie in the file, when they lie in one piece and unfiltered
    offset: int | None
    # how many rows are compressed together; None: it is not chunked
    chunk_rows: int | None

    def rows_at_once(self) -> int:
        """How many rows are best decoded together."""
        size = int(self.dtype.itemsize * np.prod(self.shape, dtype=np.int64))
        if size <= WHOLE_BYTES:
            return self.shape[0]
        return self.chunk_rows or max(1, WHOLE_BYTES * self.shape[0] // size)

    def like(self, other: Leaf) -> bool:
        return self.shape[1:] == other.shape[1:] and self.dtype == other.dtype


def is_hdf5(path: Path) -> bool:
    return path.is_file() and h5py.is_hdf5(path)


def open_file(path: Path) -> h5py.File:
    """
    Raises:
        UserError: the file is cut off or damaged.
    """
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise UserError(f"{path}: this HDF5 file cannot be opened: {error}. Copy or write it again.") from None


@contextmanager
def reading(path: Path, group: str) -> Iterator[None]:
    """Says which group of a file it is that is damaged.

    Raises:
        UserError: HDF5 could not read it.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: {group} cannot be read ({error}). The file is damaged: copy or write it again."
        ) from None


def numbered(names: Iterable[str], prefix: str) -> list[str]:
    """Those names that are the prefix and a number, by their number: demo_2 before demo_10."""
    found = [(int(match[1]), name) for name in names if (match := re.fullmatch(rf"{prefix}(\d+)", name))]
    return [name for _, name in sorted(found)]


class Episodes:
    """The datasets of a file's episodes: the same names in each, of the same row shape and type.

    Args:
        groups: the episodes' groups in the file, in order.
        wanted: names directly under a group that count; groups among them are walked.
    Raises:
        UserError: the file is damaged, or an episode differs from the first.
    """

    def __init__(self, path: Path, file: h5py.File, groups: list[str], *, wanted: Iterable[str]):
        if not groups:
            raise UserError(f"{path}: holds no episode.")
        self.path, self.groups = path, groups
        top = {name.encode() for name in wanted}
        types: dict[str, tuple[h5py.h5t.TypeID, np.dtype]] = {}
        self.found: list[dict[str, Leaf]] = []
        for group in groups:
            with reading(path, group):
                self.found.append(dict(_leaves(h5py.h5g.open(file.id, group.encode()), types, top)))
            self._check_like_first(group)
        self.ends = np.zeros(len(groups), np.int64)
        self._opened: tuple[int, h5py.File] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the datasets, `/` between groups; the same in every episode."""
        return list(self.found[0])

    def set_lengths(self, lengths: list[int], *, one_more: Callable[[str], bool] = lambda name: False) -> None:
        """Says how long the episodes are.

        Args:
            one_more: whether a dataset has one row more than the episode has steps; that last row is not read.
        Raises:
            UserError: a dataset has another number of rows.
        """
        for group, leaves, length in zip(self.groups, self.found, lengths):
            for name, leaf in leaves.items():
                expected = length + one_more(name)
                if leaf.shape[0] != expected:
                    raise UserError(
                        f"{self.path}: {group}/{name} has {leaf.shape[0]} rows, expected {expected}. "
                        "The file is damaged or was not written to its end."
                    )
        self.ends = np.cumsum(lengths, dtype=np.int64)

    def column(
        self,
        *names: str,
        convert: Callable[..., np.ndarray] | None = None,
        row_shape: tuple[int, ...] | None = None,
        dtype: np.dtype | type | None = None,
    ) -> Column:
        """One column over all episodes.

        Args:
            names: the dataset; behind it others that `convert` needs as well.
            convert: takes (n, ...) rows of each dataset, gives (n, *row_shape).
        """
        first = self.found[0][names[0]]
        leaves = [found[names[0]] for found in self.found]
        lengths = np.diff(self.ends, prepend=0).tolist()
        offsets = [leaf.offset for leaf in leaves]
        if convert is None and first.dtype.isnative and None not in offsets:
            segments = [Segment(self.path, int(offset or 0), count) for offset, count in zip(offsets, lengths)]
            return PlainColumn(PlainRows(segments, row_shape=first.shape[1:], dtype=first.dtype), stored_as=names[0])
        shape = (int(self.ends[-1]), *(first.shape[1:] if row_shape is None else row_shape))
        dtype = first.dtype.newbyteorder("=") if dtype is None else np.dtype(dtype)
        how = f"chunks of {first.chunk_rows} rows" if first.chunk_rows else "plain bytes to convert"
        steps = [leaf.rows_at_once() for leaf in leaves]
        return DecodedColumn(
            shape, dtype, self._decoder(names, convert, dtype, steps), stored_as=names[0], layout=f"HDF5, {how}"
        )

    def _decoder(self, names: tuple[str, ...], convert: Callable[..., np.ndarray] | None, dtype: Any, steps: list[int]):
        def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            owner = np.searchsorted(self.ends, rows, side="right")
            for episode in np.unique(owner).tolist():
                start = int(self.ends[episode - 1]) if episode else 0
                for block in np.unique((rows[owner == episode] - start) // steps[episode]).tolist():
                    first = block * steps[episode]
                    last = min(first + steps[episode], int(self.ends[episode]) - start)
                    values = [self._rows(episode, name, first, last) for name in names]
                    yield start + first, np.asarray(convert(*values) if convert else values[0], dtype=dtype)

        return decode

    def _rows(self, episode: int, name: str, first: int, last: int) -> np.ndarray:
        where = f"{self.groups[episode]}/{name}"
        try:
            return self._file()[where][first:last]
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(f"{self.path}: rows {first} to {last} of {where} cannot be decoded: {error}") from None

    def _file(self) -> h5py.File:
        """The file, open in this process: a handle does not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:
                self._opened[1].close()
            self._opened = os.getpid(), open_file(self.path)
        return self._opened[1]

    def _check_like_first(self, group: str) -> None:
        first, mine = self.found[0], self.found[-1]
        if first.keys() != mine.keys():
            name = sorted(first.keys() ^ mine.keys())[0]
            has, lacks = (self.groups[0], group) if name in first else (group, self.groups[0])
            raise UserError(f"{self.path}: {lacks} has no {name}, which {has} has. Leave it out, or write it again.")
        for name, leaf in mine.items():
            if not leaf.like(first[name]):
                raise UserError(
                    f"{self.path}: the rows of {group}/{name} are {leaf.shape[1:]} {leaf.dtype}, "
                    f"those of {self.groups[0]} {first[name].shape[1:]} {first[name].dtype}. "
                    "They cannot be one dataset."
                )


def _leaves(
    group: h5py.h5g.GroupID, types: dict, wanted: set[bytes] | None = None, prefix: str = ""
) -> Iterator[tuple[str, Leaf]]:
    """The arrays of numbers under a group.

    Low-level calls, and an element type is translated once a name: 16000 datasets take 0.8 s of one core; h5py's own
    objects would take 2.5 s.
    """
    for name in group:
        if wanted is not None and name not in wanted:
            continue
        child, where = h5py.h5o.open(group, name), prefix + name.decode()
        if isinstance(child, h5py.h5g.GroupID):
            yield from _leaves(child, types, None, f"{where}/")
            continue
        kind, shape = child.get_type(), child.shape
        if where not in types or not types[where][0].equal(kind):
            types[where] = kind, child.dtype
        dtype = types[where][1]
        # not texts, not single values
        if shape and dtype.kind in "biuf":
            offset, chunk_rows = child.get_offset(), None
            if offset is None:
                plist = child.get_create_plist()
                chunk_rows = plist.get_chunk()[0] if plist.get_layout() == h5py.h5d.CHUNKED else None
            yield where, Leaf(shape, dtype, offset, chunk_rows)
