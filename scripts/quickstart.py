"""From nothing to a measured policy: collect, train, evaluate, compare with a blind control, report. `make quickstart` runs it."""

import time
from datetime import datetime
from pathlib import Path

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
            "the quickstart trains in one process. Type python scripts/train.py train_mode=distributed world_size=2 instead."
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
    processes = min(4, num_cores())
    seeing = evaluate(policy, task, episodes=EPISODES, videos=1, n_procs=processes, out_dir=out_dir)
    started = _lap(spent, "evaluate", started)
    blind = evaluate(
        policy,
        task,
        episodes=EPISODES,
        zero_keys=["pointcloud"],
        n_procs=processes,
        log_name="control",
        out_dir=out_dir,
    )
    _lap(spent, "control", started)
    figure = run.run_dir / "quickstart.png"
    plot_report(run.run_dir, [seeing, blind]).savefig(figure, dpi=120)
    table = success_table([seeing, blind])
    _report(
        run.run_dir,
        table.to_dict("records"),
        spent=spent,
        figure=figure,
        video=next(iter(seeing.videos), None),
        task=task,
    )
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


def _report(
    run_dir: Path, lines: list[dict], *, spent: dict[str, float], figure: Path, video: Path | None, task: str
) -> None:
    print(f"\n{task}, {EPISODES} fresh goals:")
    for line in lines:
        name = "policy" if line["zeroed"] == "-" else "control, cloud zeroed"
        interval = f"95 % interval {line['low_95']:.0%} to {line['high_95']:.0%}"
        print(
            f"  {name:<22} {line['successes']:>2}/{line['episodes']}  {line['rate']:.0%}   {interval}   errors {line['errors']}"
        )
    print(
        f"\nrun folder  {run_dir}\nfigure      {figure}\nvideo       {video or 'none, the filmed episode ended in an error'}"
    )
    print(
        "time        "
        + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in spent.items())
        + f", in all {sum(spent.values()):.0f} s"
    )
    print(
        "\nnext:\n"
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
