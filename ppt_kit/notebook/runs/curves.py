"""Curves of many runs: a line for each configuration, a band over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppt_kit.errors import UserError
from ppt_kit.keys import show
from ppt_kit.notebook.runs.paper import (
    COLUMN,
    Look,
    PaperFigure,
    in_lines,
    legend_below,
    legend_height,
    logarithmic,
    looks,
    paper_figure,
    plain_axes,
)
from ppt_kit.programs import to_type
from ppt_kit.runs.grid import short_name

VAL_LOSS, SUCCESS = "val_loss", "success"
LABELS = {
    "loss": "training loss", VAL_LOSS: "validation loss", SUCCESS: "success rate", "lr": "learning rate",
    "samples_per_s": "samples per second", "grad_norm": "gradient norm",
}  # fmt: skip


def curves_of(
    metrics: pd.DataFrame, success: pd.DataFrame, *, y: str, by: Sequence[str], smooth: int, width: float = COLUMN
) -> PaperFigure:
    """A line for each value of `by`: the mean over its runs, and a band from the lowest to the highest of them.

    Success is over epochs; of a configuration with one run its band is the 95 % Wilson interval.

    Raises:
        UserError: no run has the column, or the smoothing is no number of rows.
    """
    if isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 1:
        raise UserError(f"smooth={smooth!r}: takes a number of rows from 1 (no smoothing) on.")
    data, code = _success(success, by) if y == SUCCESS else _metric(metrics, y, by, smooth)
    keys = [*by, *(["task"] if "task" in data and data["task"].nunique() > 1 else [])]
    groups = [
        (in_lines(_label(keys, values), width=width), group)
        for values, group in data.groupby(keys, dropna=False, sort=False)
    ]
    names = [name for name, _ in groups]
    figure = paper_figure(
        width=width,
        height=2.1 * max(1.0, width / COLUMN / 1.4) + legend_height(names, width=width),
        data=data,
        code=code,
    )
    axes, x = figure.add_subplot(), "epoch" if y == SUCCESS else "step"
    handles = []
    for look, (name, group) in zip(looks(len(groups)), groups):
        _draw(axes, group.sort_values("epoch" if "epoch" in group else x), look=look, x=x)
        handles.append(Line2D([], [], label=name, **_style(look)))
    smoothed = f"\n(smoothed over {smooth} rows)" if smooth > 1 and y != SUCCESS else ""
    plain_axes(axes, x="epoch" if x == "epoch" else "optimizer step", y=f"{LABELS.get(y, y)}{smoothed}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if y == SUCCESS:
        axes.set_ylim(-0.02, 1.05)
    elif (data["min"] > 0).all():
        logarithmic(axes)
    legend_below(figure, handles, title=_title(data["count"], y), width=width)
    return figure


def _title(counts: pd.Series, y: str) -> str:
    """What a line and its band are."""
    fewest, most = int(counts.min()), int(counts.max())
    if most == 1:
        return "band: 95 % interval" if y == SUCCESS else ""
    runs = f"{most} runs" if fewest == most else f"{fewest} to {most} runs"
    alone = "; of one run its 95 % interval" if y == SUCCESS and fewest == 1 else ""
    return f"mean of {runs}, band: lowest to highest{alone}"


def _metric(metrics: pd.DataFrame, y: str, by: Sequence[str], smooth: int) -> tuple[pd.DataFrame, str]:
    """(by, step, mean, min, max, count) of a column of metrics.jsonl, and the line that gives it.

    Of the validation loss by epoch, at the mean of its runs' steps.
    """
    kind, column = ("val", "loss") if y == VAL_LOSS else ("train", y)
    rows = metrics[metrics["kind"] == kind]
    if column not in rows or rows[column].isna().all():
        # what differs between the runs stands before the rows' own columns
        own = metrics.iloc[:, list(metrics.columns).index("kind") :].select_dtypes("number")
        others = dict.fromkeys([*(str(name) for name in own if name not in ("step", "epoch")), VAL_LOSS, SUCCESS])
        others.pop(y, None)
        raise UserError(f"{y}: no run has rows with it. There is {', '.join(others)}.")
    # runs of one line may have other numbers of steps in an epoch
    groups, at = ([*by, "epoch"], {"step": ("step", "mean")}) if kind == "val" else ([*by, "step"], {})
    named = at | {name: (column, name) for name in ("mean", "min", "max")} | {"count": ("run", "nunique")}
    rows = rows.dropna(subset=[column])
    smoother = ""
    if smooth > 1:
        means = rows.groupby("run")[column].transform(lambda each: each.ewm(span=smooth).mean())
        rows = rows.assign(**{column: means})
        smoother = (
            f".assign({column}=lambda d: d.groupby('run')[{column!r}].transform(lambda s: s.ewm(span={smooth}).mean()))"
        )
    data = rows.groupby(groups, dropna=False).agg(**named).reset_index()
    said = ", ".join(f"{name}={pair!r}" for name, pair in named.items())
    code = (
        f"runs.metrics.query(\"kind == '{kind}'\").dropna(subset=[{column!r}]){smoother}"
        f".groupby({groups!r}, dropna=False).agg({said}).reset_index()"
    )
    return data, code


def _success(success: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """(by, task, epoch, mean, min, max, count, low_95, high_95) of policies, and the line that gives it."""
    rows = success[(success["control"] == "-") & success["epoch"].notna()]
    if not len(rows):
        raise UserError(
            "success: no checkpoint of these runs was evaluated. Train with train.eval_interval=10, or type "
            f"{to_type('eval_sim')} train.pretrained_dir=RUN train.model_names=all."
        )
    groups = [*by, "task", "epoch"]
    named = {"mean": ("rate", "mean"), "min": ("rate", "min"), "max": ("rate", "max"), "count": ("rate", "size")}
    named |= {"low_95": ("low_95", "min"), "high_95": ("high_95", "max")}
    data = rows.groupby(groups, dropna=False).agg(**named).reset_index()
    said = ", ".join(f"{name}={pair!r}" for name, pair in named.items())
    code = (
        "runs.success.query(\"control == '-' and epoch.notna()\")"
        f".groupby({groups!r}, dropna=False).agg({said}).reset_index()"
    )
    return data, code


def _draw(axes: Any, group: pd.DataFrame, *, look: Look, x: str) -> None:
    """One line, thin where some of its runs have no row."""
    most = group["count"].max()
    whole = group[group["count"] == most]
    low, high = group["min"], group["max"]
    if "low_95" in group:
        low, high = low.where(group["count"] > 1, group["low_95"]), high.where(group["count"] > 1, group["high_95"])
    if len(group) > 1:
        axes.fill_between(group[x], low, high, color=look.colour, alpha=0.18, linewidth=0)
    else:
        # a band over one point is none
        axes.vlines(group[x], low, high, color=look.colour, alpha=0.5, linewidth=2)
    if len(whole) < len(group):
        axes.plot(group[x], group["mean"], linestyle=look.stroke, color=look.colour, linewidth=0.5)
    every = max(1, len(whole) // 6)
    axes.plot(whole[x], whole["mean"], markevery=every, **_style(look))


def _style(look: Look) -> dict[str, Any]:
    stroke = {"color": look.colour, "linestyle": look.stroke, "linewidth": 1.2}
    return {**stroke, "marker": look.marker, "markersize": 3.5}


def _label(keys: Sequence[str], values: Any) -> str:
    named = zip(keys, values if isinstance(values, tuple) else (values,))
    return ", ".join(
        str(value) if key in ("run", "task") else f"{short_name(key, keys)}={words_of(value)}" for key, value in named
    )


def words_of(value: Any) -> str:
    """A value of a key, as a figure names it."""
    if isinstance(value, float):
        return "null" if pd.isna(value) else f"{value:g}"
    return show(value)
