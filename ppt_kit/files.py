"""Files and folders that are finished or absent: written beside their name, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError

# what a file system takes as one name, in bytes
LONGEST_NAME = 255
# a full disk takes no byte of it
PROBE_BYTES = 1 << 16


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
        raise UserError(f"{folder}: cannot be written to ({error.strerror}). {remedy}") from None
    free = shutil.disk_usage(there).free
    if free < needs:
        raise UserError(f"{folder}: {needs / 1e9:.1f} GB are needed there and {free / 1e9:.1f} GB are free. {remedy}")


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
        _take_leftovers_away(path)
        (folder / "new").mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written to ({error.strerror}). Set {key} to a folder of yours."
        ) from None
    return folder


def finish_folder(folder: Path, path: Path, *, overwrite: bool) -> None:
    """Gives what is in `folder`/new the name `path`, once all of it is on disk."""
    for entry in [*(folder / "new").rglob("*"), folder / "new"]:
        fsync(entry)
    aside = folder / "replaced"
    if path.exists() and overwrite:
        os.rename(path, aside)
    try:
        os.rename(folder / "new", path)
    except OSError:
        if aside.exists():
            os.rename(aside, path)
        raise
    fsync(path.parent)


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


def _is_left_over(entry: Path, name: str | None = None) -> bool:
    """Whether a killed process of this host wrote it, to be called `name` or anything."""
    wanted = ".+" if name is None else re.escape(name)
    match = re.fullmatch(rf"\.{wanted}\.writing-(\d+)(@{re.escape(socket.gethostname())})?", entry.name)
    return match is not None and not _is_running(int(match[1]))


def _take_files_away(folder: Path) -> None:
    """Removes the files that killed processes left."""
    for entry in folder.iterdir():
        if _is_left_over(entry) and entry.is_file():
            entry.unlink(missing_ok=True)


def _take_leftovers_away(path: Path) -> None:
    """Removes the folders that killed processes left beside `path`."""
    for entry in path.parent.iterdir():
        # killed between two renames, `replaced` is all there is of what stood at `path`
        only_copy = not path.exists() and (entry / "replaced").exists()
        if _is_left_over(entry, path.name) and not only_copy:
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether another process of that number runs: one of our own number was before us."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
