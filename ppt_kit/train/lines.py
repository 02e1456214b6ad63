"""How far a run is, as lines of its log: for a file, where no bar can move."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

# as many in the first minutes as a reader likes, a dozen an hour later on
FIRST_S, LAST_S, SHARE = 10.0, 300.0, 0.05


class Lines:
    """One every FIRST_S, and ever fewer as the run gets older, down to one every LAST_S; none unless `shown`."""

    def __init__(self, *, shown: bool):
        self._shown, self._began = shown, time.monotonic()
        self._told_at = self._began

    def tell(self, row: Mapping[str, Any]) -> None:
        """A row of kind train."""
        now = time.monotonic()
        if not self._shown or now - self._told_at < min(LAST_S, max(FIRST_S, SHARE * (now - self._began))):
            return
        self._told_at = now
        left = (row["total_steps"] - row["step"]) / max(1e-9, row["steps_per_s"])
        log.info(
            "step %d/%d  epoch %d/%d  loss %.4f  %.0f windows/s  %s left",
            row["step"], row["total_steps"], row["epoch"], row["epochs"], row["loss"], row["samples_per_s"],
            in_words(left),
        )  # fmt: skip


def in_words(seconds: float) -> str:
    """40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 36 else f"{hours // 24} d {hours % 24} h"
