"""A run that trains in a thread of this process, which stays free for other work."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable

from ppt_kit.errors import UserError

# Jupyter kills a kernel that has not left 5 s after it was told to
LEAVES_IN_S = 4.0


class Background:
    """One thread, from now on.

    Args:
        work: gives the exit code.
        stop: asks it to save and end, and returns at once.
    Attributes:
        failure: what it raised.
    """

    def __init__(self, work: Callable[[], int], *, stop: Callable[[], None]):
        self.failure: BaseException | None = None
        self._work, self._stop, self._code = work, stop, 1
        # a daemon: what is not saved when the process ends must not keep it from ending
        self._thread = threading.Thread(target=self._run, name="ppt_kit-run", daemon=True)
        _at_exit(self._leave)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code once it has ended.

        Raises:
            TimeoutError: it runs after `timeout_s` still.
            Exception: what it raised.
        """
        self._thread.join(timeout_s)
        if self.running:
            raise TimeoutError(f"it trains after {timeout_s:g} s still")
        if self.failure is not None:
            raise self.failure
        return self._code

    def _run(self) -> None:
        try:
            self._code = self._work()
        except UserError as error:
            self.failure = error
            print(f"error: {error}", file=sys.stderr)
        except BaseException as error:
            self.failure = error
            # printed with its traceback by threading
            raise

    def _leave(self) -> None:
        """The process ends."""
        if self.running:
            self._stop()
            self._thread.join(LEAVES_IN_S)


def _at_exit(act: Callable[[], None]) -> None:
    """Has `act` called while the process ends and threads still start others: at atexit's turn pools refuse."""
    getattr(threading, "_register_atexit", atexit.register)(act)
