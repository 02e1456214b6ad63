"""A stop signal asks a run to save and stop, instead of ending it at once."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any


class StopSignals:
    """While a run trains, SIGTERM, SIGINT and SIGUSR1 (as Slurm sends before a time limit) ask it to save and stop.

    A signal that comes again within REPEAT_S is the same one, sent to the group and passed on by the launcher; after
    that it acts as it did before. Outside the main thread nothing is installed.
    """

    REPEAT_S = 5.0

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked: int | None = None
        self._previous: dict[int, Any] = {}
        self._asked_at = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
        elif time.monotonic() - self._asked_at > self.REPEAT_S:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
