"""Which configuration of a sweep is the best, and the file that has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from ppt_kit.files import write_text
from ppt_kit.programs import to_type
from ppt_kit.runs.grid import SEED, PlannedRun, configured
from ppt_kit.runs.state import FAILED, FINISHED, STOPPED


@dataclass(frozen=True)
class Best:
    """A configuration that won.

    Attributes:
        values: of the swept keys, without the seed.
        value: its mean of the metric over seeds.
        seeds: runs in that mean.
        lost: runs of it that failed or were stopped.
        runs: all that the sweep planned of it.
    """

    values: dict[str, Any]
    value: float
    seeds: int
    lost: int
    runs: int
    # which of two that are equally good is better
    loss: float = 0.0


def best_configuration(table: pd.DataFrame, planned: Sequence[PlannedRun], *, metric: str) -> Best | None:
    """The configuration with the best mean over its seeds; None where no finished run has the metric.

    One that has lost none of its seeds stands before one that has: what survives says less than all. Of two with the
    same success the one with the lower validation loss, or training loss where nothing was validated.

    Args:
        table: a line a run, in the order of `planned`, with its state.
    """
    groups: dict[str, list[tuple[PlannedRun, dict]]] = {}
    for run, line in zip(planned, table.to_dict("records")):
        groups.setdefault(str(_without_seed(run.values)), []).append((run, line))
    found = []
    for members in groups.values():
        numbers = [
            float(line[metric])
            for _, line in members
            if line["state"] == FINISHED and metric in line and not pd.isna(line[metric])
        ]
        if numbers:
            mean = sum(numbers) / len(numbers)
            lost = sum(line["state"] in (FAILED, STOPPED) for _, line in members)
            loss = _mean_loss([line for _, line in members if line["state"] == FINISHED])
            found.append(Best(_without_seed(members[0][0].values), mean, len(numbers), lost, len(members), loss))
    sign = -1 if metric == "success" else 1
    return min(found, key=lambda best: (best.lost, sign * best.value, best.loss), default=None)


def _mean_loss(lines: Sequence[Mapping[str, Any]]) -> float:
    for name in ("val_loss", "loss"):
        numbers = [float(line[name]) for line in lines if name in line and not pd.isna(line[name])]
        if numbers:
            return sum(numbers) / len(numbers)
    return math.inf


def write_best(best: Best, path: Path, *, base: DictConfig, metric: str) -> None:
    """A whole configuration: that of the sweep, with the values that won; its seed is the sweep's own."""
    cfg = configured(base, {**best.values, "suffix": None})
    of_seeds = f", the mean of {best.seeds} of {best.runs} seeds" if best.runs > 1 else ""
    said = ", ".join(f"{key}={value}" for key, value in best.values.items()) or "the only configuration"
    head = (
        f"# the best of a sweep by {metric}: {best.value:.6g}{of_seeds}; {said}\n"
        f"# {to_type('train')} --config-path={path.parent} --config-name={path.stem}\n"
    )
    write_text(path, head + OmegaConf.to_yaml(cfg))


def _without_seed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}
