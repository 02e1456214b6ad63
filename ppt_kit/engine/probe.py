"""Whether torch, DeepSpeed and the ranks' network work on this machine: asked for by ppt_kit.installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ppt_kit.engine.quiet import import_deepspeed, quiet
from ppt_kit.engine.world import join_world

RANK_CODE = "from ppt_kit.engine.probe import one_rank; one_rank({rank}, gpu={gpu})"


def visible_gpus() -> list[str]:
    """Names with memory (1e9 bytes), each after a product of matrices on it; [] where there is none.

    Raises:
        RuntimeError: one is there and does not compute.
    """
    found = []
    for number in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        if float((ones @ ones).sum()) != 64**3:
            raise RuntimeError(f"cuda:{number} multiplies wrongly")
        memory = torch.cuda.get_device_properties(number).total_memory
        found.append(f"{torch.cuda.get_device_name(number)} ({memory / 1e9:.0f} GB)")
    return found


def nccl_version() -> str | None:
    """None where this torch has none."""
    if not (torch.version.cuda and dist.is_nccl_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def engine_steps() -> tuple[str, list[str]]:
    """DeepSpeed's version and the ops that were compiled when it was installed, after an optimizer step at stage 1."""
    deepspeed = import_deepspeed()
    world = join_world()
    layer: Any = torch.nn.Linear(4, 4).to(world.device)
    settings = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    with quiet():
        engine, *_ = deepspeed.initialize(
            model=layer, optimizer=torch.optim.AdamW(layer.parameters(), lr=0.1), config=settings
        )
        before = layer.weight.detach().clone()
        engine.backward(engine(torch.ones(1, 4, device=world.device)).sum())
        engine.step()
    if torch.equal(before, layer.weight.detach()):
        raise RuntimeError("a step of DeepSpeed changes no weight")
    from deepspeed.git_version_info import installed_ops

    return deepspeed.__version__, sorted(name for name, there in installed_ops.items() if there)


def left_locks() -> list[Path]:
    """What killed builds of DeepSpeed's ops left: the next build would wait for them for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return sorted(root.glob("**/lock")) if root.is_dir() else []


def two_ranks_add_up(port: int, *, timeout_s: float) -> str:
    """Starts two ranks that add up a tensor; the backend it went over.

    Raises:
        RuntimeError: they do not; with the last line of the one that failed.
    """
    gpu = torch.cuda.device_count() >= 2
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_CODE.format(rank=rank, gpu=gpu)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=timeout_s)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, rank in enumerate(ranks):
        if rank.returncode:
            lines = said[number].strip().splitlines() or [f"exit code {rank.returncode}"]
            raise RuntimeError(f"rank {number}: {lines[-1][:200]}")
    return "nccl" if gpu else "gloo"


def one_rank(rank: int, *, gpu: bool) -> None:
    """A rank of `two_ranks_add_up`.

    Raises:
        RuntimeError: the sum is another one.
    """
    # two ranks on one GPU are refused by NCCL, and gloo is what is asked after without one
    if gpu:
        join_world(rank=rank, local_rank=rank, world_size=2, rendezvous_timeout_s=60)
    else:
        dist.init_process_group("gloo", rank=rank, world_size=2)
    total = torch.full((1000,), float(rank + 1), device=f"cuda:{rank}" if gpu else "cpu")
    dist.all_reduce(total)
    dist.barrier()
    # left as it is, its threads may end the process with an error
    dist.destroy_process_group()
    if not bool((total == 3).all()):
        raise RuntimeError(f"1 + 2 is {float(total[0])}")
