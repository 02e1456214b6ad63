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

from ppt_kit.jobs.decide import Share
from ppt_kit.signals import STOP_CODES, end_with_parent, on_stop_signals

STOP_GRACE_S = 20  # what the other ranks get to save once one has left, before they are killed


def run_ranks(config_file: Path, *, share: Share, is_left_alone: Callable[[], bool]) -> int:
    """Starts the ranks as `python -m ppt_kit CONFIG`, passes signals on, and returns the first exit code that is not 0.

    When one rank fails the others are told to stop, and killed if they do not within STOP_GRACE_S.

    Args:
        is_left_alone: asked all the time; once it says so the ranks are told to stop.
    """
    ranks: list[subprocess.Popen] = []
    asked: list[int] = []
    common = _environment(share)
    with on_stop_signals(asked.append):
        try:
            for local in range(share.here):
                numbers = {"RANK": str(share.first + local), "LOCAL_RANK": str(local)}
                ranks.append(_start(config_file, common | numbers))
            return _watch(ranks, asked, is_left_alone)
        finally:
            _tell_groups(ranks, signal.SIGKILL)


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


def _start(config_file: Path, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "ppt_kit", str(config_file)]
    return subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent
    )


def _watch(ranks: list[subprocess.Popen], asked: list[int], is_left_alone: Callable[[], bool]) -> int:
    """Until the last rank has left; `asked` is emptied of the signals to pass on."""
    failed_at, code, told = None, 0, False
    while True:
        # every rank is looked at, not only up to the first that lives
        codes = [rank.poll() for rank in ranks]
        if None not in codes:
            return code or next((exit_code(got) for got in codes if got), 0)
        living = [rank for rank in ranks if rank.returncode is None]
        bad = [got for got in codes if got]
        if bad and failed_at is None:
            failed_at, code = time.monotonic(), exit_code(bad[0])
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
