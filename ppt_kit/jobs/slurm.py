"""Jobs in a queue of Slurm: submitted, and reached while they wait and run, by submitit."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import Share
from ppt_kit.jobs.parents import lives
from ppt_kit.jobs.record import Record, read_record
from ppt_kit.jobs.supervise import run_recorded, write_end

# in the folder of a launch: what submitit writes, and the queue prints
FOLDER = "slurm"
CLUSTERS = ("slurm", "local")
# how often the queue is asked
ASK_S = 10.0
WAIT_FOR_RECORD_S = 120.0
RUNS = ("RUNNING", "COMPLETING", "SUSPENDED")
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "RESIZING", "UNKNOWN")


def executor_of(folder: Path, asked: Mapping[str, Any], *, num_gpus: int) -> Any:
    """submitit's executor that starts one task a node, each of which starts `num_gpus` ranks.

    Args:
        folder: of the launch.
        asked: submitit's words (timeout_min, nodes, mem_gb, cpus_per_task, name, and with slurm_ before it any of
            sbatch: slurm_partition, slurm_account). cluster="local" starts the same here, without a queue;
            gpus_per_node is `num_gpus`, or 0 for ranks on the CPU.
    Raises:
        UserError: submitit is not installed, this is no machine of a cluster, or a word is not submitit's.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("slurm=… needs submitit. Type pip install 'ppt_kit[slurm]'.") from None
    words = {"name": "ppt_kit", "nodes": 1, **asked}
    cluster = words.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise UserError(f"slurm: cluster={cluster!r}. Give one of {', '.join(CLUSTERS)}; local runs it here.")
    if "tasks_per_node" in words:
        raise UserError("slurm: tasks_per_node is 1: one task a node starts num_gpus ranks. Leave it out.")
    words.setdefault("gpus_per_node", 0 if cluster == "local" else num_gpus)
    if words["gpus_per_node"] not in (0, num_gpus):
        raise UserError(
            f"slurm: gpus_per_node={words['gpus_per_node']}, but num_gpus={num_gpus}. Leave it out; 0 is for CPUs."
        )
    if "timeout_min" not in words:
        raise UserError(
            "slurm: timeout_min is missing, after which the queue ends the job. Type e.g. slurm={'timeout_min': 600}."
        )
    try:
        executor = submitit.AutoExecutor(folder / FOLDER, cluster=cluster)
        executor.update_parameters(tasks_per_node=1, **words)
    # submitit says in these what it does not take, and that there is no srun
    except (ValueError, TypeError, NameError, RuntimeError, AssertionError) as error:
        raise UserError(f"slurm: {' '.join(str(error).split())[:600]}") from None
    return executor


def submit(executor: Any, record: Record, folder: Path) -> Record:
    """Hands a launch to the queue; its record, with the job's number in it, as it is written down.

    Raises:
        UserError: the queue refuses it.
    """
    try:
        with contextlib.chdir(record.cwd):
            job = executor.submit(run_on_node, str(folder))
    except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
        said = getattr(error, "stderr", None) or error
        raise UserError(f"slurm: the queue does not take it: {' '.join(str(said).split())[:600]}") from None
    assert record.slurm is not None
    record = replace(record, slurm={**record.slurm, "job_id": job.job_id})
    record.write(folder)
    return record


def run_on_node(folder_name: str) -> int:
    """What the queue starts on each node: this node's ranks, to their end."""
    import submitit

    folder, here = Path(folder_name), submitit.JobEnvironment()
    record = _recorded(folder, here.job_id)
    if record.exit_code is not None:
        # stopped while it waited
        return record.exit_code
    # what submitit does at the end of its time is to submit again; here ranks save, and resume goes on
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    share = record.ranks._replace(first=here.node * record.ranks.here)
    if here.num_nodes > 1:
        os.environ["MASTER_ADDR"] = here.hostnames[0]
        os.environ["MASTER_PORT"] = str(20_000 + int(here.job_id) % 40_000)
    own = replace(record, ranks=share)
    if here.node == 0:
        process = psutil.Process()
        started = {"pid": process.pid, "started": process.create_time(), "command": process.cmdline()}
        record = replace(record, host=socket.gethostname(), **started)
        record.write(folder)
    os.chdir(record.cwd)
    end = run_recorded(own, folder, lambda: False)
    if here.node == 0:
        write_end(record, folder, end)
    return end.code


class Queue:
    """A job that was handed to a queue.

    Args:
        folder: of the launch.
        slurm: of its record.
    """

    def __init__(self, folder: Path, slurm: dict):
        self.folder, self.job_id = folder, str(slurm["job_id"])
        self.is_local = slurm.get("cluster", "slurm") == "local"
        self._asked_at, self._word = -ASK_S, "queued"

    @property
    def is_own(self) -> bool:
        """Whether this process is part of it."""
        return self.job_id in (os.environ.get("SLURM_JOB_ID"), os.environ.get("SUBMITIT_LOCAL_JOB_ID"))

    def record(self) -> Record | None:
        """Of this job; None after a later launch."""
        record = read_record(self.folder)
        return record if record and record.slurm and str(record.slurm.get("job_id")) == self.job_id else None

    def word(self) -> str:
        """queued, running, or "" once it has left the queue."""
        record = self.record()
        if record is None or record.exit_code is not None:
            return ""
        process = self._process(record)
        if process is not None:
            return "running"
        if self.is_local:
            return "queued" if not record.pid and self._controller() is not None else ""
        if time.monotonic() - self._asked_at >= ASK_S:
            self._asked_at, self._word = time.monotonic(), self._ask()
        return self._word

    def send(self, number: int) -> None:
        """A stop signal to the ranks; a job that still waits leaves the queue."""
        record = self.record()
        if record is None or record.exit_code is not None:
            return
        process = self._process(record)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        elif record.pid:
            self._scancel(f"--signal={signal.Signals(number).name.removeprefix('SIG')}")
        else:
            self._leave()
            replace(record, exit_code=128 + number, ended=time.time()).write(self.folder)

    def kill(self) -> None:
        """Ends it where it is."""
        record = self.record()
        process = self._process(record) if record is not None else None
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            for rank in process.children() if process else ():
                os.killpg(rank.pid, signal.SIGKILL)
        if process is None:
            self._leave()

    def _leave(self) -> None:
        if not self.is_local:
            self._scancel()
            return
        controller = self._controller()
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*controller.children(), controller] if controller else ():
                process.kill()

    def _process(self, record: Record) -> psutil.Process | None:
        """The task that supervises the ranks, where it runs on this host."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(record.pid) if record.pid else None
            if process is not None and record.is_of(process) and lives(process):
                return process
        return None

    def _controller(self) -> psutil.Process | None:
        """What submitit's local executor has in place of a queue."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(self.job_id))
            if "submitit.local._local" in process.cmdline() and lives(process):
                return process
        return None

    def _ask(self) -> str:
        import submitit

        state = submitit.SlurmJob(self.folder / FOLDER, self.job_id).watcher.get_state(self.job_id, mode="force")
        return "running" if state in RUNS else "queued" if state in WAITS else ""

    def _scancel(self, *words: str) -> None:
        try:
            subprocess.run(["scancel", *words, self.job_id], check=True, capture_output=True, text=True)
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or error
            raise UserError(f"scancel {self.job_id}: {' '.join(str(said).split())}") from None


def _recorded(folder: Path, job_id: str) -> Record:
    """Of this job, which the one that submitted it writes down once it knows the number."""
    end = time.monotonic() + WAIT_FOR_RECORD_S
    while time.monotonic() < end:
        record = read_record(folder)
        if record is not None and record.slurm and str(record.slurm.get("job_id")) == job_id:
            return record
        time.sleep(0.2)
    raise TimeoutError(f"{folder}: the job {job_id} is not written down there")


def share_of(asked: Mapping[str, Any], *, num_gpus: int) -> Share:
    """The ranks of a job over all its nodes, and on each.

    Raises:
        UserError: nodes is no number of nodes.
    """
    nodes = asked.get("nodes", 1)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise UserError(f"slurm: nodes={nodes!r}. Give a number of nodes, from 1.")
    return Share(first=0, here=num_gpus, total=num_gpus * nodes)
