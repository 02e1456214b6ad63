"""Demonstrations that disagree: every head on the planar task, a table, and the figure of their ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from benches.trial import Ledger, group_names, markdown, rate, trained
from ppt_kit.keys import key

TASK = "detour"
# beside its config group: what a head needs to choose at all, or to be trained in minutes on one core
WORDS = {
    "cvae": ["policy.head.options.sample=true", "policy.head.options.kl_weight=0.02"],
    "diffusion": ["policy.head.options.widths=[32,64]"],
    "meanflow": ["train.total_epochs=70"],
    "mixture": ["policy.head.options.num_modes=16"],
}  # fmt: skip
# its scenes were looked at by nobody: settings were tuned on those of seeds from 100 000 on
FIRST_SEED = 200_000


@dataclass
class PlanarBench:
    """Every head on demonstrations that disagree: success, and a figure; what is done is not run again."""

    heads: list[str] = key(["all"], "heads, by their config group (policy/head=…); all = every one")
    demos: int = key(100, "demonstrations, half of them on each side", low=2)
    episodes: int = key(200, "fresh scenes a policy", low=1)
    seed: int = key(0, "training seed", low=0)
    execute_steps: int = key(8, "actions executed of each chunk", low=1)
    words: list[str] = key([], "further words of the training, e.g. [train.total_epochs=5]")
    dataset_path: str = key("data", "folder of the demonstrations; those that are there are taken")
    output_dir: str = key("outputs/planar", "folder of the runs, and of planar.jsonl")
    figure: str = key("notebooks/images/planar.png", "where the figure goes")


def planar(cfg: DictConfig) -> int:
    """Prints the table and draws the figure."""
    import ppt_kit as ppt

    heads = group_names("policy/head", cfg.heads, key="heads")
    demos = ppt.collect(TASK, simulator="planar", episodes=cfg.demos, dataset_path=cfg.dataset_path)
    ledger, rows = Ledger(Path(cfg.output_dir) / "planar.jsonl"), list[dict[str, Any]]()
    for head in heads:
        trial = {
            "head": head, "demos": cfg.demos, "episodes": cfg.episodes, "seed": cfg.seed,
            "execute_steps": cfg.execute_steps, "words": [*WORDS.get(head, []), *cfg.words],
        }  # fmt: skip
        row = ledger.find(**trial)
        if row is None:
            row = trial | _result(cfg, trial)
            ledger.add(row)
        rows.append(row)
    # those that fail first, as a reader looks
    rows.sort(key=lambda row: (row["successes"], row["head"]))
    columns = ["head", "success [95 %]", "on the left", "scenes", "seed", "minutes", "ms an act", "parameters"]
    print(markdown(columns, [_line(row) for row in rows]))
    _draw(rows, ppt.open_dataset(demos.path), Path(cfg.figure))
    print(f"figure: {cfg.figure}")
    return 0


def _result(cfg: DictConfig, trial: dict[str, Any]) -> dict[str, Any]:
    import ppt_kit as ppt

    run_dir, minutes = trained("planar", [
        f"policy/head={trial['head']}", f"dataset_path={cfg.dataset_path}", f"seed={trial['seed']}",
        f"output_dir={cfg.output_dir}", f"suffix={trial['head']}-{trial['seed']}", *trial["words"],
    ])  # fmt: skip
    policy = ppt.load_policy(run_dir)
    ways = _ways(policy, trial)
    return {
        "successes": sum(way["success"] for way in ways), "minutes": minutes, "act_ms": _act_ms(policy), "ways": ways,
        "parameters": sum(p.numel() for p in policy.parameters()), "run_dir": str(run_dir),
    }  # fmt: skip


def _ways(policy: Any, trial: dict[str, Any]) -> list[dict[str, Any]]:
    """Where each episode went, seen from its obstacle; all at once, on every second seed, for two are one scene."""
    import ppt_kit as ppt
    from ppt_kit.data.view import View
    from ppt_kit.sim.simulators.planar import PlanarEnv

    seeds = [FIRST_SEED + 2 * scene for scene in range(trial["episodes"])]
    envs, view = [PlanarEnv(TASK) for _ in seeds], View.from_plain(policy.card["views"][TASK])
    actor = ppt.Actor(policy, num_envs=len(envs), execution=ppt.Execution(execute_steps=trial["execute_steps"]))
    actor.reset(seed=seeds)
    frames: list[Any] = [view.live(env.reset(seed)) for env, seed in zip(envs, seeds)]
    arrived = [False] * len(envs)
    for _ in range(envs[0].max_steps):
        for i, action in enumerate(actor.act(frames)):
            if frames[i] is not None:
                reading, _, arrived[i] = envs[i].step(action)
                frames[i] = None if arrived[i] else view.live(reading)
        if all(arrived):
            break
    return [
        {"success": won, "way": np.round(np.stack(env.path) - env.obstacle, 4).tolist()}
        for env, won in zip(envs, arrived)
    ]


def _act_ms(policy: Any) -> float:
    """Milliseconds of one act() at batch 1, the median of ten."""
    import time

    import torch

    obs, times = {"state": torch.zeros(1, policy.horizon.observation, policy.specs[TASK].state_dim)}, []
    for _ in range(10):
        began = time.perf_counter()
        policy.act(obs, TASK)
        times.append(time.perf_counter() - began)
    return round(1000 * sorted(times)[5], 1)


def _line(row: dict[str, Any]) -> list[str]:
    left = sum(way["success"] and min(x for x, _ in way["way"]) < -0.2 for way in row["ways"])
    return [
        row["head"], rate(row["successes"], row["episodes"]),
        f"{100 * left / row['successes']:.0f} % of them" if row["successes"] else "-",
        f"{row['episodes']} from {FIRST_SEED}", row["seed"], f"{row['minutes']:.1f}", f"{row['act_ms']:.1f}",
        f"{row['parameters'] / 1e6:.2f}M",
    ]  # fmt: skip


def _draw(rows: list[dict[str, Any]], demos: Any, path: Path) -> None:
    """A panel a head: demonstrations faint, its own ways blue where they arrive and red where they do not."""
    from matplotlib.figure import Figure

    columns = min(5, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(max(2.0 * columns, 5.0), 2.95 * lines + 0.35), layout="constrained")
    shown = [demos.episode(i)["obs"]["state"] for i in range(min(40, demos.num_episodes))]
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, row in zip(panels, rows):
        _draw_panel(axes, row, [_positions(demos, state) for state in shown])
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    figure.suptitle("Two equally good ways. Grey: demonstrations. Blue: arrived. Red: did not.", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _positions(demos: Any, state: np.ndarray) -> np.ndarray:
    """(T, 2) where a demonstration was, of its whole state, seen from the obstacle."""
    columns = demos.domains[TASK].spec.layout("state")
    part = lambda name: state[:, slice(*columns[name])]
    return part("position") - part("obstacle")


def _draw_panel(axes: Any, row: dict[str, Any], demos: list[np.ndarray]) -> None:
    from matplotlib.patches import Circle

    from ppt_kit.sim.simulators.planar import RADIUS

    axes.add_patch(Circle((0, 0), RADIUS, color="#d9dce3", lw=0, zorder=1))
    for way in demos:
        axes.plot(*way.T, color="#9aa0ad", alpha=0.25, lw=0.7, zorder=2)
    for each in sorted(row["ways"], key=lambda way: not way["success"]):
        colour = "#2563c4" if each["success"] else "#d1382c"
        axes.plot(*np.transpose(each["way"]), color=colour, alpha=0.45, lw=0.9, zorder=3)
        if not each["success"]:
            axes.plot(*each["way"][-1], marker="x", color=colour, ms=4, mew=1.1, zorder=5)
    axes.plot(0, 0.9, marker="*", color="#1d9a5b", ms=11, mec="white", mew=0.8, zorder=6)
    axes.plot(0, -0.65, marker="o", color="#3b4252", ms=4.5, mec="white", mew=0.8, zorder=6)
    axes.set(xlim=(-0.68, 0.68), ylim=(-1.04, 1.06), aspect="equal", xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_color("#c8ccd6")
    share = rate(row["successes"], row["episodes"])
    axes.set_title(f"{row['head'].replace('_', ' ')}\n{share}", fontsize=9, linespacing=1.25)
