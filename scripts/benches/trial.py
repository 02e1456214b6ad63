"""One policy trained and evaluated, and the ledger of those that are done: what benches of learning are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ppt_kit as ppt
from ppt_kit.config import PACKAGE_CONFIGS
from ppt_kit.errors import UserError
from ppt_kit.files import append_whole, json_row
from ppt_kit.sim.results import wilson_interval
from ppt_kit.sim.rows import short_id


class Ledger:
    """Finished trials, a line of JSON each: what is in it is not run again."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict]:
        """All of them, in the order in which they ended."""
        if not self.path.is_file():
            return []
        return [row for row in map(json_row, self.path.read_bytes().splitlines()) if row is not None]

    def find(self, **identity: Any) -> dict | None:
        """The row that says all this, or None."""
        plain = json.loads(json.dumps(identity))
        return next((row for row in self.rows() if all(row.get(name) == value for name, value in plain.items())), None)

    def add(self, row: Mapping[str, Any]) -> None:
        """One more, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_whole(self.path, (json.dumps(row) + "\n").encode())


def group_names(group: str, asked: Sequence[str], *, key: str) -> list[str]:
    """The files of a config group that are meant, e.g. of policy/head; "all" are those that are shipped.

    Raises:
        UserError: there is no such one.
    """
    shipped = sorted(path.stem for path in (PACKAGE_CONFIGS / group).glob("*.yaml"))
    unknown = [name for name in asked if name not in (*shipped, "all")]
    if unknown:
        raise UserError(f"{key}={unknown[0]}: takes all, or some of {', '.join(shipped)}.")
    return shipped if "all" in asked else list(asked)


def run_name(*parts: Any, config: str, words: Sequence[str]) -> str:
    """A run folder's name of what a trial is of; another configuration or other words are another folder."""
    named = [str(part) for part in (*parts, "" if config == "quickstart" else config) if part != ""]
    return "-".join([*named, short_id({"words": list(words)})] if words else named)


def trained(config: str, words: Sequence[str]) -> tuple[Path, float]:
    """(run folder, minutes of its training steps); a run that is there is taken, one that was stopped goes on."""
    run = ppt.UnifiedTrainer(ppt.load_config(config, "train.resume=auto", "wandb.mode=disabled", *words), mode="single")
    run.run()
    metrics = ppt.read_metrics(run.run_dir, "train")
    steps = metrics["step"].diff().fillna(metrics["step"])
    return run.run_dir, round(float((steps / metrics["steps_per_s"]).sum() / 60), 2)


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(successes, errors) of evaluated episodes."""
    return sum(row["success"] is True for row in rows), sum(row["error"] is not None for row in rows)


def rate(successes: int, trials: int) -> str:
    """A share in %, and its 95 % Wilson interval."""
    low, high = wilson_interval(successes, trials)
    return f"{100 * successes / trials:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table that READMEs show and terminals can be read in."""
    cells = [[str(cell) for cell in line] for line in (columns, ["---"] * len(columns), *lines)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells)
