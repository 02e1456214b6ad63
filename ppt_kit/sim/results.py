"""What an evaluation counts: rows, success rates with their intervals, and the files they go to."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.files import write_text
from ppt_kit.sim.rows import TIMED, run_of
from ppt_kit.tables import Table

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution

# in the place of a checkpoint, where no policy acts
NOBODY = "-"
# in the place of a control, where the policy acts with all that it sees
NO_CONTROL = "-"
# what tells rows of NOBODY apart
SHARED = ("checkpoint", "domain", "task", "options", "control", "seed")
# controls below which nothing is proved, and what: those of ppt_kit/sim/runner/controls.py
FLOORS = {"hold": "acting", "blind": "seeing", "replay": "reacting"}


@dataclass(repr=False)
class Evaluation:
    """The episodes of one evaluation.

    Attributes:
        rows: one dict an episode: checkpoint, weights (twelve hex digits of what acted), domain, task, options (how its
            chunks were executed, and eight hex digits of the simulator's options), zero_keys, control (null where the
            policy acts with all that it sees), epoch (of the checkpoint), seed, attempts, success (at any step; null
            when it could not be run), success_last (at the last step), success_step (control steps until the first
            success, null without), steps, return, error (null, or kind, text and place), traceback, subtasks (those of
            the simulator, then success), scores (the simulator's own numbers), actions_sha256 (of the executed
            actions' bytes), trace (of each step four hex digits of all that was seen until then, and four of all that
            was done), made_with (what card.json says of versions and machine), video, policy_ms (a call of the policy,
            on average), policy_share (of the episode's time that the policy took), episode_s.
        made_by: of each part (policy, options) that ran it in this session, so that `inspect` can run an episode again.
    """

    rows: list[dict]
    made_by: list[tuple[Any, Any]] = field(default_factory=list, repr=False, compare=False)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)

    @property
    def untimed(self) -> list[dict]:
        """The rows without what the clock says: the same whenever, and in however many processes, they are run."""
        return [{name: value for name, value in row.items() if name not in TIMED} for row in self.rows]

    @property
    def videos(self) -> list[Path]:
        """Files of the filmed episodes."""
        return [Path(row["video"]) for row in self.rows if row["video"]]

    def __repr__(self) -> str:
        return f"{len(self.rows)} episodes\n{success_table(self).to_string(index=False)}" if self.rows else "no episode"

    def _repr_html_(self) -> str:
        return success_table(self)._repr_html_() if self.rows else "no episode"


def success_table(results: Evaluation | pd.DataFrame | Iterable[Evaluation]) -> Table:
    """One line per checkpoint, task and control: episodes, errors, successes, rate and its 95 % Wilson interval.

    Episodes that could not be run count as errors, not as failures: the rate is over the others. `control` is - where
    the policy acts with all that it sees; controls in which it does not act have the checkpoint -. Where controls ran,
    `note` says of a policy which of them is as good: one of hold, blind and replay whose rate is above 0, and within
    the policy's interval or at least half of its rate.
    """
    frame = _gathered(results)
    lines = []
    for (checkpoint, task, control, zeroed), group in frame.groupby(
        ["checkpoint", "task", "control", "zeroed"], sort=False
    ):
        ran = group["success"].notna()
        # compared with True: null must not count
        wins = int((group["success"] == True).sum())  # noqa: E712
        low, high = wilson_interval(wins, int(ran.sum()))
        lines.append(
            {
                "checkpoint": checkpoint, "task": task, "control": control, "zeroed": zeroed,
                "episodes": int(ran.sum()), "errors": int((~ran).sum()), "successes": wins,
                "rate": wins / ran.sum() if ran.any() else math.nan, "low_95": low, "high_95": high,
            }
        )  # fmt: skip
    table = Table(lines)
    if any(line["control"] in FLOORS for line in lines):
        table["note"] = [_note(line, lines) for line in lines]
    return table


def details(result: Evaluation) -> str:
    """One line of an evaluation's episodes: their subtasks, lengths and returns, and the time that the policy takes."""
    ran = [row for row in result.rows if row["error"] is None]
    if not ran:
        return "no episode could be run"
    mean = lambda name: statistics.fmean(row[name] for row in ran if row[name] is not None)
    parts = [f"{name} {100 * share:.0f} %" for name, share in subtask_rates(ran).items()]
    scores = dict.fromkeys(name for row in ran for name in row["scores"])
    parts += [f"{name} {statistics.fmean(row['scores'][name] for row in ran):.3g}" for name in scores]
    said = f"{', '.join(parts)}; {mean('steps'):.0f} steps, return {mean('return'):.3g}"
    if any(row["policy_ms"] for row in ran):
        said += f"; {mean('policy_ms'):.1f} ms a call of the policy, {100 * mean('policy_share'):.0f} % of the time"
    return said


def checkpoint_table(results: Evaluation | pd.DataFrame | Iterable[Evaluation]) -> pd.DataFrame:
    """`success_table` with `run` (folder of the checkpoint) and `epoch` (null where no policy acts) of each line."""
    frame = _gathered(results)
    table = success_table(frame)
    epochs = dict(zip(frame["checkpoint"], frame["epoch"] if "epoch" in frame else [None] * len(frame)))
    runs = [run_of(name).name for name in table["checkpoint"]]
    return table.assign(run=runs, epoch=[epochs[name] for name in table["checkpoint"]])


def evaluations_in(results: Any) -> list[Evaluation]:
    """One, or several.

    Raises:
        UserError: it is something else.
    """
    several = [results] if isinstance(results, Evaluation) or not isinstance(results, Iterable) else list(results)
    strange = [type(each).__name__ for each in several if not isinstance(each, Evaluation)]
    if strange or not several:
        given = strange[0] if several else "an empty list"
        raise UserError(f"takes what ppt.evaluate gives, one or several of it, not {given}.")
    return several


def _gathered(results: Evaluation | pd.DataFrame | Iterable[Evaluation]) -> pd.DataFrame:
    """The rows of all, each once, with the columns control and zeroed as words."""
    if isinstance(results, pd.DataFrame):
        frame = results
        lacking = [name for name in ("checkpoint", "task", "success", "zero_keys") if name not in frame]
        if lacking:
            raise UserError(f"takes rows of ppt.evaluate (result.frame), and these have no {', '.join(lacking)}.")
    else:
        several = evaluations_in(results)
        frame = pd.DataFrame([row for result in several for row in result.rows])
        # of a control in which no policy acts, each checkpoint's evaluation holds the same rows
        shared = frame["checkpoint"] == NOBODY
        again = frame.loc[shared].duplicated([*(set(SHARED) & set(frame))])
        frame = frame.drop(index=again[again].index)
    named = frame["control"] if "control" in frame else [None] * len(frame)
    told = [name if isinstance(name, str) else zeroed(keys) for name, keys in zip(named, frame["zero_keys"])]
    return frame.assign(zeroed=[", ".join(keys) or NO_CONTROL for keys in frame["zero_keys"]], control=told)


def control_of(row: Mapping[str, Any]) -> str:
    """What was taken from the policy, or who acted instead, in the words of `success_table`; - = nothing and nobody."""
    return row.get("control") or zeroed(row.get("zero_keys"))


def zeroed(zero_keys: Iterable[str] | None) -> str:
    """How a control is called in which these are zeroed."""
    return f"zeroed {', '.join(zero_keys)}" if zero_keys else NO_CONTROL


def _note(line: dict, lines: list[dict]) -> str:
    """What the floor says of a line: a policy that is no better than it proves nothing."""
    if line["control"] != NO_CONTROL or not line["successes"]:
        return ""
    as_good = [
        f"{other['control']} {other['successes']}/{other['episodes']}"
        for other in lines
        if other["control"] in FLOORS and other["task"] == line["task"]
        and other["checkpoint"] in (NOBODY, line["checkpoint"]) and other["successes"]
        and (other["rate"] >= line["low_95"] or other["rate"] >= line["rate"] / 2)
    ]  # fmt: skip
    return f"proves nothing about {' and '.join(_proof(said) for said in as_good)}" if as_good else ""


def _proof(said: str) -> str:
    """Of a floor that is as good, what the policy's rate does not show."""
    return f"{FLOORS[said.split()[0]]} ({said})"


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a proportion, 95 % by default; (0, 1) without trials.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    # without a success, or without a failure, an end is exact
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def check_summary(path: Path) -> None:
    """Whether a <log_name>.json can be added to.

    Raises:
        UserError: it is not what `write_summary` wrote.
    """
    _read_summary(path)


def write_summary(result: Evaluation, rows_file: Path, *, where: str = "", ran: bool = True) -> None:
    """Beside the rows, tells .txt and .json the rates in ppt_learning's form.

    Args:
        where: what their names say behind the checkpoint's, e.g. " on lift", where one alone does not say enough.
        ran: whether an episode was run just now; else .txt, which grows by a line each time, stays when it has it.
    Raises:
        UserError: the disk does not take them.
    """
    summary_file, text_file = rows_file.with_suffix(".json"), rows_file.with_suffix(".txt")
    summary, lines = _read_summary(summary_file), []
    for line in success_table(result).to_dict("records"):
        who = [_short_name(line["checkpoint"])] if line["checkpoint"] != NOBODY else []
        name = " ".join([*who, *([_said(line["control"])] if line["control"] != "-" else [])]) + where
        summary[name] = {"total": line["rate"], "subtask_sr": subtask_rates(result.rows)}
        lines.append(f"success rate of {name} is: {line['rate']}\n")
    try:
        before = text_file.read_text(encoding="utf-8", errors="replace") if text_file.exists() else ""
        if ran or not all(line in before for line in lines):
            write_text(text_file, before + "".join(lines))
        write_text(summary_file, json.dumps(summary, indent=2))
    except OSError as error:
        raise UserError(
            f"{summary_file}: {error.strerror}. The rows are in {rows_file.name}; make room and type the same again."
        ) from None


def _short_name(checkpoint: str) -> str:
    """run, or run/model_10.pth."""
    path, run = Path(checkpoint), run_of(checkpoint)
    return run.name if path == run else f"{run.name}/{path.name}"


def _said(control: str) -> str:
    """As it has been said of zeroed modalities ever since; of others that no policy's number is meant."""
    zeroed = control.startswith("zeroed ")
    return f"without {control.removeprefix('zeroed ')}" if zeroed else f"control {control}"


def _read_summary(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Move it away, or choose another log name.") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path}: is no summary of an evaluation. Move it away, or choose another log name.")
    return summary


def subtask_rates(rows: list[dict]) -> dict[str, float]:
    """The share of the episodes without an error that reached each subtask, in the order of the task."""
    ran = [row for row in rows if row["error"] is None]
    names = dict.fromkeys(name for row in ran for name in row["subtasks"])
    return {name: sum(bool(row["subtasks"].get(name)) for row in ran) / len(ran) for name in names}
