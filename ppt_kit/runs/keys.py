"""What scripts/sweep.py reads: every key of a run, and those of the sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppt_kit.keys import key
from ppt_kit.schema import Config

METRICS_OF_RUNS = ("loss", "val_loss", "success")
# of SweepConfig, those that are not a run's
OF_THE_SWEEP = ("sweep", "jobs", "metric")


@dataclass
class SweepConfig(Config):
    """Keys of a run, and what is swept over."""

    sweep: Any = key({}, "lists of values by the key of a run, e.g. sweep.optimizer.lr=[1e-3,3e-4] sweep.seed=[0,1,2]")
    jobs: int | None = key(
        None, "runs at a time; null = as many as there are GPUs for, one on a machine without", low=1, high=1000
    )
    metric: str | None = key(
        None,
        "what the best configuration is best by: the highest success, the lowest loss; null = success where "
        "train.eval_interval evaluates, else val_loss where something is validated, else loss",
        choices=(None, *METRICS_OF_RUNS),
    )
