"""What each swept key does to a metric: compared between runs that share all other keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ppt_kit.sim.compare.statistics.quantiles import student_quantile

COLUMNS = ["key", "value", "runs", "mean", "sd", "against", "pairs", "difference", "low_95", "high_95"]


def effect_table(summary: pd.DataFrame, keys: Sequence[str], *, metric: str) -> pd.DataFrame:
    """One line a key and value: runs, mean and sd of the metric, and the difference against the key's first value.

    The difference is the mean over pairs of runs that differ in this key alone; low_95 and high_95 are Student's
    interval of it, null with fewer than two pairs. Its pairs share runs with other lines: these are not independent.

    Args:
        summary: one line a run, with the keys and the metric; runs without the metric are left out.
    """
    ran = summary[summary[metric].notna()]
    lines = []
    for key in keys:
        values = _ordered(ran[key])
        others = [each for each in keys if each != key]
        for value in values:
            of_value = ran[_is(ran[key], value)][metric].astype(float)
            apart = _apart(ran, key, others, metric=metric, pair=(value, values[0])) if value != values[0] else []
            lines.append({
                "key": key, "value": value, "runs": len(of_value), "mean": of_value.mean(),
                "sd": of_value.std() if len(of_value) > 1 else math.nan,
                "against": None if value == values[0] else values[0], "pairs": len(apart), **_interval(apart),
            })  # fmt: skip
    return pd.DataFrame(lines, columns=COLUMNS)


def _ordered(column: pd.Series) -> list[Any]:
    """The values of a key: numbers from the lowest, others as they come."""
    values = list(dict.fromkeys(None if pd.isna(value) else value for value in column))
    plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return sorted(values) if plain else values


def _is(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if value is None else column == value


def _apart(ran: pd.DataFrame, key: str, others: Sequence[str], *, metric: str, pair: tuple[Any, Any]) -> list[float]:
    """The differences of the metric, first minus second, of runs that share all other keys."""
    found = []
    groups = ran.groupby(list(others), dropna=False) if others else [((), ran)]
    for _, group in groups:
        first, second = (group[_is(group[key], value)][metric].astype(float) for value in pair)
        if len(first) and len(second):
            found.append(float(first.mean() - second.mean()))
    return found


def _interval(apart: Sequence[float]) -> dict[str, float]:
    if not apart:
        return {"difference": math.nan, "low_95": math.nan, "high_95": math.nan}
    numbers = pd.Series(apart, dtype=float)
    mean, half = float(numbers.mean()), math.nan
    if len(numbers) > 1:
        half = student_quantile(0.975, len(numbers) - 1) * float(numbers.std()) / math.sqrt(len(numbers))
    return {"difference": mean, "low_95": mean - half, "high_95": mean + half}
