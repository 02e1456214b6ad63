"""Decoded rows on disk: bounded, shared by every process of a machine, gone when the disk is needed.

One sparse file a column holds its rows at their places, one small file says which are there. A row is written before it
is said to be there, and the bytes of a row are the same whoever decodes it, so ranks fill one cache together without a
lock. Once the bound is reached, further rows are decoded each time: a shuffled pass asks for every row once, and taking
out the oldest would only make room for what is needed no sooner.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import time
from itertools import islice
from pathlib import Path

import numpy as np

from ppt_kit.data.disk.rows import PlainRows, Segment
from ppt_kit.errors import UserError
from ppt_kit.files import write_text

log = logging.getLogger(__name__)

# what one process writes between two looks at what all have written
RECOUNT_BYTES = 64 << 20
MOST_ENTRIES = 100_000
# another dataset's cache that was opened this recently is not taken away
IN_USE_S = 3600.0


class CacheFolder:
    """The decoded rows of one dataset.

    Args:
        root: folder that holds the caches of all datasets; made when it is not there.
        source: the dataset's path; its state on disk (see `state_of`) belongs to the folder's name, so a dataset that
            changed starts anew.
        limit_bytes: what `root` may hold, over all datasets.
    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, root: str | Path, source: Path, *, limit_bytes: float):
        self.root, self.limit = Path(root).expanduser(), float(limit_bytes)
        self.path = self.root / f"{re.sub('[^A-Za-z0-9._-]', '_', source.name)}-{state_of(source)}"
        self._full = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._same_boot()
            os.utime(self.path)
        except OSError as error:
            raise self.refused(error) from None
        self._since_count = float("inf")

    def refused(self, error: OSError) -> UserError:
        """What to say when the folder cannot be written."""
        return UserError(
            f"{self.root}: the cache of decoded rows cannot be written there ({error.strerror}). "
            "Set dataset.cache_dir to a folder of yours, or dataset.cache_gb=0 to decode each row every time."
        )

    def may_grow(self, num_bytes: int) -> bool:
        """Whether so many bytes may be written; makes room where other datasets' caches lie unused."""
        if self._full:
            return False
        self._since_count += num_bytes
        if self._since_count >= min(RECOUNT_BYTES, self.limit / 8):
            self._since_count = 0
            used = _bytes_under(self.root)
            if used + num_bytes > self.limit:
                used -= self._drop_unused(used + num_bytes - self.limit)
            if used + num_bytes > self.limit:
                self.give_up(f"it holds {used / 1e9:.1f} of {self.limit / 1e9:.1f} GB (dataset.cache_gb)")
        return not self._full

    def give_up(self, why: str) -> None:
        """From here on rows are decoded each time; said once."""
        if not self._full:
            log.warning("the cache of decoded rows %s takes no more: %s; the rest is decoded each time", self.root, why)
        self._full = True

    def _same_boot(self) -> None:
        """After a crash of the machine a row may be said to be there and not be: then everything is decoded again."""
        now, note = _boot_id(), self.path / "boot"
        if note.is_file() and note.read_text() != now:
            for file in self.path.iterdir():
                file.unlink()
        if not note.is_file():
            write_text(note, now)

    def _drop_unused(self, needed: float) -> float:
        """Takes other datasets' caches away, those unused for longest first; the bytes that became free."""
        free = 0.0
        others = sorted((path for path in self.root.iterdir() if path.is_dir() and path != self.path), key=_used_at)
        for path in others:
            if free >= needed or time.time() - _used_at(path) < IN_USE_S:
                break
            size = _bytes_under(path)
            log.info("taking %s (%.1f GB) out of the cache of decoded rows", path.name, size / 1e9)
            shutil.rmtree(path, ignore_errors=True)
            free += size
        return free


class RowCache:
    """The decoded rows of one column, in the folder of its dataset.

    Args:
        kind: what else, beside the key, decides which values the rows have.
    """

    def __init__(self, folder: CacheFolder, key: str, *, kind: str, shape: tuple[int, ...], dtype: np.dtype):
        self.folder = folder
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        digest = hashlib.sha256(f"{key} {kind} {shape} {dtype}".encode()).hexdigest()[:8]
        name = f"{re.sub('[^A-Za-z0-9._-]', '_', key)}-{digest}"
        paths = folder.path / f"{name}.rows", folder.path / f"{name}.have"
        try:
            self._rows, self._have = _sparse(paths[0], shape[0] * self._row_bytes), _sparse(paths[1], shape[0])
            # it is mapped: a hole that finds no room later would kill the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._have, 0, max(1, shape[0]))
        except OSError as error:
            raise folder.refused(error) from None
        self._there = np.memmap(paths[1], np.uint8, "r", shape=(shape[0],)).view(np.ndarray)
        self._values = PlainRows([Segment(paths[0], 0, shape[0])], row_shape=shape[1:], dtype=dtype)

    def read_into(self, out: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) bool: which rows were there; those are in `out` now."""
        there = self._there[rows] == 1
        if there.all():
            self._values.read_into(out, rows)
        elif there.any():
            found = np.empty((int(there.sum()), *out.shape[1:]), out.dtype)
            self._values.read_into(found, rows[there])
            out[there] = found
        return there

    def put(self, first: int, values: np.ndarray) -> None:
        """Keeps the rows from `first` on, if there is room."""
        if not self.folder.may_grow(values.nbytes):
            return
        try:
            _write_all(
                self._rows, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, first * self._row_bytes
            )
            _write_all(self._have, memoryview(b"\1" * len(values)), first)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.folder.give_up("the disk is full")

    def share(self) -> float:
        """Share of the rows that are there."""
        return float(np.mean(self._there)) if len(self._there) else 1.0

    def __del__(self) -> None:
        for name in ("_rows", "_have"):
            if name in self.__dict__:
                os.close(self.__dict__[name])


def default_cache_dir() -> Path:
    """$PPT_KIT_CACHE, else ppt_kit in $XDG_CACHE_HOME or ~/.cache, a folder a machine: homes are often shared."""
    if os.environ.get("PPT_KIT_CACHE"):
        return Path(os.environ["PPT_KIT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ppt_kit" / os.uname().nodename


def state_of(source: Path) -> str:
    """Twelve hex digits of a dataset's place and of its files' sizes and times.

    Of a folder with more than MOST_ENTRIES files (chunks of an array) only the folder's own time counts.
    """
    digest = hashlib.sha256(str(source.resolve()).encode())
    for path in [source] if source.is_file() else _files_under(source):
        stat = path.stat()
        digest.update(f"{path} {stat.st_size if path.is_file() else 0} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _files_under(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        first = sorted(islice(entries, MOST_ENTRIES + 1), key=lambda entry: entry.name)
    found = [folder]
    for entry in first if len(first) <= MOST_ENTRIES else ():
        path = Path(entry.path)
        found += _files_under(path) if entry.is_dir() else [path]
    return found


def _sparse(path: Path, size: int) -> int:
    """An open file of that size whose unwritten parts take no room."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if os.fstat(handle).st_size < size:
        os.ftruncate(handle, size)
    return handle


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _bytes_under(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            # what it takes, not how long it is: the files are sparse
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return float(total)


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""
