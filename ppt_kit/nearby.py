"""Checkpoints that lie near a path where none is: what was probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

# files of weights in a run folder begin and end so
BEGINS, ENDS = "model", ".pth"
# levels below the folder that is looked through, entries that are looked at, and checkpoints that are told of
DEEPEST, MOST_ENTRIES, TOLD = 3, 5000, 3


def checkpoints_near(path: Path) -> list[str]:
    """Run folders, or files in one, that hold weights and lie in, beside or above a path, the most alike first."""
    if path.suffix == ENDS and path.parent.is_dir():
        beside = [str(entry) for entry in _weights_in(path.parent) if entry != path]
        if beside:
            return _most_alike(path, beside)
    start = path if path.is_dir() else next((each for each in path.parents if each.is_dir()), Path())
    for folder in (start, *start.absolute().parents[:2]):
        # as long as the user's own path as it can be
        found = [str(each) for each in _runs_below(folder) if each != path]
        if found:
            return _most_alike(path, found)
    return []


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
