"""What meta/stats.json says of a feature, gathered as its rows come."""

from __future__ import annotations

import numpy as np

# a picture's pixels that its statistics are made of
STATS_PIXELS = 10_000


class Stats:
    """Lowest, highest, mean and standard deviation of rows as they come, in float64.

    Source: Chan, Golub, LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
    """

    def __init__(self) -> None:
        # rows, and how many values went into the mean of one entry: a picture has many
        self.count = self._values = 0
        self._low = self._high = self._mean = self._squares = np.zeros(())

    def add(self, rows: np.ndarray, *, axes: tuple[int, ...] = (0,)) -> None:
        """Rows (n, ...), taken together over `axes`."""
        rows = rows.astype(np.float64)
        rows = rows[:, None] if rows.ndim == 1 else rows
        part = Stats()
        part.count, part._values = len(rows), int(np.prod([rows.shape[axis] for axis in axes]))
        part._low, part._high, part._mean = rows.min(axes), rows.max(axes), rows.mean(axes)
        part._squares = rows.var(axes) * part._values
        self.merge(part)

    def add_pictures(self, pictures: np.ndarray) -> None:
        """(n, H, W, 3) uint8: channels in [0, 1], of some pixels of each."""
        step = max(1, int(np.sqrt(pictures.shape[1] * pictures.shape[2] / STATS_PIXELS)))
        self.add(pictures[:, ::step, ::step, :, None, None] / 255.0, axes=(0, 1, 2))

    def merge(self, other: Stats) -> None:
        if not self.count:
            self.__dict__.update(other.__dict__)
            return
        total = self._values + other._values
        gap = other._mean - self._mean
        self._squares = self._squares + other._squares + gap**2 * (self._values * other._values / total)
        self._mean = self._mean + gap * (other._values / total)
        self._low, self._high = np.minimum(self._low, other._low), np.maximum(self._high, other._high)
        self.count, self._values = self.count + other.count, total

    def as_lists(self) -> dict[str, list]:
        """As stats.json has them; a picture's are (3, 1, 1)."""
        std = np.sqrt(self._squares / max(1, self._values))
        found = {"min": self._low, "max": self._high, "mean": self._mean, "std": std}
        return {**{name: value.tolist() for name, value in found.items()}, "count": [self.count]}
