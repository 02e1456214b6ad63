"""One record of evaluations, read as each protocol of the literature counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.sim.compare.read import rows_in
from ppt_kit.sim.compare.statistics.quantiles import check_confidence
from ppt_kit.sim.compare.statistics.training import mean_interval
from ppt_kit.sim.results import control_of
from ppt_kit.sim.rows import run_of

SUCCESS = ("any", "last")
FINAL, LAST, BEST = "final", "last", "best"


@dataclass(frozen=True)
class Count:
    """What is counted.

    Attributes:
        which: checkpoints of a run: the final one, the `number` last, or the `number` best ones.
        success: at any step, or at the last one.
        max_steps: of an episode (control steps); None = as long as it ran.
    """

    which: str
    number: int
    success: str
    max_steps: int | None


def protocol(
    results: Any,
    *,
    checkpoints: str = FINAL,
    success: str = "any",
    max_steps: int | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """What a protocol reports of one method: one line a task and control, over the training runs there are.

    The final checkpoint, success at any step and episodes of 200 steps are `protocol(rows, max_steps=200)`; the mean of
    the five best evaluations, as DP3 and its successors report, is `protocol(rows, checkpoints="best-5")`.

    Args:
        results: evaluations, tables of rows, rows files or run folders, of one or several training seeds.
        checkpoints: "final", "last-5" or "best-5" (any number): the mean over so many of each run.
        success: "any" step of an episode, or the "last".
        max_steps: count as if episodes were so long (control steps); None = as they were run.
        confidence: of the interval.
    Returns:
        task, control, runs, checkpoints (of each run), goals, errors (episodes left out), rate (the mean over runs,
        each the mean over its checkpoints), low and high (over other goals and, with several runs, other training
        seeds; missing for the best: chosen on the goals they are counted on, they flatter), run_sd (standard deviation
        of the runs' rates; missing with one).
    Raises:
        UserError: there are fewer checkpoints than it counts, or episodes were too short, or ended at their success.
    """
    check_confidence(confidence)
    count = _count(checkpoints, success=success, max_steps=max_steps)
    groups: dict[tuple, list[dict]] = {}
    for row in rows_in(results):
        groups.setdefault((row["task"], control_of(row)), []).append(row)
    return pd.DataFrame([
        {"task": task, "control": control, **_counted(rows, count, confidence=confidence)}
        for (task, control), rows in groups.items()
    ])  # fmt: skip


def succeeded(row: Mapping[str, Any], *, success: str = "any", max_steps: int | None = None) -> bool:
    """Whether one episode that was run counts as a success.

    Raises:
        UserError: the episode does not tell: it was shorter, or ended at its success.
    """
    # rows of before stopped at their success
    step = row.get("success_step", row["steps"] if row["success"] else None)
    limit = row["steps"] if max_steps is None else max_steps
    if step is None or step > limit:
        if row["steps"] < limit:
            raise _too_short(row, limit)
        return False
    return success == "any" or _holds_at(row, limit, step, is_asked=max_steps is not None)


def epoch_of(row: Mapping[str, Any]) -> float:
    """Epoch of a row's checkpoint; infinite for a run's model.pth that does not say it: the last there is."""
    if row.get("epoch") is not None:
        return float(row["epoch"])
    numbered = re.fullmatch(r"model_(\d+)\.pth", Path(row["checkpoint"]).name)
    return float(numbered[1]) if numbered else math.inf


def _count(checkpoints: str, *, success: str, max_steps: int | None) -> Count:
    asked = re.fullmatch(r"(final)|(last|best)-([1-9]\d*)", checkpoints) if isinstance(checkpoints, str) else None
    if not asked:
        raise UserError(f"checkpoints={checkpoints!r}: takes final, last-5 or best-5, with any number.")
    if success not in SUCCESS:
        raise UserError(f"success={success!r}: takes {' or '.join(SUCCESS)}.")
    if max_steps is not None and (not isinstance(max_steps, (int, np.integer)) or max_steps < 1):
        raise UserError(f"max_steps={max_steps!r}: takes a whole number of control steps, at least 1, or None.")
    return Count(asked[2] or FINAL, int(asked[3] or 1), success, max_steps)


def _counted(rows: list[dict], count: Count, *, confidence: float) -> dict[str, Any]:
    """Of one task and control."""
    _check_one_way(rows)
    ran = [row for row in rows if row.get("error") is None]
    runs: dict[str, list[dict]] = {}
    for row in ran:
        runs.setdefault(str(run_of(row["checkpoint"])), []).append(row)
    if not runs:
        raise UserError(f"{rows[0]['task']}: none of its {len(rows)} episodes could be run ({rows[0].get('error')}).")
    by_goal = [_of_run(name, each, count) for name, each in runs.items()]
    rates = [float(np.mean(list(goals.values()))) for goals in by_goal]
    common = sorted(set.intersection(*(set(goals) for goals in by_goal)))
    low = high = math.nan
    if count.which != BEST and len(common) > 1:
        low, high = mean_interval(
            np.array([[goals[seed] for seed in common] for goals in by_goal]), confidence=confidence
        )
    return {
        "runs": len(runs), "checkpoints": count.number, "goals": len(common), "errors": len(rows) - len(ran),
        "rate": float(np.mean(rates)), "low": low, "high": high,
        "run_sd": float(np.std(rates, ddof=1)) if len(rates) > 1 else math.nan,
    }  # fmt: skip


def _of_run(name: str, rows: list[dict], count: Count) -> dict[int, float]:
    """seed -> share of the counted checkpoints that succeed on it."""
    epochs = _epochs(rows)
    evaluations: dict[float, dict[int, float]] = {}
    for row in rows:
        goals = evaluations.setdefault(epochs[row.get("weights"), epoch_of(row)], {})
        goals[row["seed"]] = float(succeeded(row, success=count.success, max_steps=count.max_steps))
    if len(evaluations) < count.number:
        raise UserError(
            f"checkpoints={count.which}-{count.number}: {name} has {len(evaluations)} evaluated. "
            "Evaluate more of its checkpoints, with train.model_names, or count fewer."
        )
    chosen = _chosen(evaluations, count)
    seeds = set.intersection(*(set(goals) for goals in chosen))
    if not seeds:
        raise UserError(f"{name}: its checkpoints were evaluated on different seeds. Evaluate them on the same.")
    return {seed: float(np.mean([goals[seed] for goals in chosen])) for seed in sorted(seeds)}


def _epochs(rows: Iterable[dict]) -> dict[tuple, float]:
    """(weights, epoch) -> epoch: model.pth is the numbered file with the same weights, where that was evaluated too."""
    said = {(row.get("weights"), epoch_of(row)) for row in rows}
    numbered = {weights: epoch for weights, epoch in said if weights is not None and epoch < math.inf}
    return {(weights, epoch): numbered.get(weights, epoch) if epoch == math.inf else epoch for weights, epoch in said}


def _chosen(evaluations: Mapping[float, dict[int, float]], count: Count) -> list[dict[int, float]]:
    """The evaluations of a run that are counted."""
    in_time = [evaluations[epoch] for epoch in sorted(evaluations)]
    if count.which == BEST:
        # of equal ones the later
        return sorted(in_time, key=lambda goals: float(np.mean(list(goals.values()))))[-count.number :]
    return in_time[-count.number :]


def _holds_at(row: Mapping[str, Any], limit: int, step: int, *, is_asked: bool) -> bool:
    """Whether an episode that succeeded by then does at the last step.

    Args:
        is_asked: the limit was given, and is not just where the episode ended.
    """
    if is_asked and step == limit:
        return True
    if "stop_at_success=false" not in str(row.get("options", "")).split():
        raise UserError(
            f"success=last: the episode of seed {row['seed']} on {row['task']} ended with its success, after {step} "
            "steps. Evaluate with stop_at_success=false to know how it would have ended."
        )
    if row["steps"] < limit:
        raise _too_short(row, limit)
    if row["steps"] > limit:
        raise UserError(
            f"success=last, max_steps={limit}: the episode of seed {row['seed']} on {row['task']} went on to step "
            f"{row['steps']}, and its row does not say what held at step {limit}. Evaluate with max_steps={limit}."
        )
    return bool(row["success_last"])


def _too_short(row: Mapping[str, Any], limit: int) -> UserError:
    return UserError(
        f"max_steps={limit}: the episode of seed {row['seed']} on {row['task']} ended after {row['steps']} steps. "
        f"Evaluate with max_steps={limit} or more."
    )


def _check_one_way(rows: Iterable[dict]) -> None:
    """Rows of one table were run with the same options, or their numbers mean different things."""
    ways = sorted({f"{row.get('domain')}: {row.get('options')}" for row in rows})
    if len(ways) > 1:
        raise UserError(
            f"results: rows of {len(ways)} ways of evaluating, {ways[0]} and {ways[1]}. Give those of one, "
            "e.g. protocol(frame[frame['options'] == …])."
        )
