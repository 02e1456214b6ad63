"""Old stems as ours of the kind hpt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import yaml

from ppt_kit.adopt.layers import attending, sequence
from ppt_kit.adopt.old import Differs, Old, Part
from ppt_kit.adopt.pictures import resnet
from ppt_kit.migration.parts import MODALITIES, last_name

# where ppt_learning says how a cloud is made ready, by stem.pointcloud.pcd_domain; and what its own two say
SETUP = "ppt_learning/models/pointnet_cfg/{}/pcd_setup.yaml"
KNOWN_SETUPS: dict[str, dict[str, Any]] = {
    "dense": {"num_points": 4096, "up": 1, "unit_sphere": True},
    "scanobjectnn": {"num_points": 1024, "up": 1, "unit_sphere": True},
}
CENTRES, PLAIN = "PointCloudCenterAndNormalize", {"PointsToTensor", "PointCloudToTensor"}
# the reasons of those that there are not
OTHERS = {
    "PointNet": "openpoints' PointNeXt has BatchNorm, and balls and samples of its own CUDA code: policy.stems."
    "pointcloud.kind=pointnext is of its kind, and its weights are other ones",
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
    return Part(options=made.options | gathered.options, tensors=made.tensors | gathered.tensors)


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


def _cloud(old: Old, domain: str, name: str) -> Part:
    weights = old.stem(domain, name)
    first = weights.get("mlp.0.weight")
    norm = "mlp.1.weight" in weights
    hidden = 0 if first is None else len(first)
    shapes = {"mlp.0": hidden, "mlp.3": 2 * hidden, "mlp.6": 4 * hidden}
    if first is None or any(len(weights.get(f"{place}.weight", ())) != size for place, size in shapes.items()):
        raise Differs("its layers are not those of DP3's encoder of clouds")
    channels = first.shape[1]
    if channels not in (3, 4):
        raise Differs(
            f"points of {channels} numbers: what colours went to in it is not known, here they go to 1, "
            "dataset.point_channels=3 and 4 have none"
        )
    ready = _made_ready(old, channels)
    options = {
        "kind": "hpt_cloud", "options.hidden": hidden, "options.norm": norm, "options.up": ready["up"],
        "options.unit_sphere": ready["unit_sphere"], "options.projection": _projection(set(weights)),
    }  # fmt: skip
    tensors = {f"embed.{below[4:]}": value for below, value in weights.items() if below.startswith("mlp.")}
    for below, value in weights.items():
        if below.startswith("final_projection."):
            place = below.removeprefix("final_projection.")
            # one layer, or a sequence of two
            tensors[f"project.{place if place[0].isdigit() else f'0.{place}'}"] = value
    return Part(
        options={f"policy.stems.pointcloud.{key}": value for key, value in options.items()}
        | {"dataset.point_channels": channels, "dataset.num_points": ready["num_points"]},
        tensors=tensors,
    )


def _projection(names: set[str]) -> str:
    if "final_projection.1.weight" in names:
        return "norm"
    return "linear" if "final_projection.weight" in names else "none"


def _made_ready(old: Old, channels: int) -> dict[str, Any]:
    """How clouds were made ready for it: num_points, up, unit_sphere."""
    domain = old.value("stem.pointcloud.pcd_domain", "")
    path = old.project / SETUP.format(domain)
    if not path.is_file():
        if domain in KNOWN_SETUPS:
            return KNOWN_SETUPS[domain]
        raise Differs(
            f"stem.pointcloud.pcd_domain={domain}: how its clouds were made ready is said by {path}, which is not "
            "there. Give --project=<your folder of ppt_learning>"
        )
    said = yaml.safe_load(path.read_text()) or {}
    transforms = said.get("datatransforms") or {}
    steps, more = [name for name in transforms.get("val") or [] if name not in PLAIN], transforms.get("kwargs") or {}
    strange = [name for name in steps if name != CENTRES]
    switched = [name for name in ("centering", "normalize", "append_xyz") if name in more]
    if strange or switched or (channels == 4 and not steps):
        raise Differs(f"{path} makes clouds ready in another way: {', '.join(strange or switched) or 'no height'}")
    return {
        "num_points": said.get("num_points", 1024), "up": more.get("gravity_dim", 2), "unit_sphere": bool(steps),
    }  # fmt: skip


MADE: dict[tuple[str, str], Callable[[Old, str, str], Part]] = {
    ("state", "MLP"): _state,
    ("pointcloud", "DP3PointNetEncoderXYZ"): _cloud,
    ("pointcloud", "DP3PointNetEncoderXYZRGB"): _cloud,
    ("rgb", "ResNet"): partial(resnet, modality="rgb"),
    ("depth", "ResNet"): partial(resnet, modality="depth"),
}
