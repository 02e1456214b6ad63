"""What a comparison of two methods with several training runs each found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.sim.compare.sides import Side
from ppt_kit.sim.compare.statistics.training import Variance, difference_interval, mean_interval
from ppt_kit.tables import shown


@dataclass(frozen=True)
class MethodComparison:
    """Two methods, each trained several times, on the same goals. In a notebook it shows itself.

    Attributes:
        names: of the runs, of a and of b.
        task: on which task.
        seeds: of the goals that every run has run.
        tables: (Ra, G) and (Rb, G) successes.
        errors: goals left out because an episode could not be run.
        confidence: of the intervals.
        apart: what else the two do not share.
    """

    names: tuple[tuple[str, ...], tuple[str, ...]]
    task: str
    seeds: tuple[int, ...]
    tables: tuple[np.ndarray, np.ndarray]
    errors: int = 0
    confidence: float = 0.95
    apart: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of(
        cls,
        a: Sequence[Side],
        b: Sequence[Side],
        seeds: Sequence[int],
        *,
        confidence: float,
        apart: tuple[tuple[str, str, str], ...] = (),
    ) -> MethodComparison:
        """From sides that have the rows of all seeds.

        Raises:
            UserError: fewer than two goals were run by all of them.
        """  # fmt: skip
        ran = [seed for seed in seeds if all(side.rows[seed].get("error") is None for side in (*a, *b))]
        if len(ran) < 2:
            raise UserError(f"{len(ran)} goals were run by every training run; it takes 2 at least.")
        tables = [np.array([[float(side.rows[seed]["success"]) for seed in ran] for side in runs]) for runs in (a, b)]
        return cls(
            (tuple(side.name for side in a), tuple(side.name for side in b)), a[0].common["task"], tuple(ran),
            (tables[0], tables[1]), len(seeds) - len(ran), confidence, apart,
        )  # fmt: skip

    @property
    def variance_a(self) -> Variance:
        """Where the successes of a differ."""
        return Variance.of(self.tables[0])

    @property
    def variance_b(self) -> Variance:
        """Where the successes of b differ."""
        return Variance.of(self.tables[1])

    @property
    def difference(self) -> float:
        """Rate of a minus rate of b, over all runs and goals."""
        return float(self.tables[0].mean() - self.tables[1].mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference, over other training runs and other goals; with one run of each, over other goals only."""
        return difference_interval(*self.tables, confidence=self.confidence)

    @property
    def runs(self) -> pd.DataFrame:
        """One line a training run: method, run, rate."""
        return pd.DataFrame([
            {"method": method, "run": name, "rate": float(row.mean())}
            for method, names, table in zip("ab", self.names, self.tables)
            for name, row in zip(names, table)
        ])  # fmt: skip

    @property
    def variance(self) -> pd.DataFrame:
        """One line a method: runs, rate, low, high, and standard deviations (shares): of training, between goals, rest.

        They are of one episode's success; run_sd is that of the runs' rates as measured, on these goals.
        """
        lines = []
        for method, table, found in zip("ab", self.tables, (self.variance_a, self.variance_b)):
            low, high = mean_interval(table, confidence=self.confidence)
            parts = {"training_sd": found.training, "goal_sd": found.goal, "rest_sd": found.rest}
            lines.append(
                {"method": method, "runs": found.runs, "rate": found.rate, "low": low, "high": high}
                | {name: np.nan if value is None else value**0.5 for name, value in parts.items()}
                | {"run_sd": np.nan if found.between_runs is None else found.between_runs**0.5}
            )
        return pd.DataFrame(lines)

    def __str__(self) -> str:
        return f"{self.variance.to_string(index=False, float_format='%.3f')}\n{self._said()}"

    def _repr_html_(self) -> str:
        return shown(self.variance, below=[self._said()])

    def _said(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        few = min(len(table) for table in self.tables)
        over = "other training runs and other goals" if few > 1 else "other goals, and these training runs"
        left_out = f"; {self.errors} left out, in which an episode could not be run" if self.errors else ""
        apart = "".join(f"; {name}: a {of_a}, b {of_b}" for name, of_a, of_b in self.apart)
        return (
            f"a - b = {100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}] ({100 * self.confidence:g} %, over "
            f"{over}); {len(self.tables[0])} and {len(self.tables[1])} runs on {len(self.seeds)} goals of {self.task}"
            f"{left_out}{apart}"
        )
