"""Our rows on Meta-World's tasks beside the published ones, under the literature's count and under ours."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from benches.trial import markdown
from ppt_kit.errors import UserError
from ppt_kit.files import write_whole

PUBLISHED = Path(__file__).with_suffix(".csv")
LEVELS = ("easy", "medium", "hard", "very-hard")
# of how many evaluations during training the literature takes the mean: the best ones
BEST = 5
NOTE = (
    "final: our final checkpoints, mean over training seeds with a 95 % interval over other goals and, with several "
    f"seeds, other training runs; best {BEST}: the literature's count, the mean of the best {BEST} evaluations of each "
    "run; control: final checkpoints with what shows the goal zeroed; dp3, dp: published, by the literature's count"
)


def published() -> pd.DataFrame:
    """task, level, dp3, dp: success (%) of 3D Diffusion Policy and Diffusion Policy, for all 50 tasks."""
    table = pd.read_csv(PUBLISHED, comment="#")
    return table.assign(level=table["level"].str.replace("_", "-"))


def task_names(asked: Sequence[str], *, simulator: str) -> list[str]:
    """The tasks that are meant, each once, in the order of the table: names, levels (easy … very-hard) or all.

    Of another simulator than Meta-World they are names.

    Raises:
        UserError: there is no such task or level.
    """
    if simulator != "metaworld":
        return list(dict.fromkeys(asked))
    table = published()
    named = dict(zip(table["task"], table["level"]))
    takes = ["all", *LEVELS, *named]
    for name in asked:
        if name not in takes:
            near = difflib.get_close_matches(name, takes, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"tasks={name}: takes all, {', '.join(LEVELS)}, or names of Meta-World's tasks.{hint}")
    return [task for task, level in named.items() if {"all", level, task} & set(asked)]


def seeds_of(asked: Any) -> list[int]:
    """Training seeds: 3 means 0, 1 and 2; a list those in it.

    Raises:
        UserError: it is neither.
    """
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        return list(range(asked))
    seeds = list(asked) if OmegaConf.is_list(asked) or isinstance(asked, list) else []
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise UserError(f"seeds={asked}: takes how many, e.g. seeds=3, or which, e.g. seeds=[0,7].")
    return seeds


def saves(config: str, words: Sequence[str], *, checkpoints: int) -> list[str]:
    """Further words of a training that leaves so many checkpoints, evenly spaced, all of them kept."""
    import ppt_kit as ppt

    epochs = ppt.load_config(config, *words).train.total_epochs
    if epochs < checkpoints:
        raise UserError(
            f"checkpoints={checkpoints}: the training has {epochs} epochs. Set it lower, or train.total_epochs higher."
        )
    return [f"save_interval={epochs // checkpoints}", "train.last_k_checkpoints=0"]


def evaluate_checkpoints(run_dir: Path, *, options: Mapping[str, Any]) -> None:
    """Evaluates every numbered checkpoint of a run before its last, which is model.pth too.

    Args:
        options: of `ppt.evaluate`; the rows join those in the run folder's eval/: what is there is not run again.
    """
    import ppt_kit as ppt

    last = ppt.load_policy(run_dir).card["epoch"]
    for line in ppt.checkpoints(run_dir).itertuples():
        if line.epoch != last:
            ppt.evaluate(ppt.load_policy(line.path), out_dir=run_dir / "eval", **options)


def side_by_side(runs: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
    """One line a task in the order of the published table, then the means of each level and of all tasks that were run.

    Args:
        runs: task -> run folders, one a training seed, with rows in eval/.
    Returns:
        task, level, runs, goals, and in % final, low, high, best (missing without BEST checkpoints), control (missing
        without), dp3, dp.
    """
    table = published().set_index("task")
    lines = [
        {"task": task, "level": table["level"].get(task, "-"), **_ours(runs[task])}
        | {name: float(table[name].get(task, math.nan)) for name in ("dp3", "dp")}
        for task in sorted(runs, key=lambda task: list(table.index).index(task) if task in table.index else len(table))
    ]
    frame = pd.DataFrame(lines)
    means = [_mean(frame[frame["level"] == level], level) for level in LEVELS if (frame["level"] == level).any()]
    return pd.concat([frame, pd.DataFrame([*means, _mean(frame, "all")])], ignore_index=True)


def tell(table: pd.DataFrame, folder: Path, *, name: str) -> None:
    """Prints the table; writes it as <name>.csv and .md, and its figure as .png, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(
        ["task", "level", "runs x goals", "final [95 %]", f"best {BEST}", "control", "dp3", "dp"],
        [_cells(line) for line in table.to_dict("records")],
    )
    names = {ending: folder / f"{name}.{ending}" for ending in ("csv", "md", "png")}
    write_whole(names["csv"], lambda beside: table.to_csv(beside, index=False, float_format="%.2f"))
    write_whole(names["md"], lambda beside: beside.write_text(f"{text}\n\n{NOTE}\n"))
    write_whole(names["png"], lambda beside: _figure(table).savefig(beside, format="png", dpi=120))
    print(f"\n{text}\n{NOTE}\n{names['csv']}, {names['png']}", flush=True)


def _ours(folders: Sequence[Path]) -> dict[str, Any]:
    """One task's numbers, in %."""
    import ppt_kit as ppt

    rows = [folder / "eval/eval.jsonl" for folder in folders]
    final = ppt.protocol(rows)
    seeing = final[final["control"] == "-"].iloc[0]
    blind = final[final["control"].str.match("blind|zeroed")]
    numbers = {"final": seeing["rate"], "low": seeing["low"], "high": seeing["high"], "best": _best(rows)}
    numbers["control"] = blind["rate"].mean() if len(blind) else math.nan
    counts = {"runs": int(seeing["runs"]), "goals": int(seeing["goals"])}
    return counts | {name: 100 * float(value) for name, value in numbers.items()}


def _best(rows: Sequence[Path]) -> float:
    """The literature's count; missing where a run has too few checkpoints for it."""
    import ppt_kit as ppt
    from ppt_kit.sim.compare.read import rows_in
    from ppt_kit.sim.results import NO_CONTROL, control_of

    seeing = pd.DataFrame([row for row in rows_in(list(rows)) if control_of(row) == NO_CONTROL])
    try:
        return float(ppt.protocol(seeing, checkpoints=f"best-{BEST}")["rate"].iloc[0])
    except UserError:
        return math.nan


def _mean(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """Of the tasks that were run; of a column that some of them lack there is none."""
    columns = ("final", "best", "control", "dp3", "dp")
    return {"task": f"mean of {len(frame)}", "level": name} | {
        column: float(frame[column].mean(skipna=False)) for column in columns
    }


def _cells(line: Mapping[Any, Any]) -> list[str]:
    interval = "" if math.isnan(line["low"]) else f" [{line['low']:.0f}, {line['high']:.0f}]"
    size = "" if math.isnan(line["runs"]) else f"{line['runs']:.0f} x {line['goals']:.0f}"
    numbers = [_number(line[name]) for name in ("best", "control", "dp3", "dp")]
    return [line["task"], line["level"], size, f"{line['final']:.1f}{interval}", *numbers]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _figure(table: pd.DataFrame) -> Any:
    """Each task's numbers on a line of its own."""
    from ppt_kit.notebook.plots import Plot

    tasks = table[table["runs"].notna()].iloc[::-1]
    figure = Plot(figsize=(7, 1.4 + 0.28 * len(tasks)), layout="constrained")
    axes, places = figure.add_subplot(), range(len(tasks))
    spread = [(tasks["final"] - tasks["low"]).clip(0).fillna(0), (tasks["high"] - tasks["final"]).clip(0).fillna(0)]
    axes.errorbar(
        tasks["final"], places, xerr=spread, fmt="o", color="#3b7dd8", capsize=3, label="ours, final checkpoint"
    )
    marks = {
        "best": ("D", "#8fb7ee", f"ours, best {BEST}"), "control": ("x", "#b9b9b9", "ours, blind"),
        "dp3": ("|", "black", "DP3 (published)"), "dp": ("|", "#c0392b", "Diffusion Policy (published)"),
    }  # fmt: skip
    for name, (mark, color, label) in marks.items():
        axes.plot(tasks[name], places, mark, color=color, label=label, markersize=5 if mark == "D" else 9, zorder=1)
    axes.set_yticks(places, [f"{line.task} ({line.level})" for line in tasks.itertuples()], fontsize=8)
    axes.set_xlim(-4, 104)
    axes.set_xlabel("success (%)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure
