"""Bars of success rates: each with its number of episodes and its interval, and no control looks like a policy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.sim.results import NO_CONTROL, NOBODY
from ppt_kit.sim.rows import run_of

# blue and grey are as far apart in grey print as in colour, and a control is hatched besides
POLICY, CONTROL, EDGE = "#0072b2", "#e8e8e8", "#6b6b6b"
# inches: of a line of text, of what a bar has beside its lines, of the axis below them
LINE, AROUND, BELOW = 0.15, 0.16, 0.62
# figures under this have no room for a name and numbers in one line
NARROW = 4.5


def bars_height(table: pd.DataFrame, *, width: float) -> float:
    """Inches that the bars of a `success_table` need, in a figure of `width` inches."""
    return BELOW + sum(_heights(bar_names(table, width=width), width=width))


def draw_bars(axes: Any, table: pd.DataFrame, *, width: float) -> None:
    """A bar a line of a `success_table`, from above; name at the left, n, rate and 95 % interval at the right.

    Args:
        width: inches that the figure, or this part of it, has.
    """
    names = bar_names(table, width=width)
    heights = _heights(names, width=width)
    size = 8 if width >= NARROW else 7
    top, places = 0.0, []
    for row, height in zip(table.to_dict("records"), heights):
        places.append(top + height / 2)
        top += height
        _draw_bar(axes, row, place=places[-1], thick=min(height, 0.5) * 0.62)
        # beyond the cap of an interval that ends at 1
        axes.annotate(
            _numbers(row, in_lines=width < NARROW), (1, places[-1]), xycoords=axes.get_yaxis_transform(),
            xytext=(7, 0), textcoords="offset points", va="center", ha="left", fontsize=size,
        )  # fmt: skip
    axes.set_yticks(places, names, fontsize=size)
    for label, control in zip(axes.get_yticklabels(), table["control"]):
        if control != NO_CONTROL:
            label.set(style="italic", color=EDGE)
    axes.set_ylim(top, 0)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=size)
    axes.set_xlabel("success rate, 95 % interval", fontsize=size + 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)


def bar_names(table: pd.DataFrame, *, width: float) -> list[str]:
    """What each line is called, broken into lines that fit: a control says that it is one."""
    checkpoints = [name for name in dict.fromkeys(table["checkpoint"]) if name != NOBODY]
    short = dict(zip(checkpoints, short_names(checkpoints)))
    several_tasks, several = table["task"].nunique() > 1, len(checkpoints) > 1
    names = []
    for row in table.to_dict("records"):
        of_run = [short[row["checkpoint"]]] if several and row["checkpoint"] != NOBODY else []
        of_task = [str(row["task"])] if several_tasks else []
        if row["control"] == NO_CONTROL:
            said = ", ".join([*of_run, *of_task]) or str(row["task"])
        else:
            said = ", ".join([f"control: {row['control']}", *of_run, *of_task])
        # of a figure, two fifths hold names; a letter is about a fourteenth of an inch
        names.append(_in_lines(said, max(12, int(0.4 * width * 14))))
    return names


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Paths by as few of their last names as tell them apart: run, or run/model_10 where several are of one run."""
    runs = [run_of(name) for name in checkpoints]
    plain = [Path(name).with_suffix("") if Path(name).suffix == ".pth" else Path(name) for name in checkpoints]
    paths = runs if len(set(runs)) == len(runs) else plain
    for count in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names) and (paths is runs or count > 1):
            return names
    return [str(name) for name in checkpoints]


def _in_lines(text: str, most: int) -> str:
    """A name in lines of `most` letters, broken where a path or a name of values has a joint."""
    lines = [""]
    for part in re.findall(r".+?(?:[-_/, ](?=[^\d\s])|(?<=[_, ])|$)", text):
        for piece in [part[start : start + most] for start in range(0, len(part), most)]:
            if len(lines[-1].rstrip()) + len(piece.rstrip()) > most and lines[-1]:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def _draw_bar(axes: Any, row: dict, *, place: float, thick: float) -> None:
    is_control = row["control"] != NO_CONTROL
    if not row["episodes"]:
        return
    look = {"color": CONTROL, "hatch": "////", "edgecolor": EDGE} if is_control else {"color": POLICY}
    axes.barh(place, row["rate"], height=thick, linewidth=0.8 if is_control else 0, **look)
    spread = [[max(0.0, row["rate"] - row["low_95"])], [max(0.0, row["high_95"] - row["rate"])]]
    axes.errorbar(row["rate"], place, xerr=spread, fmt="none", color="black", capsize=3, linewidth=1.2, clip_on=False)


def _numbers(row: dict, *, in_lines: bool) -> str:
    """12/20, 60 % [39, 78], with what could not be run."""
    errors = f", {row['errors']} not run" if row["errors"] else ""
    if not row["episodes"]:
        return f"none of {row['errors']} was run"
    rate, low, high = (f"{100 * row[name]:.0f}" for name in ("rate", "low_95", "high_95"))
    return f"{row['successes']}/{row['episodes']}{errors}{chr(10) if in_lines else '   '}{rate} % [{low}, {high}]"


def _heights(names: Sequence[str], *, width: float) -> list[float]:
    """Inches of each bar, with its name and its numbers."""
    least = 2 if width < NARROW else 1
    return [AROUND + LINE * max(least, name.count("\n") + 1) for name in names]
