"""The signals that ask a process to keep what it has and stop, instead of ending it at once."""

from __future__ import annotations

import contextlib
import ctypes
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h

# the last as Slurm sends before a time limit
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# as a shell says that a signal ended a process
STOP_CODES = tuple(128 + number for number in STOP_SIGNALS)


@contextlib.contextmanager
def on_stop_signals(act: Callable[[int], Any]) -> Iterator[None]:
    """Inside, a stop signal calls act(its number). Outside the main thread nothing is installed."""
    previous = _install(lambda number, _: act(number))
    try:
        yield
    finally:
        _restore(previous)


class Stopped(KeyboardInterrupt):
    """A stop signal ended the work between two of its steps; what was done is kept. In a notebook it is an interrupt.

    Attributes:
        number: of the signal; 128 + number is what a shell calls such an end.
    """

    def __init__(self, number: int, kept: str = ""):
        """`kept`: what there is now and how to go on."""
        self.number = number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}" + (f": {kept}" if kept else ""))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of the frames, which are all ours."""
        return [str(self)]


def interrupt(kept: str) -> KeyboardInterrupt:
    """What a notebook knows as an interrupt, shown there as its sentence alone.

    Args:
        kept: what there is now and how to go on.
    """
    stopped = Stopped(signal.SIGINT, kept)
    told = KeyboardInterrupt(str(stopped))
    told._render_traceback_ = stopped._render_traceback_  # type: ignore[attr-defined]
    return told


# one for each `held_back` that the main thread is in
_HELD: list[None] = []


@contextlib.contextmanager
def stops_raise() -> Iterator[None]:
    """Inside, a stop signal raises Stopped. One that comes again within REPEAT_S is the same one, as with StopSignals.

    So what is tidied up on the way out is not stopped in turn. Outside the main thread, and in a block of its own kind,
    nothing is installed.
    """
    if isinstance(signal.getsignal(signal.SIGINT), _Raise):
        yield
        return
    previous = _install(_Raise())
    try:
        yield
    finally:
        _restore(previous)


class _Raise:
    """A handler."""

    def __init__(self) -> None:
        self._raised_at = -math.inf
        self._waits: int | None = None

    def __call__(self, number: int, _: Any = None) -> None:
        if _HELD:
            self._waits = number
            return
        if time.monotonic() - self._raised_at > StopSignals.REPEAT_S:
            self._raised_at = time.monotonic()
            raise Stopped(number)

    def let_in(self) -> None:
        """Raises what came while it was held back."""
        number, self._waits = self._waits, None
        if number is not None:
            self(number)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Stop signals wait until the end of the block; a process that is started inside begins its life without them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # what another thread was given comes to the main one all the same
    if in_main:
        _HELD.append(None)
    try:
        yield
    finally:
        if in_main:
            _HELD.pop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        handler = signal.getsignal(signal.SIGINT)
        if in_main and not _HELD and isinstance(handler, _Raise):
            handler.let_in()


def leave_stops_to_parent() -> None:
    """This process, started inside `held_back`, does nothing at a stop signal; what it starts itself ends as always."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    let_stops_in()


def let_stops_in() -> None:
    """In a process that was started inside `held_back`: stop signals come from here on, those that waited first."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Linux sends this process a signal (SIGTERM: save, then leave) when the one that started it is gone, however.

    To be called by what the parent's main thread started: the signal comes when that thread ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


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
        self._previous = _install(lambda number, _: self._ask(number))
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._previous)

    def _ask(self, number: int) -> None:
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
        elif time.monotonic() - self._asked_at > self.REPEAT_S:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)


def _install(handler: Callable[[int, Any], Any]) -> dict[int, Any]:
    """The handlers from before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS}


def _restore(previous: dict[int, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)
