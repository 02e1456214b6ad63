"""The process between a run's ranks and whoever started it: it starts them, watches them, writes down how they ended.

It imports nothing heavy: it lives as long as the run.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from ppt_kit.jobs.ranks import run_ranks
from ppt_kit.jobs.record import CONFIG, RECORD, Record


def supervise(folder: Path) -> int:
    """Runs the ranks of the record that comes as one line on the standard input; their exit code."""
    handed = sys.stdin.readline()
    # whoever started this process was gone before it had written down what it started
    if not handed:
        return 1
    record = Record.from_text(handed)

    def is_left_alone() -> bool:
        return record.parent is not None and os.getppid() != record.parent

    code = run_ranks(folder / CONFIG, share=record.ranks, is_left_alone=is_left_alone)
    try:
        replace(record, exit_code=code).write(folder)
    except OSError as error:
        print(f"{folder / RECORD}: the exit code {code} could not be written: {error}", file=sys.stderr)
    return code
