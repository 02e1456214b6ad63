"""The ranks of one node: started, watched, and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ppt_kit.jobs.decide import Share
from ppt_kit.signals import STOP_CODES, end_with_parent, let_stops_in, on_stop_signals

STOP_GRACE_S = 20  # what the other ranks get to save once one has left, before they are killed


class End(NamedTuple):
    """How the ranks of a node ended."""

    code: int  # the first that was not 0, as a shell says it
    rank: int | None = None  # whose it was; None: all left with 0, or it is not known


def run_ranks(config_file: Path, *, share: Share, is_left_alone: Callable[[], bool], logs: Path | None = None) -> End:
    """Starts the ranks as `python -m ppt_kit CONFIG`, passes signals on, and says how they ended.

    When one rank fails the others are told to stop, and killed if they do not within STOP_GRACE_S.

    Args:
        is_left_alone: asked all the time; once it says so the ranks are told to stop.
        logs: folder for what each rank prints; None = it prints where this process prints.
    """
    ranks: list[subprocess.Popen] = []
    asked: list[int] = []
    common = _environment(share)
    with on_stop_signals(asked.append):
        let_stops_in()
        try:
            for local in range(share.here):
                numbers = {"RANK": str(share.first + local), "LOCAL_RANK": str(local)}
                log = logs and logs / log_name(share.first + local)
                ranks.append(_start(config_file, common | numbers, log=log))
            code, local_rank = _watch(ranks, asked, is_left_alone)
            return End(code, None if local_rank is None else share.first + local_rank)
        finally:
            _tell_groups(ranks, signal.SIGKILL)


def log_name(rank: int) -> str:
    """Of the file with what a rank has printed."""
    return f"rank{rank}.log"


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def exit_code(returncode: int) -> int:
    """As a shell says it: 128 + the signal that ended a process."""
    return 128 - returncode if returncode < 0 else returncode


def _environment(share: Share) -> dict[str, str]:
    """What the ranks of a node have in common."""
    return os.environ | {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(free_port()),
        "WORLD_SIZE": str(share.total),
        "LOCAL_WORLD_SIZE": str(share.here),
    }


def _start(config_file: Path, env: dict[str, str], *, log: Path | None) -> subprocess.Popen:
    # -u: what it prints is in the file while it runs
    command = [sys.executable, "-u", "-m", "ppt_kit", str(config_file)]
    with contextlib.nullcontext() if log is None else open(log, "wb") as file:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent,
            stdout=file, stderr=None if file is None else subprocess.STDOUT,
        )  # fmt: skip


def _watch(
    ranks: list[subprocess.Popen], asked: list[int], is_left_alone: Callable[[], bool]
) -> tuple[int, int | None]:
    """Until the last rank has left: the first code that is not 0, and which of `ranks` it was.

    `asked` is emptied of the signals to pass on.
    """
    failed_at, code, first, told = None, 0, None, False
    while True:
        # every rank is looked at, not only up to the first that lives
        codes = [rank.poll() for rank in ranks]
        if None not in codes:
            first = first if first is not None else next((at for at, got in enumerate(codes) if got), None)
            return (0, None) if first is None else (exit_code(codes[first] or 0), first)
        living = [rank for rank in ranks if rank.returncode is None]
        bad = [at for at, got in enumerate(codes) if got]
        if bad and failed_at is None:
            failed_at, first = time.monotonic(), bad[0]
            code = exit_code(codes[first] or 0)
            # a rank that was asked to stop: the others were asked too, and are about to leave
            if code not in STOP_CODES:
                _tell_groups(living, signal.SIGTERM)
        if failed_at is not None and time.monotonic() - failed_at > STOP_GRACE_S:
            _tell_groups(living, signal.SIGKILL)
        if not told and is_left_alone():
            told = True
            _tell_groups(living, signal.SIGTERM)
        while asked:
            _tell_groups(living, asked.pop(0))
        time.sleep(0.1)


def _tell_groups(ranks: list[subprocess.Popen], number: int) -> None:
    """The ranks and what they started themselves."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, number)
