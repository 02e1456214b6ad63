"""Files of tensors and plain values, as `torch.save` writes them: no code of theirs runs, and a lost bit is noticed."""

from __future__ import annotations

import difflib
import functools
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ppt_kit.errors import UserError
from ppt_kit.files import write_whole
from ppt_kit.lfs import refuse_lfs_pointer

OURS = "a checkpoint of ppt_kit"
# newest that is read: 2 has the policy's parts by modality and a view of each domain
FORMAT = 2
# files of weights in a run folder begin and end so
BEGINS, ENDS = "model", ".pth"
# those that lie near: levels below a folder, entries that are looked at, and how many are told of
DEEPEST, MOST_ENTRIES, TOLD = 3, 5000, 3


def save_tensors(content: dict, path: Path) -> None:
    """Writes a file that `read_tensors` reads, finished or absent.

    Raises:
        OSError: the disk is full or read-only; what stood there is untouched.
    """
    write_whole(path, lambda beside: _save(content, beside))


def serialized(content: dict) -> bytes:
    """The bytes of the file that `save_tensors` writes."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    return buffer.getvalue()


def read_tensors(file: Path, *, needs: Mapping[str, Any], remedy: str) -> dict:
    """What `save_tensors` wrote, on the CPU.

    Args:
        needs: part -> its type, or the same of the parts below it.
        remedy: what the user is to do about a damaged file.
    Raises:
        UserError: it is empty, cut off, of another program or a newer version, or not what was written: one line.
    """
    _check_bytes(file, remedy)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file}: needs code to be unpickled, so it is not loaded: a checkpoint can run anything. "
            "Save it again as tensors and plain values, or migrate the run."
        ) from None
    # each of its bytes is as it was written, so it was written by something else
    except Exception as error:
        raise UserError(f"{file}: not written by ppt_kit ({_first_line(error)}). {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not written by ppt_kit: it holds a {type(content).__name__}. {remedy}")
    version = content.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"{file}: of format {version!r}, and this version reads up to {FORMAT}. Install the ppt_kit that wrote it."
        )
    check_parts(content, needs, file=file, remedy=remedy)
    return content


class Inert:
    """What stands in the place of another program's object: what was stored of it, and nothing that it does.

    Attributes:
        args: what it was to be made of.
        state: what it was to hold; None where nothing was stored.
    """

    args: tuple
    state: Any = None

    def __new__(cls, *args: Any) -> Inert:
        made = object.__new__(cls)
        made.args = args
        return made

    def __init__(self, *args: Any) -> None:
        """Takes whatever the other program's class took."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_foreign(file: Path, *, kind_of_file: str, remedy: str) -> dict:
    """What another program wrote by `torch.save`, on the CPU; tensors stay on the disk until they are read.

    No code runs that the file asks for: its objects of classes that are neither tensors nor plain are `Inert`.

    Args:
        kind_of_file: what it should be, in words.
        remedy: what the user is to do about a damaged file.
    Raises:
        UserError: it is empty, cut off, of an older form, a bit of it was lost, or only running its code would read it.
    """

    def load() -> Any:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        with torch.serialization.safe_globals([(Inert, name) for name in names]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)

    def refused(error: Exception) -> str:
        return f"cannot be read without running code of it, which is not done ({_asked(error)})"

    return _loaded(file, load, refused=refused, kind_of_file=kind_of_file, remedy=remedy)


def check_parts(content: Mapping, needs: Mapping[str, Any], *, file: Path, remedy: str) -> None:
    """Whether a file holds its parts; arguments as of `read_tensors`.

    Raises:
        UserError: names the first that it does not, or of another type.
    """
    lacking = _lacking(content, needs)
    if lacking:
        raise UserError(f"{file}: not written by ppt_kit, or only in part: it needs {lacking}. {remedy}")


def checkpoints_near(path: Path) -> list[str]:
    """Run folders, or files in one, that hold weights and lie in, beside or above a path, the most alike first."""
    if path.suffix == ENDS and path.parent.is_dir():
        beside = [str(entry) for entry in _weights_in(path.parent) if entry != path]
        if beside:
            return _most_alike(path, beside)
    # a file that is no checkpoint makes no run of its folder
    itself = {path, path.parent} if path.is_file() else {path}
    itself |= {each.absolute() for each in itself}
    start = path if path.is_dir() else next((each for each in path.parents if each.is_dir()), Path())
    for folder in (start, *start.absolute().parents[:2]):
        if folder.absolute() == Path(folder.absolute().anchor):
            # the whole machine is not near
            break
        # as long as the user's own path as it can be
        found = [str(each) for each in _runs_below(folder) if each not in itself]
        if found:
            return _most_alike(path, found)
    return []


def read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """What another program wrote by `torch.save(model.state_dict(), file)`, on the CPU.

    Raises:
        UserError: it is damaged, only running its code would read it, or it holds something else; what to type where
            it was written.
    """
    plain = (
        "Where it was written, type python -c \"import torch; m = torch.load('" + file.name + "', map_location='cpu', "
        "weights_only=False); torch.save(m.state_dict() if hasattr(m, 'state_dict') else m, 'plain.pth')\" and give "
        "the folder of plain.pth, renamed to " + file.name + "."
    )

    def refused(error: Exception) -> str:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        wanted = ", ".join(sorted(names)[:5]) or _asked(error)
        return f"needs code to be unpickled ({wanted}), so it is not loaded: it can run anything"

    load = functools.partial(torch.load, file, map_location="cpu", weights_only=True)
    content = _loaded(file, load, refused=refused, kind_of_file="a state_dict", remedy=plain)
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise UserError(f"{file}: not a state_dict, which has tensors alone: {name} is a {kind}. {plain}")
    return dict(content)


def _loaded(
    file: Path, load: Callable[[], Any], *, refused: Callable[[Exception], str], kind_of_file: str, remedy: str
) -> dict:
    """The dictionary that another program's file holds, no code of it run.

    Args:
        refused: what to say where only running its code would read it.
    """
    _check_bytes(file, remedy, kind_of_file)
    try:
        content = load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: {refused(error)}. {remedy}") from None
    # each of its bytes is as it was written, so it was written by something else
    except Exception as error:
        raise UserError(f"{file}: not {kind_of_file} ({_first_line(error)}). {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not {kind_of_file}: it holds a {type(content).__name__}. {remedy}")
    return content


def _save(content: dict, path: Path) -> None:
    # given a path torch opens it itself, and a full disk has no name in its error
    with open(path, "wb") as file:
        torch.save({"format": FORMAT, **content}, file)


def _check_bytes(file: Path, remedy: str, kind_of_file: str = OURS) -> None:
    """Whether every byte is what was written: torch writes the archive's checksums, and does not look at them."""
    try:
        with open(file, "rb") as opened:
            begin = opened.read(8)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    refuse_lfs_pointer(file)
    if not begin:
        raise UserError(f"{file}: empty. {remedy}")
    if begin[:2] != b"PK":
        kind = "a pickle of another program" if begin[:1] == b"\x80" else f"it starts with {begin!r}"
        raise UserError(f"{file}: not {kind_of_file} ({kind}). {remedy}")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    # a lost bit in its directory: zipfile, zlib and struct have exceptions of their own
    except Exception as error:
        raise UserError(f"{file}: damaged ({_first_line(error)}). {remedy}") from None
    if damaged is not None:
        raise UserError(f"{file}: damaged ({damaged} is not what was written). {remedy}")


def _lacking(content: Mapping, needs: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first part that is not there or of another type, in words."""
    for name, kind in needs.items():
        value = content.get(name)
        nested = isinstance(kind, Mapping)
        if not isinstance(value, Mapping if nested else kind):
            found = "absent" if name not in content else type(value).__name__
            return f"{prefix}{name} ({found})"
        inner = _lacking(value, kind, f"{prefix}{name}.") if nested else None
        if inner:
            return inner
    return None


def _asked(error: Exception) -> str:
    """What a file wanted, of torch's page about it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(
        (line[:160] for line in lines if line.startswith(("Trying to", "Can only", "Unsupported"))), lines[0][:160]
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _most_alike(path: Path, found: list[str]) -> list[str]:
    here = f"{Path.cwd()}{os.sep}"
    names = [name.removeprefix(here) for name in found]
    alike = difflib.get_close_matches(str(path).removeprefix(here), names, TOLD, cutoff=0.6)
    return alike or sorted(names)[:TOLD]


def _runs_below(folder: Path) -> Iterator[Path]:
    """Folders with weights in them, each level before the next."""
    level, looked_at = [folder], 0
    for _ in range(DEEPEST + 1):
        below: list[Path] = []
        for each in level:
            if _weights_in(each):
                yield each
                continue
            inside = _entries(each, most=MOST_ENTRIES - looked_at)
            looked_at += len(inside)
            below += [entry for entry in inside if not entry.name.startswith(".") and entry.is_dir()]
        level = below


def _weights_in(folder: Path) -> list[Path]:
    return sorted(entry for entry in _entries(folder) if entry.name.startswith(BEGINS) and entry.suffix == ENDS)


def _entries(folder: Path, *, most: int = MOST_ENTRIES) -> list[Path]:
    """What a folder holds; nothing of one that may not be read."""
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry, _ in zip(entries, range(max(0, most)))]
    except OSError:
        return []
