"""Two rates on the same goals, for a number of goals that was fixed beforehand: counts, exact test, interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ppt_kit.sim.compare.statistics.quantiles import normal_quantile

# a bound of an interval is found to this (a share)
TOLERANCE = 1e-10


@dataclass(frozen=True)
class PairCounts:
    """How often each of the four outcomes of a pair was seen."""

    both: int
    only_a: int
    only_b: int
    none: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> PairCounts:
        """Counts of (success of a, success of b)."""
        seen = [(bool(a), bool(b)) for a, b in pairs]
        return cls(*(seen.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def goals(self) -> int:
        """How many pairs."""
        return self.both + self.only_a + self.only_b + self.none

    @property
    def difference(self) -> float:
        """Rate of a minus rate of b."""
        return (self.only_a - self.only_b) / self.goals if self.goals else math.nan


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p of "both succeed equally often": the discordant pairs are fair coins then.

    Source: McNemar 1947, Psychometrika 12; exact by the binomial distribution, the smaller tail doubled.
    """
    flips, fewer = only_a + only_b, min(only_a, only_b)
    # whole numbers until the last step: no rounding, however many
    tail = sum(math.comb(flips, heads) for heads in range(fewer + 1))
    return min(1.0, 2 * tail / 2**flips) if flips < 1000 else min(1.0, math.exp(math.log(2 * tail) - flips * LOG_2))


def tango_interval(counts: PairCounts, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two paired rates, a minus b; (-1, 1) without pairs.

    Source: Tango 1998, Statistics in Medicine 17: the differences that the score test with the other rate at its most
    likely value does not refuse.
    """
    if not counts.goals:
        return -1.0, 1.0
    z = normal_quantile(0.5 + confidence / 2)
    seen = counts.difference
    low = -1.0 if seen == -1 else _first(lambda difference: _score(counts, difference) <= z, -1.0, seen)
    high = 1.0 if seen == 1 else _first(lambda difference: _score(counts, difference) <= -z, seen, 1.0)
    return low, high


LOG_2 = math.log(2)


def _score(counts: PairCounts, difference: float) -> float:
    """The standardised distance of what was seen from a difference: falls as the difference rises."""
    goals = counts.goals
    only_b = _likeliest_only_b(counts, difference)
    variance = goals * (2 * only_b + difference * (1 - difference))
    distance = counts.only_a - counts.only_b - goals * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _likeliest_only_b(counts: PairCounts, difference: float) -> float:
    """Share of pairs that b alone wins, as the seen counts make it most likely among those with this difference."""
    linear = (2 * counts.goals - counts.only_a + counts.only_b) * difference - counts.only_a - counts.only_b
    free = counts.only_b * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear**2 + 8 * counts.goals * free))
    # of the two forms of the same root the one in which nothing is lost by a difference of equal numbers
    likeliest = (root - linear) / (4 * counts.goals) if linear <= 0 else 2 * free / (root + linear)
    return max(likeliest, 0.0, -difference)


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds from some point on begins to, between two points."""
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return (low + high) / 2
