"""What a run folder says of its run: how far it is, how it ended, what it reached; also while it is written."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppt_kit.checkpoint import mean_success
from ppt_kit.errors import UserError
from ppt_kit.files import json_row
from ppt_kit.jobs.failures import failure_of, log_of, tail
from ppt_kit.jobs.job import Job, state_in
from ppt_kit.jobs.record import CONFIG, FOLDER, RECORD, Record, read_record
from ppt_kit.jobs.taken import is_held
from ppt_kit.tracking import METRICS, began_here, was_asked

WAITING, RUNNING, FINISHED, STOPPED, FAILED = "waiting", "running", "finished", "stopped", "failed"
# bytes at the end of metrics.jsonl in which its last row is looked for
TAIL = 1 << 14
# without a new row a run that nobody can ask is taken to have stopped
SILENT_S = 120.0


@dataclass(frozen=True)
class Reached:
    """What the rows of a run say it reached; None where it was not measured.

    Attributes:
        loss: of the last training row.
        val_loss: the lowest.
        success: the highest of its checkpoints, on average over its domains.
    """

    epoch: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    success: float | None = None


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder; what it was launched with is kept in a folder of it, which is none."""
    names = (METRICS, "config.yaml", f"{FOLDER}/{CONFIG}")
    return not (folder / RECORD).is_file() and any((folder / name).is_file() for name in names)


def config_file(run_dir: Path) -> Path | None:
    """The configuration of a run, which one that has just been launched has in launch/ alone."""
    files = (run_dir / "config.yaml", run_dir / FOLDER / CONFIG)
    return next((file for file in files if file.is_file()), None)


def last_row(run_dir: Path) -> dict | None:
    """The newest whole row of metrics.jsonl, without reading what is before it."""
    lines = tail(run_dir / METRICS, num_bytes=TAIL).splitlines(keepends=True)
    rows = (json_row(line) for line in reversed(lines) if line.endswith("\n"))
    return next((row for row in rows if row is not None), None)


def living_job(run_dir: Path) -> Job | None:
    """The launched job that trains in a folder now."""
    if not (run_dir / FOLDER / RECORD).is_file():
        return None
    with contextlib.suppress(UserError):
        job = Job.attach(run_dir)
        return job if job.running else None
    return None


def state_of(run_dir: Path) -> tuple[str, str]:
    """(one of the states, the last line of its error or nothing).

    Of a launched run it is what its job says; of one that was not launched, as in a notebook, the lock of its folder
    and its last row tell, and on another host the age of that row.
    """
    record, row = read_record(run_dir / FOLDER), last_row(run_dir) or {}
    word = "unknown" if record is None else state_in(run_dir, record).word
    if word in ("queued", "running") or _trains_since(run_dir, record):
        return RUNNING, ""
    if row.get("kind") == "end" and row.get("reason") == "finished":
        return FINISHED, ""
    if record is not None and word in ("failed", "killed"):
        return FAILED, error_of(run_dir, record)
    if record is not None and word == "vanished" and row.get("kind") != "end":
        return FAILED, state_in(run_dir, record).detail
    if word == "unknown" and row and row.get("kind") != "end":
        return _state_of_unlaunched(run_dir)
    if row.get("kind") == "end" and not was_asked(row):
        return FAILED, str(row.get("reason"))
    return (STOPPED, "") if is_run(run_dir) else (WAITING, "")


def _trains_since(run_dir: Path, record: Record | None) -> bool:
    """Whether a run that was launched once trains otherwise now, as in a notebook.

    Where it has written nothing since, what holds its folder is what is left of the launch, about to leave.
    """
    if not is_held(run_dir):
        return False
    path = run_dir / METRICS
    return record is None or record.ended is None or (path.is_file() and path.stat().st_mtime > record.ended)


def _state_of_unlaunched(run_dir: Path) -> tuple[str, str]:
    """Of a run that has rows, none of which says how it ended."""
    if is_held(run_dir) is False and began_here(run_dir):
        return FAILED, "the process that trained is gone"
    return (RUNNING, "") if _seconds_since(run_dir / METRICS) < SILENT_S else (STOPPED, "")


def error_of(run_dir: Path, record: Record) -> str:
    """One line of why a launched run failed: the last of its first traceback, or the signal that ended it."""
    failure, code = failure_of(run_dir, record), record.exit_code or 0
    if failure is not None:
        return failure.line
    # nothing of its own was raised: the system may have ended it, as it does for want of memory
    is_signal = 128 < code < 128 + signal.NSIG
    why = f"ended by {signal.Signals(code - 128).name}" if is_signal else f"exit code {code}"
    printed = [line.strip() for line in tail(log_of(run_dir, record.failed_rank or 0)).splitlines() if line.strip()]
    return f"{why}; the last it printed: {printed[-1]}" if printed else why


def reached(rows: Sequence[Mapping[str, Any]]) -> Reached:
    """Of the rows of metrics.jsonl."""
    of = lambda kind, name: [row[name] for row in rows if row.get("kind") == kind and _is_number(row.get(name))]
    losses, checked, epochs = of("train", "loss"), of("val", "loss"), of("train", "epoch")
    rates = [row for row in rows if row.get("kind") == "eval" and _is_number(row.get("success"))]
    # one that could not be evaluated in a domain says nothing about the mean over all of them
    means = mean_success(rates, {row.get("domain") for row in rates})
    return Reached(
        epoch=epochs[-1] if epochs else None, loss=losses[-1] if losses else None,
        val_loss=min(checked, default=None), success=max(means.values(), default=None),
    )  # fmt: skip


def minutes_of(run_dir: Path) -> float:
    """Of its newest launch: until now, or until the last that it wrote; 0 where it was not launched."""
    record = read_record(run_dir / FOLDER)
    if record is None:
        return 0.0
    written = [path.stat().st_mtime for name in (METRICS, f"{FOLDER}/{RECORD}") if (path := run_dir / name).is_file()]
    end = time.time() if living_job(run_dir) is not None else max(written, default=record.started)
    return max(0.0, end - record.started) / 60


def _seconds_since(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
