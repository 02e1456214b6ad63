"""The first failure of a run is the one that is told, not the broken connections that follow it."""

from __future__ import annotations

import contextlib
import re
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import NamedTuple

from ppt_kit.files import write_text
from ppt_kit.jobs.record import FOLDER as LAUNCH
from ppt_kit.jobs.record import LOGS, OUTPUT, RECORD, Record

# in a run folder
FOLDER = "failures"
# in the folder of a launch: empty files, of what one rank has told
TOLD = "told-"

TRACEBACK = "Traceback (most recent call last):"
# between the tracebacks of one failure
LINKS = ("During handling of the above exception", "The above exception was the direct cause")
LOG_TAIL_BYTES = 200_000


class Failure(NamedTuple):
    """How a launched run failed."""

    rank: int | None  # None: what started the ranks failed itself
    text: str  # the traceback, or what was printed last

    def __repr__(self) -> str:
        return f"{'what started the ranks' if self.rank is None else f'rank {self.rank}'} failed:\n{self.text}"

    @property
    def line(self) -> str:
        """The last line of the traceback: which exception it was."""
        plain = [line for line in self.text.splitlines() if line.strip() and not line.startswith(" ")]
        told = [
            line for line in plain if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit|Warning)?\b.*:|error: ", line)
        ]
        return (told or plain or [""])[-1].strip()


def failure_of(run_dir: Path, record: Record) -> Failure | None:
    """The first failure of a rank since a launch: as it was written down, else from what the ranks have printed.

    None when nothing tells why.
    """
    told = re.fullmatch(r"rank (\d+) failed:\n(.*)", first_failure(run_dir, started=record.started), re.DOTALL)
    if told is not None:
        return Failure(int(told[1]), told[2].strip())
    logs = {rank: tail(log_of(run_dir, rank)) for rank in range(record.ranks.total)}
    order = sorted(logs, key=lambda rank: rank != record.failed_rank)
    texts: list[tuple[int | None, str]] = [(rank, logs[rank]) for rank in order]
    texts.append((None, tail(run_dir / LAUNCH / OUTPUT)))
    for cut in (_last_traceback, _last_mistake):
        for rank, text in texts:
            if found := cut(text):
                return Failure(rank, found)
    return None


def log_of(run_dir: Path, rank: int) -> Path | None:
    """The file with what a rank of the newest launch has printed; None when there is none yet."""
    # the deepspeed launcher puts the time before it
    named = re.compile(rf"(\d+_)?rank{rank}\.log")
    found = [path for path in (run_dir / LAUNCH / LOGS).glob("*.log") if named.fullmatch(path.name)]
    return max(found, key=lambda path: path.name) if found else None


def tail(path: Path | None, *, num_bytes: int = LOG_TAIL_BYTES) -> str:
    """The end of a text file, from the beginning of a line; "" of none."""
    with contextlib.suppress(FileNotFoundError):
        if path is not None:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - num_bytes))
                text = file.read(num_bytes).decode("utf-8", "replace")
            return text.partition("\n")[2] if size > num_bytes else text
    return ""


def _last_traceback(text: str) -> str:
    """The last one in a text, with those that led to it; "" when there is none."""
    lines = text.splitlines()
    begins = [at for at, line in enumerate(lines) if line.startswith(TRACEBACK)]
    if not begins:
        return ""
    begin = begins.pop()
    end = next((at for at in range(begin + 1, len(lines)) if not lines[at].startswith(" ")), len(lines) - 1)
    while begins and any(line.startswith(LINKS) for line in lines[begins[-1] : begin]):
        begin = begins.pop()
    return "\n".join(lines[begin : end + 1])


def _last_mistake(text: str) -> str:
    """The last line in a text that tells a mistake of the user's."""
    return next((line for line in reversed(text.splitlines()) if line.startswith("error: ")), "")


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
