"""Whether a run folder is free: one job trains in it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from ppt_kit.errors import UserError
from ppt_kit.files import locked_folder
from ppt_kit.jobs.parents import lives
from ppt_kit.jobs.record import FOLDER, Record, read_record
from ppt_kit.jobs.slurm import Queue


def refuse_second(run_dir: Path) -> None:
    """Raises UserError when a job trains in `run_dir` already, unless this process is one of its ranks."""
    record = read_record(run_dir / FOLDER)
    # once that is written down the ranks have left, and what supervised them is about to
    if record is None or record.exit_code is not None:
        return
    # another node of that job, on the same host
    if record.meets and record.meets == meeting_place(os.environ):
        return
    supervisor, by = supervisor_of(record), f"process {record.pid}"
    is_busy = supervisor is not None and supervisor not in psutil.Process().parents()
    if not is_busy and record.slurm is not None and "job_id" in record.slurm:
        queue = Queue((run_dir / FOLDER).absolute(), record.slurm)
        by, is_busy = f"job {queue.job_id} of the queue", not queue.is_own and bool(queue.word())
    if is_busy:
        raise UserError(_taken(run_dir, "a job", by))


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Inside, no other process of this host trains in `run_dir`, however it was started.

    The lock is the folder's own, and goes with the process that holds it.

    Raises:
        UserError: another one trains there.
    """
    made = [each for each in (run_dir, *run_dir.parents) if not each.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with locked_folder(run_dir, taken=_taken(run_dir, "a run", "in this process or another one")):
            yield
    finally:
        # of a run that could not begin; one with something in it stays, and those above it
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()


def is_held(run_dir: Path) -> bool | None:
    """Whether a run of this host trains in a folder, see `held`; None where the disk knows no locks."""
    try:
        folder = os.open(run_dir, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # a process that was forked meanwhile has this file too
        fcntl.flock(folder, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(folder)
    return False


def supervisor_of(record: Record) -> psutil.Process | None:
    """The living process that a record is about."""
    try:
        process = psutil.Process(record.pid)
        return process if record.is_of(process) and lives(process) else None
    except psutil.Error:
        return None


def meeting_place(env: Mapping[str, str]) -> str:
    """Where the ranks of several nodes meet, as it is set by hand on each of them; "" where it is not."""
    return f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}" if {"MASTER_ADDR", "MASTER_PORT"} <= set(env) else ""


def _taken(run_dir: Path, what: str, by: str) -> str:
    return f"{run_dir}: {what} trains there already ({by}). Stop it, or choose another suffix=…."
