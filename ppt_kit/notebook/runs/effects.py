"""What each swept key does: a panel a key, every run a point, the means over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.notebook.runs.curves import LABELS, words_of
from ppt_kit.notebook.runs.paper import COLOURS, COLUMN, SMALL, PaperFigure, logarithmic, paper_figure, plain_axes
from ppt_kit.runs.grid import short_name

# panels beside one another in a column's width
BESIDE = 3


def draw_effects(
    summary: pd.DataFrame, effects: pd.DataFrame, keys: Sequence[str], *, metric: str, width: float = COLUMN
) -> PaperFigure:
    """A panel for each key: a grey point a run, a black square at the mean of each value; panels share the metric.

    Raises:
        UserError: nothing differs between the runs.
    """
    if not keys:
        raise UserError("nothing differs between these runs, so there is no effect to draw.")
    across = min(len(keys), max(1, round(BESIDE * width / COLUMN)))
    down = math.ceil(len(keys) / across)
    code = f"runs.effects({metric!r})"
    # what is left of the width beside the panels' own words
    room = (width - 0.7) / across
    upright = {key: _is_wide(effects[effects["key"] == key]["value"], room=room) for key in keys}
    figure = paper_figure(width=width, height=(2.2 if any(upright.values()) else 1.8) * down, data=effects, code=code)
    panels = np.atleast_1d(figure.subplots(down, across, sharey=True, squeeze=False)).ravel()
    ran = summary[summary[metric].notna()]
    for place, (axes, key) in enumerate(zip(panels, keys)):
        lines = effects[effects["key"] == key]
        _draw_panel(axes, ran, lines, metric=metric, upright=upright[key])
        plain_axes(axes, x=short_name(key, keys), y=LABELS.get(metric, metric) if place % across == 0 else "")
        axes.grid(axis="x", visible=False)
        if metric == "success":
            axes.set_ylim(-0.02, 1.05)
        elif (ran[metric] > 0).all():
            logarithmic(axes)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    return figure


def _is_wide(values: pd.Series, *, room: float) -> bool:
    """Whether the names of values would run into one another in so many inches: a letter is a fourteenth of one."""
    longest = max(len(words_of(value)) for value in values)
    return (longest + 1) * len(values) / 14 > room


def _draw_panel(axes: Any, ran: pd.DataFrame, lines: pd.DataFrame, *, metric: str, upright: bool) -> None:
    key, values = lines["key"].iloc[0], list(lines["value"])
    for place, value in enumerate(values):
        numbers = ran[ran[key].isna() if pd.isna(value) else ran[key] == value][metric].to_numpy(dtype=float)
        # beside one another, so that equal ones are seen
        beside = np.linspace(-0.18, 0.18, len(numbers)) if len(numbers) > 1 else np.zeros(1)
        axes.plot(place + beside, numbers, "o", color="#9a9a9a", markersize=2.8, markeredgewidth=0)
    axes.plot(range(len(values)), lines["mean"], "-s", color=COLOURS[2], markersize=4, linewidth=1)
    names = [words_of(value) for value in values]
    axes.set_xticks(range(len(values)), names, fontsize=SMALL, rotation=90 if upright else 0)
    axes.set_xlim(-0.5, len(values) - 0.5)
