"""Files and folders that are finished or absent: written beside their name, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError

log = logging.getLogger(__name__)

# what a file system takes as one name, in bytes
LONGEST_NAME = 255
# a full disk takes no byte of it
PROBE_BYTES = 1 << 16
# how often a lock is asked for before it is taken to be held
LOOKED_AT = 4
# of renameat2: names from the working directory, and two names change places
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def path_of(given: Any, *, what: str) -> Path:
    """The path that somebody gave: a text, a path, or what has a run folder, as a trainer and a job have.

    Args:
        what: should have been given, e.g. "a run folder, as outputs/models/door-open/exp1".
    Raises:
        UserError: it is something else.
    """
    found = getattr(given, "run_dir", given)
    if not isinstance(found, (str, os.PathLike)):
        raise UserError(f"{show_short(given)}: is no path. Give {what}.")
    return Path(found).expanduser()


def show_short(given: Any) -> str:
    """Something that was given in place of something else, in a few words."""
    is_plain = given is None or isinstance(given, (bool, int, float, str, list, tuple, dict, set))
    return repr(given)[:80] if is_plain else f"a {type(given).__name__}"


@contextlib.contextmanager
def locked_folder(folder: Path, *, taken: str) -> Iterator[bool]:
    """Inside, no other process of this host has this folder so; False where its disk knows no locks.

    The lock is the folder's own, and goes with the process that holds it.

    Args:
        taken: what is said where another one has it.
    Raises:
        UserError: another one has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            _lock(handle)
            knows = True
        except BlockingIOError:
            raise UserError(taken) from None
        # of a disk that several hosts share not every one has locks
        except OSError:
            knows = False
        yield knows
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Takes a lock; who looks whether it is free has it for an instant."""
    for _ in range(LOOKED_AT):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_place(folder: Path, *, key: str, needs: int = PROBE_BYTES) -> None:
    """Tells before the work whether files can be written in `folder`, which need not be there yet; leaves nothing.

    Args:
        key: what the user sets the place with.
        needs: bytes that are about to be written there.
    Raises:
        UserError: a file or a link that leads nowhere is in the way, a name is too long, or the disk is read-only or
            full.
    """
    folder = folder.absolute()
    remedy = f"Set {key} to a folder of yours that can be written to."
    long = next((part for part in folder.parts if len(os.fsencode(part)) > LONGEST_NAME), None)
    if long is not None:
        raise UserError(f"{key}: the name {long[:40]}… has {len(long)} characters; a disk takes {LONGEST_NAME} bytes.")
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        what = "a file" if there.exists() else "a link that leads nowhere, or round in a circle,"
        raise UserError(f"{folder}: {what} is in the way at {there}. {remedy}")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(f"{folder}: {there} cannot be written to ({error.strerror}). {remedy}") from None
    free = shutil.disk_usage(there).free
    if free < needs:
        raise UserError(f"{folder}: {_size(needs)} are needed there and {_size(free)} are free. {remedy}")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Has `write` fill a file beside `path`, which takes its name once it is on the disk.

    What killed writers left in that folder is taken away.

    Raises:
        OSError: the disk is full or read-only; what stood at `path` is untouched.
    """
    beside = _beside(path)
    try:
        _take_files_away(path.parent)
        write(beside)
        fsync(beside)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        # torch names a position in a zip file; what the disk said is what it was handling
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
    fsync(path.parent)


def append_whole(path: Path, line: bytes) -> None:
    """Appends a line: it is on the disk, whole, or not in the file.

    Raises:
        OSError: the disk does not take it.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    before = os.fstat(file).st_size
    try:
        # in one call: no signal, and no other process, comes between its parts
        written = os.write(file, line)
        # a disk that is about to be full takes a part, and says why with the next
        while written < len(line):
            written += os.write(file, line[written:])
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, before)
        raise
    finally:
        os.close(file)


def json_row(line: str | bytes) -> dict | None:
    """The mapping that a line of JSON is; None of a line that is half written, or something else."""
    try:
        row = json.loads(line)
    # numbers of thousands of digits, brackets in brackets in brackets
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def write_text(path: Path, text: str) -> None:
    """As `write_whole`, a text in UTF-8."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def begin_folder(path: Path, *, key: str) -> Path:
    """A folder beside `path` that holds an empty folder `new` to write in. What killed writers left is taken away.

    Args:
        key: what the user sets the place with.
    Raises:
        UserError: the place cannot be written to.
    """
    folder = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_back(path)
        _take_leftovers_away(path)
        (folder / "new").mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written to ({error.strerror}). Set {key} to a folder of yours."
        ) from None
    return folder


def finish_folder(folder: Path, path: Path, *, overwrite: bool) -> None:
    """Gives what is in `folder`/new the name `path`, once all of it is on disk.

    What stood there goes into `folder`. Killed at any moment, `path` is the old one or the new one; on disks that
    cannot exchange two names at once there is a moment between, and `put_back` mends what was killed in it.

    Raises:
        OSError: something stands at `path` and `overwrite` is false, or the disk refuses; what stood there stays.
    """
    new = folder / "new"
    for entry in [*new.rglob("*"), new]:
        fsync(entry)
    if not (overwrite and os.path.lexists(path)):
        os.rename(new, path)
    elif not _exchange(new, path):
        _replace(new, path, aside=folder / "replaced")
    fsync(path.parent)


def put_back(path: Path) -> None:
    """Gives a folder its name back that a process had moved aside, and was killed before it replaced it."""
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    for entry in _leftovers(path.parent, path.name):
        if (entry / "replaced").exists():
            os.rename(entry / "replaced", path)
            fsync(path.parent)
            log.warning("%s: a process was killed while it replaced this; what stood there before is back", path)
            return


def fsync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """Where this process writes what is to be called `path`."""
    # with the host: on a disk that several share, a process of another one is not dead because it is not here
    return path.with_name(f".{path.name}.writing-{os.getpid()}@{socket.gethostname()}")


def _exchange(one: Path, other: Path) -> bool:
    """Whether two names changed places, which not every system and disk does."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    return swap is not None and not swap(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)
    )


def _replace(new: Path, path: Path, *, aside: Path) -> None:
    """In two renames; the first is undone where the second is not made."""
    try:
        os.rename(path, aside)
        os.rename(new, path)
    except BaseException:
        if aside.exists() and not os.path.lexists(path):
            os.rename(aside, path)
        raise


def _take_files_away(folder: Path) -> None:
    """Removes the files that killed processes left in a folder."""
    for entry in _leftovers(folder):
        if entry.is_file() and not _is_being_written(entry):
            entry.unlink(missing_ok=True)


def _take_leftovers_away(path: Path) -> None:
    """Removes the folders that killed processes left beside `path`."""
    for entry in _leftovers(path.parent, path.name):
        # where it could not be put back, `replaced` is all there is of what stood at `path`
        if path.exists() or not (entry / "replaced").exists():
            shutil.rmtree(entry, ignore_errors=True)


def _leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """What processes of this host that are gone were writing in `folder`, to be called `name` or anything."""
    wanted = ".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.{wanted}\.writing-(\d+)(@{re.escape(socket.gethostname())})?")
    matches = [(entry, pattern.fullmatch(entry.name)) for entry in folder.iterdir()]
    return [entry for entry, match in matches if match and not _is_running(int(match[1]))]


def _is_being_written(entry: Path) -> bool:
    """Whether a thread of this process writes it: one of our number that was before us wrote before we began."""
    import psutil

    return f".writing-{os.getpid()}@" in entry.name and entry.stat().st_mtime >= psutil.Process().create_time()


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _is_running(pid: int) -> bool:
    """Whether another process of that number runs: one of our own number was before us."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
