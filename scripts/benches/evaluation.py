"""How fast a policy is evaluated: one process or several, its environments one by one or together."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benches.in_turn import ratio
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


@dataclass
class Measured:
    """Of one way: wall clock and processor time of each round (s), and the rows of the last."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)


def evaluation(cfg: DictConfig) -> int:
    """Prints the table; each line's ratio is to the first, the median over rounds."""
    import ppt_kit as ppt

    policy = ppt.load_policy(cfg.run or _run(cfg))
    ways = {way: Measured() for way in product(cfg.procs, cfg.batches)}
    for _ in range(cfg.rounds):
        for way, measured in ways.items():
            _measure(policy, cfg, *way, into=measured)
    columns = ["processes", "together", "steps/s", "ratio", "CPU s", "policy ms", "policy's share", "same episodes"]
    print(markdown(columns, [_line(way, ways) for way in ways]))
    print(
        f"{cfg.episodes} episodes of {cfg.max_steps} steps of {cfg.task}, the start of processes included; "
        f"same episodes: as one process with as many environments together. {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}: on a busy machine compare processes by their CPU s, which they share."
    )
    return 0


def _run(cfg: DictConfig) -> Path:
    import ppt_kit as ppt

    done = ppt.collect(cfg.task, simulator=cfg.simulator, episodes=3, dataset_path=cfg.dataset_path)
    return trained("planar" if cfg.simulator == "planar" else "quickstart", [
        f"policy/head={cfg.head}", f"domains={done.path.stem}", f"dataset_path={cfg.dataset_path}",
        f"output_dir={cfg.output_dir}", f"suffix={cfg.head}", "train.total_iters=4",
    ])[0]  # fmt: skip


def _measure(policy: Any, cfg: DictConfig, n_procs: int, batch: int, *, into: Measured) -> None:
    import ppt_kit as ppt

    began, before = time.perf_counter(), sum(os.times()[:4])
    result = ppt.evaluate(
        policy, episodes=cfg.episodes, max_steps=cfg.max_steps, stop_at_success=False, n_procs=n_procs, batch_envs=batch
    )
    into.seconds.append(time.perf_counter() - began)
    # with that of the workers, which have ended
    into.cpu_s.append(sum(os.times()[:4]) - before)
    into.rows = result.rows


def _line(way: tuple[int, int], ways: dict[tuple[int, int], Measured]) -> list[str]:
    ours, first = ways[way], next(iter(ways.values()))
    faster = 1 / ratio(list(zip(first.seconds, ours.seconds)))
    alone = next(measured for other, measured in ways.items() if other[1] == way[1])
    same = all(a["actions_sha256"] == b["actions_sha256"] for a, b in zip(ours.rows, alone.rows))
    ran = [row for row in ours.rows if row["error"] is None]
    mean = {name: sum(row[name] for row in ran) / max(len(ran), 1) for name in ("policy_ms", "policy_share")}
    return [
        str(way[0]), str(way[1]), f"{sum(row['steps'] for row in ours.rows) / min(ours.seconds):.1f}", f"{faster:.2f}",
        f"{min(ours.cpu_s):.1f}", f"{mean['policy_ms']:.1f}", f"{100 * mean['policy_share']:.0f} %",
        "yes" if same else "NO",
    ]  # fmt: skip
