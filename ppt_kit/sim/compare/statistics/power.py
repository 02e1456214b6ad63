"""What a comparison of given length sees, by exact sums: no simulation, so that a plan is the same each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ppt_kit.sim.compare.statistics.quantiles import log_factorials, normal_cdf, student_quantile

# more goals than anybody simulates
MOST_GOALS = 10_000


@dataclass(frozen=True)
class Discordance:
    """How often pairs are won by one policy alone: all that a comparison of two rates on the same goals depends on."""

    only_a: float
    only_b: float

    @classmethod
    def of(cls, rate_a: float, rate_b: float, correlation: float = 0.0) -> Discordance:
        """From two success rates and the correlation (phi) of success on the same goal.

        Raises:
            ValueError: no pair of policies with these rates is so correlated.
        """
        low, high = correlations(rate_a, rate_b)
        if not low - 1e-9 <= correlation <= high + 1e-9:
            raise ValueError(f"rates {rate_a:g} and {rate_b:g} have correlations from {low:.2f} to {high:.2f}")
        both = rate_a * rate_b + correlation * _spread(rate_a) * _spread(rate_b)
        return cls(max(0.0, rate_a - both), max(0.0, rate_b - both))

    @property
    def share(self) -> float:
        """Of pairs that one policy wins alone."""
        return self.only_a + self.only_b

    @property
    def a_wins(self) -> float:
        """Of those, the share that a wins."""
        return self.only_a / self.share if self.share else 0.5


@dataclass(frozen=True)
class Course:
    """What the test that is looked at after every pair does, by the largest number of pairs it may take.

    Attributes:
        a_better, b_better: (n + 1,) chances that it has decided so after at most 0, 1, … n pairs.
    """

    a_better: np.ndarray
    b_better: np.ndarray

    def mean_pairs(self, at_most: int) -> float:
        """How many it takes on average when it is stopped at a largest number."""
        return float((1 - self.a_better - self.b_better)[:at_most].sum())


def correlations(rate_a: float, rate_b: float) -> tuple[float, float]:
    """The smallest and the largest phi that two policies of these rates can have."""
    product = _spread(rate_a) * _spread(rate_b)
    if not product:
        return 0.0, 0.0
    low, high = max(0.0, rate_a + rate_b - 1), min(rate_a, rate_b)
    return (low - rate_a * rate_b) / product, (high - rate_a * rate_b) / product


def mcnemar_power(pairs: Discordance, goals: int, *, confidence: float = 0.95) -> float:
    """Chance that McNemar's exact test on so many goals finds a difference."""
    logs, total = log_factorials(goals), 0.0
    least, chances = _likely(goals, pairs.share, logs)
    for flips, chance in enumerate(chances.tolist(), least):
        first, fair = _likely(flips, 0.5, logs)
        # as many or fewer won by one alone are a tail of (1 - confidence) / 2 at most
        fewest = first + int(np.searchsorted(np.cumsum(fair), (1 - confidence) / 2 * (1 + 1e-12), side="right"))
        first, true = _likely(flips, pairs.a_wins, logs)
        tails = true[: max(0, fewest - first)].sum() + true[max(0, flips - fewest + 1 - first) :].sum()
        total += chance * tails
    return float(total)


def goals_for_mcnemar(pairs: Discordance, *, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """Goals with which McNemar's exact test finds the difference with this chance; None = more than MOST_GOALS."""
    return smallest(lambda goals: mcnemar_power(pairs, goals, confidence=confidence) >= power)


def sequential_course(pairs: Discordance, at_most: int, *, confidence: float = 0.95) -> Course:
    """What the anytime-valid test of `betting` does on up to `at_most` pairs."""
    logs = log_factorials(at_most + 1)
    decided = np.cumsum(_decided_at(pairs.a_wins, at_most, logs, confidence=confidence), axis=1)
    course = np.zeros((2, at_most + 1))
    for number in range(1, at_most + 1):
        # that many are won by one policy alone, with these chances
        first, chances = _likely(number, pairs.share, logs)
        course[:, number] = decided[:, first : first + len(chances)] @ chances
    return Course(*course)


def t_power(effect: float, *, error: float, freedom: float, confidence: float = 0.95) -> float:
    """Chance that an interval of Student's t leaves 0 out.

    Args:
        effect: the true difference.
        error: standard deviation of the estimated one, itself estimated with so many degrees of freedom.
    """
    if error == 0:
        return float(effect != 0)
    critical, distance = student_quantile(0.5 + confidence / 2, freedom), effect / error
    # the estimated error over the true one: the root of a chi square over its degrees of freedom
    log_ratio = np.linspace(math.log(1e-4), math.log(8 + 8 / math.sqrt(freedom)), 4001)
    ratio = np.exp(log_ratio)
    density = np.exp(freedom * log_ratio - freedom * ratio**2 / 2)
    density /= density.sum()
    found = normal_cdf(distance - critical * ratio) + normal_cdf(-distance - critical * ratio)
    return float(density @ found)


def smallest(enough: Callable[[int], bool], *, most: int = MOST_GOALS) -> int | None:
    """The smallest whole number from 2 on that is enough, where more always is; None = more than `most`."""
    high = 2
    while not enough(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _decided_at(a_wins: float, at_most: int, logs: np.ndarray, *, confidence: float) -> np.ndarray:
    """(2, n + 1) chances that it decides for a, or for b, at the k-th pair that one policy wins alone."""
    decided = np.zeros((2, at_most + 1))
    # chances of `least`, least + 1, … wins of a, undecided
    least, chances, lead = 0, np.ones(1), 1
    for flips in range(1, at_most + 1):
        chances = np.append(chances * (1 - a_wins), 0) + np.append(0, chances * a_wins)
        lead = _lead(flips, lead, logs, confidence=confidence)
        few = max(0, flips - lead + 1 - least)
        many = max(0, lead - least)
        decided[:, flips] = chances[many:].sum(), chances[:few].sum()
        least, chances = least + few, chances[few:many]
    return decided


def _lead(flips: int, before: int, logs: np.ndarray, *, confidence: float) -> int:
    """How many of so many pairs that one policy wins alone it must win to be the better one; all are too few: one more.

    The stake in closed form: see `betting`.

    Args:
        before: of one pair less: it is as many at least.
    """
    wins, limit = max(before, (flips + 1) // 2), -math.log(1 - confidence)
    while wins <= flips:
        stake = flips * math.log(2) + logs[wins] + logs[flips - wins] - logs[flips] - math.log(flips + 1)
        if stake >= limit:
            break
        wins += 1
    return wins


def _likely(trials: int, share: float, logs: np.ndarray) -> tuple[int, np.ndarray]:
    """The binomial chances of all numbers that are not too rare to matter, and the first of these.

    Args:
        logs: `log_factorials` of as many trials or more.
    """
    if share in (0.0, 1.0):
        return round(trials * share), np.ones(1)
    middle, spread = trials * share, math.sqrt(trials * share * (1 - share))
    first, last = max(0, int(middle - 9 * spread - 9)), min(trials, int(middle + 9 * spread + 9))
    x = np.arange(first, last + 1)
    chances = logs[trials] - logs[x] - logs[trials - x] + x * math.log(share) + (trials - x) * math.log1p(-share)
    return first, np.exp(chances)


def _spread(rate: float) -> float:
    return math.sqrt(rate * (1 - rate))
