"""What a comparison of two policies found, in numbers, words and a table."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ppt_kit.sim.compare.statistics.betting import confidence_sequence, decided_after, stakes
from ppt_kit.sim.compare.statistics.paired import PairCounts, mcnemar_exact, tango_interval

STILL_OPEN, SAME = "undecided", "same"


@dataclass(frozen=True)
class Pair:
    """Both policies on one goal; `error` says why one of them could not be run."""

    seed: int
    a: bool | None
    b: bool | None
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same goals. In a notebook it shows itself; `print(result)` says the same.

    Attributes:
        name_a, name_b: what was compared.
        task: on which task.
        pairs: in the order of their seeds; those with an error are counted and left out.
        confidence: of intervals and decisions.
        margin: a difference that would not matter; None = the policies are never called the same.
        stopped: why the episodes of a comparison that was looked at ended: "decided", "hopeless" (no outcome of what
            was left could have decided it) or "at_most" (as many as were asked for); None = nobody looked before.
        apart: what else the two do not share, e.g. ("options", "execute_steps=4", "execute_steps=8").
    """

    name_a: str
    name_b: str
    task: str
    pairs: tuple[Pair, ...]
    confidence: float = 0.95
    margin: float | None = None
    stopped: str | None = None
    apart: tuple[tuple[str, str, str], ...] = ()

    @cached_property
    def counts(self) -> PairCounts:
        """Of the pairs that both ran."""
        return PairCounts.of((pair.a is True, pair.b is True) for pair in self.ran)

    @cached_property
    def ran(self) -> tuple[Pair, ...]:
        """The pairs without an error."""
        return tuple(pair for pair in self.pairs if pair.error is None)

    @property
    def only_a(self) -> list[int]:
        """Seeds of the goals that a reached and b did not."""
        return [pair.seed for pair in self.ran if pair.a and not pair.b]

    @property
    def only_b(self) -> list[int]:
        """Seeds of the goals that b reached and a did not."""
        return [pair.seed for pair in self.ran if pair.b and not pair.a]

    @property
    def errors(self) -> int:
        """Pairs left out because an episode could not be run."""
        return len(self.pairs) - len(self.ran)

    @property
    def rate_a(self) -> float:
        """Success rate of a on these goals."""
        return (self.counts.both + self.counts.only_a) / self.counts.goals

    @property
    def rate_b(self) -> float:
        """Success rate of b on these goals."""
        return (self.counts.both + self.counts.only_b) / self.counts.goals

    @property
    def difference(self) -> float:
        """Rate of a minus rate of b."""
        return self.counts.difference

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Of the difference (Tango 1998), for a number of goals that was fixed beforehand."""
        return tango_interval(self.counts, confidence=self.confidence)

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided p, for a number of goals that was fixed beforehand."""
        return mcnemar_exact(self.counts.only_a, self.counts.only_b)

    @cached_property
    def sequence(self) -> pd.DataFrame:
        """One line a pair that both ran: seed, a, b, difference so far, low, high and e_value, valid at every line.

        low and high are a confidence sequence of the difference: all of them hold together. e_value is the stake
        against "no difference": the policies differ once it has reached 1 / (1 - confidence).
        """
        apart = self._apart
        bounds = confidence_sequence(apart, confidence=self.confidence)
        return pd.DataFrame({
            "seed": [pair.seed for pair in self.ran], "a": [pair.a for pair in self.ran],
            "b": [pair.b for pair in self.ran], "difference": np.cumsum(apart) / np.arange(1, len(apart) + 1),
            "low": bounds[:, 0], "high": bounds[:, 1], "e_value": stakes(apart),
        })  # fmt: skip

    @property
    def e_value(self) -> float:
        """The stake after the last pair."""
        return float(self.sequence["e_value"].iloc[-1]) if len(self.ran) else 1.0

    @cached_property
    def decided_after(self) -> int | None:
        """Number of pairs after which it was decided; None = it was not."""
        differ, same = decided_after(self._apart, confidence=self.confidence), self._same_after
        return min((number for number in (differ, same) if number is not None), default=None)

    @property
    def decision(self) -> str:
        """Whether "a" or "b" is better, both are the "same" within the margin, or it is "undecided"."""
        if self.decided_after is None:
            return STILL_OPEN
        if self.decided_after == self._same_after:
            return SAME
        return "a" if sum(self._apart[: self.decided_after]) > 0 else "b"

    @property
    def frame(self) -> pd.DataFrame:
        """All pairs: seed, a, b, error."""
        return pd.DataFrame([vars(pair) for pair in self.pairs], columns=["seed", "a", "b", "error"])

    @property
    def _apart(self) -> list[float]:
        return [float(pair.a is True) - float(pair.b is True) for pair in self.ran]

    @cached_property
    def _same_after(self) -> int | None:
        """Number of pairs after which the confidence sequence lay within the margin."""
        if self.margin is None or not self.ran:
            return None
        within = (self.sequence["low"] > -self.margin) & (self.sequence["high"] < self.margin)
        return int(within.to_numpy().argmax()) + 1 if within.any() else None

    def __str__(self) -> str:
        return "\n".join(f"{name:<11}{said}".rstrip() for name, said in _said(self))

    def _repr_html_(self) -> str:
        lines = (
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(said)}</td></tr>'
            for name, said in _said(self)
        )
        return f"<table>{''.join(lines)}</table>"


def _said(result: Comparison) -> list[tuple[str, str]]:
    """(what, in words) a line."""
    counts, seeds = result.counts, [pair.seed for pair in result.pairs]
    left_out = f"; left out: {result.errors}, in which an episode could not be run" if result.errors else ""
    return [
        ("a", result.name_a), ("b", result.name_b),
        ("goals", f"{counts.goals} of {result.task}, seeds {min(seeds)} to {max(seeds)}{left_out}"),
        *(("apart", f"{name}: a {of_a}, b {of_b}") for name, of_a, of_b in result.apart),
        ("success", f"a {_share(result.rate_a)}, b {_share(result.rate_b)}: both {counts.both}, only a "
                    f"{counts.only_a}, only b {counts.only_b}, none {counts.none}"),
        ("a - b", f"{_points(result.difference)} points"),
        *_fixed(result), *_any_time(result),
    ]  # fmt: skip


def _fixed(result: Comparison) -> list[tuple[str, str]]:
    """What holds for a number of goals that was fixed beforehand."""
    low, high = result.interval
    interval = f"[{_points(low)}, {_points(high)}] {_percent(result)} score interval (Tango)"
    numbers = f"{interval}, McNemar's exact p = {_p(result.p_value)}"
    if result.stopped is None:
        return [("fixed n", f"{numbers}; they hold if this number of goals was chosen before looking")]
    return [("fixed n", f"{numbers}; they would hold had this number of goals been chosen beforehand, and it was not")]


def _any_time(result: Comparison) -> list[tuple[str, str]]:
    """What holds whenever one looks."""
    needed = 1 / (1 - result.confidence)
    last = result.sequence.iloc[-1]
    lines = [
        ("any time", f"[{_points(last['low'])}, {_points(last['high'])}] {_percent(result)} confidence sequence, "
                     f"e = {result.e_value:.3g} (decides at {needed:.3g})"),
        ("decision", _decision(result)),
    ]  # fmt: skip
    return lines


def _decision(result: Comparison) -> str:
    after, goals = result.decided_after, result.counts.goals
    if after is None:
        why = (
            ": no outcome of the episodes that were left could have decided it" if result.stopped == "hopeless" else ""
        )
        return f"undecided after {goals} goals{why}"
    when = f"decided after {after} goals" + (f" of {goals}" if goals > after else "")
    if result.decision == SAME:
        return f"the same within {_points(result.margin or 0).lstrip('+')} points, {when}"
    return f"{result.decision} is better, {when}"


def _percent(result: Comparison) -> str:
    return f"{100 * result.confidence:g} %"


def _share(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _points(share: float) -> str:
    """A difference of rates in percentage points."""
    return "-" if math.isnan(share) else f"{100 * share:+.1f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value < 0.001 else f"{value:.3f}"
