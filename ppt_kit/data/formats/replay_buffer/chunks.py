"""The chunk files of a replay buffer: which are there, whether they are whole, and where their rows lie.

A store that ppt_kit wrote has every chunk, so one that is not there was lost. In one of another writer it may be rows
of the fill value, which zarr does not store: such a column says how many chunks it lacks, and a warning says it once.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.disk.rows import PlainRows, Segment
from ppt_kit.data.formats.replay_buffer.writer import CHUNK_BYTES, WRITTEN_BY
from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer

log = logging.getLogger(__name__)

# of a plain array; above that its chunk files are read through zarr and cached
MOST_FILES = 100_000
# attributes that no other writer gave a replay buffer, before there was WRITTEN_BY
OUR_ATTRIBUTES = {"descriptions", "expert", "camera_convention"}


class Chunks:
    """The chunk files of one array.

    Args:
        path: of the store, a folder or a zip file.
        name: of the array in it.
        ours: whether ppt_kit wrote the array: every chunk must be there then.
        sizes: of a zip, the bytes of each of its members.
    Attributes:
        absent: what is to be said of chunks that are not there; "" when all are.
    Raises:
        UserError: a chunk of ours is not there, a chunk is a folder, or a plain one has another size than its rows.
    """

    def __init__(self, path: Path, name: str, array: Any, *, ours: bool, sizes: Mapping[str, int] | None):
        self.path, self.name, self.array, self._sizes = path, name, array, sizes
        self._parts = array.shards or array.chunks
        counts = [-(-size // max(part, 1)) for size, part in zip(array.shape, self._parts)]
        self._keys = {place: array.metadata.encode_chunk_key(place) for place in np.ndindex(*counts)}
        there = self._listed()
        gone = [place for place, key in self._keys.items() if not there.get(key)]
        for place in gone:
            if self._keys[place] in there:
                raise UserError(f"{self._where(place)}: a folder stands where a chunk's file should be. {_COPY}")
        if gone and ours:
            raise UserError(
                f"{self._where(gone[0])}: the chunk with {self._rows(gone[0])} is not there"
                + (f" (nor are {len(gone) - 1} others)" if len(gone) > 1 else "")
                + f"; a dataset that ppt_kit wrote has them all. {_COPY}"
            )
        self.absent = ""
        if gone:
            few = f"{len(gone)} of {len(self._keys)} chunks"
            self.absent = f"{few} are not there, their rows read as {array.fill_value}"
            log.warning(
                "%s: %s: %s (the first has %s). Right if the writer left out chunks of that value alone, as zarr may; "
                "otherwise files were lost: copy the dataset again", path, name, self.absent, self._rows(gone[0]),
            )  # fmt: skip
        if is_plain(array) and len(self._keys) <= MOST_FILES:
            self._check_sizes(set(gone), exact=ours)

    def plain_rows(self) -> PlainRows | None:
        """Where the rows lie, when chunks are plain bytes of whole rows in files; None when they are not."""
        array = self.array
        of_rows = is_plain(array) and array.chunks[1:] == array.shape[1:] and array.order == "C"
        if self._sizes is not None or not of_rows or array.dtype.kind not in "biuf" or self.absent:
            return None
        if not self._keys or len(self._keys) > MOST_FILES:
            return None
        chunk, total = array.chunks[0], array.shape[0]
        segments = [Segment(self._file(place), 0, min(chunk, total - place[0] * chunk)) for place in self._keys]
        return PlainRows(segments, row_shape=tuple(array.shape[1:]), dtype=array.dtype)

    def _listed(self) -> dict[str, bool]:
        """Key -> whether it is a file, of what lies in the array's folder."""
        if self._sizes is not None:
            start = f"{self.name}/"
            return {name.removeprefix(start): True for name in self._sizes if name.startswith(start)}
        folder, found = self.path / self.name, dict[str, bool]()
        if all("/" not in key for key in self._keys.values()):
            with os.scandir(folder) as entries:
                return {entry.name: entry.is_file() for entry in entries}
        for place, folders, files in os.walk(folder, followlinks=True):
            inside = os.path.relpath(place, folder).replace(os.sep, "/")
            start = "" if inside == "." else f"{inside}/"
            found |= {f"{start}{name}": False for name in folders} | {f"{start}{name}": True for name in files}
        return found

    def _check_sizes(self, gone: set[tuple[int, ...]], *, exact: bool) -> None:
        """Plain chunks hold all their rows, the last one filled up; of another writer's the filling may be missing."""
        whole = int(np.prod(self._parts, dtype=np.int64)) * self.array.dtype.itemsize
        for place in self._keys:
            if place in gone:
                continue
            size = self._size(place)
            short = self.array.ndim and place[0] == self.array.shape[0] // self._parts[0]
            filled = whole // self._parts[0] * (self.array.shape[0] % self._parts[0]) if short else whole
            if size != whole and (exact or not filled <= size < whole):
                refuse_lfs_pointer(self._file(place))
                raise UserError(
                    f"{self._where(place)}: {size} bytes, where {self._rows(place)} of {self.array.dtype} "
                    f"{self.array.shape[1:]} take {whole}: it was not written to its end, or its description (.zarray) "
                    f"is another array's. {_COPY}"
                )

    def _size(self, place: tuple[int, ...]) -> int:
        if self._sizes is not None:
            return self._sizes[f"{self.name}/{self._keys[place]}"]
        return os.stat(self._file(place)).st_size

    def _file(self, place: tuple[int, ...]) -> Path:
        return self.path / self.name / self._keys[place]

    def _where(self, place: tuple[int, ...]) -> str:
        return f"{self.path}: {self.name}/{self._keys[place]}"

    def _rows(self, place: tuple[int, ...]) -> str:
        if not place:
            return "its value"
        first = place[0] * self._parts[0]
        return f"rows {first} to {min(first + self._parts[0], self.array.shape[0]) - 1}"


_COPY = "Copy the dataset again, or write it again."


def is_plain(array: Any) -> bool:
    """Whether chunk files are the values' own bytes."""
    if array.metadata.zarr_format != 2:
        return False
    return array.metadata.compressor is None and not array.metadata.filters


def written_by_us(attrs: Mapping[str, Any], arrays: Mapping[str, Any], *, path: Path) -> set[str]:
    """Names of the arrays that ppt_kit wrote.

    The writer notes what it wrote; what it wrote before it did so is known by attributes of its own, or because each
    array is laid out as it does it.

    Raises:
        UserError: an array that was noted is not there, or is described as another one.
    """
    if WRITTEN_BY in attrs:
        for name, note in _notes(attrs[WRITTEN_BY], path).items():
            _check_noted(path, name, arrays.get(name), dtype=note[0], shape=tuple(note[1]))
        return set(attrs[WRITTEN_BY])
    if not all(array.metadata.zarr_format == 2 for array in arrays.values()):
        return set()
    laid_out = {name for name, array in arrays.items() if _as_we_do(array)}
    if not OUR_ATTRIBUTES & attrs.keys():
        return laid_out if len(laid_out) == len(arrays) else set()
    for name, array in arrays.items():
        if is_plain(array) and name not in laid_out:
            raise UserError(
                f"{path}: {name}/.zarray: ppt_kit wrote this dataset in chunks of whole rows, which this description "
                f"(shape {array.shape}, chunks {array.chunks}, order {array.order}) does not fit. {_COPY}"
            )
    return laid_out


def _notes(noted: Any, path: Path) -> dict[str, list]:
    fine = isinstance(noted, dict) and all(
        isinstance(note, list) and len(note) == 2 and isinstance(note[1], list) for note in noted.values()
    )
    if not fine:
        raise UserError(f"{path}/.zattrs: {WRITTEN_BY} is {str(noted)[:60]}, not array -> [type, shape]. {_COPY}")
    return noted


def _check_noted(path: Path, name: str, array: Any, *, dtype: str, shape: tuple[int, ...]) -> None:
    told = f"{dtype} {shape}"
    if array is None:
        raise UserError(
            f"{path}: {name} is not there, though the dataset was written with it ({told}). Copy it again; if it was "
            f"taken away on purpose, take its name out of {WRITTEN_BY} in .zattrs too."
        )
    if array.dtype.str != dtype or tuple(array.shape) != shape or not _as_we_do(array):
        found = f"{array.dtype.str} {tuple(array.shape)} in chunks of {tuple(array.chunks)}, order {array.order}"
        raise UserError(
            f"{path}: {name}/.zarray describes {found}, where {told} was written in plain chunks of whole rows. Copy "
            f"it again; if it was changed on purpose, take its name out of {WRITTEN_BY} in .zattrs."
        )


def _as_we_do(array: Any) -> bool:
    if not is_plain(array) or array.order != "C" or tuple(array.chunks[1:]) != tuple(array.shape[1:]):
        return False
    if not array.ndim or not array.shape[0]:
        return True
    row_bytes = max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize)
    # the arrays of /meta are one chunk each
    return array.chunks[0] in (array.shape[0], min(array.shape[0], max(1, CHUNK_BYTES // row_bytes)))


def member_sizes(path: Path) -> dict[str, int] | None:
    """Bytes of each member of a zip file; None of a folder."""
    if path.is_dir():
        return None
    with zipfile.ZipFile(path) as opened:
        return {member.filename: member.file_size for member in opened.infolist()}


def refuse_cut_blosc(folder: Path, array: Any, first: int) -> None:
    """Blosc reads past the end of a chunk file that was cut, and gives numbers: its header says how long it must be.

    Raises:
        ValueError: a file of the chunks that hold the row `first` has another length.
    """
    if array.shards or not any("blosc" in type(codec).__name__.lower() for codec in array.compressors):
        return
    for file in _files_of(folder, array, first):
        if file.is_file():
            with file.open("rb") as opened:
                header = opened.read(16)
            needed, size = int.from_bytes(header[12:16], "little"), file.stat().st_size
            if len(header) < 16 or size != needed:
                raise ValueError(f"{file} has {size} bytes of {needed}: it was not written to its end")


def refuse_pointers(folder: Path, array: Any, first: int) -> None:
    """
    Raises:
        UserError: a file of the chunks that hold the row `first` is a note of Git LFS.
    """
    for file in _files_of(folder, array, first):
        refuse_lfs_pointer(file)


def _files_of(folder: Path, array: Any, first: int) -> Iterator[Path]:
    """The files of the chunks that hold a row; none of a zip's."""
    parts = array.shards or array.chunks
    counts = [-(-size // part) for size, part in zip(array.shape[1:], parts[1:])]
    for place in np.ndindex(*counts) if folder.is_dir() else ():
        yield folder / array.metadata.encode_chunk_key((first // parts[0], *place))
