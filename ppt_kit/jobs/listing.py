"""The launched runs below a folder: what runs, and what ended how."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.files import path_of
from ppt_kit.jobs.job import state_in
from ppt_kit.jobs.record import FOLDER, RECORD, read_record
from ppt_kit.jobs.state import COLOURS, newest_rows
from ppt_kit.schema import Config
from ppt_kit.tables import shown
from ppt_kit.tracking import METRICS

COLUMNS = ("run", "state", "detail", "step", "epoch", "loss", "ranks", "started", "minutes", "host", "pid", "run_dir")


class JobsTable(pd.DataFrame):
    """A table of jobs, as a notebook shows it: states in colour."""

    @property
    def _constructor(self) -> type[JobsTable]:
        return JobsTable

    def _repr_html_(self) -> str:
        hidden = [name for name in ("run_dir", "pid", "host") if name in self.columns]
        said = [] if len(self) else ["nothing was launched here"]
        return shown(self.drop(columns=hidden), below=said, colours=COLOURS)


def jobs(output_dir: str | Path = Config.output_dir) -> JobsTable:
    """The launched runs below a folder, the newest first.

    Args:
        output_dir: where run folders are, at any depth; also one run folder.
    Returns:
        One line a run: run (its folder below `output_dir`), state (queued, running, ended, stopped, failed, killed,
        vanished: nobody was left to say how; unknown: on another host, or its record is damaged), detail, the newest
        step, epoch and loss, ranks, started, minutes, host, pid of the process that supervises the ranks, run_dir.
    Raises:
        UserError: there is no such folder.
    """
    folder = path_of(output_dir, what="the output_dir of runs, as outputs/models")
    if not folder.is_dir():
        raise UserError(f"{output_dir}: no such folder. Give the output_dir of your runs, or start one by ppt.launch.")
    rows = [_row(run_dir, folder) for run_dir in _launched(folder)]
    table = JobsTable(rows, columns=list(COLUMNS))
    if table["pid"].isna().any():
        table = table.astype({"pid": "Int64", "ranks": "Int64"})
    return table.sort_values("started", ascending=False, ignore_index=True)


def _launched(folder: Path) -> Iterator[Path]:
    """The run folders below one, without looking into them."""
    for place, names, _ in os.walk(folder):
        if (Path(place) / FOLDER / RECORD).exists():
            names.clear()
            yield Path(place)


def _row(run_dir: Path, folder: Path) -> dict[str, Any]:
    name = str(run_dir.relative_to(folder)) if run_dir != folder else run_dir.name
    try:
        record = read_record(run_dir / FOLDER)
    except UserError as error:
        # the others are listed all the same
        return {
            **dict.fromkeys(COLUMNS),
            "run": name,
            "state": "unknown",
            "detail": str(error),
            "run_dir": str(run_dir),
        }
    assert record is not None, "it was there when it was found"
    newest = newest_rows(run_dir).train
    state = state_in(run_dir, record)
    end = record.ended or (time.time() if state.word == "running" else _last_written(run_dir))
    return {
        "run": name,
        "state": state.word,
        "detail": state.detail,
        "step": newest.get("step"),
        "epoch": newest.get("epoch"),
        "loss": newest.get("loss"),
        "ranks": record.ranks.total,
        "started": pd.Timestamp.fromtimestamp(round(record.started)),
        "minutes": None if end is None else round((end - record.started) / 60, 1),
        "host": record.host,
        "pid": record.pid,
        "run_dir": str(run_dir),
    }


def _last_written(run_dir: Path) -> float | None:
    """When a run whose end nobody has written down wrote its newest row, s since 1970."""
    path = run_dir / METRICS
    return path.stat().st_mtime if path.exists() else None
