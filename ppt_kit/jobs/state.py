"""What a launched run is doing, or how it ended, in a word and a line."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import NamedTuple

import psutil

from ppt_kit.files import json_row
from ppt_kit.jobs.failures import failure_of, tail
from ppt_kit.jobs.record import FOLDER, KILLED_MARK, Record
from ppt_kit.signals import STOP_CODES
from ppt_kit.tracking import METRICS

WORDS = ("queued", "running", "ended", "stopped", "failed", "killed", "vanished", "unknown")
# of these words, and of "finished" for a whole run, in tables
COLOURS = {
    "running": "--jp-info-color1", "queued": "--jp-info-color1", "ended": "--jp-success-color1",
    "finished": "--jp-success-color1",
    "stopped": "--jp-warn-color1", "failed": "--jp-error-color1", "killed": "--jp-error-color1",
    "vanished": "--jp-error-color1",
}  # fmt: skip


class State(NamedTuple):
    """Of a launched run."""

    word: str  # of WORDS
    detail: str = ""


class Newest(NamedTuple):
    """The newest rows of a run's metrics.jsonl, or empty ones."""

    train: dict
    end: dict


def newest_rows(run_dir: Path) -> Newest:
    """What a run has written last, from the end of its file."""
    rows = [row for row in map(json_row, tail(run_dir / METRICS).splitlines()) if row is not None]
    train: dict = next((row for row in reversed(rows) if row.get("kind") == "train"), {})
    return Newest(train, rows[-1] if rows and rows[-1].get("kind") == "end" else {})


def state_of_ended(run_dir: Path, record: Record) -> State:
    """How a run ended whose processes are gone."""
    code, end = record.exit_code, newest_rows(run_dir).end
    if (run_dir / FOLDER / KILLED_MARK).exists() and code != 0:
        return State("killed", "as asked, without saving")
    if code is None:
        return State("vanished", _why_vanished(record, end))
    if code == 0 and record.hostfile is not None and end.get("reason") != "finished":
        return State("failed", "the launcher left, but the run has not come to its end")
    if code == 0:
        return State("ended", f"after step {end['step']}" if end else "")
    if code in STOP_CODES:
        return State("stopped", f"by {end['reason']} after step {end['step']}" if end else "before its first step")
    if code > 128:
        return State("killed", f"{_which(record.failed_rank)} was ended by {_signal(code - 128)}")
    failure = failure_of(run_dir, record)
    return State("failed", f"{_which(failure.rank)}: {failure.line}" if failure else f"exit code {code}")


def _which(rank: int | None) -> str:
    return "a process" if rank is None else f"rank {rank}"


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (kill -9, or out of memory)" if number == signal.SIGKILL else name


def _why_vanished(record: Record, end: dict) -> str:
    """Nobody has written down how it ended."""
    why = "its supervising process is gone"
    if record.host == socket.gethostname() and psutil.boot_time() > record.started:
        why = "the machine was started anew"
    return f"{why}; saved after step {end['step']}" if end else why
