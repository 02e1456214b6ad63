"""From nothing to a measured policy, what `make quickstart` runs: collect, train, evaluate, a blind control, report."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.files import check_place, write_whole
from ppt_kit.programs import clone, to_type
from ppt_kit.schema import DEFAULT_CONFIG, Config
from ppt_kit.signals import stops_raise

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppt_kit.train.trainer import UnifiedTrainer

# collected, and evaluated
DEMONSTRATIONS, EPISODES = 10, 20
STAND_IN_STEPS = 20
# of the filmed episode, in the figure
PICTURES = 3
# the file that a finished quickstart has in its run folder
FINISHED = "quickstart.png"


def main(cfg: DictConfig) -> int:
    with stops_raise():
        return quickstart(cfg)


def quickstart(cfg: DictConfig) -> int:
    """The four phases; one that was stopped goes on when all is started again."""
    from ppt_kit.checkpoint import load_policy
    from ppt_kit.engine import num_cores
    from ppt_kit.notebook.plots import plot_report
    from ppt_kit.sim.evaluate import evaluate
    from ppt_kit.sim.results import success_table
    from ppt_kit.sim.watch import pictures_of
    from ppt_kit.train.trainer import UnifiedTrainer

    task = _only_task(cfg)
    folder = Path(cfg.output_dir) / task
    claim = _claim(folder)
    _name_run(cfg, folder, alone=claim is not None)
    run = UnifiedTrainer(cfg, mode="single")
    _check(run, task)
    folder.mkdir(parents=True, exist_ok=True)
    claim = claim or _claim(folder)
    spent: dict[str, float] = {}
    started = time.perf_counter()
    _collect_if_needed(cfg, task)
    started = _lap(spent, "collect", started)
    if code := run.run():
        return code
    started = _lap(spent, "train", started)
    policy, out_dir = load_policy(run.run_dir), run.run_dir / "eval"
    common: dict[str, Any] = {"episodes": EPISODES, "n_procs": min(4, num_cores()), "out_dir": out_dir}
    seeing = evaluate(policy, task, videos=1, **common)
    started = _lap(spent, "evaluate", started)
    blind = evaluate(policy, task, zero_keys=["pointcloud"], log_name="control", **common)
    _lap(spent, "control", started)
    print(f"\n{task}, {EPISODES} fresh goals:")
    for row in success_table([seeing, blind]).to_dict("records"):
        print(_rate_line(row))
    # the last file: with it the run is finished, and the next quickstart is a new one
    figure, video = run.run_dir / FINISHED, next(iter(seeing.videos), None)
    report = plot_report(
        run.run_dir, [seeing, blind], frames=pictures_of(video, count=PICTURES) if video else [], cloud=_cloud(cfg)
    )
    write_whole(figure, lambda beside: report.savefig(beside, dpi=120, format="png"))
    _say_where(run.run_dir, figure=figure, video=video, spent=spent)
    return 0


def _cloud(cfg: DictConfig) -> Any:
    """(P, C) m: the first cloud of the first demonstration."""
    from ppt_kit.data.dataset import load_dataset

    return load_dataset(cfg).episode(0, steps=[0], modalities=["pointcloud"])["obs"]["pointcloud"][0]


def _only_task(cfg: DictConfig) -> str:
    from ppt_kit.checks import domain_names

    if cfg.train_mode == "distributed":
        raise UserError(
            "the quickstart trains in one process. "
            f"Type {to_type('train')} train_mode=distributed world_size=2 instead."
        )
    names = domain_names(cfg.domains)
    if len(names) > 1:
        raise UserError(
            f"domains={','.join(names)}: the quickstart is one task. Collect each by {to_type('collect_demos')}, "
            f"then type {to_type('train')} domains=a,b."
        )
    return names[0]


def _claim(folder: Path) -> int | None:
    """A hold on the runs of a task, which ends with this process; None where another quickstart has it."""
    if not folder.is_dir():
        return None
    claim = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        return None
    # some network disks know no locks
    except OSError:
        return claim
    return claim


def _name_run(cfg: DictConfig, folder: Path, *, alone: bool) -> None:
    """Goes on with the newest run of this configuration that a stopped quickstart left; else names a new one."""
    names = [cfg.suffix] if cfg.suffix else sorted((path.name for path in folder.glob("quickstart-*")), reverse=True)
    left = next((name for name in names if alone and _is_left(folder / name, cfg)), None)
    if left is not None:
        print(f"{folder / left}: going on with a quickstart that was stopped")
        cfg.suffix, cfg.train.resume = left, "auto"
    elif cfg.suffix is None:
        cfg.suffix = datetime.now().strftime("quickstart-%Y%m%d-%H%M%S")


def _is_left(run_dir: Path, cfg: DictConfig) -> bool:
    from ppt_kit.config import from_file, from_mapping

    if not (run_dir / "config.yaml").is_file() or (run_dir / FINISHED).exists():
        return False
    try:
        stored = from_file(run_dir / "config.yaml")
    except UserError:
        # a damaged one is not gone on with
        return False
    return _deciding(stored) == _deciding(from_mapping(cfg))


def _deciding(cfg: DictConfig) -> Any:
    """All but the name of the run, and whether it goes on."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return {**plain, "suffix": None, "train": {**plain["train"], "resume": None}}


def _check(run: UnifiedTrainer, task: str) -> None:
    """Opens all that training opens before anything is collected; what is not there yet stands in for itself.

    Raises:
        UserError: training would refuse the configuration.
    """
    from ppt_kit.models.policy import build_policy
    from ppt_kit.train.assemble import open_sources

    cfg = run.cfg.copy()
    with tempfile.TemporaryDirectory() as elsewhere:
        if not (Path(cfg.dataset_path) / f"{task}.zarr").exists():
            check_place(Path(cfg.dataset_path), key="dataset_path")
            _stand_in(Path(elsewhere) / f"{task}.zarr", task, num_points=cfg.dataset.num_points)
            cfg.dataset_path = elsewhere
        try:
            sources = open_sources(cfg, run.run_dir)
            check_place(run.run_dir, key="output_dir")
            build_policy(sources.cfg, sources.train_set.specs)
        except UserError as error:
            raise UserError(str(error).replace(elsewhere, run.cfg.dataset_path)) from None


def _stand_in(path: Path, task: str, *, num_points: int) -> None:
    """As many episodes as are collected, each the same few steps."""
    import numpy as np

    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
    from ppt_kit.sim.env import close_env, copied, make_env

    env = make_env({"simulator": "metaworld", "task": task, "num_points": num_points}, uses=["collecting"])
    try:
        readings = [copied(env.reset(0))]
        for _ in range(STAND_IN_STEPS):
            action = env.expert_action()
            readings.append(copied(env.step(action)[0]))
        episode = {name: np.stack([reading[name] for reading in readings]) for name in readings[0]}
        episode["actions"] = np.stack([action] * len(readings))
        with ZarrWriter(path, attrs={"env": env.spec(), "descriptions": [env.description] * DEMONSTRATIONS}) as writer:
            for _ in range(DEMONSTRATIONS):
                writer.append(episode)
    finally:
        close_env(env)


def _collect_if_needed(cfg: DictConfig, task: str) -> None:
    from ppt_kit.sim.collect import collect

    path = Path(cfg.dataset_path) / f"{task}.zarr"
    if path.exists():
        print(f"{path}: already there, not collected again")
        return
    done = collect(task, episodes=DEMONSTRATIONS, dataset_path=cfg.dataset_path, num_points=cfg.dataset.num_points)
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
    # as `make quickstart` has made it
    in_clone = clone() is not None
    venv = ".venv/bin/" if in_clone else ""
    last = "\n  make lab          # notebooks/01_quickstart.ipynb walks the same path" if in_clone else ""
    print(
        f"\nrun folder  {run_dir}\n"
        f"figure      {figure}\n"
        f"video       {video or 'none, the filmed episode ended in an error'}\n"
        f"time        {', '.join(parts)}, in all {sum(spent.values()):.0f} s\n\n"
        "next:\n"
        f"  {venv}{to_type('eval_sim')} train.pretrained_dir={run_dir} episodes=50 seed=200000\n"
        f"  {venv}{to_type('train')} --help" + last
    )


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=Config,
        config_name=DEFAULT_CONFIG,
        about="Collects 10 demonstrations, trains, evaluates 20 fresh goals and a blind control.",
    )


if __name__ == "__main__":
    run()
