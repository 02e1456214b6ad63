"""Changes of a folder of the user's: listed, made with a backup of what stood there, and taken back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.files import check_place, json_row, locked_folder, write_text, write_whole
from ppt_kit.migration.handover import OLD
from ppt_kit.programs import clone, to_type_anywhere

# what was written, and where what stood there is
RECORD = ".ppt_kit_migration.json"
BACKUPS = "old_scripts_"
OUTSIDE = "it lies outside of the project"
OLD_SCRIPTS = ("run*.py", "migrate_*.py")
WRAPPER = '''"""Deprecated: {name} hands over to ppt_kit. Type instead: {program}{words}"""

import sys
from pathlib import Path

CURE = {cure!r}
# modules that lie here are the old ones' own
sys.path = [each for each in sys.path if Path(each).resolve() != Path(__file__).resolve().parent]

if __name__ == "__main__":
    try:
        from ppt_kit.migration.handover import hand_over
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {{error}} for {{sys.executable}}. Type {{CURE}}")
    hand_over("{name}", sys.argv[1:], project=str(Path(__file__).parent))
'''


@dataclass(frozen=True)
class Copy:
    """A backup."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Write:
    """A file of ours.

    Attributes:
        backup: copy of what stands there, made before; None = nothing does.
        link: where a link that stands there leads, which is put back as one.
    """

    path: Path
    text: str
    backup: Path | None
    link: str | None = None


@dataclass(frozen=True)
class Make:
    """A file of ours that takes no other's place, and whose bytes are made when it is written."""

    path: Path
    content: Callable[[], bytes]


Change = Copy | Write | Make


def check_project(project: Path, *, writes: bool = True) -> None:
    """Raises UserError unless `project` is a folder, not ppt_kit's own, and can be written to where it has to be."""
    if not project.is_dir():
        raise UserError(f"project={project}: no such folder. Set project to your folder of ppt_learning.")
    if (project / "ppt_kit/__init__.py").is_file() and (project / "scripts/train.py").is_file():
        raise UserError(f"project={project}: this is ppt_kit itself. Set project to your folder of ppt_learning.")
    if writes:
        check_place(project, key="project")


def alone(project: Path) -> AbstractContextManager[bool]:
    """Inside, no other process changes this project; raises UserError where one does."""
    return locked_folder(project, taken=f"project={project}: another process is migrating it. Wait for it.")


def new_backup_folder(project: Path) -> Path:
    """The name of a dated folder that is not there yet."""
    first = project / f"{BACKUPS}{datetime.now():%Y%m%d-%H%M%S}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))
    return next(folder for folder in (first, *numbered) if not folder.exists())


def backups(project: Path, folder: Path) -> list[Change]:
    """Copies of the old scripts, less the wrappers of ours."""
    ours = {entry["path"]: entry["sha256"] for entry in _record(project)}
    found = sorted({path for pattern in OLD_SCRIPTS for path in project.glob(pattern) if path.is_file()})
    return [Copy(path, folder / path.name) for path in found if ours.get(path.name) != _digest(path)]


def wrappers(project: Path, folder: Path) -> list[Change]:
    """What writes the wrappers, each behind the backup of what it takes the place of."""
    changes: list[Change] = []
    for name, old in OLD.items():
        words = "".join(f" {key}={value}" for key, value in old.words)
        cure = f"pip install -e {clone()}" if clone() else f"{sys.executable} {name}"
        text = WRAPPER.format(name=name, program=to_type_anywhere(old.command), words=words, cure=cure)
        changes += writes(project, project / name, text, folder=folder)
    return changes


def writes(project: Path, path: Path, text: str, *, folder: Path) -> list[Change]:
    """What puts `text` at `path`; nothing where it stands there already.

    Raises:
        UserError: a folder is in the way.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and a file is to be written there. Move it away.")
    if path.is_symlink():
        # the file that it leads to stays as it is
        return [Write(path, text, None, os.readlink(path))]
    known = next((entry for entry in _record(project) if entry["path"] == _name(path, project)), None)
    first = (
        Write(path, text, project / known["backup"] if known["backup"] else None, known.get("link")) if known else None
    )
    if not path.exists():
        return [first or Write(path, text, None)]
    if path.read_bytes() == text.encode():
        return []
    if known is not None and first is not None:
        # of ours: what stood there first is what is to be put back; what was made of ours since is kept beside
        edited = [] if known["sha256"] == _digest(path) else [Copy(path, folder / path.name)]
        return [*edited, first]
    copy = folder / path.name
    return [Copy(path, copy), Write(path, text, copy)]


def makes(project: Path, path: Path, content: Callable[[], bytes]) -> list[Change]:
    """What puts a new file at `path`; one that this script wrote there before is written anew.

    Raises:
        UserError: something else stands there.
    """
    known = next((entry for entry in _record(project) if entry["path"] == _name(path, project)), None)
    if path.exists() and (known is None or known["sha256"] != _digest(path)):
        raise UserError(f"{path}: is there already, and was not written by this script. Move it away.")
    return [Make(path, content)]


def said(change: Change, project: Path) -> str:
    """A change in a line."""
    if isinstance(change, Copy):
        return f"back up  {_name(change.source, project)} -> {_name(change.target, project)}"
    outside = "" if _is_within(change.path, project) else f"; {OUTSIDE}, so --undo leaves it"
    if isinstance(change, Make):
        return f"write    {_name(change.path, project)}{outside}"
    kept = f", in the place of what {_name(change.backup, project)} keeps" if change.backup else ""
    kept = f", in the place of the link to {change.link}" if change.link else kept
    return f"write    {_name(change.path, project)}{kept}{outside}"


def make(change: Change, project: Path) -> None:
    """Makes a change; what is written is recorded before it is.

    Raises:
        UserError: the disk refuses.
    """
    try:
        if isinstance(change, Copy):
            change.target.parent.mkdir(parents=True, exist_ok=True)
            if not change.target.exists():
                write_whole(change.target, lambda beside: shutil.copy2(change.source, beside))
            return
        content = change.content() if isinstance(change, Make) else change.text.encode()
        backup = change.backup if isinstance(change, Write) else None
        entries = [entry for entry in _record(project) if entry["path"] != _name(change.path, project)]
        digest, kept = hashlib.sha256(content).hexdigest(), _name(backup, project) if backup else None
        entry = {"path": _name(change.path, project), "sha256": digest, "backup": kept}
        link = change.link if isinstance(change, Write) else None
        _keep(project, [*entries, entry | ({"link": link} if link else {})])
        change.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(change.path, lambda beside: beside.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"{project}: {error.filename}: {error.strerror}. What was made is taken back by --undo."
        ) from None


@dataclass(frozen=True)
class Return:
    """What is taken back.

    Attributes:
        why_not: in the way of it; empty = nothing.
    """

    path: Path
    backup: Path | None
    why_not: str
    link: str | None = None

    def said(self, project: Path) -> str:
        """In a line."""
        name = _name(self.path, project)
        if self.why_not:
            return f"leave    {name}: {self.why_not}"
        if self.link:
            return f"put back {name} -> {self.link}"
        return f"put back {name} <- {_name(self.backup, project)}" if self.backup else f"remove   {name}"


def returns(project: Path) -> list[Return]:
    """What --undo does, the last write first.

    Raises:
        UserError: nothing is recorded.
    """
    entries = _record(project)
    if not entries:
        raise UserError(f"{project}: there is nothing to undo: no {RECORD} tells of a change.")
    found = []
    for entry in reversed(entries):
        path, backup = project / entry["path"], project / entry["backup"] if entry["backup"] else None
        why_not = ""
        if not _is_within(path, project):
            # who wrote this record is not known
            why_not = OUTSIDE
        elif not _leads_within(path, project) and _digest(path) != entry["sha256"]:
            why_not = "it lies behind a link out of the project, and is not what was written there"
        elif path.exists() and _digest(path) not in (entry["sha256"], _digest(backup) if backup else None):
            why_not = "it was changed since it was written; move it away and type --undo again"
        elif backup is not None and not backup.is_file():
            why_not = f"its backup {entry['backup']} is gone"
        found.append(Return(path, backup, why_not, entry.get("link")))
    return found


def take_back(each: Return, project: Path) -> None:
    """Puts back or removes one file, and forgets it. Backups stay."""
    if each.why_not and each.why_not != OUTSIDE:
        return
    try:
        if each.why_not:
            _forget(each.path, project)
            return
        backup = each.backup
        if each.link is not None:
            each.path.unlink(missing_ok=True)
            each.path.symlink_to(each.link)
        elif backup is not None:
            write_whole(each.path, lambda beside: shutil.copy2(backup, beside))
        else:
            each.path.unlink(missing_ok=True)
            _remove_empty(each.path.parent)
        _forget(each.path, project)
    except OSError as error:
        raise UserError(f"{project}: {error.filename}: {error.strerror}. Make room and type --undo again.") from None


def _remove_empty(folder: Path) -> None:
    """Removes a folder that --convert-checkpoint made, once nothing is in it."""
    if folder.name.endswith("_ppt_kit") and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _record(project: Path) -> list[dict[str, Any]]:
    path = project / RECORD
    if not path.is_file():
        return []
    content = json_row(path.read_bytes())
    entries = content.get("writes") if content is not None else None
    if not isinstance(entries, list) or not all(_is_entry(each, project) for each in entries):
        raise UserError(f"{path}: is damaged. Put your scripts back from {BACKUPS}* by hand, and delete it.")
    return entries


def _is_entry(each: Any, project: Path) -> bool:
    """Whether this is what `make` writes down: a backup lies in a folder of backups of this project."""
    if not isinstance(each, dict) or not all(isinstance(each.get(name), str) for name in ("path", "sha256")):
        return False
    backup, link = each.get("backup"), each.get("link")
    if not all(value is None or isinstance(value, str) for value in (backup, link)):
        return False
    if backup is None:
        return True
    place = project / backup
    return _is_within(place, project) and _leads_within(place, project) and Path(backup).parts[0].startswith(BACKUPS)


def _forget(path: Path, project: Path) -> None:
    name = _name(path, project)
    _keep(project, [entry for entry in _record(project) if _name(project / entry["path"], project) != name])


def _is_within(path: Path, project: Path) -> bool:
    """Whether a file lies in the project, by its name."""
    return not Path(_name(path, project)).is_absolute()


def _leads_within(path: Path, project: Path) -> bool:
    """Whether it lies there wherever links lead."""
    return path.parent.resolve().is_relative_to(project.resolve())


def _keep(project: Path, entries: list[dict[str, Any]]) -> None:
    if entries:
        write_text(project / RECORD, json.dumps({"writes": entries}, indent=1) + "\n")
    else:
        (project / RECORD).unlink(missing_ok=True)


def _digest(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(path: Path, project: Path) -> str:
    """By its place in the project, else whole, however both were typed."""
    place, above = Path(os.path.abspath(path)), Path(os.path.abspath(project))
    if not place.is_relative_to(above):
        place, above = path.parent.resolve() / path.name, project.resolve()
    return str(place.relative_to(above)) if place.is_relative_to(above) else str(place)
