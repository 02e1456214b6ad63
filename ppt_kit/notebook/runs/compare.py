"""Many runs as one object: what differs, what they reached, and figures of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.comparing import compare
from ppt_kit.errors import UserError
from ppt_kit.files import show_short
from ppt_kit.jobs.state import COLOURS
from ppt_kit.notebook.runs.curves import curves_of
from ppt_kit.notebook.runs.effects import draw_effects
from ppt_kit.notebook.runs.paper import COLUMN, PaperFigure, check_width
from ppt_kit.runs.effects import effect_table
from ppt_kit.runs.find import find_runs, tails
from ppt_kit.runs.grid import SEED
from ppt_kit.runs.tables import checkpoint_files, metric_table, parameter_table, success_of_runs, summary_table
from ppt_kit.sim.compare.read import rows_in
from ppt_kit.sim.results import control_of
from ppt_kit.tables import shown

METRICS = ("success", "val_loss", "loss")


def compare_runs(dirs: Any) -> Runs:
    """What several runs reached, as tidy tables and figures; also of runs that still train.

    Args:
        dirs: a run folder, the folder of a sweep (or what `ppt.sweep` gave), a pattern as outputs/models/*/*, or a list
            of those.
    Raises:
        UserError: a folder that is not there or is no run.
    """
    paths = find_runs(dirs)
    return Runs(dict(zip(tails(paths), paths)))


class Runs:
    """Several runs. In a notebook it shows its summary; tables are read from the disk when they are first asked for.

    Attributes:
        paths: {name: run folder}; names are as much of the folders as tells them apart.
    """

    def __init__(self, paths: dict[str, Path]):
        self.paths = paths

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """One line a run: run, and a column for each key whose value is not the same in all of them."""
        return parameter_table(self.paths)

    @property
    def keys(self) -> list[str]:
        """The keys that differ."""
        return [str(name) for name in self.parameters.columns[1:]]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The rows of metrics.jsonl of all runs: run, the keys that differ, kind, step, epoch, loss, …"""
        return metric_table(self.paths, self.parameters)

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """One line a checkpoint: run, the keys that differ, epoch, step, loss, val_loss, success, size_mb, path."""
        return checkpoint_files(self.paths, self.parameters)

    @cached_property
    def success(self) -> pd.DataFrame:
        """One line a run, checkpoint, task and control that was evaluated, with episodes, rate and Wilson interval."""
        return success_of_runs(self.paths, self.parameters)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One line a run: run, the keys that differ, state, epoch, loss, val_loss, success, minutes, error."""
        return summary_table(self.paths, self.parameters)

    def refreshed(self) -> Runs:
        """The same runs, read again."""
        return Runs(self.paths)

    def curves(
        self, y: str = "loss", *, by: Sequence[str] | None = None, smooth: int = 1, width: float = COLUMN
    ) -> PaperFigure:
        """A line for each configuration: the mean over its seeds, with a band from the lowest to the highest.

        Args:
            y: loss, val_loss, success (over epochs; a single run's band is its 95 % Wilson interval), or a column of
                metrics.jsonl, e.g. lr.
            by: what makes a line; None = the keys that differ, without the seed; ["run"] = each run its own.
            smooth: rows over which each run is smoothed first, by weights that decay (pandas' ewm(span=…)).
            width: of the figure in inches.
        Raises:
            UserError: no run has the column, a key does not differ, or there are more lines than can be told apart.
        """
        if not isinstance(y, str):
            raise UserError(f"y={show_short(y)}: takes loss, val_loss, success, or a column of metrics.jsonl.")
        check_width(width)
        if by is not None and not isinstance(by, Iterable):
            raise UserError(f"by={show_short(by)}: takes names of keys, as ['optimizer.lr'].")
        plain = [key for key in self.keys if key != SEED] or ["run"]
        lines = list(by) if by is not None and not isinstance(by, str) else [by] if by else plain
        if not lines:
            raise UserError(f"by is empty. Name what makes a line: run, {', '.join(self.keys)}; None = what differs.")
        unknown = [key for key in lines if key not in ("run", *self.keys)]
        if unknown:
            raise UserError(
                f"by={unknown[0]}: does not differ between these runs. There is run, {', '.join(self.keys)}."
            )
        return curves_of(self.metrics, self.success, y=y, by=lines, smooth=smooth, width=width)

    def effects(self, metric: str | None = None) -> pd.DataFrame:
        """What each key does: one line a key and value, with the paired difference against the key's first value.

        Args:
            metric: success, val_loss or loss; None = the first of them that a run has.
        """
        return effect_table(self.summary, self.keys, metric=self._metric(metric))

    def plot_effects(self, metric: str | None = None, *, width: float = COLUMN) -> PaperFigure:
        """`effects` drawn: a panel a key, a point a run, and the means."""
        metric = self._metric(metric)
        check_width(width)
        return draw_effects(self.summary, self.effects(metric), self.keys, metric=metric, width=width)

    def compare(self, a: str, b: str, *, epoch: int | None = None, **options: Any) -> Any:
        """Two of the runs on the goals that both were evaluated on: what `ppt.compare` gives, for the rows in eval/.

        Args:
            a, b: names of runs.
            epoch: of the checkpoints; None = of each run the newest that was evaluated.
            options: of `ppt.compare`.
        Raises:
            UserError: no such run, or it has no rows of that epoch; or see `ppt.compare`.
        """
        return compare(self._rows(a, epoch), self._rows(b, epoch), **options)

    def _rows(self, name: str, epoch: int | None) -> pd.DataFrame:
        """The episodes of one checkpoint of a run, in which its policy acted."""
        if name not in self.paths:
            raise UserError(f"{name}: is none of these runs: {', '.join(list(self.paths)[:6])}.")
        rows = [row for row in rows_in(self.paths[name], key=name) if control_of(row) == "-"]
        epochs = sorted({row["epoch"] for row in rows if row.get("epoch") is not None})
        wanted = epoch if epoch is not None else (epochs[-1] if epochs else None)
        if epoch is not None and epoch not in epochs:
            raise UserError(f"{name}: no checkpoint of epoch {epoch} was evaluated. There is {epochs or 'none'}.")
        return pd.DataFrame([row for row in rows if row.get("epoch") == wanted])

    def _metric(self, metric: str | None) -> str:
        there = [name for name in METRICS if self.summary[name].notna().any()]
        if metric is None and there:
            return there[0]
        if metric not in there:
            raise UserError(f"metric={metric}: no run has it. There is {', '.join(there) or 'none yet'}.")
        return metric

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        keys = f", which differ in {', '.join(self.keys)}" if self.keys else ""
        table = self._shown().to_string(index=False, float_format="%.4g", max_colwidth=60, na_rep="-")
        return f"{len(self)} runs{keys}\n{table}"

    def _repr_html_(self) -> str:
        keys = f", which differ in {', '.join(self.keys)}" if self.keys else ""
        return shown(self._shown(), above=[f"{len(self)} runs{keys}"], colours=COLOURS)

    def _shown(self) -> pd.DataFrame:
        return self.summary.dropna(axis="columns", how="all")
