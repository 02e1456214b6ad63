"""The process between a run's ranks and whoever started it: it starts them, watches them, writes down how they ended.

It imports nothing heavy: it lives as long as the run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ppt_kit.jobs.launcher import run_launcher
from ppt_kit.jobs.ranks import End, run_ranks
from ppt_kit.jobs.record import CONFIG, LOGS, RECORD, Record


def supervise(folder: Path) -> int:
    """Runs the ranks of the record that comes as one line on the standard input; their exit code."""
    handed = sys.stdin.readline()
    # whoever started this process was gone before it had written down what it started
    if not handed:
        return 1
    record = Record.from_text(handed)

    def is_left_alone() -> bool:
        return record.parent is not None and os.getppid() != record.parent

    end = run_recorded(record, folder, is_left_alone)
    write_end(record, folder, end)
    return end.code


def run_recorded(record: Record, folder: Path, is_left_alone: Callable[[], bool]) -> End:
    """Runs the ranks of this node to their end, from `folder`/config.yaml."""
    logs = folder / LOGS if record.own_logs else None
    if record.hostfile is not None:
        return run_launcher(record, folder, is_left_alone)
    return run_ranks(folder / CONFIG, share=record.ranks, is_left_alone=is_left_alone, logs=logs)


def write_end(record: Record, folder: Path, end: End) -> None:
    """How it ended, to `folder`/job.json; a disk that does not take it is told."""
    try:
        replace(record, exit_code=end.code, failed_rank=end.rank, ended=time.time()).write(folder)
    except OSError as error:
        print(f"{folder / RECORD}: the exit code {end.code} could not be written: {error}", file=sys.stderr)
