"""The weights of a model, put together from what the ranks of a DeepSpeed run saved of them.

Source: the layouts are those that deepspeed.utils.zero_to_fp32 undoes (DeepSpeed 0.19, Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from ppt_kit.errors import UserError
from ppt_kit.zero.saved import FLAT_GROUPS, FLAT_GROUPS_3, REMEDY, Saved


def whole_weights(saved: Saved) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of everything that the model's state_dict() named, on the CPU.

    The exact float32 weights where the optimizer kept them; two names of one tensor share its memory.

    Raises:
        UserError: the parts are not of one save, or too few: names the weight.
    """
    stored = saved.first["module"]
    exact = dict(_exact(saved)) if saved.shards else {}
    twins = {one: other for one, other in (saved.first.get("shared_params") or {}).items() if other in exact}
    for name in [*stored, *(name for name in exact if name not in stored)]:
        value = exact.get(twins.get(name, name))
        own = stored.get(name)
        # what is no tensor is a module's own extra state
        if value is None and not isinstance(own, torch.Tensor):
            continue
        if saved.is_cut:
            _refuse_lost(saved, name, value, own)
        elif value is not None and own is not None:
            _check_same(saved, name, value, own)
        yield name, own if value is None else value


def _exact(saved: Saved) -> Iterator[tuple[str, torch.Tensor]]:
    """The trained weights, from all ranks' parts; at stage 3 the frozen ones too."""
    shapes = saved.first["param_shapes"]
    if not saved.is_cut:
        for group, named in enumerate(shapes):
            yield from _of_group(saved, group, named)
        return
    flat = [saved.shards[rank][FLAT_GROUPS_3] for rank in range(saved.world_size)]
    start = 0
    for name, shape in ((name, shape) for named in shapes for name, shape in named.items()):
        # each weight is cut into equal parts, the last one filled up
        size = math.ceil(math.prod(shape) / saved.world_size)
        yield name, _joined(saved, name, [_cut(groups, start, size) for groups in flat], shape)
        start += size
    for rank, groups in enumerate(flat):
        if sum(group.numel() for group in groups) != start:
            raise UserError(f"{saved.folder}: rank {rank} has other weights than its model file names. {REMEDY}")
    for name, shape in (saved.first.get("frozen_param_shapes") or {}).items():
        parts = [saved.models[rank]["frozen_param_fragments"][name] for rank in range(saved.world_size)]
        yield name, _joined(saved, name, parts, shape)


def _of_group(saved: Saved, group: int, named: Mapping[str, torch.Size]) -> Iterator[tuple[str, torch.Tensor]]:
    """Stages 1 and 2: a group of weights is laid end to end and cut into one part a rank, weights and all."""
    parts = [saved.shards[rank][FLAT_GROUPS][group] for rank in range(saved.world_size)]
    gaps = saved.shards[0].get("param_alignment_paddings")
    start = 0
    for number, (name, shape) in enumerate(named.items()):
        size = math.prod(shape)
        yield name, _joined(saved, name, [_cut(parts, start, size)], shape)
        start += size + (gaps[group][number] if gaps is not None else 0)


def _cut(tensors: Sequence[torch.Tensor], start: int, count: int) -> torch.Tensor:
    """(count,) numbers from `start` on, of tensors laid end to end; fewer where they end before."""
    found = []
    for tensor in tensors:
        piece = tensor[max(start, 0) : max(start + count, 0)]
        found.append(piece)
        start -= tensor.numel()
    return torch.cat(found)


def _joined(saved: Saved, name: str, parts: Sequence[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    flat = torch.cat([part.flatten() for part in parts])
    if flat.numel() < math.prod(shape):
        raise UserError(
            f"{saved.folder}: of {name} {tuple(shape)} there are {flat.numel()} numbers of {math.prod(shape)}: "
            f"its ranks' files are not of one save. {REMEDY}"
        )
    return flat[: math.prod(shape)].view(tuple(shape))


def _refuse_lost(saved: Saved, name: str, value: torch.Tensor | None, own: torch.Tensor | None) -> None:
    """Stage 3 leaves empty tensors in the model's file; a buffer may be empty in truth."""
    if value is None and own is not None and own.numel() == 0 and name not in (saved.first.get("buffer_names") or ()):
        raise UserError(f"{saved.folder}: {name} is in no rank's file. {REMEDY}")


def _check_same(saved: Saved, name: str, value: torch.Tensor, own: torch.Tensor) -> None:
    """Up to stage 2 the model's file has all weights too, rounded where training was in half precision."""
    if value.shape != own.shape or not torch.equal(value.to(own.dtype).nan_to_num(), own.nan_to_num()):
        raise UserError(
            f"{saved.folder}: {name} is not the same in the model's file and in the optimizer's: "
            f"files of two saves. {REMEDY}"
        )
