"""The rows of metrics.jsonl, read back: also while they are written, and after a crash."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.files import append_whole, json_row, path_of, write_text

METRICS = "metrics.jsonl"
KINDS = ("train", "val", "checkpoint", "eval", "steer", "end")
# of what ended a run (characters)
LONGEST_REASON = 300

log = logging.getLogger(__name__)


def read_metrics(run_dir: str | Path, kind: str | None = None) -> pd.DataFrame:
    """The rows of a run's metrics.jsonl, also while it is being written and after a crash.

    Args:
        run_dir: the run folder.
        kind: "train", "val", "checkpoint", "eval", "steer" (what was asked meanwhile) or "end"; None = all.
    Returns:
        One line a row; columns of other kinds are NaN, and left out when `kind` is given. Without a row it has the
        columns kind and step.
    Raises:
        UserError: the folder has no metrics.jsonl, or there is no such kind of rows.
    """
    run_dir = path_of(run_dir, what="a run folder, as outputs/models/door-open/exp1")
    if not (run_dir / METRICS).is_file():
        raise UserError(f"{run_dir}: holds no {METRICS}. Give a run folder, <output_dir>/<domain>/<suffix>.")
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind={kind!r:.80}: takes {', '.join(KINDS)}, or None for all.")
    rows = read_rows(run_dir / METRICS)
    wanted = [row for row in rows if kind is None or row.get("kind") == kind]
    if not wanted:
        # a run that was killed before its first row
        return pd.DataFrame(columns=["kind", "step"])
    frame = pd.DataFrame(wanted)
    return frame.dropna(axis=1, how="all") if kind is not None else frame


def read_rows(path: Path) -> list[dict]:
    """The JSON lines of a file; a last line that is only half written is left out, others are said to be."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [json_row(line) for line in lines]
    broken = [number for number, row in enumerate(rows, 1) if row is None and lines[number - 1].strip()]
    if broken and broken != [len(lines)]:
        log.warning("%s: %d of %d lines are no rows, the first is line %d", path, len(broken), len(lines), broken[0])
    return [row for row in rows if row is not None]


def rows_so_far(run_dir: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; none where there is no file yet."""
    path = run_dir / METRICS
    return read_rows(path) if path.is_file() else []


def drop_later_rows(path: Path, step: int) -> None:
    """Rows after `step`, the end of the run before, and what failed to be evaluated, come again as the run goes on."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if _step(row) <= step and not _comes_again(row)]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def note_end(run_dir: Path, error: BaseException) -> None:
    """Says in the rows of a run, where it has some and is not over, which error ended it."""
    rows = rows_so_far(run_dir)
    if rows and rows[-1].get("kind") != "end":
        step = max(map(_step, rows))
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]
        append_whole(run_dir / METRICS, (json.dumps({"kind": "end", "step": step, "reason": said}) + "\n").encode())


def was_asked(end: Mapping[str, Any]) -> bool:
    """Whether a run that has ended was asked to; else it has failed, or finished."""
    return re.fullmatch(r"Stop|SIG\w+", str(end.get("reason"))) is not None


def _comes_again(row: dict) -> bool:
    return row.get("kind") == "end" or (row.get("kind") == "eval" and row.get("success") is None)


def _step(row: dict) -> float:
    step = row.get("step", 0)
    return step if isinstance(step, (int, float)) else 0
