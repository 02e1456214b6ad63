"""The signals that ask a run to save and stop, instead of ending it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# the last as Slurm sends before a time limit
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# as a shell says that a signal ended a process
STOP_CODES = tuple(128 + number for number in STOP_SIGNALS)


@contextlib.contextmanager
def on_stop_signals(act: Callable[[int], Any]) -> Iterator[None]:
    """Inside, a stop signal calls act(its number). Outside the main thread nothing is installed."""
    previous = _install(act)
    try:
        yield
    finally:
        _restore(previous)


class StopSignals:
    """While a run trains, a stop signal asks it to save and stop.

    A signal that comes again within REPEAT_S is the same one, sent to the group and passed on by the launcher; after
    that it acts as it did before. Outside the main thread nothing is installed.
    """

    REPEAT_S = 5.0

    def __init__(self) -> None:
        self.asked: int | None = None
        self._previous: dict[int, Any] = {}
        self._asked_at = 0.0

    def __enter__(self) -> StopSignals:
        self._previous = _install(self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._previous)

    def _ask(self, number: int) -> None:
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
        elif time.monotonic() - self._asked_at > self.REPEAT_S:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)


def _install(act: Callable[[int], Any]) -> dict[int, Any]:
    """The handlers from before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, lambda got, _: act(got)) for number in STOP_SIGNALS}


def _restore(previous: dict[int, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)
