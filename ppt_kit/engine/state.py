"""Where DeepSpeed keeps the optimizer's numbers, at each ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ppt_kit.engine.averaged import shard_of

# what AdamW remembers of each parameter
MOMENTS = ("exp_avg", "exp_avg_sq")

Named = Iterable[tuple[str, nn.Parameter]]


class OptimizerState:
    """Moments, masters, step count and loss scale of one DeepSpeed engine, read and set as whole tensors."""

    def __init__(self, engine: Any, *, stage: int):
        self._engine, self._stage = engine, stage

    def whole_moments(self, trained: Named, *, kept: bool) -> dict[str, dict[str, torch.Tensor]]:
        """moment -> parameter -> float32 copy on the CPU. Every rank must call it; one that does not keep gets none."""
        moments: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in MOMENTS}
        for name, parameter in trained:
            for kind in MOMENTS:
                value = self._moment(parameter, kind)
                if kept and value is not None:
                    moments[kind][name] = value.detach().to("cpu", torch.float32, copy=True)
        return moments

    def load(self, trained: Named, *, weights: Mapping, moments: Mapping[str, Mapping]) -> None:
        """Takes whole masters and moments, on every rank; a fresh optimizer has none yet, so they are made first."""
        self._start()
        for name, parameter in trained:
            self._set(parameter, master=weights[name], moments={kind: moments[kind][name] for kind in MOMENTS})

    def num_steps(self) -> float:
        """Steps that the optimizer has counted."""
        counts = {float(entry["step"]) for entry in self._inner().state.values() if "step" in entry}
        assert len(counts) <= 1, f"parameters with different step counts: {counts}"
        return counts.pop() if counts else 0.0

    def set_num_steps(self, count: float) -> None:
        inner = self._inner()
        fused = inner.param_groups[0].get("fused")
        for parameter, entry in inner.state.items():
            entry["step"] = torch.tensor(count, device=parameter.device if fused else "cpu")

    def loss_scale(self) -> dict[str, float] | None:
        """The numbers of the loss scaler; None where the precision is not fp16."""
        scaler = self._loss_scaler()
        if scaler is None:
            return None
        return {name: value for name, value in vars(scaler).items() if isinstance(value, (int, float))}

    def set_loss_scale(self, numbers: Mapping[str, float] | None) -> None:
        scaler = self._loss_scaler()
        if scaler is not None and numbers is not None:
            vars(scaler).update(numbers)

    def num_bytes(self) -> int:
        """What the optimizer holds on this rank: moments, and masters where ZeRO keeps its own."""
        inner = self._inner()
        held = [value for entry in inner.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
        held += [p for group in inner.param_groups for p in group["params"]] if self._stage in (1, 2) else []
        return sum(value.numel() * value.element_size() for value in held)

    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer that holds the moments: of whole tensors at stage 0, of flat shards at 1-3."""
        outer = self._engine.optimizer
        return outer.optimizer if self._stage else outer

    def _moment(self, parameter: nn.Parameter, kind: str) -> torch.Tensor | None:
        if self._stage == 0:
            return self._inner().state[parameter].get(kind)
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, kind)

    def _start(self) -> None:
        """Moments of zero where there are none, so that they can be filled."""
        outer, inner = self._engine.optimizer, self._inner()
        if self._stage == 0:
            held = [p for group in inner.param_groups for p in group["params"]]
        else:
            # flat shards; at stage 3 the groups are filled during a step only
            held = outer.fp32_partitioned_groups_flat if self._stage == 3 else outer.single_partition_of_fp32_groups
        for tensor in held:
            inner.state[tensor].setdefault("step", torch.zeros(()))
            for kind in MOMENTS:
                inner.state[tensor].setdefault(kind, torch.zeros_like(tensor))
        if self._stage in (1, 2):
            outer._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, *, master: torch.Tensor, moments: Mapping[str, torch.Tensor]) -> None:
        if self._stage == 0:
            for name, moment in moments.items():
                self._inner().state[parameter][name].copy_(moment)
            return
        values: dict[str | None, torch.Tensor] = {None: master}
        values.update(moments)
        for kind, value in values.items():
            if self._stage == 3:
                # its own setter of whole tensors fails where a shard is padded
                part = shard_of(value, size=parameter.ds_tensor.numel())  # type: ignore[attr-defined]
                self._engine.optimizer.set_local_hp_param(part, parameter, kind)
            else:
                parameter.set_full_hp_param(value, kind)  # type: ignore[attr-defined]

    def _loss_scaler(self) -> Any:
        outer = self._engine.optimizer
        return getattr(outer, "loss_scaler", None) if self._engine.fp16_enabled() else None
