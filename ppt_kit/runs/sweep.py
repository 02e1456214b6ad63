"""A sweep: every combination of lists of values trained, as one table, and the best configuration as a file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from tqdm.auto import tqdm

from ppt_kit.checks import domain_names
from ppt_kit.config import from_mapping
from ppt_kit.data.formats import find_domain
from ppt_kit.errors import UserError
from ppt_kit.files import check_place, json_row, locked_folder, write_text
from ppt_kit.jobs.decide import num_visible_devices
from ppt_kit.jobs.state import COLOURS
from ppt_kit.runs.best import best_configuration, write_best
from ppt_kit.runs.devices import ranks_of, slots_for
from ppt_kit.runs.grid import PlannedRun, plan_runs, short_name
from ppt_kit.runs.keys import METRICS_OF_RUNS
from ppt_kit.runs.queue import check_folders, progress_of, run_queue
from ppt_kit.runs.state import FAILED, FINISHED, WAITING, is_run, minutes_of, reached, state_of
from ppt_kit.signals import Stopped, stops_raise
from ppt_kit.tables import shown
from ppt_kit.tracking import bar_pace, rows_so_far

log = logging.getLogger(__name__)

# in the folder of a sweep: what is swept over and how long each run took; the table; the best configuration
SWEEP, TABLE, BEST = "sweep.json", "table.csv", "best.yaml"


@dataclass(frozen=True)
class Sweep:
    """What a sweep came to. In a notebook it shows itself; `print(result)` says the same.

    Attributes:
        folder: holds sweep.json, table.csv, best.yaml, and the run folders under <domain>/.
        table: one line a run: run, the swept keys, state (finished, stopped, failed, waiting), epoch, loss of the last
            row, val_loss (the lowest), success (the highest of its checkpoints) where measured, minutes, error.
        metric: what the best is best by.
        best: a whole configuration, for load_config("best", config_path=folder); None where no run has the metric.
        best_values: what of the swept keys is in it.
    """

    folder: Path
    table: pd.DataFrame
    metric: str
    best: Path | None
    best_values: dict[str, Any]

    @property
    def failed(self) -> pd.DataFrame:
        """The lines of the runs that failed."""
        return self.table[self.table["state"] == FAILED]

    @property
    def run_dirs(self) -> list[Path]:
        """The folders of its runs that have begun; there may be others of an earlier grid beside them."""
        return [path for path in map(Path, self.table["run"]) if is_run(path)]

    @property
    def exit_code(self) -> int:
        """0 when every run has finished, else 1."""
        return int(not (self.table["state"] == FINISHED).all())

    def __str__(self) -> str:
        text = self._shown().to_string(index=False, float_format="%.4g", max_colwidth=60, na_rep="-")
        return f"{text}\n{self._said()}"

    def _repr_html_(self) -> str:
        return shown(self._shown(), below=[self._said()], colours=COLOURS)

    def _shown(self) -> pd.DataFrame:
        """The table without folders and empty columns, keys by their last names."""
        keys = self._keys()
        named = self.table.drop(columns="run").rename(columns={key: short_name(key, keys) for key in keys})
        return named.dropna(axis="columns", how="all").fillna({"error": "-"})

    def _keys(self) -> list[str]:
        columns = [str(name) for name in self.table]
        return columns[1 : columns.index("state")]

    def _said(self) -> str:
        counts = self.table["state"].value_counts()
        said = ", ".join(f"{number} {state}" for state, number in counts.items())
        if self.best is None:
            return f"{said}; no run has a {self.metric}, so none is the best"
        values = ", ".join(f"{key}={value}" for key, value in self.best_values.items()) or "the only configuration"
        return f"{said}; best {self.metric}: {values}: {self.best}"


def sweep(cfg: DictConfig, over: Mapping[str, Any], *, jobs: int | None = None, metric: str | None = None) -> Sweep:
    """Trains every combination of the lists in `over`, several at a time, each as a process with a run folder.

    Called again with the same words it goes on: what is finished stays, what was stopped or killed goes on from its
    checkpoint, what failed is tried again. Interpolations of a file were resolved when `cfg` was loaded: a key that
    followed a swept one does not follow it here.

    Args:
        cfg: what all runs share. Its suffix names the sweep: <output_dir>/sweeps/<suffix>.
        over: {dotted key: list of values}, e.g. {"optimizer.lr": [1e-3, 3e-4], "seed": range(3)}.
        jobs: runs at a time; None = as many as there are GPUs for, one on a machine without. GPUs are dealt out, on a
            CPU machine the cores are divided.
        metric: loss, val_loss or success: what the best configuration is best by, on average over seeds; None =
            success where train.eval_interval evaluates, else val_loss where something is validated, else loss.
    Raises:
        UserError: before anything starts: a key, a list, a value, a configuration or a metric that cannot be, a
            dataset that is not there, or a folder that holds other runs.
        Stopped: it was interrupted, or got a stop signal; the runs have saved.
    """
    folder, planned = plan_runs(cfg, over)
    metric = _checked_metric(metric, planned)
    _check_jobs(jobs)
    num_devices = num_visible_devices()
    ranks = max(ranks_of(run.cfg.train_mode, world_size=run.cfg.world_size, num_devices=num_devices) for run in planned)
    _check_data(planned)
    check_place(folder, key="output_dir")
    slots = slots_for(
        jobs=jobs, ranks=ranks, num_runs=len(planned), num_devices=num_devices, num_cores=_num_cores(), env=os.environ
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        check_folders(planned)
        book = _Book(folder, planned, base=from_mapping(cfg), metric=metric)
        with stops_raise(), book.bar():
            try:
                run_queue(planned, slots, on_start=book.starts, on_end=book.ended, on_poll=book.shows)
                book.shows([])
            except KeyboardInterrupt as stop:
                done = int((book.write().table["state"] == FINISHED).sum())
                kept = f"{folder}: {done} of {len(planned)} runs are finished, the others saved; the same words go on"
                raise Stopped(getattr(stop, "number", 2), kept) from None
        return book.write()


class _Book:
    """What is written down of a sweep while it runs, and its one line on the screen."""

    def __init__(self, folder: Path, planned: Sequence[PlannedRun], *, base: DictConfig, metric: str):
        self.folder, self.planned, self.base, self.metric = folder, planned, base, metric
        path = folder / SWEEP
        before = (json_row(path.read_bytes()) if path.is_file() else None) or {}
        self._before = before.get("over")
        # of the launches before the newest, minutes of each run
        self._minutes: dict[str, float] = dict(before.get("minutes") or {})
        self._lines = {run.name: _line(run, self._minutes) for run in planned}
        self._best = ""
        self._write_down()

    def bar(self) -> Any:
        """tqdm's, of all runs together: a widget in a notebook."""
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self._bar = tqdm(total=float(len(self.planned)), desc="sweep", bar_format=form, **bar_pace())
        self.shows([])
        return self._bar

    def starts(self, run: PlannedRun) -> None:
        """A run is about to be launched: what its launches before took is kept."""
        self._minutes[run.name] = self._minutes.get(run.name, 0.0) + minutes_of(run.run_dir)
        self._write_down()

    def ended(self, run: PlannedRun) -> None:
        """A run has ended: the table on the disk has it."""
        self._lines[run.name] = _line(run, self._minutes)
        self.write()

    def shows(self, running: Sequence[PlannedRun]) -> None:
        """The line on the screen."""
        states = [line["state"] for line in self._lines.values()]
        parts = {"done": states.count(FINISHED), "running": len(running), "failed": states.count(FAILED)}
        done = parts["done"] + parts["failed"] + sum(map(progress_of, running))
        said = ", ".join(f"{number} {what}" for what, number in parts.items() if number or what == "done")
        self._bar.set_postfix_str(f"{said} of {len(self.planned)}{self._best}", refresh=False)
        self._bar.update(max(0.0, done - self._bar.n))

    def write(self) -> Sweep:
        """table.csv and best.yaml, as it stands."""
        table = _table(self._lines.values())
        chosen = best_configuration(table, self.planned, metric=self.metric)
        best = self.folder / BEST if chosen is not None else None
        if chosen is not None:
            self._best = f"; best {self.metric} {chosen.value:.4g}"
            write_best(chosen, self.folder / BEST, base=self.base, metric=self.metric)
        write_text(self.folder / TABLE, table.to_csv(index=False))
        return Sweep(self.folder, table, self.metric, best, chosen.values if chosen else {})

    def _write_down(self) -> None:
        over: dict[str, list] = {}
        for run in self.planned:
            for key, value in run.values.items():
                if value not in over.setdefault(key, []):
                    over[key].append(value)
        if self._before not in (None, over):
            log.warning(
                "%s: it was another grid before, %s; its runs stay, %s and %s are of %s now",
                self.folder, json.dumps(self._before), TABLE, BEST, json.dumps(over),
            )  # fmt: skip
        self._before = over
        kept = {"over": over, "metric": self.metric, "minutes": self._minutes}
        write_text(self.folder / SWEEP, json.dumps(kept) + "\n")


def _line(run: PlannedRun, minutes: Mapping[str, float]) -> dict[str, Any]:
    state, error = state_of(run.run_dir)
    found = reached(rows_so_far(run.run_dir))
    spent = minutes.get(run.name, 0.0) + minutes_of(run.run_dir)
    return {
        "run": str(run.run_dir), **run.values, "state": state, "epoch": found.epoch, "loss": found.loss,
        "val_loss": found.val_loss, "success": found.success,
        "minutes": round(spent, 2) if state != WAITING else None, "error": error or None,
    }  # fmt: skip


def _table(lines: Any) -> pd.DataFrame:
    table = pd.DataFrame(list(lines))
    # what none of the runs measures is no column
    empty = [name for name in ("val_loss", "success") if table[name].isna().all()]
    return table.drop(columns=empty)


def _checked_metric(metric: str | None, planned: Sequence[PlannedRun]) -> str:
    """The metric of a sweep.

    Raises:
        UserError: there is no such one, or a run would not measure it.
    """
    if metric is not None and metric not in METRICS_OF_RUNS:
        raise UserError(f"metric={metric!r}: takes {', '.join(METRICS_OF_RUNS)}, or null.")
    measured = [_measured(run.cfg) for run in planned]
    if metric is None:
        return next(name for name in ("success", "val_loss", "loss") if all(name in each for each in measured))
    if not all(metric in each for each in measured):
        how = "train.eval_interval=10" if metric == "success" else "train.val_interval=10 dataset.val_ratio=0.1"
        raise UserError(f"metric={metric}: it is not measured in these runs. Set {how}, or choose another metric.")
    return metric


def _measured(cfg: DictConfig) -> set[str]:
    validates = cfg.train.val_interval > 0 and cfg.dataset.val_ratio > 0
    return {"loss"} | ({"val_loss"} if validates else set()) | ({"success"} if cfg.train.eval_interval else set())


def _check_jobs(jobs: Any) -> None:
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= 1000):
        raise UserError(f"jobs={jobs!r}: takes a whole number of runs at a time from 1 on, or null.")


def _check_data(planned: Sequence[PlannedRun]) -> None:
    """Raises UserError when a dataset is not there: a minute later every run would say so."""
    wanted = {
        (run.cfg.dataset_path, name, run.cfg.dataset.format): None
        for run in planned
        for name in domain_names(run.cfg.domains)
    }
    for folder, name, form in wanted:
        find_domain(folder, name, format=form)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process runs this sweep; it ends with this one, however that ends.

    Raises:
        UserError: another does.
    """
    taken = f"{folder}: another process runs this sweep. Wait for it, or give another suffix=…."
    with locked_folder(folder, taken=taken) as knows:
        if not knows:
            log.warning("%s: this disk knows no locks: start no second sweep of these words beside this one", folder)
        yield


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
