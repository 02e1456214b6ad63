"""The first failure of a run is the one that is told, not the broken connections that follow it."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from ppt_kit.files import write_text

# in a run folder
FOLDER = "failures"


def tell_first_failure(run_dir: Path, *, rank: int, started: float) -> int:
    """Called while an exception is handled: writes it down, then prints the first that any rank of this run wrote.

    Gives the exit code: 2 where that is a mistake of the user's, told in one line, else 1.

    Args:
        started: time.time() before which what was written belongs to an earlier run.
    """
    note_failure(run_dir, rank=rank, text=traceback.format_exc())
    # the rank that failed first may still be writing
    time.sleep(1.0)
    first = first_failure(run_dir, started=started)
    print(first, file=sys.stderr, flush=True)
    return 2 if "failed:\nerror: " in first else 1


def note_failure(run_dir: Path, *, rank: int, text: str) -> None:
    """Writes down how a rank failed, for the others to print."""
    (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(run_dir / FOLDER / f"rank_{rank}.txt", f"rank {rank} failed:\n{text}")


def first_failure(run_dir: Path, *, started: float) -> str:
    """The earliest traceback that a rank wrote since `started`, or an empty text."""
    written = {path: path.stat().st_mtime for path in (run_dir / FOLDER).glob("rank_*.txt")}
    recent = [path for path, when in written.items() if when >= started - 1]
    return min(recent, key=lambda path: written[path]).read_text() if recent else ""
