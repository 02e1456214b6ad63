"""A process ends with the one that started it, so that nothing trains on with nobody to stop it."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

# the word behind `python -m ppt_kit` that makes a process supervise ranks instead of being one
SUPERVISE = "--supervise"
LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed", "ppt_kit", "train.py", "ppt-train")


def watch_launchers() -> None:
    """As `signals.end_with_parent`, for the launcher's launcher: `deepspeed` starts a process that starts the ranks.

    A thread looks once a second whether those that led to this rank still live, and asks this process to stop when not.
    """
    led_here = _launchers()

    def watch() -> None:
        while all(map(lives, led_here)):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    if led_here:
        threading.Thread(target=watch, daemon=True, name="ppt_kit-launchers").start()


def lives(process: Any) -> bool:
    """Whether a psutil.Process still runs; one that only waits to be asked how it ended does not."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _launchers() -> list[Any]:
    """The processes that led to this one, nearest first, up to one that supervises: it may outlive what started it."""
    import psutil

    found = []
    for process in psutil.Process().parents()[:4]:
        words = _words(process)
        if any(launcher in " ".join(words) for launcher in LAUNCHERS):
            found.append(process)
        if SUPERVISE in words:
            break
    return found


def _words(process: Any) -> list[str]:
    import psutil

    try:
        return process.cmdline()[:4]
    except psutil.Error:
        return []
