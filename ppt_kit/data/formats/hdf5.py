"""What the HDF5 formats share: a group an episode, whose datasets of one name become one column.

Datasets that lie in the file as plain bytes are read without h5py; others are decoded whole chunks at a time.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

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


def warn_of_unnumbered(path: Path, group: h5py.Group, taken: Iterable[str], *, prefix: str) -> dict[str, str]:
    """Groups that look like episodes and are none by their names: {name: why they are left out}; says so once."""
    names = [name for name in group if name not in set(taken) and _is_episode(group, name, prefix)]
    if names:
        log.warning(
            "%s: %s %s left out: an episode is called %s<number>. Rename them, as h5py's move(old, new) does, to have "
            "them read", path, _few(names), "is" if len(names) == 1 else "are", prefix,
        )  # fmt: skip
    inside = "" if group.name == "/" else f"{(group.name or '').strip('/')}/"
    return {f"{inside}{name}": f"no episode: call it {prefix}<number> to have it read" for name in names}


def _is_episode(group: h5py.Group, name: str, prefix: str) -> bool:
    if name.startswith(prefix):
        return True
    child = group.get(name)
    return isinstance(child, h5py.Group) and "actions" in child


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:
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
            raise UserError(f"{path}: holds no episode: none of its groups is called as one, with a number.")
        self.path, self.groups = path, groups
        top = {name.encode() for name in wanted}
        self.found: list[dict[str, Leaf]] = []
        walk = Walk(file.id, top)
        for group in groups:
            with reading(path, group):
                self.found.append(dict(walk.leaves(group)))
            self._check_like_first(group)
        self.left_out, self._unwritten = walk.left_out, walk.unwritten
        self.read_by = " ".join(sorted(walk.others))
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
        absent = "".join(f"; {self._unwritten[name]}" for name in names if name in self._unwritten)
        if absent:
            log.warning("%s: %s: %s. Right if the writer left them at that", self.path, names[0], absent[2:])
        shape = (int(self.ends[-1]), *(first.shape[1:] if row_shape is None else row_shape))
        dtype = first.dtype.newbyteorder("=") if dtype is None else np.dtype(dtype)
        how = f"chunks of {first.chunk_rows} rows" if first.chunk_rows else "plain bytes to convert"
        steps = [leaf.rows_at_once() for leaf in leaves]
        return DecodedColumn(
            shape, dtype, self._decoder(names, convert, dtype, steps), stored_as=names[0], layout=f"HDF5, {how}{absent}"
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


class Walk:
    """Goes through the datasets of a file's episodes.

    Low-level calls, and an element type is translated once a name: 16000 datasets take 0.8 s of one core; h5py's own
    objects would take 2.5 s.

    Args:
        wanted: names directly under an episode's group that count; groups among them are walked.
    Attributes:
        left_out: dataset -> why it is no column.
        unwritten: dataset -> how much of it was never written, of the first episode where that is so.
        others: path, size and time of the other files that links lead into.
    """

    def __init__(self, file: h5py.h5f.FileID, wanted: Iterable[bytes]):
        self._file, self._wanted = file, set(wanted)
        self._number = h5py.h5g.get_objinfo(file).fileno
        self._types: dict[str, tuple[h5py.h5t.TypeID, np.dtype]] = {}
        self._filters: dict[str, tuple] = {}
        self.left_out: dict[str, str] = {}
        self.unwritten: dict[str, str] = {}
        self.others: set[str] = set()

    def leaves(self, episode: str) -> Iterator[tuple[str, Leaf]]:
        """Name and place of the arrays of numbers under an episode's group.

        Raises:
            OSError: a group links to one that it lies in, or a filter is not installed.
        """
        self._episode = episode
        yield from self._below(h5py.h5g.open(self._file, episode.encode()), "", ())

    def _below(self, group: h5py.h5g.GroupID, prefix: str, around: tuple) -> Iterator[tuple[str, Leaf]]:
        info = h5py.h5g.get_objinfo(group)
        around = (*around, (info.fileno, info.objno))
        for name in group:
            if not prefix and name not in self._wanted:
                continue
            child, where = h5py.h5o.open(group, name), prefix + name.decode()
            info = h5py.h5g.get_objinfo(child)
            if isinstance(child, h5py.h5g.GroupID):
                if (info.fileno, info.objno) in around:
                    raise OSError(f"{where} links to a group that it lies in")
                yield from self._below(child, f"{where}/", around)
            elif isinstance(child, h5py.h5d.DatasetID):
                is_here = info.fileno == self._number
                if not is_here:
                    self._note_other(child)
                leaf = self._leaf(child, where, is_here=is_here)
                if leaf is not None:
                    yield where, leaf

    def _leaf(self, dataset: h5py.h5d.DatasetID, where: str, *, is_here: bool) -> Leaf | None:
        kind, shape = dataset.get_type(), dataset.shape
        if where not in self._types or not self._types[where][0].equal(kind):
            self._types[where] = kind, dataset.dtype
        dtype = self._types[where][1]
        if not shape or dtype.kind not in "biuf":
            self.left_out[where] = "a single value, not one a row" if not shape else _no_numbers(dtype)
            return None
        offset, chunk_rows = dataset.get_offset(), None
        if offset is None:
            plist = dataset.get_create_plist()
            if plist.get_layout() == h5py.h5d.CHUNKED:
                chunk_rows = plist.get_chunk()[0]
                self._check_filters(plist, where)
            self._note_unwritten(dataset, plist, where)
        return Leaf(shape, dtype, offset if is_here else None, chunk_rows)

    def _check_filters(self, plist: h5py.h5p.PropDCID, where: str) -> None:
        filters = tuple(plist.get_filter(index)[0] for index in range(plist.get_nfilters()))
        if self._filters.get(where) == filters:
            return
        self._filters[where] = filters
        lacking = [code for code in filters if not h5py.h5z.filter_avail(code)]
        if lacking:
            raise OSError(
                f"{where} is compressed by the filter {lacking[0]}, which is not installed; `import hdf5plugin` brings "
                "the usual ones, or repack the file: h5repack -f GZIP=4 old.h5 new.h5"
            )

    def _note_unwritten(self, dataset: h5py.h5d.DatasetID, plist: h5py.h5p.PropDCID, where: str) -> None:
        """Room that was asked for and never written reads as the fill value."""
        if where in self.unwritten or not dataset.get_space().get_simple_extent_npoints():
            return
        if plist.get_layout() == h5py.h5d.CHUNKED:
            parts = [-(-size // part) for size, part in zip(dataset.shape, plist.get_chunk())]
            gone, of = int(np.prod(parts)) - dataset.get_num_chunks(), f"of {int(np.prod(parts))} chunks"
        else:
            gone, of = int(plist.get_external_count() == 0 and dataset.get_storage_size() == 0), "of 1 block"
        if gone > 0:
            self.unwritten[where] = f"{gone} {of} of {self._episode} were never written, their rows read as 0"

    def _note_other(self, dataset: h5py.h5d.DatasetID) -> None:
        path = Path(os.fsdecode(h5py.h5f.get_name(dataset)))
        state = path.stat()
        self.others.add(f"{path} {state.st_size} {state.st_mtime_ns}")


def _no_numbers(dtype: np.dtype) -> str:
    if h5py.check_string_dtype(dtype) or dtype.kind in "SU":
        return "texts, no numbers"
    if h5py.check_ref_dtype(dtype):
        return "references to objects, no numbers"
    return "rows of different lengths" if h5py.check_vlen_dtype(dtype) else f"{dtype}, no numbers"
