"""A launched run as one object: started here or found again, waited for, watched, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import psutil
from omegaconf import DictConfig, OmegaConf

from ppt_kit.config import from_file
from ppt_kit.errors import UserError
from ppt_kit.files import path_of, write_whole
from ppt_kit.jobs.decide import Share, local_share
from ppt_kit.jobs.failures import Failure, failure_of, first_failure, forget_told, log_of, tail
from ppt_kit.jobs.launcher import launcher_command
from ppt_kit.jobs.parents import SUPERVISE, lives
from ppt_kit.jobs.ranks import STOP_GRACE_S, exit_code
from ppt_kit.jobs.record import CONFIG, FOLDER, KILLED_MARK, LOGS, OUTPUT, RECORD, Record, read_record
from ppt_kit.jobs.slurm import Queue, executor_of, submit
from ppt_kit.jobs.state import State, newest_rows, state_of_ended
from ppt_kit.jobs.taken import meeting_place, refuse_second, supervisor_of
from ppt_kit.signals import held_back, on_stop_signals
from ppt_kit.tracking import rows_so_far

POLL_S = 0.1
KILLED = 128 + signal.SIGKILL
# in the folder of a launch: whoever holds it launches
LOCK = "lock"
# what a command line that is pasted later has to say: its folder holds a run by then
GO_ON = "train.resume=auto"


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
    """The ranks of a run, and the process that supervises them.

    `Job.start` makes one, `Job.attach` finds one that another process started.

    Attributes:
        run_dir: the run folder; launch/ in it holds config.yaml, job.json and, of a job that prints to files, logs/.
        record: what is written down about the newest launch.
    """

    def __init__(self, run_dir: Path, record: Record, *, child: subprocess.Popen | None = None):
        self.run_dir = run_dir
        self._reach(record, child)

    @classmethod
    def start(
        cls,
        cfg: DictConfig,
        run_dir: str | Path,
        *,
        world_size: int,
        num_devices: int,
        detached: bool = False,
        own_logs: bool = False,
        nodes: str | dict | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Self:
        """Starts the ranks, each with `cfg`, and returns at once.

        Args:
            world_size: ranks over all nodes.
            num_devices: accelerators visible here; 0 on a CPU machine. With `nodes`: ranks of one.
            detached: the job outlives this process; otherwise it saves and leaves when this process ends.
            own_logs: each rank prints to a file of its own, as those of a detached job do; otherwise where this
                process prints.
            nodes: a file of hosts, on which the `deepspeed` launcher starts the ranks; or the words with which submitit
                hands them to a queue, see `ppt_kit.jobs.slurm.executor_of`; None = this one.
            env: the environment of its processes; None = this one's.
        Raises:
            UserError: a job trains in this folder already, more ranks than devices, or RANK and WORLD_SIZE, set by
                hand, contradict each other; or the queue refuses it.
        """
        share = Share(first=0, here=num_devices, total=world_size)
        hostfile = nodes if isinstance(nodes, str) else None
        slurm = nodes if isinstance(nodes, dict) else None
        if nodes is None:
            share = local_share(env or os.environ, world_size=world_size, num_devices=num_devices)
        run_dir = Path(run_dir)
        record = Record(
            pid=0, started=0.0, host=socket.gethostname(), ranks=share, command=[], cwd=os.getcwd(),
            parent=None if detached or slurm is not None else os.getpid(),
            own_logs=detached or own_logs or slurm is not None, hostfile=hostfile, slurm=slurm,
            meets=meeting_place(env or os.environ) if share.here < share.total else "",
        )  # fmt: skip
        record, child = _launch(cfg, run_dir, record, env=env)
        return cls(run_dir, record, child=child)

    @classmethod
    def attach(cls, run_dir: str | Path) -> Self:
        """The newest job that was started in a run folder, by whichever process of this host.

        Raises:
            UserError: nothing was launched there, or from another host and into no queue.
        """
        run_dir = path_of(run_dir, what="a run folder, as outputs/models/door-open/exp1")
        record = read_record(run_dir / FOLDER)
        if record is None:
            raise UserError(
                f"{run_dir}: nothing was launched there (no {FOLDER}/{RECORD}). Give a launched run's folder."
            )
        if record.host != socket.gethostname() and record.slurm is None:
            raise UserError(
                f"{run_dir}: launched on {record.host}, this is {socket.gethostname()}. Attach to it there."
            )
        return cls(Path(run_dir), record)

    @property
    def running(self) -> bool:
        """Whether its ranks may still train, or wait in a queue to begin."""
        if self._queue is not None:
            return bool(self._queue.word())
        if self._child is not None:
            return self._child.poll() is None
        return self._supervisor is not None and lives(self._supervisor)

    @property
    def state(self) -> State:
        """What it does, or how it ended, in a word and a line."""
        if self._queue is not None and self._queue.word() == "queued":
            return State("queued", f"as job {self._queue.job_id}")
        if self.running:
            row = newest_rows(self.run_dir).train
            return State("running", f"step {row['step']}, epoch {row['epoch']}, loss {row['loss']:.4g}" if row else "")
        record = self._newest_record()
        if record is None:
            return State("unknown", "a later launch took its place in the folder: attach finds that one")
        # a supervising process that was killed has written nothing, but its own parent knows
        code = None if self._child is None else exit_code(self._child.returncode)
        return state_of_ended(self.run_dir, replace(record, exit_code=code) if record.exit_code is None else record)

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
            return self.kill()

    def kill(self) -> int:
        """Ends the ranks at once: what came after the last checkpoint is lost; the exit code."""
        self.kill_ranks()
        return self.wait(STOP_GRACE_S)

    def kill_ranks(self) -> None:
        """As `kill`, without waiting: the supervising process sees them gone, writes it down and leaves too."""
        if not self.running:
            return
        (self.run_dir / FOLDER / KILLED_MARK).touch()
        if self._queue is not None:
            self._queue.kill()
            return
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            ranks = self._supervisor.children() if self._supervisor else []
            for rank in ranks:
                for process in rank.children(recursive=True) if self.record.hostfile else ():
                    process.kill()
                os.killpg(rank.pid, signal.SIGKILL)
            # it has not come to start them
            if self._supervisor and not ranks:
                self._supervisor.kill()

    def send(self, number: int) -> None:
        """Passes a stop signal on to the ranks, if they still run."""
        if self._queue is not None:
            self._queue.send(number)
        elif self._supervisor is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._supervisor.send_signal(number)

    def resume(self) -> Self:
        """Starts the same ranks again, to go on from the newest checkpoint; this object is of the new launch then.

        Raises:
            UserError: it runs, or `start` refuses it.
        """
        refuse_second(self.run_dir)
        cfg = from_file(self.run_dir / FOLDER / CONFIG)
        OmegaConf.update(cfg, "train.resume", "auto")
        again = replace(
            self.record, host=socket.gethostname(), cwd=self.record.cwd or os.getcwd(),
            parent=None if self.record.parent is None else os.getpid(), exit_code=None, failed_rank=None, ended=None,
        )  # fmt: skip
        self._reach(*_launch(cfg, self.run_dir, again))
        return self

    def follow(self) -> None:
        """Turns to the newest launch in its folder, where another process has resumed the run."""
        record = read_record(self.run_dir / FOLDER)
        if record is not None and self._newest_record() is None:
            self._reach(record)

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl so far."""
        return rows_so_far(self.run_dir)

    def log(self, rank: int = 0, *, last: int | None = None) -> str:
        """What a rank has printed in this launch; of a job without files of its own it is where its starter's is.

        Args:
            rank: of all ranks.
            last: so many lines of its end; None = all.
        Raises:
            UserError: there is no such rank.
        """
        total = self.record.ranks.total
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < total:
            raise UserError(f"rank {rank!r}: this job has {total} rank(s). Give a number from 0 to {total - 1}.")
        path = log_of(self.run_dir, rank)
        if path is None:
            return ""
        if last is None:
            return path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(tail(path).splitlines()[-last:])

    def output(self) -> str:
        """What a detached job has printed so far, its supervising process first; "" of another."""
        path = self.run_dir / FOLDER / OUTPUT
        texts = [path.read_text(encoding="utf-8", errors="replace")] if path.exists() else []
        return "".join([*texts, *(self.log(rank) for rank in range(self.record.ranks.total))])

    def failure(self) -> Failure | None:
        """The traceback of the rank that failed first; None where none has."""
        return failure_of(self.run_dir, self._newest_record() or self.record) if self.state.word == "failed" else None

    @property
    def command_line(self) -> str:
        """To copy into a terminal: a `deepspeed` command that starts the same ranks, or goes on from what they saved.

        "" of several nodes of a queue.
        """
        if not self.record.launcher:
            return ""
        return f"cd {shlex.quote(self.record.cwd)} && {shlex.join([*self.record.launcher, GO_ON])}"

    def __repr__(self) -> str:
        word, detail = self.state
        ranks = self.record.ranks.total
        return f"<{self.run_dir}: {word}{f' ({detail})' if detail else ''}, {ranks} rank{'s' * (ranks > 1)}>"

    def _reach(self, record: Record, child: subprocess.Popen | None = None) -> None:
        self.record = record
        # this process's own child has to be asked how it ended, or it stays in the system's table
        self._child = child
        queued = record.slurm is not None and "job_id" in record.slurm
        self._queue = Queue((self.run_dir / FOLDER).absolute(), record.slurm or {}) if queued else None
        self._supervisor = supervisor_of(record)

    def _newest_record(self) -> Record | None:
        """Of this launch, as it is on the disk; None after a later one."""
        if self._queue is not None:
            return self._queue.record()
        record = read_record(self.run_dir / FOLDER)
        return record if record is not None and record.pid == self.record.pid else None

    def _exit_code(self) -> int:
        if self._child is not None:
            return exit_code(self._child.returncode)
        record = self._newest_record()
        return KILLED if record is None or record.exit_code is None else record.exit_code


def _launch(
    cfg: DictConfig, run_dir: Path, record: Record, *, env: Mapping[str, str] | None = None
) -> tuple[Record, subprocess.Popen | None]:
    """Starts what `record` says, in its folder; the record with what was started, and this process's child."""
    if not Path(record.cwd).is_dir():
        raise UserError(f"{run_dir}: it was launched in {record.cwd}, which is gone. Make it, or launch it anew.")
    refuse_second(run_dir)
    folder, executor = (run_dir / FOLDER).absolute(), None
    if record.slurm is not None:
        asked = {name: value for name, value in record.slurm.items() if name != "job_id"}
        record = replace(record, slurm=asked, started=time.time())
        executor = executor_of(folder, asked, num_gpus=record.ranks.here)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder):
        # another process may have been quicker
        refuse_second(run_dir)
        record = _prepare(cfg, folder, record)
        if executor is not None:
            return submit(executor, record, folder), None
        command = [sys.executable, "-m", "ppt_kit", SUPERVISE, str(folder)]
        child = _spawn(command, output=folder / OUTPUT if record.own_logs else None, cwd=record.cwd, env=env)
        record = replace(record, pid=child.pid, started=psutil.Process(child.pid).create_time(), command=command)
        _hand_over(record, folder, child)
    return record, child


def _prepare(cfg: DictConfig, folder: Path, record: Record) -> Record:
    """The folder of a launch, without what an earlier one has left; the record with the command for it."""
    forget_told(folder)
    write_whole(folder / CONFIG, lambda beside: OmegaConf.save(cfg, beside))
    for name in (OUTPUT, KILLED_MARK):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / LOGS, ignore_errors=True)
    (folder / LOGS).mkdir(exist_ok=True)
    if record.slurm is not None and record.ranks.here != record.ranks.total:
        return replace(record, launcher=[])
    return replace(record, launcher=launcher_command(folder / CONFIG, share=record.ranks, hostfile=record.hostfile))


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Inside, no other process of this host launches in `folder`."""
    with open(folder / LOCK, "w") as lock:
        # of a disk that several hosts share not every one has locks
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _spawn(command: list[str], *, output: Path | None, cwd: str, env: Mapping[str, str] | None) -> subprocess.Popen:
    """A supervising process, which waits for its record; in a session of its own, where no terminal's signal comes."""
    # a stop that comes while it is being loaded waits until it can be obeyed
    with contextlib.nullcontext() if output is None else open(output, "wb") as file, held_back():
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=None if file is None else subprocess.STDOUT,
            start_new_session=True, cwd=cwd, env=env,
        )  # fmt: skip


def _hand_over(record: Record, folder: Path, child: subprocess.Popen) -> None:
    """Written down first: whatever runs can be found."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        record.write(folder)
        child.stdin.write(record.text().encode())


def state_in(run_dir: Path, record: Record) -> State:
    """What the newest launch in a folder does, or how it ended, as far as this host can know."""
    if record.host == socket.gethostname() or record.slurm is not None:
        return Job(run_dir, record).state
    if record.exit_code is None:
        return State("unknown", f"launched on {record.host}: only there it is known whether it runs")
    return state_of_ended(run_dir, record)
