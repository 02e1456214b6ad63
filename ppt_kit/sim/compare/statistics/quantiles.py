"""Distribution functions that the standard library lacks, to the digits that intervals and plans need."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from ppt_kit.errors import UserError

# points of a Gauss-Legendre rule: the integrals below are right to 1e-12 with it
POINTS = 80


def normal_quantile(share: float) -> float:
    """z with P(Z <= z) = share."""
    return NormalDist().inv_cdf(share)


def normal_cdf(z: np.ndarray) -> np.ndarray:
    """P(Z <= z) of each."""
    return np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])


def student_cdf(t: float, freedom: float) -> float:
    """P(T <= t) of Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1, not necessarily whole.
    """
    # t = sqrt(freedom) tan(angle) makes the density a power of the cosine, on a bounded range
    angle = math.atan(abs(t) / math.sqrt(freedom))
    nodes, weights = _rule()
    at = angle * (nodes + 1) / 2
    area = angle / 2 * float(weights @ np.exp((freedom - 1) * np.log(np.cos(at))))
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + math.copysign(scale * area, t)


def student_quantile(share: float, freedom: float) -> float:
    """t with P(T <= t) = share; `freedom` as in `student_cdf`, infinite for the normal distribution."""
    if share < 0.5:
        return -student_quantile(1 - share, freedom)
    if freedom > 1e6:
        return normal_quantile(share)
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < share:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def log_factorials(largest: int) -> np.ndarray:
    """(largest + 1,) ln n! of n = 0, 1, …"""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])


@lru_cache(maxsize=1)
def _rule() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(POINTS)


def check_confidence(confidence: Any) -> None:
    """Refuses what is no confidence of an interval or a decision.

    Raises:
        UserError: so it is.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0.5 <= confidence < 1:
        raise UserError(f"confidence={confidence!r}: takes a number from 0.5 to below 1, e.g. 0.95.")
