"""What is in the folder: versions, splits and their shards, and the bytes of a shard."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import mmap
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ppt_kit.data.formats.rlds import tfrecord
from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer

log = logging.getLogger(__name__)

SHARD = re.compile(r"(.+)-([^-]+)\.tfrecord-(\d+)-of-(\d+)")


def versions_in(path: Path) -> list[Path]:
    """The folder itself, or the folders inside that hold a dataset."""
    folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
    found = [
        folder for folder in folders if (folder / "features.json").is_file() or any(folder.glob("*.tfrecord-*-of-*"))
    ]
    return found[:1] if path in found else found


def folder_of(path: Path) -> Path:
    versions = versions_in(path)
    if len(versions) > 1:
        names = ", ".join(version.name for version in versions)
        raise UserError(f"{path}: holds more than one version: {names}. Name one: {versions[-1]}.")
    return versions[0]


def info_of(folder: Path) -> dict:
    """Name, version and description out of dataset_info.json; {} without one."""
    told = _info(folder)
    return {key: told[key] for key in ("name", "version", "description") if isinstance(told.get(key), str)}


def read_json(file: Path) -> dict:
    """
    Raises:
        UserError: it is no mapping in JSON.
    """
    refuse_lfs_pointer(file)
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}). TFDS writes it beside the shards: copy it again.") from None
    if not isinstance(told, dict):
        raise UserError(f"{file}: {str(told)[:40]}, where TFDS writes a mapping. Copy it again.")
    return told


@dataclass(frozen=True)
class Split:
    """
    Attributes:
        shards: its files, in order.
        promised: how many episodes dataset_info.json says each holds; None = it does not say.
    """

    name: str
    shards: list[Path]
    promised: list[int] | None


def splits_of(folder: Path, wanted: str | None) -> list[Split]:
    """The splits to read: the one that is wanted, or all, "train" first.

    Raises:
        UserError: no such split, or a shard of one is missing.
    """
    found: dict[str, dict[int, Path]] = {}
    of: dict[str, set[int]] = {}
    for file in sorted(folder.iterdir()):
        if match := SHARD.fullmatch(file.name):
            found.setdefault(match[2], {})[int(match[3])] = file
            of.setdefault(match[2], set()).add(int(match[4]))
    told = _info(folder)
    if wanted is not None and wanted not in found or not found:
        asked = f"dataset.filter_key={wanted}: " if wanted is not None else ""
        split = f"the split {wanted}" if wanted is not None else "any split"
        known, kind = ", ".join(sorted(found)) or "none", told.get("fileFormat", "tfrecord")
        raise UserError(
            f"{asked}{folder} has no shards of {split}; its splits: {known}."
            + (f" Its files are {kind}, and tfrecord is read." if kind != "tfrecord" else " Name one of those.")
        )
    names = [wanted] if wanted is not None else sorted(found, key=lambda name: (name != "train", name))
    notes = _notes(told, folder)
    if wanted is None and (absent := sorted(notes.keys() - found.keys())):
        log.warning("%s: no shard of %s, which dataset_info.json tells of: left out", folder, ", ".join(absent))
    return [_split(folder, name, found[name], of[name], notes.get(name)) for name in names]


def _split(folder: Path, name: str, files: dict[int, Path], of: set[int], promised: list[int] | None) -> Split:
    if len(of) > 1:
        raise UserError(
            f"{folder}: shards of the split {name} are of {' and of '.join(map(str, sorted(of)))}: two datasets lie in "
            "one folder. Take one of them away."
        )
    count = max(of)
    missing = sorted(set(range(count)) - files.keys())
    if missing:
        raise UserError(
            f"{folder}: shard {missing[0]} of {count} of the split {name} is missing"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else ".")
            + " Copy it there."
        )
    if promised is not None and len(promised) != count:
        raise UserError(
            f"{folder}: {count} shards of the split {name}, where dataset_info.json says {len(promised)}. Copy the "
            "dataset again."
        )
    return Split(name, [files[number] for number in range(count)], promised)


def _info(folder: Path) -> dict:
    file = folder / "dataset_info.json"
    return read_json(file) if file.is_file() else {}


def _notes(told: dict, folder: Path) -> dict[str, list[int] | None]:
    """Split -> how many episodes each of its shards holds, as far as dataset_info.json says so."""
    file, found = folder / "dataset_info.json", {}
    if not file.is_file():
        log.warning("%s is missing: whether shards hold all their episodes cannot be told", file)
    splits = told.get("splits", [])
    try:
        for note in splits:
            lengths = note.get("shardLengths") or note.get("shard_lengths")
            found[str(note["name"])] = [int(length) for length in lengths] if lengths else None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{file}: splits is {str(splits)[:60]}, not a list with name and shardLengths of each. Copy it again."
        ) from None
    return found


class Shard:
    """The bytes of one file of records.

    Args:
        unpacked: where the bytes of those go that are compressed.
    """

    def __init__(self, path: Path, unpacked: Unpacked):
        self.path, self._unpacked = path, unpacked
        # where in `unpacked`; None: the file is plain
        self._place: tuple[int, int] | None = None
        refuse_lfs_pointer(path)
        with self.mapped() as data:
            packed = data[:2] == b"\x1f\x8b" and not tfrecord.is_plain(data)
        if packed:
            self._place = unpacked.add(path)

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap]:
        """All of it."""
        try:
            if self._place is None:
                with self.path.open("rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                offset, size = self._place
                data = mmap.mmap(self._unpacked.file.fileno(), size, access=mmap.ACCESS_READ, offset=offset)
        # ValueError: it is empty
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}). Copy the shard again.") from None
        with data:
            # most of it is stepped over
            data.madvise(mmap.MADV_RANDOM)
            yield data

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """A function of (begin, end) that reads those bytes."""
        if self._place is not None:
            handle, offset = self._unpacked.file.fileno(), self._place[0]
            yield lambda begin, end: os.pread(handle, end - begin, offset + begin)
            return
        with self.path.open("rb", buffering=0) as file:
            yield lambda begin, end: os.pread(file.fileno(), end - begin, begin)


class Unpacked:
    """A file without a name, for as long as the dataset is open, that holds what compressed shards unpack to.

    Records are read in any order, and a compressed stream from its start alone.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    @property
    def file(self) -> BinaryIO:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        return self._file

    def add(self, path: Path) -> tuple[int, int]:
        """Where the bytes of a GZIP file lie from now on: offset and size.

        Raises:
            UserError: it is damaged, or there is no room.
        """
        end = self.file.seek(0, os.SEEK_END)
        # a map begins at a page
        begin = -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.file.seek(begin)
        try:
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, self.file, 1 << 20)
            self.file.flush()
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(
                    f"{path}: GZIP-compressed shards are unpacked into {tempfile.gettempdir()}, which is full. Set "
                    "TMPDIR to a folder with room, or write the shards uncompressed."
                ) from None
            raise UserError(f"{path}: its GZIP stream is damaged ({error}). Copy the shard again.") from None
        return begin, self.file.tell() - begin
