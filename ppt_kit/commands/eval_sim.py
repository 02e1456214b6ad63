"""Checkpoints' success rates in simulation: `eval_sim.py train.pretrained_dir=outputs/models/<domain>/<suffix>`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.schema import EvaluateConfig
from ppt_kit.signals import stops_raise

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppt_kit.sim.results import Evaluation


def main(cfg: DictConfig) -> int:
    with stops_raise():
        return evaluated(cfg)


def evaluated(cfg: DictConfig) -> int:
    if cfg.compare is not None:
        return compared(cfg)
    from ppt_kit.config import typed
    from ppt_kit.sim.results import success_table
    from ppt_kit.targets import evaluate_all, targets_of

    results = evaluate_all(typed(cfg))
    print(success_table(results).to_string(index=False, float_format="%.3f"))
    for result in results:
        for said in detailed(result):
            print(said)
    folders = list(dict.fromkeys(target.out_dir for target in targets_of(cfg.train.pretrained_dir)))
    print(f"rows, summary, videos and figure: {', '.join(map(str, folders))}")
    for suffix in ("png", "svg"):
        draw(results, folders[0] / f"{cfg.eval_log_name}.{suffix}")
    return 1 if all(row["error"] for result in results for row in result.rows) else 0


def compared(cfg: DictConfig) -> int:
    """Prints what each comparison found; writes it, and its figure, beside the rows of the first."""
    from ppt_kit.comparing import comparisons, place_of_results
    from ppt_kit.config import typed
    from ppt_kit.files import check_place, write_text, write_whole
    from ppt_kit.notebook.comparison import plot_comparison

    out_dir = place_of_results(typed(cfg))
    check_place(out_dir, key="train.pretrained_dir")
    for name, result in comparisons(typed(cfg)):
        out_dir.mkdir(parents=True, exist_ok=True)
        text, picture = (out_dir / f"{name}.{ending}" for ending in ("txt", "png"))
        write_text(text, f"{result}\n")
        write_whole(picture, partial(plot_comparison(result).savefig, format="png", dpi=120))
        print(f"{result}\n{text}, {picture}", flush=True)
    return 0


def detailed(result: Evaluation) -> list[str]:
    """A line for the policy, and one for each control."""
    from ppt_kit.sim.results import Evaluation, details

    who = dict.fromkeys((row["checkpoint"], row["task"], row["control"]) for row in result.rows)
    return [
        f"{checkpoint if control is None else control} on {task}: "
        + details(Evaluation([row for row in result.rows if (row["task"], row["control"]) == (task, control)]))
        for checkpoint, task, control in who
    ]


def draw(results: list[Evaluation], path: Path) -> None:
    """Success over checkpoints where there are several, else a bar for each task and control."""
    from ppt_kit.files import write_whole
    from ppt_kit.notebook.plots import plot_checkpoints, plot_success

    acted = {row["checkpoint"] for result in results for row in result.rows if row["control"] is None}
    figure = plot_checkpoints(results) if len(acted) > 1 else plot_success(results)
    try:
        write_whole(path, lambda beside: figure.savefig(beside, dpi=120, format=path.suffix[1:]))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. The rows are kept; make room and type the same again.") from None


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=EvaluateConfig,
        about="Runs checkpoints in the simulator they were recorded in, on seeds that no demonstration had.",
    )


if __name__ == "__main__":
    run()
