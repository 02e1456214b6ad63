"""The first failure of a run is the one that is told, not the broken connections that follow it."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
import zlib
from pathlib import Path

from ppt_kit.files import write_text
from ppt_kit.jobs.record import RECORD

# in a run folder
FOLDER = "failures"
# in the folder of a launch: empty files, of what one rank has told
TOLD = "told-"


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


def tell_once(error: Exception, folder: Path) -> None:
    """Prints a user's mistake that all ranks of a launch meet, by the first of them alone.

    Args:
        folder: of the launch, which its ranks share.
    """
    line = f"error: {' '.join(str(error).split())}"
    mark = folder / f"{TOLD}{zlib.crc32(line.encode('utf-8', 'replace')):08x}"
    # started by hand, this process may be the only one
    is_launch = (folder / RECORD).exists()
    # where nothing can be written: told twice is better than not at all
    with contextlib.suppress(PermissionError, FileNotFoundError):
        try:
            if is_launch:
                mark.open("x").close()
        except FileExistsError:
            return
    print(line, file=sys.stderr, flush=True)


def forget_told(folder: Path) -> None:
    """What an earlier launch in `folder` has told, the next one tells again."""
    for told in folder.glob(f"{TOLD}*"):
        told.unlink(missing_ok=True)
