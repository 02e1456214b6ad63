"""DeepSpeed and torch.distributed, nowhere else: one engine for one process and for many.

What was measured and settles the odd lines below stands in the comments beside them.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import difflib
import json
import logging
import math
import os
import shutil
import socket
import sys
import time
import typing
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn

from ppt_kit.errors import UserError

log = logging.getLogger(__name__)

OURS = {  # keys of a DeepSpeed JSON whose number has its owner in our configuration
    "train_batch_size": "batch_size", "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "gradient_clipping": "gradient_clipping",
    "fp16": "precision=fp16", "bf16": "precision=bf16", "optimizer": "optimizer.lr and its neighbours",
    "scheduler": "optimizer.warmup_steps",
}  # fmt: skip


MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter


PLAIN_KEYS = (
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "wall_clock_breakdown",
    "memory_breakdown", "dump_state", "seq_parallel_communication_data_type",
)  # fmt: skip
NESTED_KEYS = {
    "aio": dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds")),
    "comms_logger": dict.fromkeys(("enabled", "verbose", "prof_all", "debug", "prof_ops")),
    "flops_profiler": dict.fromkeys(("enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file")),
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


def join_world(*, rank: int = 0, local_rank: int = 0, world_size: int = 1, rendezvous_timeout_s: float = 300) -> World:
    """Makes the process group: in memory for one process, over the launcher's MASTER_ADDR for several.

    Args:
        rendezvous_timeout_s: how long to wait for the other processes at the start.
    Raises:
        UserError: the local rank has no device, the port is taken, or the others did not come in time.
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
            _choose_interface()
            _meet(backend, rank=rank, world_size=world_size, timeout_s=rendezvous_timeout_s)
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
    _check_keys(settings, path)
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if cfg.compile and stage == 3:
        raise UserError(
            "compile=true fails with ZeRO stage 3, whose weights come and go during a step. Set deepspeed=zero2, or compile=false."
        )
    if cfg.compile and not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("compile=true on a CPU needs a C++ compiler. Type apt-get install g++, or set compile=false.")
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
        total_steps: optimizer steps of the whole run, for the schedule; may be set later.
    """

    def __init__(self, policy: nn.Module, cfg: DictConfig, world: World, *, total_steps: int = 1):
        deepspeed = _import_deepspeed()
        self.world, self.step, self.total_steps = world, 0, total_steps
        self.skipped = 0  # micro batches left out because their loss was not finite
        self.seconds = dict.fromkeys(("forward_s", "backward_s", "step_s"), 0.0)  # host time; the caller resets it
        self._skips = cfg.train.on_nan == "skip"
        self._peak, self._warmup = cfg.optimizer.lr, cfg.optimizer.warmup_steps
        self.schedule = (self._warmup, 0.0)  # a step, and the share of the cosine done there; evenly from it to the end
        settings = check_settings(cfg)
        self.stage = settings.get("zero_optimization", {}).get("stage", 0)
        self._half, self._fp16 = cfg.precision != "fp32", cfg.precision == "fp16"
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
        shapes = [(name, tuple(value.shape)) for name, value in policy.state_dict().items()]  # ZeRO-3 empties them
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        num_parameters, num_trained = (sum(p.numel() for p in some) for some in (policy.parameters(), trained))
        optimizer = torch.optim.AdamW(
            trained, lr=cfg.optimizer.lr, betas=tuple(cfg.optimizer.betas), eps=cfg.optimizer.eps,
            weight_decay=cfg.optimizer.weight_decay, fused=world.device.type == "cuda" and not _offloads(settings),
        )  # fmt: skip
        with _quiet():
            self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
                model=policy, optimizer=optimizer, model_parameters=trained, config=settings
            )
        if cfg.compile:
            self._deepspeed.compile()
        self._clipped_norm: torch.Tensor | None = None
        self._host_group: Any = None
        self._shapes = shapes
        self.num_parameters, self.num_trained = num_parameters, num_trained
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
        clock = time.perf_counter
        for batch in micro_batches:
            began = clock()
            # call the engine, never engine.module: ZeRO hooks __call__, and skipping it skips the reduction
            loss = self._deepspeed(batch)["loss"]
            forward = clock()
            if self._skips and not self.finite_everywhere(loss):
                # a batch of weight 0 in its place: zero gradients, and every rank still does the same collectives
                loss = self._deepspeed(_blank(batch))["loss"]
                self.skipped += 1
            self._deepspeed.backward(loss)
            backward = clock()
            self._deepspeed.step()
            total += loss.detach()
            for name, seconds in (
                ("forward_s", forward - began),
                ("backward_s", backward - forward),
                ("step_s", clock() - backward),
            ):
                self.seconds[name] += seconds
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return total / len(micro_batches)

    def learning_rate(self, step: int) -> float:
        """Of the optimizer step that follows `step` others: linear warm-up, then cosine to zero."""
        if step < self._warmup:
            return self._peak * (step + 1) / self._warmup
        return self._peak * 0.5 * (1 + math.cos(math.pi * min(1.0, self._cosine_done(step))))

    def change_total_steps(self, total_steps: int) -> None:
        """Another number of steps for what is left: the learning rate goes on from where it is instead of jumping."""
        if self.step > self.schedule[0]:
            self.schedule = (self.step, self._cosine_done(self.step))
        self.total_steps = total_steps

    def _cosine_done(self, step: int) -> float:
        since, done = self.schedule
        return done + (1 - done) * (step - since) / max(1, self.total_steps - since)

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

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights, if the run keeps them."""
        if self.ema is None:
            yield
            return
        self._release()
        with self.ema.applied():
            try:
                yield
            finally:
                self._release()

    def _release(self) -> None:
        """ZeRO-3 keeps small parameters gathered between steps: without this they would outlive a swap of their shards."""
        if self.stage == 3:
            from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

            for parameter in self.policy.parameters():
                if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # type: ignore[attr-defined]
                    parameter.partition()  # type: ignore[attr-defined]

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
        return self._gather(self.ema.whole(dict(self._shapes)))

    def state(self) -> dict | None:
        """Everything a resumed run needs to go on bit for bit, as whole tensors on the CPU of rank 0; None elsewhere.

        Whole, not sharded: another world size, another ZeRO stage or another precision loads the same file.
        Every rank must call it.
        """
        weights, averaged = self.whole_weights(), self.whole_averaged()
        moments: dict[str, dict[str, torch.Tensor]] = {name: {} for name in MOMENTS}
        for name, parameter in self._trained():
            for moment in MOMENTS:
                value = self._moment(parameter, moment)
                if self.world.is_first and value is not None:
                    moments[moment][name] = value.detach().to("cpu", torch.float32, copy=True)
        if not self.world.is_first:
            return None
        return {
            "weights": weights, "averaged": averaged, "moments": moments, "step": self.step,
            "optimizer_step": self._optimizer_step(), "loss_scale": self._loss_scale(),
        }  # fmt: skip

    def load_state(self, state: dict | None) -> None:
        """Continues from `state`, given on rank 0; every rank must call it.

        Raises:
            ValueError: it belongs to another architecture; the first difference is named. On every rank.
        """
        difference = from_first(_difference(self.policy, state, dict(self._shapes)) if state is not None else None)
        if difference:
            raise ValueError(difference)
        plain = from_first({name: state[name] for name in ("step", "optimizer_step", "loss_scale")} if state else None)
        weights = self._share(state and state["weights"])
        averaged = self._share(state and state["averaged"])
        moments = {name: self._share(state and state["moments"][name]) for name in MOMENTS}
        self._set_weights(weights)
        self._start_moments()
        for name, parameter in self._trained():
            self._set_optimizer(
                parameter, master=weights[name], moments={kind: values[name] for kind, values in moments.items()}
            )
        self._set_optimizer_step(plain["optimizer_step"])
        self._set_loss_scale(plain["loss_scale"])
        if self.ema is not None:
            self.ema.load(averaged or weights)
        self.step = plain["step"]

    def finite_everywhere(self, loss: torch.Tensor) -> bool:
        """Whether the loss is a number on every rank; waits for the device and the other ranks."""
        bad = (~torch.isfinite(loss.detach())).double()
        return not bool(self.sum_over_ranks(bad) > 0)

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank raises it. On the host: it does not wait for the device."""
        if self.world.size == 1:
            return list(flags)
        if self._host_group is None:
            self._host_group = dist.new_group(backend="gloo")
        raised = torch.tensor([float(flag) for flag in flags])
        dist.all_reduce(raised, group=self._host_group)
        return [bool(value > 0) for value in raised]

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Adds the ranks' tensors up in place."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def mean_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The ranks' mean, in place."""
        return self.sum_over_ranks(values).div_(self.world.size)

    # ---------------------------------------------------------------- where DeepSpeed keeps the optimizer's numbers

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]

    def _inner(self) -> Any:
        """The torch optimizer that holds the moments: of whole tensors at stage 0, of flat shards at 1-3."""
        outer = self._deepspeed.optimizer
        return outer.optimizer if self.stage else self._optimizer

    def _moment(self, parameter: nn.Parameter, kind: str) -> torch.Tensor | None:
        if self.stage == 0:
            return self._optimizer.state[parameter].get(kind)
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, kind)

    def _start_moments(self) -> None:
        """A fresh optimizer has no moments yet: makes them, so that they can be filled."""
        outer = self._deepspeed.optimizer
        inner = self._inner()
        if self.stage == 0:
            held = [p for group in inner.param_groups for p in group["params"]]
        else:  # flat shards; at stage 3 the groups are filled during a step only
            held = outer.fp32_partitioned_groups_flat if self.stage == 3 else outer.single_partition_of_fp32_groups
        for tensor in held:
            inner.state[tensor].setdefault("step", torch.zeros(()))
            for kind in MOMENTS:
                inner.state[tensor].setdefault(kind, torch.zeros_like(tensor))
        if self.stage in (1, 2):
            outer._lazy_init_hp_params_optimizer_state()

    def _set_optimizer(
        self, parameter: nn.Parameter, *, master: torch.Tensor, moments: dict[str, torch.Tensor]
    ) -> None:
        if self.stage == 0:
            for name, moment in moments.items():
                self._optimizer.state[parameter][name].copy_(moment)
            return
        values: dict[str | None, torch.Tensor] = {None: master}
        values.update(moments)
        for kind, value in values.items():
            if self.stage == 3:  # its own setter of whole tensors fails where a shard is padded
                part = shard_of(value, size=parameter.ds_tensor.numel())  # type: ignore[attr-defined]
                self._deepspeed.optimizer.set_local_hp_param(part, parameter, kind)
            else:
                parameter.set_full_hp_param(value, kind)  # type: ignore[attr-defined]

    def _set_weights(self, weights: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, buffer in self.policy.named_buffers():
                if name in weights:
                    buffer.copy_(weights[name])
            for name, parameter in parameters.items():
                with self._gathered([parameter], writes=True):
                    if self.stage < 3 or self.world.is_first:
                        parameter.data.copy_(weights[name])

    def _optimizer_step(self) -> float:
        counts = {float(entry["step"]) for entry in self._inner().state.values() if "step" in entry}
        assert len(counts) <= 1, f"parameters with different step counts: {counts}"
        return counts.pop() if counts else 0.0

    def _set_optimizer_step(self, count: float) -> None:
        inner = self._inner()
        fused = inner.param_groups[0].get("fused")
        for parameter, entry in inner.state.items():
            entry["step"] = torch.tensor(count, device=parameter.device if fused else "cpu")

    def _loss_scale(self) -> dict[str, float] | None:
        scaler = getattr(self._deepspeed.optimizer, "loss_scaler", None) if self._fp16 else None
        return (
            {name: value for name, value in vars(scaler).items() if isinstance(value, (int, float))} if scaler else None
        )

    def _set_loss_scale(self, numbers: dict[str, float] | None) -> None:
        scaler = getattr(self._deepspeed.optimizer, "loss_scaler", None) if self._fp16 else None
        if scaler is not None and numbers is not None:
            vars(scaler).update(numbers)

    def _share(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Rank 0's tensors on every rank, on the device."""
        if self.world.size == 1:
            return {name: value.to(self.world.device) for name, value in (tensors or {}).items()}
        listed = from_first([(name, tuple(value.shape), value.dtype) for name, value in (tensors or {}).items()])
        shared = {}
        for name, shape, dtype in listed:
            shared[name] = (
                tensors[name].to(self.world.device)
                if tensors
                else torch.empty(shape, dtype=dtype, device=self.world.device)
            )
            dist.broadcast(shared[name], src=0)
        return shared

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

    def _gathered(self, parameters: list, *, writes: bool = False) -> contextlib.AbstractContextManager:
        if self.stage < 3:
            return contextlib.nullcontext()
        return _import_deepspeed().zero.GatheredParameters(parameters, modifier_rank=0 if writes else None)


class Averaged:
    """Exponential moving average of the trained weights, in float32; with ZeRO-3 each rank averages its own shard.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that early weights are forgotten soon.
    """

    def __init__(self, policy: nn.Module, *, decay: float):
        trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        self.decay, self.names = decay, [name for name, _ in trained]
        self._sharded = any(hasattr(p, "ds_tensor") for _, p in trained)
        self._live = [getattr(p, "ds_tensor", p) for _, p in trained]
        self.shadow = [tensor.detach().float().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [tensor.detach().float() for tensor in self._live], weight)

    def whole(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """name -> whole averaged tensor, float32, on every rank; every rank must call it."""
        if not self._sharded:
            return dict(zip(self.names, self.shadow))
        gathered = {}
        for name, shard in zip(self.names, self.shadow):
            parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, shard)
            gathered[name] = torch.cat(parts)[: math.prod(shapes[name])].view(shapes[name])
        return gathered

    def load(self, whole: dict[str, torch.Tensor]) -> None:
        """Takes whole averaged tensors, on every rank."""
        for name, shadow in zip(self.names, self.shadow):
            if not self._sharded:
                shadow.copy_(whole[name])
                continue
            shadow.copy_(shard_of(whole[name], size=shadow.numel()))

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


def shard_of(whole: torch.Tensor, *, size: int) -> torch.Tensor:
    """(size,) this rank's part of a tensor that ZeRO-3 cuts into equal parts, the last one filled up with zeros."""
    start = size * dist.get_rank()
    part = whole.flatten()[start : start + size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))


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


def _blank(batch: dict) -> dict:
    """The batch with zeros for readings and a weight of 0: its loss and gradients are zero."""
    zeros = {name: _blank(value) if isinstance(value, dict) else _zero(value) for name, value in batch.items()}
    if "domain" in batch:
        zeros |= {"domain": batch["domain"], "weight": torch.zeros(len(batch["domain"]), device=batch["domain"].device)}
    return zeros


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def _difference(policy: nn.Module, state: dict, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The first tensor in which a saved state and a policy differ, in words."""
    saved = {name: tuple(value.shape) for name, value in state["weights"].items()}
    for name in sorted(saved.keys() | shapes.keys()):
        if saved.get(name) != shapes.get(name):
            return f"{name} is {saved.get(name, 'absent')} in the checkpoint and {shapes.get(name, 'absent')} in the policy"
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    if trained != set(state["moments"][MOMENTS[0]]) and state["step"]:
        return "the checkpoint trained other parameters than this run would: train.freeze_trunk differs"
    return None


def _check_keys(settings: dict, path: Path) -> None:
    """DeepSpeed accepts unknown keys of its JSON silently; here each level's are known."""
    _import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    _check_level(
        settings, {**dict.fromkeys(PLAIN_KEYS), **NESTED_KEYS, "zero_optimization": DeepSpeedZeroConfig}, f"{path}: "
    )


def _check_level(values: dict, known: dict, where: str) -> None:
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"{where}{name} is no key of DeepSpeed's."
                + (f" Did you mean {near[0]}?" if near else f" It takes {', '.join(sorted(known))}.")
            )
        inner = known[name]
        if isinstance(value, dict) and inner is not None:
            _check_level(value, inner if isinstance(inner, dict) else _fields(inner), f"{where}{name}.")


def _fields(model: Any) -> dict[str, Any]:
    """Keys of one of DeepSpeed's pydantic models, each with the model nested in it or None."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = [
            kind for kind in (field.annotation, *typing.get_args(field.annotation)) if hasattr(kind, "model_fields")
        ]
        found |= dict.fromkeys({name, field.alias or name}, nested[0] if nested else None)
    return found


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


def _meet(backend: str, *, rank: int, world_size: int, timeout_s: float) -> None:
    """The process group of a launched job; torchrun brings its own meeting place, other launchers name rank 0's."""
    collectives = datetime.timedelta(minutes=30)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=collectives)
        return
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    place = f"{address}:{port}"
    try:
        store = dist.TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0,
            timeout=datetime.timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
        arrived = store.add("ppt_kit/arrived", 1)
        deadline = time.monotonic() + timeout_s
        while arrived < world_size and time.monotonic() < deadline:
            time.sleep(0.1)
            arrived = store.add("ppt_kit/arrived", 0)
    except (dist.DistNetworkError, dist.DistStoreError, RuntimeError) as error:
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            raise UserError(
                f"{place} is taken by another program, so rank 0 cannot listen there. Set MASTER_PORT to a free port."
            ) from None
        raise UserError(
            f"rank {rank} did not reach rank 0 at {place} within {timeout_s:g} s. Check MASTER_ADDR, MASTER_PORT and the firewall, "
            "or set rendezvous_timeout_s higher."
        ) from None
    if arrived < world_size:
        raise UserError(
            f"{arrived} of {world_size} processes came to {place} within {timeout_s:g} s. Start the others, check WORLD_SIZE and RANK "
            "(a node's first global rank; LOCAL_WORLD_SIZE says how many it starts), or set rendezvous_timeout_s higher."
        )
    store.set_timeout(collectives)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=collectives)


def _choose_interface() -> None:
    """Tells gloo the network interface that leads to MASTER_ADDR: by itself it may take the loopback one."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if "GLOO_SOCKET_IFNAME" in os.environ or address.startswith("127.") or address == "localhost":
        return
    import psutil

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # a datagram socket: nothing is sent, the route is looked up
        mine = probe.getsockname()[0]
        for name, entries in psutil.net_if_addrs().items():
            if any(entry.address == mine for entry in entries):
                os.environ["GLOO_SOCKET_IFNAME"] = name


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
        libc.mallopt(
            -8, 2
        )  # M_ARENA_MAX: every thread's own arena reserves 64 MB of address space, a dozen of them here
