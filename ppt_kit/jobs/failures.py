"""The first failure of a run is the one that is told, not the broken connections that follow it."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from ppt_kit.files import write_text

# in a run folder
FOLDER = "failures"


def tell_first_failure(run_dir: Path, *, rank: int, started: float) -> None:
    """Called while an exception is handled: writes it down, then prints the first that any rank of this run wrote.

    Args:
        started: time.time() before which what was written belongs to an earlier run.
    """
    (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(run_dir / FOLDER / f"rank_{rank}.txt", f"rank {rank} failed:\n{traceback.format_exc()}")
    # the rank that failed first may still be writing
    time.sleep(1.0)
    print(first_failure(run_dir, started=started), file=sys.stderr, flush=True)


def first_failure(run_dir: Path, *, started: float) -> str:
    """The earliest traceback that a rank wrote since `started`, or an empty text."""
    written = {path: path.stat().st_mtime for path in (run_dir / FOLDER).glob("rank_*.txt")}
    recent = [path for path, when in written.items() if when >= started - 1]
    return min(recent, key=lambda path: written[path]).read_text() if recent else ""
