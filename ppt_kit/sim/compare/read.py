"""Rows of evaluations that were run already, from wherever they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.files import json_row
from ppt_kit.sim.results import Evaluation

# what a row must say to be one of an evaluation
NEEDED = ("checkpoint", "task", "seed", "success", "steps")


def rows_in(given: Any, *, key: str = "results") -> list[dict]:
    """The rows of an evaluation, a table of rows, a rows file or a run folder (all files in its eval/), or of several.

    Args:
        key: what the user gave it as.
    Raises:
        UserError: there are no rows, or it is something else.
    """
    if isinstance(given, Evaluation):
        return _checked(given.rows, key=key, where="the evaluation")
    if isinstance(given, pd.DataFrame):
        return _checked(_plain(given), key=key, where="the table")
    if isinstance(given, (str, Path)):
        return _read(Path(given), key=key)
    if isinstance(given, Iterable) and not isinstance(given, (bytes, dict)):
        return [row for each in given for row in rows_in(each, key=key)]
    raise UserError(
        f"{key}={given!r:.80}: takes an evaluation, a table of rows, a rows file (.jsonl), a run folder, or a list of "
        "them."
    )


def is_rows(given: Any) -> bool:
    """Whether it holds rows and nothing that could be run: an evaluation, a table, or a file of rows."""
    return isinstance(given, (Evaluation, pd.DataFrame)) or (
        isinstance(given, (str, Path)) and Path(given).suffix == ".jsonl"
    )


def _read(path: Path, *, key: str) -> list[dict]:
    if path.is_dir():
        files = sorted((path / "eval").glob("*.jsonl"))
        if not files:
            raise UserError(f"{key}={path}: has no rows in eval/. Evaluate it first, or give a rows file (.jsonl).")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(
            f"{key}={path}: no such file or folder. Give <run folder>/eval/<log name>.jsonl, or a run folder."
        )
    return [row for file in files for row in _checked(_lines(file, key=key), key=key, where=str(file))]


def _lines(file: Path, *, key: str) -> list[dict]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{key}={file}: cannot be read ({error.strerror}).") from None
    # the last may be half written while an evaluation runs
    return [row for row in map(json_row, lines) if row is not None]


def _checked(rows: list[dict], *, key: str, where: str) -> list[dict]:
    if not rows:
        raise UserError(f"{key}: {where} holds no episodes.")
    missing = [name for name in NEEDED if any(name not in row for row in rows)]
    if missing:
        raise UserError(f"{key}: rows of {where} lack {', '.join(missing)}: they are not what an evaluation writes.")
    return rows


def _plain(frame: pd.DataFrame) -> list[dict]:
    """A table's lines with None where it has NaN, and whole numbers where it made them real."""
    rows = []
    for line in frame.to_dict("records"):
        row = {str(name): None if _is_missing(value) else value for name, value in line.items()}
        for name in ("seed", "steps", "success_step", "epoch"):
            value = row.get(name)
            if isinstance(value, float):
                row[name] = int(value)
        for name in ("success", "success_last"):
            if row.get(name) is not None and name in row:
                row[name] = bool(row[name])
        rows.append(row)
    return rows


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
