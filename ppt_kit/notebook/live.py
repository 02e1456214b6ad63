"""Curves that grow while a run trains in this kernel."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd

from ppt_kit.notebook.plots import plot_metrics

SECONDS_BETWEEN_DRAWINGS = 1.0


def live(run: Any) -> Any:
    """A picture of the run's losses that follows `run.run()`; show it in a cell before training starts.

    Args:
        run: a UnifiedTrainer.
    Returns:
        An ipywidgets Image.
    """
    import ipywidgets

    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="640px"))
    rows: list[dict] = []
    drawn = 0.0

    def draw(row: dict) -> None:
        nonlocal drawn
        # a run that goes on after a stop tells again what came after its checkpoint
        if row["kind"] == "train":
            rows[:] = [each for each in rows if each["step"] < row["step"] and each["kind"] != "end"]
        rows.append(row)
        if row["kind"] == "checkpoint" or time.monotonic() - drawn > SECONDS_BETWEEN_DRAWINGS:
            picture.value = plot_metrics(pd.DataFrame(rows))._repr_png_()
            drawn = time.monotonic()

    run.listeners.append(draw)
    return picture
