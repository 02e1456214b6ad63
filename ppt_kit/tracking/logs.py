"""The log of a run, in its file and on the screen, beside tqdm's bars."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from pathlib import Path

# the handlers of the run that each thread has
_RUNS: dict[int | None, list[logging.Handler]] = {}


def bar_pace() -> dict:
    """tqdm's pace: ten times a second for a person, every ten seconds into a file."""
    return {"mininterval": 0.1 if has_bars() else 10.0}


def has_bars() -> bool:
    """Whether somebody can see a bar move: in a terminal and in a notebook, not in a file."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def add_handlers(path: Path, *, on_screen: bool = True) -> list[logging.Handler]:
    """Has the package's log go to the file `path` and to the screen; there its warnings only unless `on_screen`.

    What another run's thread says is that run's. A run that this thread left without an end has one now.
    """
    package, mine = logging.getLogger("ppt_kit"), threading.get_ident()
    remove_handlers(_RUNS.get(mine, []))
    package.setLevel(logging.INFO)
    file = _LogFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = _screen(logging.INFO if on_screen else logging.WARNING)
    _RUNS[mine] = [file, screen]
    for handler in (file, screen):
        handler.addFilter(lambda record: record.thread == mine or record.thread not in _RUNS)
        package.addHandler(handler)
    return [file, screen]


def remove_handlers(handlers: list[logging.Handler]) -> None:
    """What `add_handlers` gave."""
    for thread in [thread for thread, each in _RUNS.items() if each == handlers]:
        del _RUNS[thread]
    for handler in handlers:
        logging.getLogger("ppt_kit").removeHandler(handler)
        handler.close()


def log_as_lines() -> None:
    """Has the package's warnings on the screen as plain lines, also while no run has its own log there."""
    package, screen = logging.getLogger("ppt_kit"), _screen(logging.WARNING)
    screen.addFilter(lambda _: not any(each is not screen and isinstance(each, _Screen) for each in package.handlers))
    package.addHandler(screen)


def _screen(level: int) -> logging.Handler:
    screen = _Screen(_BesideBars())
    screen.setFormatter(logging.Formatter("%(message)s"))
    screen.setLevel(level)
    return screen


class _Screen(logging.StreamHandler):
    """What people see, but for the log in its file; who reads it may have read enough, as `head` has."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


class _LogFile(logging.FileHandler):
    """A log whose disk may be full for a while: that costs lines of it, which the screen has, and not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _BesideBars:
    """A stream whose lines go above tqdm's bars instead of through them."""

    def write(self, text: str) -> None:
        from tqdm.auto import tqdm

        if text.strip():
            tqdm.write(text.rstrip("\n"))

    def flush(self) -> None:
        """tqdm.write flushes."""
