"""From nothing to a measured policy, what `make quickstart` runs: collect, train, evaluate, a blind control, report."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import cli
from omegaconf import DictConfig

from ppt_kit.checks import domain_names
from ppt_kit.config import DEFAULT_CONFIG
from ppt_kit.errors import UserError
from ppt_kit.schema import Config

EPISODES = 20


def main(cfg: DictConfig) -> int:
    from ppt_kit.checkpoint import load_policy
    from ppt_kit.engine import num_cores
    from ppt_kit.notebook.plots import plot_report
    from ppt_kit.sim.evaluate import evaluate
    from ppt_kit.sim.results import success_table
    from ppt_kit.train.trainer import UnifiedTrainer

    if cfg.train_mode == "distributed":
        raise UserError(
            "the quickstart trains in one process. "
            "Type python scripts/train.py train_mode=distributed world_size=2 instead."
        )
    spent: dict[str, float] = {}
    task = domain_names(cfg.domains)[0]
    started = time.perf_counter()
    _collect_if_needed(cfg, task)
    started = _lap(spent, "collect", started)
    if cfg.suffix is None:
        cfg.suffix = datetime.now().strftime("quickstart-%Y%m%d-%H%M%S")
    run = UnifiedTrainer(cfg, mode="single")
    if code := run.run():
        return code
    started = _lap(spent, "train", started)
    policy, out_dir = load_policy(run.run_dir), run.run_dir / "eval"
    common: dict[str, Any] = {"episodes": EPISODES, "n_procs": min(4, num_cores()), "out_dir": out_dir}
    seeing = evaluate(policy, task, videos=1, **common)
    started = _lap(spent, "evaluate", started)
    blind = evaluate(policy, task, zero_keys=["pointcloud"], log_name="control", **common)
    _lap(spent, "control", started)
    figure = run.run_dir / "quickstart.png"
    plot_report(run.run_dir, [seeing, blind]).savefig(figure, dpi=120)
    print(f"\n{task}, {EPISODES} fresh goals:")
    for row in success_table([seeing, blind]).to_dict("records"):
        print(_rate_line(row))
    _say_where(run.run_dir, figure=figure, video=next(iter(seeing.videos), None), spent=spent)
    return 0


def _collect_if_needed(cfg: DictConfig, task: str) -> None:
    from ppt_kit.sim.collect import collect

    path = Path(cfg.dataset_path) / f"{task}.zarr"
    if path.exists():
        print(f"{path}: already there, not collected again")
        return
    done = collect(task, episodes=10, dataset_path=cfg.dataset_path, num_points=cfg.dataset.num_points)
    print(f"{done.path}: {done.episodes} demonstrations, {done.steps} steps, {done.discarded} discarded")


def _lap(spent: dict[str, float], part: str, started: float) -> float:
    now = time.perf_counter()
    spent[part] = now - started
    return now


def _rate_line(row: dict) -> str:
    name = "policy" if row["zeroed"] == "-" else "control, cloud zeroed"
    rate = f"{row['successes']:>2}/{row['episodes']}  {row['rate']:.0%}"
    return f"  {name:<22} {rate}   95 % interval {row['low_95']:.0%} to {row['high_95']:.0%}   errors {row['errors']}"


def _say_where(run_dir: Path, *, figure: Path, video: Path | None, spent: dict[str, float]) -> None:
    """What there is now, how long each part took, and what to type next."""
    parts = [f"{part} {seconds:.0f} s" for part, seconds in spent.items()]
    print(
        f"\nrun folder  {run_dir}\n"
        f"figure      {figure}\n"
        f"video       {video or 'none, the filmed episode ended in an error'}\n"
        f"time        {', '.join(parts)}, in all {sum(spent.values()):.0f} s\n\n"
        "next:\n"
        f"  .venv/bin/python scripts/eval_sim.py train.pretrained_dir={run_dir} episodes=50 seed=200000\n"
        "  .venv/bin/python scripts/train.py --help\n"
        "  make lab          # notebooks/01_quickstart.ipynb walks the same path"
    )


if __name__ == "__main__":
    cli.run(
        main,
        schema=Config,
        config_name=DEFAULT_CONFIG,
        about="Collects 10 demonstrations, trains, evaluates 20 fresh goals and a blind control.",
    )
