"""A policy in about ten lines: what it sees, what it gives, its parts and their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from ppt_kit.models.encoders import Frozen
from ppt_kit.spec import Spec

if TYPE_CHECKING:
    from ppt_kit.models.policy import PPTPolicy

# domains that are listed one by one
FEW = 4


def describe(policy: PPTPolicy) -> str:
    """The lines."""
    options, parameters = policy.options, list(policy.parameters())
    trained = sum(_size(each) for each in parameters if each.requires_grad)
    lines = [
        f"PPTPolicy, {_count(parameters)} parameters, {_millions(trained)} trained; share={options.share}, "
        f"{len(policy.domains)} domain{'s' if len(policy.domains) > 1 else ''}"
    ]
    frames, actions = policy.horizon.observation, policy.horizon.action
    lines.append(f"  sees      {frames} frame(s) of {', '.join(policy.modalities)}")
    if policy.cloud_origin:
        lines[-1] += f", points told from {policy.cloud_origin}"
    for name in policy.domains[:FEW]:
        spec = policy.specs[name]
        lines.append(f"    {name}: {in_words(spec)} -> {actions} actions of {spec.action_dim}")
    if len(policy.domains) > FEW:
        lines.append(f"    and {len(policy.domains) - FEW} domains more")
    lines += [
        f"  encoder   {name}: {_kind(each)} {_count(each.parameters())}{', frozen' if isinstance(each, Frozen) else ''}"
        for name, each in policy.encoders.items()
    ]
    each = " for each domain" if len(policy.groups) > 1 else ""
    first = policy.groups[0].key
    stems = ", ".join(
        f"{name} {_kind(stem)} {_count(stem.parameters())}"
        for name, stem in policy.stems[first].items()  # type: ignore[operator]
    )
    lines.append(f"  stems     {stems}{each}{_frozen(policy, 'stems')}")
    lines.append(f"  trunk     {_trunk(policy)}")
    head = policy.heads[first]
    lines.append(f"  head      {_kind(head)} {_count(head.parameters())}{each}, pooling={options.pooling}")
    if policy.missing_tokens is not None:
        lines.append(f"  missing   each source left out of {options.modality_dropout:.0%} of the training windows")
    return "\n".join(lines)


def in_words(spec: Spec) -> str:
    """What is seen, with its sizes: "state 4, cloud 512x3"."""
    parts = {
        "state": f"state {spec.state_dim}", "pointcloud": f"cloud {spec.points}x{spec.channels}",
        "language": "a sentence",
    }  # fmt: skip
    for kind in ("rgb", "depth"):
        cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in spec.cameras(kind).items())
        parts[kind] = f"{kind} {cameras}"
    return ", ".join(parts[name] for name in spec.modalities)


def _trunk(policy: PPTPolicy) -> str:
    options, trunks = policy.options, [trunk for _, trunk in policy.all_trunks()]
    if not trunks:
        return f"none, tokens of width {options.width}"
    each = " for each domain" if len(trunks) > 1 else ""
    of_hpt = " of HPT" if options.trunk_kind == "hpt" else ""
    return (
        f"{options.depth} blocks{of_hpt}, width {options.width}, {options.num_heads} heads "
        f"{_count(trunks[0].parameters())}{each}{_frozen(policy, 'trunk')}"
    )


def _frozen(policy: PPTPolicy, part: str) -> str:
    return ", frozen" if part in policy.frozen_parts else ""


def _kind(module: nn.Module) -> str:
    return type(module.inner if isinstance(module, Frozen) else module).__name__


def _count(parameters: Iterable[nn.Parameter]) -> str:
    return _millions(sum(map(_size, parameters)))


def _size(parameter: nn.Parameter) -> int:
    # ZeRO-3 keeps a shard, and the whole size beside it
    return getattr(parameter, "ds_numel", parameter.numel())


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f}M" if number >= 10_000 else str(number)
