"""Our engine against a bare torch (or DDP) loop of the same policy: time of a step, and what the optimizer holds."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from benches.in_turn import Pairs, in_turn, ratio
from ppt_kit.config import load_config, typed
from ppt_kit.horizon import Horizon
from ppt_kit.keys import key
from ppt_kit.schema import Config
from ppt_kit.spec import Spec


@dataclass
class EngineBench:
    """Our engine against a bare torch (or DDP) loop of the same policy."""

    ranks: int = key(1, "processes", low=1)
    stages: list[int] = key([0, 1, 2], "ZeRO stages")
    batch_size: int = key(16, "windows per process", low=1)
    num_points: int = key(512, "points of a cloud", low=1)
    block: int = key(4, "steps measured at a time, ours and the bare loop's in turn", low=1)
    rounds: int = key(10, "such pairs", low=2)


def engine(cfg: DictConfig) -> int:
    """Prints a line a ZeRO stage; starts its own ranks when there are to be several."""
    if cfg.ranks > 1 and "RANK" not in os.environ:
        return _start_ranks(cfg.ranks)
    from ppt_kit.engine import join_world

    rank = int(os.environ.get("RANK", 0))
    world = join_world(rank=rank, local_rank=rank, world_size=cfg.ranks)
    spec = Spec(state={"state": 4}, action={"action": 4}, points=cfg.num_points, channels=3)
    batch = _batch(spec, cfg.batch_size, seed=rank, device=world.device)
    bare_policy = _policy(_settings(cfg), spec).to(world.device)
    if world.is_first:
        _print_head(cfg, bare_policy, world.device)
    bare = _bare_loop(bare_policy, _settings(cfg).gradient_clipping, distributed=cfg.ranks > 1)
    for stage in cfg.stages:
        step, state_bytes = _our_loop(_settings(cfg, f"deepspeed=zero{stage}"), spec, world)
        pairs = in_turn(lambda: bare(batch), lambda step=step: step(batch), block=cfg.block, rounds=cfg.rounds)
        if world.is_first:
            _print_pairs(f"zero{stage}, {cfg.ranks} rank(s)", pairs, state_bytes=state_bytes())
    return 0


def _start_ranks(ranks: int) -> int:
    from ppt_kit.engine import num_cores

    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", *sys.argv]
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, num_cores() // ranks))}
    return subprocess.run(command, env=env).returncode


def _settings(cfg: DictConfig, *words: str) -> Config:
    return typed(load_config("", f"batch_size={cfg.batch_size}", f"dataset.num_points={cfg.num_points}", *words))


def _policy(settings: Config, spec: Spec) -> torch.nn.Module:
    from ppt_kit.models.policy import build_policy

    return build_policy(settings, {"a": spec})


def _our_loop(settings: Config, spec: Spec, world: Any) -> tuple[Callable[[dict], Any], Callable[[], int]]:
    """(one optimizer step on a batch, bytes that the optimizer holds on this rank); all that is asked of our engine."""
    from ppt_kit.engine import Engine

    ours = Engine(_policy(settings, spec), settings, world)
    return lambda batch: ours.train_step([batch], learning_rate=1e-4), ours.optimizer_bytes


def _bare_loop(policy: torch.nn.Module, clipping: float, *, distributed: bool) -> Callable[[dict], None]:
    model = torch.nn.parallel.DistributedDataParallel(policy) if distributed else policy
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)

    def step(batch: dict) -> None:
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), clipping)
        optimizer.step()

    return step


def _batch(spec: Spec, size: int, *, seed: int, device: torch.device) -> dict:
    """Random numbers in the shapes of `spec`."""
    from ppt_kit.data.loader import to_device

    g, horizon = torch.Generator().manual_seed(seed), Horizon()
    batch = {
        "obs": {name: torch.rand(blank.shape, generator=g) for name, blank in spec.blank(size, horizon).items()},
        "action": torch.randn(size, horizon.action, spec.action_dim, generator=g),
        "action_is_pad": torch.zeros(size, horizon.action, dtype=torch.bool),
        "domain": torch.zeros(size, dtype=torch.long),
        "index": torch.arange(size),
    }
    return to_device(batch, device)


def _print_head(cfg: DictConfig, policy: torch.nn.Module, device: torch.device) -> None:
    millions = sum(p.numel() for p in policy.parameters()) / 1e6
    print(f"policy {millions:.2f}M parameters, batch {cfg.batch_size} x {cfg.ranks}, {device}")
    print(f"{'way':<22}{'bare ms':>9}{'ours ms':>9}{'ratio':>8}{'ratios min-max':>18}{'state MB':>10}")


def _print_pairs(name: str, pairs: Pairs, *, state_bytes: int) -> None:
    bare, ours = (statistics.median(times) * 1e3 for times in zip(*pairs))
    ratios = sorted(ours / bare for bare, ours in pairs)
    spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
    print(f"{name:<22}{bare:>9.1f}{ours:>9.1f}{ratio(pairs):>8.3f}{spread:>18}{state_bytes / 1e6:>10.1f}", flush=True)
