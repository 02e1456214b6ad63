"""The policy's weights as whole tensors, also where ZeRO-3 has cut them into shards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn

from ppt_kit.engine.quiet import import_deepspeed


class Weights:
    """Those that the policy's state_dict() names: a policy may leave some of its own out, e.g. of a frozen encoder."""

    def __init__(self, policy: nn.Module, *, stage: int, casts: bool = False):
        """Before DeepSpeed takes the policy: ZeRO-3 empties its tensors, and their shapes are lost.

        Args:
            casts: the weights are going to be rounded to half precision: of those that are not trained, and so have no
                exact master, rank 0 keeps the float32 values.
        """
        self.policy, self._stage = policy, stage
        keeps = casts and dist.get_rank() == 0
        self._exact_frozen = {
            name: _exact_copy(p) for name, p in policy.named_parameters() if keeps and not p.requires_grad
        }
        self.shapes = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
        nameless = {name for name, _ in self.trained()} - self.shapes.keys()
        assert not nameless, f"trained, but not in the policy's state_dict(): {nameless}"

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.policy.named_parameters() if p.requires_grad]

    def whole(self, instead: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """name -> copy on the CPU, float32, on rank 0; {} elsewhere. Every rank must call it.

        Args:
            instead: whole tensors that are taken in place of the policy's own, of some names.
        """
        parameters = {name: p for name, p in self.policy.named_parameters() if name in self.shapes}
        with self._gathered(parameters.values()):
            if dist.get_rank() > 0:
                return {}
            whole = {}
            for name, value in self.policy.state_dict().items():
                # at stage 3 state_dict may hold the empty placeholders: the parameter itself is whole in here
                own = parameters[name].data if name in parameters else value
                other = instead.get(name, self._exact_frozen.get(name))
                whole[name] = _exact_copy(own if other is None else other)
            return whole

    def exact(self) -> dict[str, torch.Tensor | None]:
        """name -> whole float32 master of each trained weight of a policy in half precision."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(p) for name, p in self.trained()}

    @torch.no_grad()
    def load(self, whole: Mapping[str, torch.Tensor]) -> None:
        """Takes whole tensors, on every rank; parameters and buffers of other names stay as they are."""
        self._exact_frozen |= {name: _exact_copy(whole[name]) for name in self._exact_frozen if name in whole}
        for name, buffer in self.policy.named_buffers():
            if name in whole:
                buffer.copy_(whole[name])
        for name, parameter in self.policy.named_parameters():
            if name not in whole:
                continue
            with self._gathered([parameter], writes=True):
                if self._stage < 3 or dist.get_rank() == 0:
                    parameter.data.copy_(whole[name])

    def difference(self, saved: Mapping[str, torch.Tensor]) -> str | None:
        """The first tensor in which saved weights and the policy's differ, in words."""
        there = {name: tuple(value.shape) for name, value in saved.items()}
        for name in sorted(there.keys() | self.shapes.keys()):
            if there.get(name) != self.shapes.get(name):
                return (
                    f"{name} is {there.get(name, 'absent')} in the checkpoint "
                    f"and {self.shapes.get(name, 'absent')} in the policy"
                )
        return None

    def release(self) -> None:
        """ZeRO-3 keeps small parameters gathered between steps: they would outlive a swap of their shards."""
        if self._stage < 3:
            return
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for parameter in self.policy.parameters():
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # type: ignore[attr-defined]
                parameter.partition()  # type: ignore[attr-defined]

    def _gathered(
        self, parameters: Iterable[nn.Parameter], *, writes: bool = False
    ) -> contextlib.AbstractContextManager:
        if self._stage < 3:
            return contextlib.nullcontext()
        return import_deepspeed().zero.GatheredParameters(list(parameters), modifier_rank=0 if writes else None)


def _exact_copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
