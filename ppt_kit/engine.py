"""DeepSpeed and torch.distributed, nowhere else: one engine for one process and for many.

What was measured and settles the odd lines below stands in the comments beside them.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn

from ppt_kit.config import UserError

log = logging.getLogger(__name__)

OURS = {  # keys of a DeepSpeed JSON whose number has its owner in our configuration
    "train_batch_size": "batch_size", "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "gradient_clipping": "gradient_clipping",
    "fp16": "precision=fp16", "bf16": "precision=bf16", "optimizer": "optimizer.lr and its neighbours",
    "scheduler": "optimizer.warmup_steps",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0: the one that writes files."""
        return self.rank == 0


def join_world(*, rank: int = 0, local_rank: int = 0, world_size: int = 1) -> World:
    """Makes the process group: in memory for one process, over the launcher's MASTER_ADDR for several.

    Raises:
        UserError: the local rank has no device.
    """
    deepspeed = _import_deepspeed()
    accelerator = deepspeed.accelerator.get_accelerator()
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # DeepSpeed's engine asserts on it
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu:
        # a C++ op would be built at first use: 29-100 s, refused without ninja, and a killed build locks the next
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        _cpu_habits()
    elif local_rank >= accelerator.device_count():
        raise UserError(
            f"local rank {local_rank}, but {accelerator.device_count()} device(s) are visible. Start fewer processes."
        )
    else:
        accelerator.set_device(local_rank)
    backend = accelerator.communication_backend_name()
    if not dist.is_initialized():
        if world_size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=datetime.timedelta(minutes=30))
    device = torch.device("cpu") if on_cpu else torch.device(accelerator.device_name(local_rank))
    return World(rank=rank, local_rank=local_rank, size=world_size, device=device)


def check_settings(cfg: DictConfig) -> dict:
    """The DeepSpeed settings of a configuration, before anything is built or written.

    Raises:
        UserError: no such file, a key that belongs to our configuration, or a combination known to be wrong.
    """
    path = _settings_file(cfg.deepspeed)
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    for name, owner in OURS.items():
        if name in settings:
            raise UserError(f"{path}: {name} belongs to the configuration. Delete it there and set {owner}.")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if cfg.precision != "fp32" and stage == 0:
        raise UserError(
            f"precision={cfg.precision} with {path.stem} (ZeRO stage 0) takes a wrong first optimizer step. Set deepspeed=zero1, or precision=fp32."
        )
    if cfg.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision=fp16 needs a GPU. Set precision=fp32 here, or precision=bf16 with deepspeed=zero1.")
    return settings


class Engine:
    """The policy inside DeepSpeed: one optimizer step, averaged weights, whole weights on rank 0.

    Args:
        policy: a module whose call on a batch gives {"loss": ()}.
        cfg: batch_size, gradient_accumulation_steps, gradient_clipping, precision, deepspeed, optimizer, train.ema_decay.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(self, policy: nn.Module, cfg: DictConfig, world: World, *, total_steps: int):
        deepspeed = _import_deepspeed()
        self.world, self.step, self.total_steps = world, 0, total_steps
        self._peak, self._warmup = cfg.optimizer.lr, cfg.optimizer.warmup_steps
        settings = check_settings(cfg)
        self.stage = settings.get("zero_optimization", {}).get("stage", 0)
        self._half = cfg.precision != "fp32"
        settings |= {
            "train_micro_batch_size_per_gpu": cfg.batch_size,
            "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
            "gradient_clipping": cfg.gradient_clipping,
            "bf16": {"enabled": cfg.precision == "bf16"},
            "fp16": {"enabled": cfg.precision == "fp16"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # its own Adam is compiled on the spot
            "steps_per_print": 2**31,
        }
        policy.to(world.device)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=cfg.optimizer.lr, betas=tuple(cfg.optimizer.betas), eps=cfg.optimizer.eps,
            weight_decay=cfg.optimizer.weight_decay, fused=world.device.type == "cuda" and not _offloads(settings),
        )  # fmt: skip
        with _quiet():
            self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
                model=policy, optimizer=optimizer, model_parameters=trained, config=settings
            )
        self._clipped_norm: torch.Tensor | None = None
        self._deepspeed.clip_fp32_gradients = self._clip  # at stage 0 DeepSpeed clips and forgets the norm
        self.ema = Averaged(policy, decay=cfg.train.ema_decay) if cfg.train.ema_decay else None

    @property
    def policy(self) -> nn.Module:
        """The policy itself, e.g. for act(); its loss is computed through `train_step` and `eval_loss` only."""
        return self._deepspeed.module

    def train_step(self, micro_batches: list[dict]) -> torch.Tensor:
        """One optimizer step; () this rank's mean loss, not yet averaged over ranks and left on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        total = torch.zeros((), device=self.world.device)
        for batch in micro_batches:
            # call the engine, never engine.module: ZeRO hooks __call__, and skipping it skips the reduction
            loss = self._deepspeed(batch)["loss"]
            self._deepspeed.backward(loss)
            self._deepspeed.step()
            total += loss.detach()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return total / len(micro_batches)

    def learning_rate(self, step: int) -> float:
        """Of the optimizer step that follows `step` others: linear warm-up, then cosine to zero."""
        if step < self._warmup:
            return self._peak * (step + 1) / self._warmup
        done = (step - self._warmup) / max(1, self.total_steps - self._warmup)
        return self._peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def gradient_norm(self) -> float | None:
        """Of the last step, before clipping, over all ranks; None where nothing computes it (stage 0 without clipping)."""
        norm = self._deepspeed.get_global_grad_norm() if self.stage else self._clipped_norm
        return None if norm is None else float(norm)

    @torch.no_grad()
    def eval_loss(self, batches: Iterator[tuple[dict, int]]) -> float:
        """Mean loss over windows, over all ranks, with the averaged weights when there are some.

        Args:
            batches: (batch, windows in it that count) of this rank; every rank gives as many batches.
        """
        total = torch.zeros(2, device=self.world.device, dtype=torch.float64)
        self._deepspeed.eval()
        with self.averaged_weights():
            for batch, count in batches:
                total[0] += self._deepspeed(batch)["loss"].double() * count
                total[1] += count
        self._deepspeed.train()
        self.sum_over_ranks(total)
        return float(total[0] / total[1])

    def averaged_weights(self) -> contextlib.AbstractContextManager:
        """Inside, the policy has the averaged weights, if the run keeps them."""
        return self.ema.applied() if self.ema is not None else contextlib.nullcontext()

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """name -> whole tensor on the CPU, float32, on rank 0; {} elsewhere. Every rank must call it."""
        if self._half:
            from deepspeed.utils import safe_get_full_fp32_param

            exact = {name: safe_get_full_fp32_param(p) for name, p in self.policy.named_parameters() if p.requires_grad}
        else:
            exact = {}
        return self._gather(exact)

    def whole_averaged(self) -> dict[str, torch.Tensor] | None:
        """As `whole_weights`, of the averaged weights; None when the run keeps none."""
        if self.ema is None:
            return None
        exact = {} if self.stage == 3 else dict(zip(self.ema.names, self.ema.shadow))
        with self.averaged_weights():
            return self._gather(exact)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Adds the ranks' tensors up in place."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def mean_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The ranks' mean, in place."""
        return self.sum_over_ranks(values).div_(self.world.size)

    def _clip(self) -> None:
        limit = self._deepspeed.gradient_clipping()
        self._clipped_norm = torch.nn.utils.clip_grad_norm_(self._deepspeed.module.parameters(), limit)

    def _gather(self, exact: dict[str, Any]) -> dict[str, torch.Tensor]:
        parameters = dict(self.policy.named_parameters())
        whole: dict[str, torch.Tensor] = {}
        with self._gathered(list(parameters.values())):
            if self.world.is_first:
                state = self.policy.state_dict()
                for name, value in state.items():
                    # at stage 3 state_dict may hold the empty placeholders: the parameter itself is whole in here
                    best = exact.get(name)
                    source = best if best is not None else (parameters[name].data if name in parameters else value)
                    whole[name] = source.detach().to(
                        "cpu", torch.float32 if source.is_floating_point() else source.dtype, copy=True
                    )
        return whole

    def _gathered(self, parameters: list) -> contextlib.AbstractContextManager:
        if self.stage < 3:
            return contextlib.nullcontext()
        return _import_deepspeed().zero.GatheredParameters(parameters)


class Averaged:
    """Exponential moving average of the trained weights, in float32; with ZeRO-3 each rank averages its own shard.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that early weights are forgotten soon.
    """

    def __init__(self, policy: nn.Module, *, decay: float):
        trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        self.decay, self.names = decay, [name for name, _ in trained]
        self._live = [getattr(p, "ds_tensor", p) for _, p in trained]
        self.shadow = [tensor.detach().float().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [tensor.detach().float() for tensor in self._live], weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Swaps the averaged weights in, and the live ones back, also when the block raises."""
        with torch.no_grad():
            kept = [tensor.detach().clone() for tensor in self._live]
            for tensor, average in zip(self._live, self.shadow):
                tensor.data.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(self._live, kept):
                    tensor.data.copy_(value)


def barrier() -> None:
    """Waits for the other ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def leave_world(world: World) -> None:
    """Ends a group of several processes; the one-process group stays, torch cannot make it twice in a kernel."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _settings_file(name: str) -> Path:
    if name.endswith(".json") or "/" in name:
        if not Path(name).is_file():
            raise UserError(
                f"deepspeed={name}: no such file. Give the path of a DeepSpeed JSON, or a name in ds_configs/."
            )
        return Path(name)
    folders = [Path("ds_configs"), Path(__file__).parents[1] / "ds_configs", Path(__file__).parent / "ds_configs"]
    for folder in folders:
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.json")})
    raise UserError(f"deepspeed={name}: ds_configs/ has {', '.join(known)}.")


def _offloads(settings: dict) -> bool:
    return settings.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"


def _import_deepspeed() -> Any:
    with _quiet():
        import deepspeed

    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|deepspeed")
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed greets on import and on every initialize; our own log says what matters."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_habits() -> None:
    """Threads shared between the ranks of a host, and freed memory kept: activations are the same size every step."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        torch.set_num_threads(max(1, num_cores() // ranks_here))
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # without these two glibc maps and unmaps every large activation: page faults were 40 % of a training step
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
