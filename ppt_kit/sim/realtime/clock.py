"""What time it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits for one; seconds since some beginning."""

    def now(self) -> float:
        """The time (s)."""

    def sleep_until(self, moment: float) -> None:
        """Returns at a time (s), at once where that is past."""


class WallClock:
    """The machine's own, which nobody sets back."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        # a sleep may end early
        while (left := moment - time.monotonic()) > 0:
            time.sleep(left)
