"""The rows of a run folder as they come: only what is new is read, from metrics.jsonl alone."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ppt_kit.files import json_row
from ppt_kit.tracking import METRICS

# of each row; the rest is for tables
SHOWN = (
    "kind", "step", "epoch", "epochs", "total_steps", "loss", "val_loss", "lr", "samples_per_s", "steps_per_s",
    "host_gb", "device_gb", "success", "low_95", "high_95", "domain", "path", "reason", "asked", "value", "was",
    "refused", "id",
)  # fmt: skip
# points of a curve that come at once; more than a curve is wide would not be seen
MOST_ROWS = 4000


class Following:
    """One run folder, which need not be there yet.

    Attributes:
        rows: so far, of a run that went on as its file has them now.
        part: counts how often the file was another one: a run that goes on from a checkpoint writes it anew.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / METRICS
        self.rows: list[dict] = []
        self.part = 0
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def read(self) -> bool:
        """Takes what is new; whether anything is."""
        try:
            with open(self._path, "rb") as file:
                stat = os.fstat(file.fileno())
                self._note_other(stat)
                file.seek(self._offset)
                written = file.read()
        except OSError:
            return False
        # a line that is only half written comes with the next look
        whole = written[: written.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = [row for line in whole.splitlines() if (row := json_row(line)) is not None]
        self.rows += rows
        return bool(rows)

    def age_s(self) -> float | None:
        """Seconds since the file was last written; None where there is none."""
        try:
            return max(0.0, time.time() - self._path.stat().st_mtime)
        except OSError:
            return None

    def _note_other(self, stat: os.stat_result) -> None:
        file = (stat.st_dev, stat.st_ino)
        if self._file is not None and (file != self._file or stat.st_size < self._offset):
            self.part += 1
            self.rows, self._offset = [], 0
        self._file = file


def thinned(rows: Sequence[dict], most: int = MOST_ROWS) -> list[dict]:
    """What is shown of rows; of more than `most` training rows evenly chosen ones, and the last."""
    training = [place for place, row in enumerate(rows) if row.get("kind") == "train"]
    step = -(-len(training) // most) if training else 1
    kept = {*training[::step], *training[-1:]}
    chosen = [row for place, row in enumerate(rows) if row.get("kind") != "train" or place in kept]
    return [{name: row[name] for name in SHOWN if row.get(name) is not None} for row in chosen]
