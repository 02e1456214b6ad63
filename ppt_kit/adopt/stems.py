"""Old stems as ours of the kind hpt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ppt_kit.adopt.clouds import dp3
from ppt_kit.adopt.layers import attending, sequence
from ppt_kit.adopt.old import Differs, Old, Part
from ppt_kit.adopt.pictures import resnet
from ppt_kit.adopt.pointnext import pointnext
from ppt_kit.migration.parts import MODALITIES, last_name

# the reasons of those that there are not
OTHERS = {
    "ViT": "the DINOv2 of torch.hub and what stands behind it: policy.encoders.{0}.kind=dinov2 takes its weights from "
    "the hub of transformers",
    "DepthCNN": "its last layer fits one size of picture: policy.stems.depth.kind=cnn is of its kind, and its weights "
    "are other ones",
    "TextEncoder": "CLIP's encoder of sentences: policy.encoders.language.kind=minilm is another one",
}


def stem(old: Old, domain: str, name: str) -> Part:
    """The stem of one modality by its old name; tensors below its module.

    Raises:
        Differs: there is none of its kind here.
    """
    # of sentences there was one
    target = old.value(f"stem.{name}._target_", "TextEncoder" if name == "language" else "one without a _target_")
    kind, modality = last_name(target), MODALITIES[name]
    make = MADE.get((modality, kind))
    if make is None:
        raise Differs(OTHERS.get(kind, f"there is no stem like {kind} here").format(modality))
    made, gathered = make(old, domain, name), attending(old, domain, name, modality=modality)
    return Part(made.options | gathered.options, made.tensors | gathered.tensors, made.told)


def _state(old: Old, domain: str, name: str) -> Part:
    if old.value("stem.state.tanh_end", False):
        raise Differs("stem.state.tanh_end=true: stems end without one here")
    found = sequence(old.below(f"stems.{domain}_{name}.net"))
    return Part(
        options={
            "policy.stems.state.kind": "hpt_state", "policy.stems.state.options.widths": found.widths,
            "policy.stems.state.options.norm": found.norm,
        },
        tensors={f"embed.{below}": value for below, value in found.tensors.items()},
    )  # fmt: skip


MADE: dict[tuple[str, str], Callable[[Old, str, str], Part]] = {
    ("state", "MLP"): _state,
    ("pointcloud", "DP3PointNetEncoderXYZ"): dp3,
    ("pointcloud", "DP3PointNetEncoderXYZRGB"): dp3,
    ("pointcloud", "PointNet"): pointnext,
    ("rgb", "ResNet"): partial(resnet, modality="rgb"),
    ("depth", "ResNet"): partial(resnet, modality="depth"),
}
