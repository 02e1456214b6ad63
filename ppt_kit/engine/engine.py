"""The policy inside DeepSpeed: an optimizer step, a validation loss, and everything a run goes on from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ppt_kit.engine.averaged import Averaged
from ppt_kit.engine.quiet import forget_autocast, import_deepspeed, leave_whole, quiet
from ppt_kit.engine.settings import HALF, offloads, stage_of, whole_settings
from ppt_kit.engine.state import MOMENTS, OptimizerState
from ppt_kit.engine.weights import Weights
from ppt_kit.engine.world import World, choose_algorithms, from_first, give_back_freed, tensors_from_first
from ppt_kit.schema import Config


class Engine:
    """One optimizer step at a time, averaged weights, whole weights on rank 0.

    Args:
        policy: a module whose call on a batch gives {"loss": ()}; with train.on_nan=skip, also `blank(batch)`.
        cfg: batch_size, gradient_accumulation_steps, gradient_clipping, precision, deepspeed, optimizer, compile,
            deterministic, train.ema_decay, train.on_nan.
    Attributes:
        step: optimizer steps that were taken.
        skipped: micro batches left out because their loss was not finite.
        seconds: forward_s, backward_s and step_s of the host; the caller resets them.
    """

    def __init__(self, policy: nn.Module, cfg: Config, world: World):
        self.world, self.step, self.skipped = world, 0, 0
        self.seconds = dict.fromkeys(("forward_s", "backward_s", "step_s"), 0.0)
        settings = whole_settings(cfg)
        self.stage = stage_of(settings)
        self._skips, self._half = cfg.train.on_nan == "skip", cfg.precision in HALF
        self._clipped_norm: torch.Tensor | None = None
        self._host_group: Any = None
        choose_algorithms(world.device, deterministic=cfg.deterministic)
        policy.to(world.device)
        self._weights = Weights(policy, stage=self.stage, casts=self._half)
        trained = [parameter for _, parameter in self._weights.trained()]
        # counted now: ZeRO-3 empties them
        self.num_parameters, self.num_trained = (
            sum(p.numel() for p in some) for some in (policy.parameters(), trained)
        )
        optimizer = _adamw(trained, cfg, fused=world.device.type == "cuda" and not offloads(settings))
        leave_whole(policy, compiled=cfg.compile)
        forget_autocast()
        with quiet():
            self._deepspeed, *_ = import_deepspeed().initialize(
                model=policy, optimizer=optimizer, model_parameters=trained, config=settings
            )
        if cfg.compile:
            self._deepspeed.compile()
        # at stage 0 DeepSpeed clips and forgets the norm
        self._deepspeed.clip_fp32_gradients = self._clip
        self._state = OptimizerState(self._deepspeed, stage=self.stage)
        self.ema = Averaged(policy, decay=cfg.train.ema_decay) if cfg.train.ema_decay else None
        give_back_freed()

    @property
    def policy(self) -> nn.Module:
        """The policy itself, e.g. for act(); its loss is computed through `train_step` and `eval_loss` only."""
        return self._deepspeed.module

    def train_step(self, micro_batches: list[dict], *, learning_rate: float) -> torch.Tensor:
        """One optimizer step; () this rank's mean loss, not yet averaged over ranks and left on the device."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), device=self.world.device)
        for batch in micro_batches:
            total += self._micro_step(batch)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        return total / len(micro_batches)

    def gradient_norm(self) -> float | None:
        """Of the last step, before clipping, over all ranks; None where nothing computes it (stage 0, no clipping)."""
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
        self._weights.release()
        with self.ema.applied():
            try:
                yield
            finally:
                self._weights.release()

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """name -> whole tensor on the CPU, float32, on rank 0; {} elsewhere. Every rank must call it.

        The names are those of the policy's state_dict().
        """
        return self._weights.whole(self._weights.exact() if self._half else {})

    def whole_averaged(self) -> dict[str, torch.Tensor] | None:
        """As `whole_weights`, of the averaged weights; None when the run keeps none."""
        if self.ema is None:
            return None
        return self._weights.whole(self.ema.whole(self._weights.shapes))

    def state(self) -> dict | None:
        """Everything a resumed run needs to go on bit for bit, as whole tensors on the CPU of rank 0; None elsewhere.

        Whole, not sharded: another world size, another ZeRO stage or another precision loads the same file.
        Every rank must call it.
        """
        weights, averaged = self.whole_weights(), self.whole_averaged()
        moments = self._state.whole_moments(self._weights.trained(), kept=self.world.is_first)
        if not self.world.is_first:
            return None
        return {
            "weights": weights, "averaged": averaged, "moments": moments, "step": self.step,
            "optimizer_step": self._state.num_steps(), "loss_scale": self._state.loss_scale(),
        }  # fmt: skip

    def load_state(self, state: dict | None) -> None:
        """Continues from `state`, given on rank 0; every rank must call it.

        Weights that neither `state` nor the policy's state_dict() names stay as they are.

        Raises:
            ValueError: it belongs to another architecture; the first difference is named. On every rank.
        """
        difference = from_first(self._difference(state) if state is not None else None)
        if difference:
            raise ValueError(difference)
        plain = from_first({name: state[name] for name in ("step", "optimizer_step", "loss_scale")} if state else None)
        weights = tensors_from_first(state and state["weights"], self.world)
        averaged = tensors_from_first(state and state["averaged"], self.world)
        moments = {kind: tensors_from_first(state and state["moments"][kind], self.world) for kind in MOMENTS}
        self._weights.load(weights)
        self._state.load(self._weights.trained(), weights=weights, moments=moments)
        self._state.set_num_steps(plain["optimizer_step"])
        self._state.set_loss_scale(plain["loss_scale"])
        if self.ema is not None:
            self.ema.load(averaged or weights)
        self.step = plain["step"]

    def optimizer_bytes(self) -> int:
        """What the optimizer holds on this rank: moments, and masters where ZeRO keeps its own."""
        return self._state.num_bytes()

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

    def _micro_step(self, batch: dict) -> torch.Tensor:
        """Forward, backward and DeepSpeed's own step, which is one of the optimizer after the last micro batch."""
        began = time.perf_counter()
        # call the engine, never engine.module: ZeRO hooks __call__, and skipping it skips the reduction
        loss = self._deepspeed(batch)["loss"]
        forward = time.perf_counter()
        if self._skips and not self.finite_everywhere(loss):
            # a batch of weight 0 in its place: zero gradients, and every rank still does the same collectives
            loss = self._deepspeed(self.policy.blank(batch))["loss"]  # type: ignore[operator]
            self.skipped += 1
        self._deepspeed.backward(loss)
        backward = time.perf_counter()
        self._deepspeed.step()
        self.seconds["forward_s"] += forward - began
        self.seconds["backward_s"] += backward - forward
        self.seconds["step_s"] += time.perf_counter() - backward
        return loss.detach()

    def _clip(self) -> None:
        limit = self._deepspeed.gradient_clipping()
        self._clipped_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)

    def _difference(self, state: dict) -> str | None:
        """The first thing in which a saved state and the policy differ, in words."""
        trained = {name for name, _ in self._weights.trained()}
        others = None
        if trained != set(state["moments"][MOMENTS[0]]) and state["step"]:
            others = "the checkpoint trained other parameters than this run would: train.freeze_… differs"
        return self._weights.difference(state["weights"]) or others


def _adamw(trained: list[nn.Parameter], cfg: Config, *, fused: bool) -> torch.optim.AdamW:
    beta1, beta2 = cfg.optimizer.betas
    return torch.optim.AdamW(
        trained, lr=cfg.optimizer.lr, betas=(beta1, beta2), eps=cfg.optimizer.eps,
        weight_decay=cfg.optimizer.weight_decay, fused=fused,
    )  # fmt: skip
