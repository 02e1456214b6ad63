"""Several training runs on the same goals: the variance of training apart from the variance of goals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppt_kit.sim.compare.statistics.paired import PairCounts, tango_interval
from ppt_kit.sim.compare.statistics.quantiles import normal_quantile, student_quantile
from ppt_kit.sim.results import wilson_interval


@dataclass(frozen=True)
class Variance:
    """Where the successes of one method differ, as variances of one episode's success: training + goals + rest.

    Runs and goals are drawn at random and crossed, each episode seen once: success = mean + run + goal + rest. The rest
    is what a run does on a goal beyond what both explain: that one run fails where another does not, and luck.

    Attributes:
        runs, goals: how many there are of each.
        rate: of all episodes.
        training: between runs, over all goals there are; null with one run.
        goal: between goals, over all runs there are; null with one run, which cannot tell it from the rest.
        rest: null with one run.
        between_runs: the variance of the runs' rates as they were measured, on these goals.

    Source: the expected mean squares of the two-way table with random rows and columns, Searle, Casella and McCulloch
    1992, Variance Components, chapter 4; estimates below 0 are 0.
    """

    runs: int
    goals: int
    rate: float
    training: float | None
    goal: float | None
    rest: float | None
    between_runs: float | None

    @classmethod
    def of(cls, table: np.ndarray) -> Variance:
        """From the (R, G) successes of R runs on G goals, numbers in [0, 1].

        Raises:
            ValueError: there are fewer than two goals, or no run.
        """
        table = np.asarray(table, dtype=float)
        runs, goals = table.shape
        if runs < 1 or goals < 2:
            raise ValueError(f"a table of {runs} runs and {goals} goals has no variance")
        if runs == 1:
            return cls(1, goals, float(table.mean()), None, None, None, None)
        of_runs, of_goals, rest = _mean_squares(table)
        return cls(
            runs, goals, float(table.mean()), max(0.0, (of_runs - rest) / goals), max(0.0, (of_goals - rest) / runs),
            rest, of_runs / goals,
        )  # fmt: skip

    def error(self, *, runs: int, goals: int) -> float:
        """Standard deviation that a mean rate over so many runs and goals would have.

        Raises:
            ValueError: it was made of one run.
        """
        if self.training is None or self.goal is None or self.rest is None:
            raise ValueError("one run does not tell the variance of training")
        return math.sqrt(self.training / runs + self.goal / goals + self.rest / (runs * goals))


def mean_interval(table: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a method's success rate over both, other training runs and other goals.

    Student's t for the mean over runs, and for what runs have in common because they met the same goals, joined by
    their squares (Zou and Donner 2008, Statistics in Medicine 27). With one run it is Wilson's, and holds for other
    goals only.

    Args:
        table: (R, G) successes, as in `Variance.of`.
    """
    found = Variance.of(table)
    if found.between_runs is None:
        return _of_one_run(found, confidence=confidence)
    runs, shared = [_of_runs(found)], _shared(table) / found.goals
    if not runs[0][0] + shared:
        # every episode the same: what other goals would show, as if there were one run
        return _of_one_run(found, confidence=confidence)
    half = _half_width(runs, shared, found.goals, confidence=confidence)
    return max(0.0, found.rate - half), min(1.0, found.rate + half)


def difference_interval(a: np.ndarray, b: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two methods' rates, a minus b, over other training runs and other goals.

    As `mean_interval`, the two means over runs by Welch's degrees of freedom (Welch 1947, Biometrika 34); with one run
    of each it is Tango's.

    Args:
        a, b: (Ra, G), (Rb, G) successes on the same goals, column by column.
    """
    if len(a) == len(b) == 1:
        return tango_interval(PairCounts.of(zip(a[0] > 0.5, b[0] > 0.5)), confidence=confidence)
    first, second = Variance.of(a), Variance.of(b)
    goals, apart = first.goals, np.mean(a, axis=0) - np.mean(b, axis=0)
    known = [each for each in (first, second) if each.between_runs is not None]
    runs = [_of_runs(each) for each in known]
    # without the rest of each mean over runs, which the runs' rates hold already
    counted = sum((each.rest or 0.0) / each.runs for each in known)
    shared = max(0.0, float(np.var(apart, ddof=1)) - counted) / goals
    seen = first.rate - second.rate
    if not sum(variance for variance, _ in runs) + shared:
        return _as_one_run(seen, goals, confidence=confidence)
    half = _half_width(runs, shared, goals, confidence=confidence)
    return max(-1.0, seen - half), min(1.0, seen + half)


def _of_one_run(found: Variance, *, confidence: float) -> tuple[float, float]:
    """What other goals would show of a run with this rate."""
    return wilson_interval(round(found.rate * found.goals), found.goals, z=normal_quantile(0.5 + confidence / 2))


def _as_one_run(seen: float, goals: int, *, confidence: float) -> tuple[float, float]:
    """Every goal shows the same difference: what other goals would show, as if there were one run of each."""
    wins = round(abs(seen) * goals)
    ones = (wins, 0) if seen > 0 else (0, wins)
    return tango_interval(PairCounts(0, *ones, goals - wins), confidence=confidence)


def _mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Of runs, of goals, and of the rest."""
    runs, goals = table.shape
    of_runs, of_goals = table.mean(axis=1), table.mean(axis=0)
    rest = table - of_runs[:, None] - of_goals[None] + table.mean()
    return (
        float(goals * np.var(of_runs, ddof=1)), float(runs * np.var(of_goals, ddof=1)),
        float((rest**2).sum() / ((runs - 1) * (goals - 1))),
    )  # fmt: skip


def _shared(table: np.ndarray) -> float:
    """Variance between goals that all runs share, 0 where the rest explains what is seen."""
    _, of_goals, rest = _mean_squares(np.asarray(table, dtype=float))
    return max(0.0, (of_goals - rest) / len(table))


def _of_runs(found: Variance) -> tuple[float, int]:
    """(variance of a mean over runs, its degrees of freedom)"""
    return (found.between_runs or 0.0) / found.runs, found.runs - 1


def _half_width(runs: Sequence[tuple[float, int]], shared: float, goals: int, *, confidence: float) -> float:
    """Of an interval of a sum of means over runs, each (variance, degrees of freedom), that share goals."""
    share, total = 0.5 + confidence / 2, sum(variance for variance, _ in runs)
    squares = student_quantile(share, goals - 1) ** 2 * shared
    if total:
        freedom = total**2 / sum(variance**2 / degrees for variance, degrees in runs)
        squares += student_quantile(share, freedom) ** 2 * total
    return math.sqrt(squares)
