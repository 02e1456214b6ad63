"""The curves below a job's panel."""

from __future__ import annotations

import time
from pathlib import Path

import ipywidgets

from ppt_kit.notebook.plots import plot_metrics
from ppt_kit.tracking import METRICS

# between two drawings, and what share of the time drawing may take
SECONDS_BETWEEN, SHARE = 2.0, 0.2


class Curves:
    """Losses and success of a run folder, drawn again when there are new rows.

    Attributes:
        widget: to show.
    """

    def __init__(self, run_dir: Path):
        self._run_dir = run_dir
        self.widget = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="640px", display="none"))
        self._drawn_of, self._due = 0, 0.0

    def refresh(self) -> None:
        """Draws what has come since."""
        path = self._run_dir / METRICS
        size = path.stat().st_size if path.exists() else 0
        began = time.monotonic()
        if not size or size == self._drawn_of or began < self._due:
            return
        self.widget.value = plot_metrics(self._run_dir)._repr_png_()
        self.widget.layout.display = None
        took = time.monotonic() - began
        self._drawn_of, self._due = size, began + max(SECONDS_BETWEEN, took / SHARE)
