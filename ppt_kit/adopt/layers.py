"""Layers of old stems and heads as the layers of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ppt_kit.adopt.old import Differs, Old, Part
from ppt_kit.models.hpt.layers import perceptron

# of BatchNorm
EPS = 1e-5


class Sequence(NamedTuple):
    """Layers of ReLU.

    Attributes:
        inside, widths, outside: numbers that enter, of each hidden layer, that leave.
        norm: whether there is a LayerNorm in those behind the first.
        tensors: by their names below our module.
    """

    inside: int
    widths: list[int]
    outside: int
    norm: bool
    tensors: dict[str, torch.Tensor]


def sequence(weights: Mapping[str, torch.Tensor]) -> Sequence:
    """What `net` of an old MLP is, told by its tensors alone: dropout and activations have none.

    Raises:
        Differs: it is not linear layers with LayerNorm behind the second and on, or nowhere.
    """
    modules = _modules(weights)
    linear = [each for each in modules if each["weight"].ndim == 2]
    norms = len(modules) - len(linear)
    if len(linear) < 2 or norms not in (0, len(linear) - 2):
        raise Differs("its layers are not those of an MLP of ppt_learning")
    inside, outside = linear[0]["weight"].shape[1], linear[-1]["weight"].shape[0]
    widths = [len(each["weight"]) for each in linear[:-1]]
    ours = perceptron(inside, widths, outside, norm=norms > 0).state_dict()
    theirs = [value for each in modules for value in (each["weight"], each["bias"])]
    if [tuple(value.shape) for value in ours.values()] != [tuple(value.shape) for value in theirs]:
        raise Differs("its layers are not those of an MLP of ppt_learning")
    return Sequence(inside, widths, outside, norms > 0, dict(zip(ours, theirs)))


def attending(old: Old, domain: str, name: str, *, modality: str) -> Part:
    """The latents of a stem, as options and tensors of the stem's; without cross-attention there are none.

    Args:
        name: of the modality there; modality: here.
    Raises:
        Differs: something else attends.
    """
    stem, latents = f"policy.stems.{modality}", old.latents(domain, name)
    if latents is None:
        return Part(options={f"{stem}.num_latents": None})
    found = old.below(f"stems.{domain}_attend_{name}")
    if set(found) != {"to_q.weight", "to_kv.weight", "to_out.weight", "to_out.bias"}:
        raise Differs(f"its cross-attention has {', '.join(found) or 'no weights'}")
    inner = len(found["to_q.weight"])
    heads = old.value("stem.num_heads", 8)
    if inner % heads:
        raise Differs(f"stem.num_heads={heads} does not divide the {inner} numbers of its cross-attention")
    return Part(
        options={
            f"{stem}.num_latents": len(latents), f"{stem}.options.num_heads": heads,
            f"{stem}.options.dim_head": inner // heads,
        },
        tensors={
            "gather.latents": latents, "gather.query.weight": found["to_q.weight"],
            "gather.key_value.weight": found["to_kv.weight"], "gather.out.weight": found["to_out.weight"],
            "gather.out.bias": found["to_out.bias"],
        },
    )  # fmt: skip


def _modules(weights: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """{"weight", "bias"} of each layer that has some, in order."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(\d+)\.(weight|bias)", name)
        if match is None:
            raise Differs(f"it has {name}, which an MLP of ppt_learning has not")
        found.setdefault(int(match[1]), {})[match[2]] = value
    if not found or not all(len(each) == 2 for each in found.values()):
        raise Differs("its layers are not those of an MLP of ppt_learning")
    return [found[place] for place in sorted(found)]


def folded(weights: Mapping[str, torch.Tensor], layer: str, norm: str) -> dict[str, torch.Tensor]:
    """A layer, and the BatchNorm behind it if there is one, with the statistics it acts by, as one layer."""
    weight, bias = weights[f"{layer}.weight"].double(), weights.get(f"{layer}.bias")
    if f"{norm}.running_var" in weights:
        of = {kind: weights[f"{norm}.{kind}"].double() for kind in ("weight", "bias", "running_mean", "running_var")}
        scale = of["weight"] / (of["running_var"] + EPS).sqrt()
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = of["bias"] + ((0.0 if bias is None else bias.double()) - of["running_mean"]) * scale
    if bias is None:
        bias = torch.zeros(len(weight))
    return {"weight": weight.float(), "bias": bias.float()}
