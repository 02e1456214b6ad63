"""`plan`: what a run would take of memory, before it is run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import DictConfig

from ppt_kit.checkpoint import resume_files
from ppt_kit.checks import check_values, env_number
from ppt_kit.config import from_mapping, load_config
from ppt_kit.data.loader import BatchPlan, Loader, to_device
from ppt_kit.engine import World, zero_numbers
from ppt_kit.engine.settings import HALF
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import num_visible_devices
from ppt_kit.memory.activations import Activations, measure
from ppt_kit.memory.choosing import advice, planned
from ppt_kit.memory.failure import bytes_to_be_had, is_out_of_memory
from ppt_kit.memory.ledger import Setup, Sizes
from ppt_kit.memory.plan import FILES, GB, MemoryPlan, Room, Row, row_of
from ppt_kit.models.policy import PPTPolicy, build_policy
from ppt_kit.schema import DEFAULT_CONFIG, Config
from ppt_kit.train.assemble import Sources, new_policy, read_sources, statistics
from ppt_kit.words import parse_words

# words of the command that are no keys of a configuration
BESIDE = ("num_gpus", "gpu_gb", "config_name", "config_path")
PRECISIONS = ("fp32", "autocast", "bf16", "fp16")
MOST_RANKS, MOST_GB = 100_000, 10_000
# share of a device that is left free: gaps between tensors, NCCL's buffers
SPARE = 0.1
# GB of a GPU that CUDA, cuBLAS and cuDNN take, where none is here to be asked; of Python and torch on a CPU, measured
CUDA_GB, PROCESS_GB = 1.0, 0.5
# windows of the batch that is measured after memory ran out
BRIEF = 4


def plan(
    cfg: DictConfig | Mapping[str, Any], *, num_gpus: int | None = None, gpu_gb: float | None = None
) -> MemoryPlan:
    """What this policy takes of each GPU's memory, by ZeRO stage and precision; the largest batch, and what to choose.

    Weights, gradients, optimizer and averaged weights are counted as DeepSpeed allocates them; what a batch takes is
    measured: two batches of the dataset go through the policy, here, on a GPU if there is one. `plan_evaluation` plans
    how many episodes a comparison needs.

    Args:
        cfg: what `load_config` gives; the dataset must be there.
        num_gpus: ranks, over all nodes; None = the GPUs here, or cfg.world_size.
        gpu_gb: memory of each GPU (1e9 bytes); None = this GPU's, or a share of this machine's memory where there is
            none, for ranks on the CPU.
    Raises:
        UserError: cfg or its data, or a number that is none.
    """
    cfg = from_mapping(cfg)
    check_values(cfg)
    ranks = _ranks(cfg, num_gpus)
    _check_gb(gpu_gb)
    sources = read_sources(cfg)
    policy, _ = new_policy(sources, statistics(sources))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = gpu_gb is not None or device.type == "cuda"
    room = _room(ranks, gpu_gb, device)
    return plan_of(sources, policy.to(device), ranks=ranks, room=room, on_gpu=on_gpu)


def plan_of_words(words: Sequence[str]) -> MemoryPlan:
    """As `plan`, of the words of a command: num_gpus=N, gpu_gb=GB, config_name=NAME, config_path=FOLDER, key=value.

    Raises:
        UserError: as `plan`, or a word that is none.
    """
    pairs = parse_words(words, beside=BESIDE)
    given = {name: text for name, text in pairs if name in BESIDE}
    others = [f"{name}={text}" for name, text in pairs if name not in BESIDE]
    cfg = load_config(given.get("config_name", DEFAULT_CONFIG), *others, config_path=given.get("config_path"))
    return plan(cfg, num_gpus=_number(given.get("num_gpus"), int), gpu_gb=_number(given.get("gpu_gb"), float))


def plan_of(
    sources: Sources, policy: PPTPolicy, *, ranks: int, room: Room, on_gpu: bool, brief: bool = False
) -> MemoryPlan:
    """The plan of a policy on its device; its weights are rounded by this.

    Args:
        on_gpu: whether it is planned for GPUs: without one, a rank holds in the same memory what it saves and offloads.
        brief: of the configuration's precision alone, measured on a few windows.
    """
    cfg = sources.cfg
    device = next(policy.parameters()).device
    sizes, batch_of = Sizes.of(policy), batches_of(sources, device)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    rows: list[Row] = []
    known: dict[str, Activations] = {}
    wanted = min(cfg.batch_size, BRIEF) if brief else cfg.batch_size
    for precision in [cfg.precision] if brief else PRECISIONS:
        if precision == "fp16" and not on_gpu:
            continue
        # as many bytes for a number
        like = "bf16" if precision == "fp16" else precision
        if like not in known:
            known[like] = measure(policy, batch_of, precision=like, wanted=wanted, free=free)
        for name in dict.fromkeys((*FILES, cfg.deepspeed)):
            zero = zero_numbers(name)
            if precision in HALF and zero["stage"] == 0:
                # its first step would be wrong
                continue
            setup = setup_of(cfg, zero, precision=precision, ranks=ranks, on_gpu=on_gpu)
            rows.append(row_of(name, setup, sizes, known[like], room=room, batch_size=cfg.batch_size))
    return planned(cfg, rows, sizes, known, room=room)


def told_of_memory(sources: Sources, run_dir: Path, world: World, *, before: int, said: str) -> str:
    """What a run that ran out of memory says: what it did, and the numbers that would have fitted, by the plan.

    Args:
        before: bytes of host memory that the process held before it built anything.
        said: what could not be had.
    """
    cfg = sources.cfg
    ranks = f"{world.size} ranks" if world.size > 1 else "one process"
    doing = (
        f"out of memory with batch_size={cfg.batch_size}, deepspeed={cfg.deepspeed}, precision={cfg.precision} on "
        f"{ranks} ({said})"
    )
    on_gpu = world.device.type == "cuda"
    here = env_number(os.environ, "LOCAL_WORLD_SIZE", low=1) or world.size
    had = bytes_to_be_had(world.device, ranks_here=here) - (0 if on_gpu else before)
    room = Room(max(0.0, had), 0.0, SPARE, "what this process could have")
    try:
        found = plan_of(
            sources, _like(sources).to(world.device), ranks=world.size, room=room, on_gpu=on_gpu, brief=True
        )
    # what is left does not suffice to measure a batch of two windows
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return f"{doing}. Not even two windows fit: take deepspeed=zero3 on more ranks, or a smaller policy.width."
    on = " Then train.resume=auto goes on." if resume_files(run_dir) else ""
    return f"{doing}. {advice(cfg, found)} ppt.plan(cfg) shows all.{on}"


def _like(sources: Sources) -> PPTPolicy:
    """A policy of the run's sizes, with what it freezes."""
    cfg = sources.cfg
    policy = build_policy(cfg, sources.train_set.specs)
    for _, trunk in policy.all_trunks():
        trunk.recompute = cfg.activation_checkpointing
    for part, asked in (("trunk", cfg.train.freeze_trunk), ("stems", cfg.train.freeze_stems)):
        if asked:
            policy.freeze(part)
    return policy


def setup_of(cfg: Config, zero: Mapping[str, Any], *, precision: str, ranks: int, on_gpu: bool) -> Setup:
    """What of a configuration decides how much is held, with another file of DeepSpeed's and another precision."""
    return Setup(
        stage=zero["stage"], precision=precision, ranks=ranks, accumulates=cfg.gradient_accumulation_steps > 1,
        averages=cfg.train.ema_decay > 0, on_gpu=on_gpu, zero=zero,
    )  # fmt: skip


def batches_of(sources: Sources, device: torch.device) -> Callable[[int], dict]:
    """What gives a training batch of so many windows on a device, augmented as in a run."""
    dataset, seed = sources.train_set, sources.cfg.seed

    def batch_of(size: int) -> dict:
        order = BatchPlan(len(dataset), size, seed=seed)
        loader = Loader(dataset, order, rank=0, first_step=0, last_step=1, pin=False)
        (batch,) = loader.batches(0, order.order(0))
        return sources.augment(to_device(batch, device))

    return batch_of


def _number(text: str | None, kind: type) -> Any:
    """A word's number; what is none is left for `plan` to refuse."""
    if text is not None:
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _ranks(cfg: DictConfig, num_gpus: int | None) -> int:
    if num_gpus is None:
        return cfg.world_size if cfg.world_size > 1 else max(1, num_visible_devices())
    if isinstance(num_gpus, bool) or not isinstance(num_gpus, int) or not 1 <= num_gpus <= MOST_RANKS:
        raise UserError(f"num_gpus={num_gpus!r}: give a number of GPUs from 1 to {MOST_RANKS}, or leave it out.")
    return num_gpus


def _check_gb(gpu_gb: float | None) -> None:
    number = isinstance(gpu_gb, (int, float)) and not isinstance(gpu_gb, bool)
    if gpu_gb is not None and not (number and 0 < gpu_gb <= MOST_GB):
        raise UserError(f"gpu_gb={gpu_gb!r}: give the memory of one GPU in GB, e.g. 24, or leave it out.")


def _room(ranks: int, gpu_gb: float | None, device: torch.device) -> Room:
    if gpu_gb is not None:
        return Room(gpu_gb * GB, CUDA_GB * GB, SPARE, f"gpu_gb={gpu_gb:g}")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        taken = total - free - torch.cuda.memory_reserved(device)
        return Room(total, taken, SPARE, torch.cuda.get_device_name(device))
    free = psutil.virtual_memory().available
    return Room(free / ranks, PROCESS_GB * GB, SPARE, "its share of what is free in this machine's memory")
