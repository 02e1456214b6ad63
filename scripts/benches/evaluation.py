"""How fast a policy is evaluated: one process or several, its environments one by one or together."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benches.trial import markdown, trained
from ppt_kit.keys import key


@dataclass
class EvaluationBench:
    """Steps a second of an evaluation, processes against one and environments together against alone."""

    run: str | None = key(None, "run folder of a policy; null = one that is trained for a few steps")
    head: str = key("regression", "head of that one, by its config group (policy/head=…)")
    task: str = key("button-press-topdown", "task of the simulator")
    simulator: str = key("metaworld", "where the task is")
    episodes: int = key(12, "episodes of each measurement", low=1)
    max_steps: int = key(100, "control steps of each episode, all of which are run", low=1)
    procs: list[int] = key([1, 2], "processes")
    batches: list[int] = key([1, 4], "environments that a process steps together")
    rounds: int = key(2, "measurements of each, in turn", low=1)
    dataset_path: str = key("data", "folder of the demonstrations; those that are there are taken")
    output_dir: str = key("outputs/evaluation", "folder of the run")


def evaluation(cfg: DictConfig) -> int:
    """Prints the table; each line's ratio is to the first, measured in the same round."""
    import ppt_kit as ppt

    policy = ppt.load_policy(cfg.run or _run(cfg))
    ways = list(product(cfg.procs, cfg.batches))
    seconds: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    rows: dict[tuple[int, int], list[dict]] = {}
    for _ in range(cfg.rounds):
        for way in ways:
            took, rows[way] = _measured(policy, cfg, *way)
            seconds[way].append(took)
    columns = ["processes", "together", "steps/s", "ratio", "policy ms a call", "policy's share", "same episodes"]
    print(markdown(columns, [_line(cfg, way, ways, seconds, rows) for way in ways]))
    print(
        f"{cfg.episodes} episodes of {cfg.max_steps} steps of {cfg.task}, the start of processes included; "
        f"same episodes: as one process with as many environments together. {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}: of a busy machine the ratios of processes say little."
    )
    return 0


def _run(cfg: DictConfig) -> Path:
    import ppt_kit as ppt

    done = ppt.collect(cfg.task, simulator=cfg.simulator, episodes=3, dataset_path=cfg.dataset_path)
    return trained("planar" if cfg.simulator == "planar" else "quickstart", [
        f"policy/head={cfg.head}", f"domains={done.path.stem}", f"dataset_path={cfg.dataset_path}",
        f"output_dir={cfg.output_dir}", f"suffix={cfg.head}", "train.total_iters=4",
    ])[0]  # fmt: skip


def _measured(policy: Any, cfg: DictConfig, n_procs: int, batch: int) -> tuple[float, list[dict]]:
    import ppt_kit as ppt

    began = time.perf_counter()
    result = ppt.evaluate(
        policy, episodes=cfg.episodes, max_steps=cfg.max_steps, stop_at_success=False, n_procs=n_procs, batch_envs=batch
    )
    return time.perf_counter() - began, result.rows


def _line(
    cfg: DictConfig, way: tuple[int, int], ways: list, seconds: dict[tuple[int, int], list[float]], rows: dict
) -> list[str]:
    steps, best = sum(row["steps"] for row in rows[way]), min(seconds[way])
    ratio = max(first / took for first, took in zip(seconds[ways[0]], seconds[way]))
    alone = next(each for each in ways if each[1] == way[1])
    same = all(a["actions_sha256"] == b["actions_sha256"] for a, b in zip(rows[way], rows[alone]))
    ran = [row for row in rows[way] if row["error"] is None]
    mean = {name: sum(row[name] for row in ran) / max(len(ran), 1) for name in ("policy_ms", "policy_share")}
    return [
        str(way[0]), str(way[1]), f"{steps / best:.1f}", f"{ratio:.2f}", f"{mean['policy_ms']:.1f}",
        f"{100 * mean['policy_share']:.0f} %", "yes" if same else "NO",
    ]  # fmt: skip
