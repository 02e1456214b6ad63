"""Many runs as tidy tables: what differs between them, their rows, checkpoints, success and where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from ppt_kit.checkpoint import checkpoints
from ppt_kit.config import from_file
from ppt_kit.errors import UserError
from ppt_kit.keys import leaves_of, show
from ppt_kit.runs.grid import OWN
from ppt_kit.runs.state import config_file, minutes_of, reached, state_of
from ppt_kit.schema import Config
from ppt_kit.sim.compare.read import rows_in
from ppt_kit.sim.results import NOBODY, checkpoint_table
from ppt_kit.tracking import rows_so_far

# of a configuration, what is called differently in every run, and what tells nothing of the policy
NO_PARAMETERS = (*OWN, "job_name")
# where rates come from that were measured beside training
TRAINING = "training"
SUCCESS_COLUMNS = [
    "source", "checkpoint", "epoch", "task", "control", "episodes", "errors", "successes", "rate", "low_95", "high_95",
]  # fmt: skip


def parameter_table(runs: Mapping[str, Path]) -> pd.DataFrame:
    """One line a run: run, and a column for each key whose value is not the same in all of them.

    Lists are texts; a key that a run does not have is null.
    """
    flat = {name: _flat_configuration(path) for name, path in runs.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    differ = [key for key in keys if len({repr(values.get(key)) for values in flat.values()}) > 1]
    order = sorted(differ, key=lambda key: key == "seed")
    return pd.DataFrame([{"run": name, **{key: flat[name].get(key) for key in order}} for name in runs])


def metric_table(runs: Mapping[str, Path], parameters: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics.jsonl of all runs: run, what differs, kind, step, epoch, and what the rows have."""
    parts = [pd.DataFrame(rows).assign(run=name) for name, path in runs.items() if (rows := rows_so_far(path))]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["run", "kind", "step", "epoch", "loss"])
    return _joined(table, parameters)


def checkpoint_files(runs: Mapping[str, Path], parameters: pd.DataFrame) -> pd.DataFrame:
    """`checkpoints` of all runs: run, what differs, epoch, step, loss, val_loss, success, size_mb, path."""
    parts = [checkpoints(path).assign(run=name) for name, path in runs.items()]
    filled = [part for part in parts if len(part)]
    return _joined(pd.concat(filled) if filled else parts[0], parameters)


def success_of_runs(runs: Mapping[str, Path], parameters: pd.DataFrame) -> pd.DataFrame:
    """One line a run, checkpoint, task and control that was evaluated: run, what differs, and SUCCESS_COLUMNS.

    `source` is "training" of what was evaluated beside training, else the name of the file in eval/.
    """
    lines = [{"run": name, **line} for name, path in runs.items() for line in (*_beside(path), *_evaluated(path))]
    return _joined(pd.DataFrame(lines, columns=["run", *SUCCESS_COLUMNS]), parameters)


def summary_table(runs: Mapping[str, Path], parameters: pd.DataFrame) -> pd.DataFrame:
    """One line a run: run, what differs, state, epoch, loss (last), val_loss (lowest), success (highest), minutes.

    Success is what was measured beside training; where nothing was, what is in eval/.
    """
    lines = []
    for name, path in runs.items():
        state, error = state_of(path)
        found = reached(rows_so_far(path))
        success = found.success if found.success is not None else _best_rate(path)
        lines.append(
            {
                "run": name, "state": state, "epoch": found.epoch, "loss": found.loss, "val_loss": found.val_loss,
                "success": success, "minutes": round(minutes_of(path), 2) or None, "error": error or None,
            }
        )  # fmt: skip
    return _joined(pd.DataFrame(lines), parameters)


def _joined(table: pd.DataFrame, parameters: pd.DataFrame) -> pd.DataFrame:
    """`table` with what differs between the runs behind its first column."""
    columns = ["run", *parameters.columns[1:], *(name for name in table if name != "run")]
    return table.merge(parameters, on="run", how="left")[columns]


def _flat_configuration(path: Path) -> dict[str, Any]:
    file = config_file(path)
    if file is None:
        return {}
    cfg = from_file(file)
    flat: dict[str, Any] = {}
    for key in leaves_of(Config):
        if key not in NO_PARAMETERS and not key.startswith("wandb."):
            value = OmegaConf.select(cfg, key)
            flat |= _flattened(key, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return flat


def _flattened(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {part: each for name in value for part, each in _flattened(f"{key}.{name}", value[name]).items()}
    return {key: show(value) if isinstance(value, list) else value}


def _beside(path: Path) -> list[dict]:
    """What was evaluated beside training."""
    return [
        {
            "source": TRAINING, "checkpoint": row.get("checkpoint"), "epoch": row.get("epoch"), "task": row.get("task"),
            "control": NOBODY, "episodes": row.get("n"), "errors": row.get("errors"),
            "successes": round(row["success"] * row["n"]), "rate": row["success"], "low_95": row.get("low_95"),
            "high_95": row.get("high_95"),
        }
        for row in rows_so_far(path)
        if row.get("kind") == "eval" and row.get("success") is not None
    ]  # fmt: skip


def _evaluated(path: Path) -> list[dict]:
    """What scripts/eval_sim.py or `evaluate` wrote to eval/."""
    found = []
    for file in sorted((path / "eval").glob("*.jsonl")):
        if file.stat().st_size:
            table = checkpoint_table(_newest(rows_in(file)))
            found += [{"source": file.stem, **line} for line in table.to_dict("records")]
    return [{name: line.get(name) for name in SUCCESS_COLUMNS} for line in found]


def _best_rate(path: Path) -> float | None:
    """The highest success of a checkpoint of those in eval/, on average over its tasks."""
    rates: dict[Any, list[float]] = {}
    try:
        lines = _evaluated(path)
    # one that is being written, or is no evaluation; the table of success says so
    except UserError:
        return None
    for line in lines:
        if line["control"] == NOBODY and not pd.isna(line["rate"]):
            rates.setdefault((line["source"], line["checkpoint"]), []).append(line["rate"])
    return max((sum(each) / len(each) for each in rates.values()), default=None)


def _newest(rows: Sequence[dict]) -> pd.DataFrame:
    """Each episode once: one that could not be run, and then was, has two rows."""
    plain = [{"control": None, "zero_keys": [], "epoch": None, **row} for row in rows]
    of = ("checkpoint", "weights", "domain", "task", "options", "control", "zero_keys", "seed")
    return pd.DataFrame(list({repr([row.get(name) for name in of]): row for row in plain}.values()))
