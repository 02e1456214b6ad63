"""What an evaluation counts: rows, success rates with their intervals, and the files they go to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.files import write_text

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass
class Evaluation:
    """The episodes of one evaluation.

    Attributes:
        rows: one dict an episode: checkpoint, weights (twelve hex digits of what acted), domain, task, options (how its
            chunks were executed, and eight hex digits of the simulator's options), zero_keys, seed, success (null when
            it could not be run), steps, return, error, subtasks, actions_sha256 (of the executed actions' bytes),
            trace (of each step four hex digits of all that was seen, and four of all that was done), made_with (what
            card.json says of versions and machine), video.
    """

    rows: list[dict]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)

    @property
    def videos(self) -> list[Path]:
        """Files of the filmed episodes."""
        return [Path(row["video"]) for row in self.rows if row["video"]]

    def _repr_html_(self) -> str:
        return success_table(self)._repr_html_()  # type: ignore[operator]


def success_table(results: Evaluation | pd.DataFrame | Iterable[Evaluation]) -> pd.DataFrame:
    """One line per checkpoint, task and control: episodes, errors, successes, rate and its 95 % Wilson interval.

    Episodes that could not be run count as errors, not as failures: the rate is over the others.
    """
    if isinstance(results, pd.DataFrame):
        frame = results
    else:
        several = [results] if isinstance(results, Evaluation) else list(results)
        frame = pd.DataFrame([row for result in several for row in result.rows])
    lines = []
    frame = frame.assign(zeroed=[", ".join(keys) or "-" for keys in frame["zero_keys"]])
    for (checkpoint, task, zeroed), group in frame.groupby(["checkpoint", "task", "zeroed"], sort=False):
        ran = group["success"].notna()
        # compared with True: null must not count
        wins = int((group["success"] == True).sum())  # noqa: E712
        low, high = wilson_interval(wins, int(ran.sum()))
        lines.append(
            {
                "checkpoint": checkpoint, "task": task, "zeroed": zeroed, "episodes": int(ran.sum()),
                "errors": int((~ran).sum()), "successes": wins, "rate": wins / ran.sum() if ran.any() else math.nan,
                "low_95": low, "high_95": high,
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a proportion, 95 % by default; (0, 1) without trials.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def check_summary(path: Path) -> None:
    """Whether a <log_name>.json can be added to.

    Raises:
        UserError: it is not what `write_summary` wrote.
    """
    _read_summary(path)


def write_summary(result: Evaluation, rows_file: Path, *, name_domain: bool = False, ran: bool = True) -> None:
    """Beside the rows, tells .txt and .json the rates in ppt_learning's form.

    Args:
        name_domain: whether their names say the domain too.
        ran: whether an episode was run just now; else .txt, which grows by a line each time, stays when it has it.
    Raises:
        UserError: the disk does not take them.
    """
    summary_file, text_file = rows_file.with_suffix(".json"), rows_file.with_suffix(".txt")
    summary, lines = _read_summary(summary_file), []
    for line in success_table(result).to_dict("records"):
        path = Path(line["checkpoint"])
        name = (f"{path.parent.name}/{path.name}" if path.suffix else path.name) + (
            "" if line["zeroed"] == "-" else f" without {line['zeroed']}"
        )
        name += f" on {result.rows[0]['domain']}" if name_domain else ""
        summary[name] = {"total": line["rate"], "subtask_sr": _subtask_rates(result.rows)}
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


def _subtask_rates(rows: list[dict]) -> dict[str, float]:
    ran = [row for row in rows if row["error"] is None]
    names = sorted({name for row in ran for name in row["subtasks"]})
    return {name: sum(bool(row["subtasks"].get(name)) for row in ran) / len(ran) for name in names}
