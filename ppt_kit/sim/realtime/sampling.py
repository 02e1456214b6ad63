"""A chunk that is made while the one before runs: in a thread, which leaves Python alone while torch computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ppt_kit.sim.realtime.clock import Clock, WallClock


@dataclass(frozen=True)
class Answer:
    """A chunk (Ta, Da), and how long it took from when it was asked for until it was there (s)."""

    chunk: np.ndarray
    latency_s: float


class Sampler(Protocol):
    """Makes one chunk at a time, elsewhere."""

    def ask(self, make: Callable[[], np.ndarray]) -> None:
        """Begins to make a chunk; returns at once."""

    def answer(self, *, timeout_s: float = 0.0) -> Answer | None:
        """The chunk that was asked for, None while there is none; raises what making it raised."""

    def close(self) -> None:
        """Nothing more is asked."""


class ThreadSampler:
    """In a thread, which ends with the program, whatever it does then. Used again after `close` it has a new one.

    Args:
        clock: None = the machine's own.
        latency_s: that each chunk takes longer than it does: a slower machine is tried out (s).
    """

    def __init__(self, clock: Clock | None = None, *, latency_s: float = 0.0):
        self._clock, self._latency_s = clock or WallClock(), latency_s
        self._worker: _Worker | None = None

    def ask(self, make: Callable[[], np.ndarray]) -> None:
        if self._worker is None:
            self._worker = _Worker(self._clock, self._latency_s)
        self._worker.asked.put((self._clock.now(), make))

    def answer(self, *, timeout_s: float = 0.0) -> Answer | None:
        if self._worker is None:
            return None
        try:
            made = self._worker.made.get(block=timeout_s > 0, timeout=timeout_s or None)
        except queue.Empty:
            return None
        if isinstance(made, BaseException):
            raise made
        return made

    def close(self) -> None:
        """What is being made is not waited for, and reaches nobody."""
        if self._worker is not None:
            self._worker.asked.put(None)
            self._worker = None


class _Worker:
    def __init__(self, clock: Clock, latency_s: float):
        self.asked: queue.SimpleQueue[tuple[float, Callable[[], np.ndarray]] | None] = queue.SimpleQueue()
        self.made: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
        self._clock, self._latency_s = clock, latency_s
        threading.Thread(target=self._work, name="ppt_kit-sampler", daemon=True).start()

    def _work(self) -> None:
        while (asked := self.asked.get()) is not None:
            began, make = asked
            try:
                chunk = make()
                if self._latency_s:
                    time.sleep(self._latency_s)
                self.made.put(Answer(chunk, self._clock.now() - began))
            # told where it is waited for
            except BaseException as error:
                self.made.put(error)
