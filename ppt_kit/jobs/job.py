"""A launched run as one object: started here or found again, waited for, watched, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf

from ppt_kit.errors import UserError
from ppt_kit.files import write_whole
from ppt_kit.jobs.decide import local_share
from ppt_kit.jobs.failures import first_failure, forget_told
from ppt_kit.jobs.parents import SUPERVISE, lives
from ppt_kit.jobs.ranks import STOP_GRACE_S, exit_code
from ppt_kit.jobs.record import CONFIG, FOLDER, OUTPUT, RECORD, Record, read_record
from ppt_kit.signals import on_stop_signals
from ppt_kit.tracking import METRICS, read_rows

POLL_S = 0.1
KILLED = 128 + signal.SIGKILL


def run_job(cfg: DictConfig, run_dir: Path, *, world_size: int, num_devices: int) -> int:
    """Starts the ranks, passes stop signals on, waits, and tells the first failure; the exit code as a shell says it.

    On several nodes only the one with rank 0 writes into `run_dir`: without a suffix another's clock may have named
    another folder.

    Args:
        world_size, num_devices: as for `Job.start`.
    Raises:
        UserError: as `Job.start`.
    """
    started = time.time()
    asked: list[int] = []
    here = local_share(os.environ, world_size=world_size, num_devices=num_devices).first == 0
    place = contextlib.nullcontext(str(run_dir)) if here else tempfile.TemporaryDirectory(prefix="ppt_kit-")
    with place as folder, on_stop_signals(asked.append):
        job = Job.start(cfg, Path(folder), world_size=world_size, num_devices=num_devices)
        while job.running:
            while asked:
                job.send(asked.pop(0))
            time.sleep(POLL_S)
        code = job.wait()
    first = first_failure(run_dir, started=started)
    if code and first:
        print(first, file=sys.stderr)
    return code


class Job:
    """The ranks of a run on this host, and the process that supervises them.

    `Job.start` makes one, `Job.attach` finds one that another process started.

    Attributes:
        run_dir: the run folder; launch/ in it holds config.yaml, job.json and, of a detached job, output.log.
    """

    def __init__(self, run_dir: Path, record: Record, *, child: subprocess.Popen | None = None):
        self.run_dir, self.record = run_dir, record
        # this process's own child has to be asked how it ended, or it stays in the system's table
        self._child = child
        self._supervisor = _supervisor_of(record)

    @classmethod
    def start(
        cls,
        cfg: DictConfig,
        run_dir: str | Path,
        *,
        world_size: int,
        num_devices: int,
        detached: bool = False,
        quiet: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Job:
        """Starts the ranks, each with `cfg`, and returns at once.

        Args:
            world_size: ranks over all nodes.
            num_devices: accelerators visible here; 0 on a CPU machine.
            detached: the job outlives this process, and its output goes to a file; otherwise it saves and leaves when
                this process ends, and writes to this one's output.
            quiet: its output goes to a file although it is not detached.
            env: the environment of its processes; None = this one's.
        Raises:
            UserError: a job trains in this folder already, more ranks than devices, or RANK and WORLD_SIZE, set by
                hand, contradict each other.
        """
        share = local_share(env or os.environ, world_size=world_size, num_devices=num_devices)
        run_dir, folder = Path(run_dir), (Path(run_dir) / FOLDER).absolute()
        refuse_second(run_dir)
        forget_told(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG, lambda beside: OmegaConf.save(cfg, beside))
        (folder / OUTPUT).unlink(missing_ok=True)
        command = [sys.executable, "-m", "ppt_kit", SUPERVISE, str(folder)]
        child = _spawn(command, output=folder / OUTPUT if detached or quiet else None, env=env)
        record = Record(
            pid=child.pid, started=psutil.Process(child.pid).create_time(), host=socket.gethostname(),
            ranks=share, command=command, parent=None if detached else os.getpid(),
        )  # fmt: skip
        _hand_over(record, folder, child)
        return cls(run_dir, record, child=child)

    @classmethod
    def attach(cls, run_dir: str | Path) -> Job:
        """The newest job that was started in a run folder, by whichever process of this host.

        Raises:
            UserError: nothing was launched there, or from another host.
        """
        record = read_record(Path(run_dir) / FOLDER)
        if record is None:
            raise UserError(
                f"{run_dir}: nothing was launched there (no {FOLDER}/{RECORD}). Give a launched run's folder."
            )
        if record.host != socket.gethostname():
            raise UserError(
                f"{run_dir}: launched on {record.host}, this is {socket.gethostname()}. Attach to it there."
            )
        return cls(Path(run_dir), record)

    @property
    def running(self) -> bool:
        """Whether its ranks may still train."""
        if self._child is not None:
            return self._child.poll() is None
        return self._supervisor is not None and lives(self._supervisor)

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code as a shell says it, once all ranks have left; 137 too when nobody was left to write it down.

        Raises:
            TimeoutError: it runs after `timeout_s` still.
        """
        end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.run_dir}: the job runs after {timeout_s:g} s still")
            time.sleep(POLL_S)
        return self._exit_code()

    def stop(self, timeout_s: float = 60.0) -> int:
        """Asks the ranks to save and leave, and kills them if they do not within `timeout_s`; the exit code."""
        self.send(signal.SIGTERM)
        try:
            return self.wait(timeout_s)
        except TimeoutError:
            self._kill_ranks()
            return self.wait(STOP_GRACE_S)

    def send(self, number: int) -> None:
        """Passes a stop signal on to the ranks, if they still run."""
        if self._supervisor is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._supervisor.send_signal(number)

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl so far."""
        path = self.run_dir / METRICS
        return read_rows(path) if path.exists() else []

    def output(self) -> str:
        """What a detached or quiet job has printed so far; of another it is where its starter's output is."""
        path = self.run_dir / FOLDER / OUTPUT
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _exit_code(self) -> int:
        if self._child is not None:
            return exit_code(self._child.returncode)
        record = read_record(self.run_dir / FOLDER)
        # after a later launch the record is that one's
        if record is None or record.pid != self.record.pid or record.exit_code is None:
            return KILLED
        return record.exit_code

    def _kill_ranks(self) -> None:
        """The supervising process sees them gone, writes it down and leaves too."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            for rank in self._supervisor.children() if self._supervisor else ():
                os.killpg(rank.pid, signal.SIGKILL)


def refuse_second(run_dir: Path) -> None:
    """Raises UserError when a job trains in `run_dir` already, unless this process is one of its ranks."""
    record = read_record(run_dir / FOLDER)
    supervisor = _supervisor_of(record) if record is not None else None
    if record is not None and supervisor is not None and supervisor not in psutil.Process().parents():
        raise UserError(
            f"{run_dir}: a job trains there already (process {record.pid}). Stop it, or choose another suffix=…."
        )


def _supervisor_of(record: Record) -> psutil.Process | None:
    """The living process that a record is about."""
    try:
        process = psutil.Process(record.pid)
        return process if record.is_of(process) and lives(process) else None
    except psutil.Error:
        return None


def _spawn(command: list[str], *, output: Path | None, env: Mapping[str, str] | None) -> subprocess.Popen:
    """A supervising process, which waits for its record; in a session of its own, where no terminal's signal comes."""
    if output is None:
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=env)
    with open(output, "wb") as file:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )


def _hand_over(record: Record, folder: Path, child: subprocess.Popen) -> None:
    """Written down first: whatever runs can be found."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        record.write(folder)
        child.stdin.write(record.text().encode())
