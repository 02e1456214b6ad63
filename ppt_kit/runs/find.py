"""Which run folders are meant by a folder, a pattern, a sweep, or a list of those; and what to call each."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.runs.state import is_run
from ppt_kit.runs.sweep import SWEEP, Sweep


def find_runs(given: Any) -> list[Path]:
    """The run folders in what was given, each once.

    Args:
        given: a run folder, the folder of a sweep or what `sweep` gave, a pattern as outputs/models/*/*, or several.
    Raises:
        UserError: a folder that is not there or is no run, or a pattern that no run matches.
    """
    several = [given] if isinstance(given, (str, Path, Sweep)) else given
    if not isinstance(several, Iterable):
        raise UserError(f"{given!r:.80}: takes run folders, patterns as outputs/models/*/*, or the folder of a sweep.")
    found: dict[Path, Path] = {}
    for each in several:
        if not isinstance(each, (str, Path, Sweep)):
            raise UserError(f"{each!r:.80}: is no folder. Give run folders, patterns, or the folder of a sweep.")
        for path in each.run_dirs if isinstance(each, Sweep) else _runs_in(each):
            found.setdefault(path.resolve(), path)
    if not found:
        raise UserError("no run folders are given. Give some, or a pattern as outputs/models/*/*.")
    return list(found.values())


def tails(paths: Sequence[Path]) -> list[str]:
    """Paths by as few of their last names as tell them apart."""
    most = max((len(path.parts) for path in paths), default=0)
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _runs_in(given: str | Path) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        runs = _runs_at(path)
        if not runs:
            inside = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and is_run(entry))
            hint = (
                f"Its {inside[0]} is one: type {path}/* for all of them."
                if inside
                else "Give <output_dir>/<domain>/<suffix>."
            )
            raise UserError(f"{path}: is no run folder, it has neither config.yaml nor metrics.jsonl. {hint}")
        return runs
    if not glob.has_magic(str(given)):
        raise UserError(f"{given}: no such folder. Give run folders, or a pattern as outputs/models/*/*.")
    matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    runs = [run for match in matches if match.is_dir() for run in _runs_at(match)]
    if not runs:
        raise UserError(f"{given}: matches {len(matches)} files and folders, and none is a run folder.")
    return runs


def _runs_at(folder: Path) -> list[Path]:
    """The folder, if it is a run's; those in it, if it is a sweep's."""
    if (folder / SWEEP).is_file():
        return sorted(entry for entry in folder.glob("*/*") if entry.is_dir() and is_run(entry))
    return [folder] if is_run(folder) else []
