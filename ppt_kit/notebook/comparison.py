"""Figures of comparisons."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import MaxNLocator

from ppt_kit.notebook.figure import Plot
from ppt_kit.notebook.plots import BLUE, GREY
from ppt_kit.sim.compare.result import STILL_OPEN, Comparison
from ppt_kit.sim.compare.several import MethodComparison


def plot_comparison(result: Comparison | MethodComparison) -> Plot:
    """Two policies: their difference and its confidence sequence over goals, and where it was decided.

    Two methods with several training runs: every run's rate, the means with their intervals.
    """
    figure = Plot(figsize=(6.4, 3.8), layout="constrained")
    if isinstance(result, Comparison):
        figure.data, figure.code = result.sequence, "result.sequence"
        _draw_sequence(figure.add_subplot(), result)
    else:
        figure.data = result.runs.merge(result.variance, on="method", suffixes=("", "_mean"))
        figure.code = "result.runs.merge(result.variance, on='method', suffixes=('', '_mean'))"
        _draw_runs(figure.add_subplot(), result)
    return figure


def _draw_sequence(axes: Any, result: Comparison) -> None:
    course = result.sequence
    goals = range(1, len(course) + 1)
    axes.fill_between(
        goals, 100 * course["low"], 100 * course["high"], step="mid", color=BLUE, alpha=0.2, linewidth=0,
        label=f"{100 * result.confidence:g} % confidence sequence",
    )  # fmt: skip
    axes.step(goals, 100 * course["difference"], where="mid", color=BLUE, label="difference so far")
    axes.axhline(0, color="black", linewidth=0.8)
    if result.margin is not None:
        axes.axhspan(-100 * result.margin, 100 * result.margin, color=GREY, alpha=0.4, linewidth=0, label="margin")
    if result.decided_after is not None:
        said = "the same" if result.decision == "same" else f"{result.decision} is better"
        axes.axvline(result.decided_after, color="black", linestyle=":", label=f"{said}: goal {result.decided_after}")
    axes.set_ylim(-105, 105)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("goals" + (" (undecided)" if result.decision == STILL_OPEN else ""))
    axes.set_ylabel("success of a - b (points)")
    axes.set_title(f"{result.task}\na: {_short(result.name_a)}    b: {_short(result.name_b)}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _draw_runs(axes: Any, result: MethodComparison) -> None:
    for place, (method, line) in enumerate(result.variance.set_index("method").iterrows()):
        runs = result.runs[result.runs["method"] == method]["rate"]
        axes.plot([place - 0.12] * len(runs), 100 * runs, "o", color=GREY, markersize=5)
        spread = [[100 * (line["rate"] - line["low"])], [100 * (line["high"] - line["rate"])]]
        axes.errorbar([place + 0.08], [100 * line["rate"]], yerr=spread, fmt="s", color=BLUE, capsize=5)
    axes.set_xticks([0, 1], [f"a: {len(result.tables[0])} runs", f"b: {len(result.tables[1])} runs"])
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(-5, 105)
    axes.set_ylabel("success (%)")
    low, high = result.interval
    axes.set_title(
        f"{result.task}, {len(result.seeds)} goals: a - b = {100 * result.difference:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]", fontsize=9,
    )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"…{name[-39:]}"
