"""What an evaluation counts: rows, success rates with their intervals, and the files they go to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ppt_kit.files import write_text

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass
class Evaluation:
    """The episodes of one evaluation.

    Attributes:
        rows: one dict an episode: checkpoint, domain, task, seed, success (null when it could not be run), steps,
            return, error, subtasks, actions_sha256 (of the executed actions' bytes), zero_keys, video.
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

    @property
    def num_successes(self) -> int:
        """Episodes that succeeded."""
        return sum(row["success"] is True for row in self.rows)

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


def write_results(result: Evaluation, out_dir: Path, log_name: str, *, name_domain: bool = False) -> None:
    """Appends the rows to <log_name>.jsonl, and tells .txt and .json the rates in ppt_learning's form."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / f"{log_name}.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in result.rows)
    summary_file = out_dir / f"{log_name}.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    with open(out_dir / f"{log_name}.txt", "a", encoding="utf-8") as text:
        for line in success_table(result).to_dict("records"):
            path = Path(line["checkpoint"])
            name = (f"{path.parent.name}/{path.name}" if path.suffix else path.name) + (
                "" if line["zeroed"] == "-" else f" without {line['zeroed']}"
            )
            name += f" on {result.rows[0]['domain']}" if name_domain else ""
            summary[name] = {"total": line["rate"], "subtask_sr": _subtask_rates(result.rows)}
            text.write(f"success rate of {name} is: {line['rate']}\n")
    write_text(summary_file, json.dumps(summary, indent=2))


def _subtask_rates(rows: list[dict]) -> dict[str, float]:
    ran = [row for row in rows if row["error"] is None]
    names = sorted({name for row in ran for name in row["subtasks"]})
    return {name: sum(bool(row["subtasks"].get(name)) for row in ran) / len(ran) for name in names}
