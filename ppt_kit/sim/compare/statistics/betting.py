"""A comparison that may be looked at after every pair: bets against "no difference", whose stake says how sure it is.

Somebody who does not know which policy is better bets on the next pair's difference d, in [-1, 1], against its mean
being m. Where it is m, a stake of 1 that is multiplied by 1 + bet (d - m) at each pair is a martingale, whatever is
bet, as long as it is chosen before the pair and cannot ruin: it ever reaches 1 / alpha with a chance of alpha at most
(Ville 1939). So the stake may be looked at after every pair, and what a look decides stays decided. The values of m
that no stake reached 1 / alpha against are a confidence sequence: it holds at all times together.

All bets are held at once, an equal share of the stake on each: a mixture, as in Robbins 1970. Against m = 0, where
pairs are won by a alone (w times), by b alone (l times) or by neither, the stake is the integral over all u in [-1, 1]
of (1 + u)^w (1 - u)^l / 2, which is 2^(w + l) / ((w + l + 1) binomial(w + l, w)).

Sources: Waudby-Smith and Ramdas 2024, Journal of the Royal Statistical Society B 86, arXiv 2010.09686 (means of bounded
variables by betting); Snyder et al. 2025, arXiv 2503.10966, and 2026, arXiv 2603.13616 (policies compared so).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# places of a Gauss-Legendre rule: with it the stake is the integral to the last digit up to twice as many pairs that
# one alone wins, and a martingale however many there are
BETS = 128
# of a number that a computer can hold
LARGEST_LOG = 700.0
# halvings that find a bound of a confidence sequence: to 2^-22
HALVINGS = 22


def stakes(differences: Sequence[float], mean: float = 0.0) -> np.ndarray:
    """(n,) the stake against "the mean difference is `mean`" after each pair: e-values, to be looked at any time.

    Args:
        differences: of the pairs in the order of their seeds, a minus b, each in [-1, 1].
    """
    values, counts = _counted(differences)
    return _as_stakes(_log_stakes(values, counts, np.full(len(counts), float(mean))))


def stake_now(differences: Sequence[float]) -> float:
    """The stake against "no difference" after the last pair."""
    if not len(differences):
        return 1.0
    values, counts = _counted(differences)
    return float(_as_stakes(_log_stakes(values, counts[-1:], np.zeros(1)))[0])


def confidence_sequence(
    differences: Sequence[float], *, confidence: float = 0.95, only_last: bool = False
) -> np.ndarray:
    """(n, 2) low and high of the mean difference after each pair: with `confidence`, all of them hold together.

    A row leaves 0 out exactly where `stakes` has reached 1 / (1 - confidence).

    Args:
        differences: as in `stakes`.
        only_last: the row after the last pair alone, (1, 2).
    """
    if not len(differences):
        return np.empty((0, 2))
    values, counts = _counted(differences)
    seen = np.cumsum(np.asarray(differences, dtype=float)) / np.arange(1, len(counts) + 1)
    if only_last:
        counts, seen = counts[-1:], seen[-1:]
    limit = -math.log(1 - confidence)
    ends = [np.full(len(counts), end) for end in (-1.0, 1.0)]
    return np.stack([_bound(values, counts, limit, outer=end, inner=seen) for end in ends], axis=1)


def decided_after(differences: Sequence[float], *, confidence: float = 0.95) -> int | None:
    """Pairs after which the stake against "no difference" first reached 1 / (1 - confidence); None = never."""
    reached = np.flatnonzero(stakes(differences) >= 1 / (1 - confidence))
    return int(reached[0]) + 1 if len(reached) else None


def can_still_decide(differences: Sequence[float], *, left: int, confidence: float = 0.95) -> bool:
    """Whether `left` more pairs could decide what is undecided, if all of them went one way."""
    # the logarithm of the stake is convex in the number of pairs that go one way: it is largest after the last
    return any(stake_now([*differences, *[side] * left]) >= 1 / (1 - confidence) for side in (1.0, -1.0))


def is_decided(differences: Sequence[float], *, confidence: float = 0.95, margin: float | None = None) -> bool:
    """Whether the last pair decides: the mean difference is not 0, or it is within the margin."""
    if stake_now(differences) >= 1 / (1 - confidence):
        return True
    if margin is None or not len(differences):
        return False
    low, high = confidence_sequence(differences, confidence=confidence, only_last=True)[0]
    return bool(-margin < low and high < margin)


def _counted(differences: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(V,) the values there are, and (n, V) how often each was seen up to each pair."""
    values, places = np.unique(np.asarray(differences, dtype=float), return_inverse=True)
    return values, np.cumsum(places[:, None] == np.arange(len(values)), axis=0)


def _log_stakes(values: np.ndarray, counts: np.ndarray, means: np.ndarray) -> np.ndarray:
    """(n,) ln of the stake against a mean of each row's own."""
    size, up, shares = _bets()
    means = means[:, None]
    # nothing is further from -1 than 2: a mean there is met by no other value
    room = np.where(up, np.maximum(1 + means, 1e-12), np.maximum(1 - means, 1e-12))
    logs = np.zeros_like(room)
    for place, value in enumerate(values):
        # 1 + bet (value - mean) with the bet u / (1 + mean), or u / (1 - mean) below 0: nothing ruins
        logs += counts[:, place, None] * np.log(1 - size + size * np.where(up, 1 + value, 1 - value) / room)
    return np.logaddexp.reduce(logs + np.log(shares), axis=1)


def _as_stakes(logs: np.ndarray) -> np.ndarray:
    """Stakes of their logarithms; the largest numbers there are of more."""
    return np.exp(np.minimum(logs, LARGEST_LOG))


def _bound(values: np.ndarray, counts: np.ndarray, limit: float, *, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(n,) between a mean that may be left out and the seen one, which never is: where the stakes reach the limit.

    There is one such place: the stake is convex in the mean.
    """
    for _ in range(HALVINGS):
        middle = (outer + inner) / 2
        out = _log_stakes(values, counts, middle) >= limit
        outer, inner = np.where(out, middle, outer), np.where(out, inner, middle)
    return outer


@lru_cache(maxsize=1)
def _bets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(BETS,) how much of the stake each bets, whether on a larger difference, and its share of the stake."""
    places, weights = np.polynomial.legendre.leggauss(BETS)
    return np.abs(places), places > 0, weights / 2
