"""Which mode, which processes: one pure decision, and the ranks that plain python starts by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.files import write_text

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOP_CODES = tuple(128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
STOP_GRACE_S = 20  # what a rank gets to save after a stop signal, before it is killed


def decide(train_mode: str, *, world_size: int, env: Mapping[str, str], num_devices: int) -> str:
    """What this process is to do: "single", "rank" (it is one of a launched job) or "spawn" (it starts the ranks).

    Args:
        train_mode: single, distributed or auto.
        world_size: processes asked for in the configuration.
        env: the environment; a launcher sets RANK, LOCAL_RANK and WORLD_SIZE.
        num_devices: accelerators visible here; CPUs do not count, auto never chooses several CPU ranks by itself.
    Raises:
        UserError: single under a launcher that started several processes, or world_size against the launcher's.
    """
    launched = "RANK" in env and "LOCAL_RANK" in env and "WORLD_SIZE" in env
    if launched:
        total = int(env["WORLD_SIZE"])
        if train_mode == "single" and total > 1:
            raise UserError(
                f"train_mode=single, but a launcher started {total} processes. Type train_mode=auto, or start it with plain python."
            )
        if world_size not in (1, total):
            raise UserError(
                f"world_size={world_size}, but the launcher started {total} processes. Leave world_size out: the launcher decides."
            )
        return "single" if train_mode == "single" else "rank"
    if train_mode == "distributed":
        return "spawn"
    if train_mode == "auto" and 1 < world_size <= num_devices:
        return "spawn"
    return "single"


def num_visible_devices() -> int:
    """Accelerators this process may use; 0 on a CPU machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def local_share(env: Mapping[str, str], *, world_size: int, num_devices: int) -> tuple[int, int, int]:
    """(first global rank, ranks to start here, ranks in all) for a process that starts ranks.

    Alone it starts all of them. With MASTER_ADDR, WORLD_SIZE and RANK set by hand on several nodes, RANK is this node's
    first global rank, and the node starts LOCAL_WORLD_SIZE ranks, or one a device, or one.

    Raises:
        UserError: more ranks than devices, or the variables contradict each other.
    """
    if "MASTER_ADDR" in env and "RANK" in env and "WORLD_SIZE" in env:
        first, total = int(env["RANK"]), int(env["WORLD_SIZE"])
        if world_size not in (1, total):
            raise UserError(
                f"world_size={world_size}, but WORLD_SIZE={total}. Set both to the number of processes over all nodes."
            )
        here = min(int(env.get("LOCAL_WORLD_SIZE", num_devices or 1)), total - first)
        if here < 1:
            raise UserError(
                f"RANK={first} with WORLD_SIZE={total} leaves no rank for this node. RANK is the node's first global rank, from 0."
            )
        return first, here, total
    if num_devices and world_size > num_devices:
        raise UserError(
            f"world_size={world_size}, but {num_devices} device(s) are visible. Set world_size={num_devices}, or check CUDA_VISIBLE_DEVICES."
        )
    return 0, world_size, world_size


def run_ranks(config_file: Path, *, world_size: int, num_devices: int) -> int:
    """Starts the ranks as `python -m ppt_kit CONFIG`, passes signals on, and returns the first exit code that is not 0.

    When one rank fails the others are told to stop, and killed if they do not within STOP_GRACE_S.
    """
    first, here, total = local_share(os.environ, world_size=world_size, num_devices=num_devices)
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = os.environ.get("MASTER_PORT") or str(free_port())
    common = os.environ | {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(total),
        "LOCAL_WORLD_SIZE": str(here),
    }
    ranks: list[subprocess.Popen] = []
    handled = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    previous = {number: signal.signal(number, lambda got, _: _tell(ranks, got)) for number in handled}
    try:
        for local in range(here):
            env = common | {"RANK": str(first + local), "LOCAL_RANK": str(local)}
            command = [sys.executable, "-m", "ppt_kit", str(config_file)]
            ranks.append(subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=end_with_parent))
        return _wait(ranks)
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Linux tells this process to stop (SIGTERM: save, then leave) when the one that started it is gone, even by kill -9.

    Without it a killed launcher leaves ranks that go on training with nobody to stop them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def watch_launchers() -> None:
    """As `end_with_parent`, for the launcher's launcher: `deepspeed` starts a process that starts the ranks.

    A thread looks once a second whether those that led to this rank still live, and asks this process to stop when not.
    """
    import psutil

    led_here = [p for p in psutil.Process().parents()[:4] if _is_launcher(p)]

    def watch() -> None:
        while all(map(_lives, led_here)):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    if led_here:
        threading.Thread(target=watch, daemon=True, name="ppt_kit-launchers").start()


def _lives(process: Any) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_launcher(process: Any) -> bool:
    import psutil

    try:
        line = " ".join(process.cmdline()[:4])
    except psutil.Error:
        return False
    return any(word in line for word in ("deepspeed", "torchrun", "torch.distributed", "ppt_kit", "train.py"))


def tell_first_failure(folder: Path, *, rank: int, started: float) -> None:
    """Called while an exception is handled: writes it down, then prints the first that any rank of this run wrote.

    Args:
        folder: rank_{n}.txt go there.
        started: time.time() before which files belong to an earlier run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"rank_{rank}.txt", f"rank {rank} failed:\n{traceback.format_exc()}")
    time.sleep(1.0)  # the rank that failed first may still be writing
    print(first_failure(folder, started=started), file=sys.stderr, flush=True)


def first_failure(folder: Path, *, started: float) -> str:
    """The earliest traceback in `folder` since `started`, or an empty text."""
    written = {path: path.stat().st_mtime for path in folder.glob("rank_*.txt")}
    recent = [path for path, when in written.items() if when >= started - 1]
    return min(recent, key=lambda path: written[path]).read_text() if recent else ""


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(ranks: list[subprocess.Popen]) -> int:
    failed_at, code = None, 0
    while None in (
        codes := [rank.poll() for rank in ranks]
    ):  # every rank is asked, not only up to the first that lives
        time.sleep(0.1)
        bad = [got for got in codes if got]
        if bad and failed_at is None:
            failed_at, code = time.monotonic(), _exit_code(bad[0])
            if (
                code not in STOP_CODES
            ):  # a rank that was asked to stop: the others were asked too, and are about to leave
                _tell(ranks, signal.SIGTERM)
        if failed_at is not None and time.monotonic() - failed_at > STOP_GRACE_S:
            _tell(ranks, signal.SIGKILL)
    return code or next((_exit_code(rank.returncode) for rank in ranks if rank.returncode), 0)


def _exit_code(returncode: int) -> int:
    """As a shell says it: 128 + the signal that ended a process."""
    return 128 - returncode if returncode < 0 else returncode


def _tell(ranks: list[subprocess.Popen], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, number)
