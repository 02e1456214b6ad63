"""torchvision's ResNet-18 and -34 of old stems, with their norms in their convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ppt_kit.adopt.layers import folded
from ppt_kit.adopt.old import Differs, Old, Part

SIZE = 224
# places in torchvision's children: conv1, bn1, relu, maxpool, then the stages
FIRST, FIRST_NORM, STAGES = "net.0", "net.1", "net.{}"


def resnet(old: Old, domain: str, name: str, *, modality: str) -> Part:
    """A ResNet of BasicBlocks behind one projection; tensors below our stem.

    Raises:
        Differs: it is another network, or saw its pictures in another way.
    """
    weights = old.stem(domain, name)
    first = weights.get(f"{FIRST}.weight")
    if first is None or any(".conv3." in below for below in weights):
        raise Differs("of torchvision's networks only ResNet-18 and -34 are here, one for all cameras")
    planes = 1 if modality == "depth" else 3
    if first.shape[1] != planes or weights["proj.weight"].shape[1] != 8 * len(first):
        raise Differs(f"it reads {first.shape[1]} planes, or pictures that do not become 7 x 7 numbers of each map")
    _check_seen(old, name, modality)
    tensors = {f"first.{kind}": value for kind, value in folded(weights, FIRST, FIRST_NORM).items()}
    blocks = []
    for stage in range(4):
        before = STAGES.format(4 + stage)
        count = len({below.split(".")[2] for below in weights if below.startswith(f"{before}.")})
        blocks.append(count)
        for block in range(count):
            tensors |= _block(weights, f"{before}.{block}", f"stages.{stage}.{block}")
    tensors |= {f"project.{kind}": weights[f"proj.{kind}"] for kind in ("weight", "bias")}
    options: dict[str, Any] = {"kind": "hpt_resnet", "options.blocks": blocks, "options.hidden": len(first)}
    of_stem = {f"policy.stems.{modality}.{key}": value for key, value in options.items()}
    # where a new policy would have one
    none: dict[str, Any] = {"kind": None, "frozen": True, "options": {}}
    of_encoder = {f"policy.encoders.{modality}.{key}": value for key, value in none.items()}
    return Part(options={**of_encoder, **of_stem}, tensors=tensors)


def _block(weights: Mapping[str, torch.Tensor], theirs: str, ours: str) -> dict[str, torch.Tensor]:
    pairs = {"first": ("conv1", "bn1"), "second": ("conv2", "bn2"), "skip": ("downsample.0", "downsample.1")}
    found: dict[str, torch.Tensor] = {}
    for name, (conv, norm) in pairs.items():
        if f"{theirs}.{conv}.weight" in weights:
            layer = folded(weights, f"{theirs}.{conv}", f"{theirs}.{norm}")
            found |= {f"{ours}.{name}.{kind}": value for kind, value in layer.items()}
    return found


def _check_seen(old: Old, name: str, modality: str) -> None:
    size = old.value("dataset.img_size", [SIZE, SIZE])
    if list(size) != [SIZE, SIZE] or not old.value("dataset.resize_img", True):
        raise Differs(f"dataset.img_size={size}: pictures of {SIZE} x {SIZE} become one token here")
    if modality == "depth" and old.value("dataset.norm_depth", False):
        raise Differs("dataset.norm_depth=true: depth is in metres here")
    colours = old.value(f"stem.{name}.rgb_only", True)
    if bool(colours) == (modality == "depth"):
        raise Differs(f"stem.{name}.rgb_only={colours}: {modality} was seen in another way")
