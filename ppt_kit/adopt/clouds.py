"""Stems of clouds of ppt_learning: DP3's encoder, and openpoints' PointNeXt with its norms in its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml

from ppt_kit.adopt.layers import folded
from ppt_kit.adopt.old import Differs, Old, Part

# where ppt_learning says how a cloud is made ready, by stem.pointcloud.pcd_domain; and what its own two say
SETUP = "ppt_learning/models/pointnet_cfg/{}/pcd_setup.yaml"
KNOWN_SETUPS: dict[str, dict[str, Any]] = {
    "dense": {"num_points": 4096, "up": 1, "unit_sphere": True},
    "scanobjectnn": {"num_points": 1024, "up": 1, "unit_sphere": True},
}
CENTRES, PLAIN = "PointCloudCenterAndNormalize", {"PointsToTensor", "PointCloudToTensor"}
# of openpoints' networks in ppt_learning, and what the first of them says
NETWORK = "ppt_learning/models/pointnet_cfg/{}/{}.yaml"
KNOWN_NETWORKS: dict[tuple[str, str], dict[str, Any]] = {
    ("dense", "pointnext-s"): {
        "NAME": "PointNextEncoder", "sampler": "random", "blocks": [1, 1, 1, 1, 1, 1], "strides": [1, 2, 2, 2, 2, 1],
        "width": 32, "in_channels": 4, "sa_layers": 2, "sa_use_res": True, "radius": 0.15, "radius_scaling": 1.5,
        "nsample": 32, "expansion": 4, "aggr_args": {"feature_type": "dp_fj", "reduction": "max"},
        "group_args": {"NAME": "ballquery", "normalize_dp": True}, "conv_args": {"order": "conv-norm-act"},
        "act_args": {"act": "relu"}, "norm_args": {"norm": "bn"},
    }
}  # fmt: skip
# what our stem does; a network that says something else is another one
FIXED = {
    "NAME": "PointNextEncoder", "block": "InvResMLP", "aggr_args.feature_type": "dp_fj", "aggr_args.reduction": "max",
    "group_args.NAME": "ballquery", "conv_args.order": "conv-norm-act", "act_args.act": "relu", "norm_args.norm": "bn",
    "use_res": True, "nsample_scaling": 1,
}  # fmt: skip
SAMPLERS = {"random": "random", "fps": "farthest"}
ENCODER = "pointnet.encoder.encoder"


def dp3(old: Old, domain: str, name: str) -> Part:
    """DP3's encoder; tensors below our stem.

    Raises:
        Differs: its layers, or its points, are other ones.
    """
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


def pointnext(old: Old, domain: str, name: str) -> Part:
    """openpoints' PointNeXt; tensors below our stem.

    Raises:
        Differs: it is another network, or saw its points in another way.
    """
    weights = old.stem(domain, name)
    said = _network(old, name)
    for switch in ("global_feat", "color_extra"):
        if old.value(f"stem.{name}.{switch}"):
            raise Differs(f"stem.{name}.{switch}={old.value(f'stem.{name}.{switch}')}: there is no such stem here")
    options, tensors = _options(said), _network_tensors(weights)
    channels = int(said.get("in_channels", 4))
    if channels not in (3, 4):
        raise Differs(f"points of {channels} numbers: what the other ones are is not known here")
    ready = _made_ready(old, channels)
    projects = "mlp.weight" in weights
    if projects:
        tensors |= {f"project.{kind}": weights[f"mlp.{kind}"] for kind in ("weight", "bias")}
    options |= {"projection": projects, "up": ready["up"], "unit_sphere": ready["unit_sphere"]}
    stem = "policy.stems.pointcloud"
    return Part(
        options={f"{stem}.kind": "hpt_pointnext", **{f"{stem}.options.{key}": value for key, value in options.items()}}
        | {"dataset.point_channels": channels, "dataset.num_points": ready["num_points"]},
        tensors=tensors,
    )


def _network(old: Old, name: str) -> dict[str, Any]:
    """What the network's file says of its encoder, flat: "aggr_args.reduction" -> "max"."""
    domain, file = old.value(f"stem.{name}.pcd_domain", ""), old.value(f"stem.{name}.cfg_name", "")
    path = old.project / NETWORK.format(domain, file)
    if path.is_file():
        encoder = ((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("model") or {}).get(
            "encoder_args"
        ) or {}
    elif (domain, file) in KNOWN_NETWORKS:
        encoder = KNOWN_NETWORKS[domain, file]
    else:
        raise Differs(
            f"stem.{name}.cfg_name={file}: how its network is put together is said by {path}, which is not there. Give "
            "--project=<your folder of ppt_learning>"
        )
    flat: dict[str, Any] = {}
    for key, value in encoder.items():
        flat |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    strange = [f"{key}={flat[key]}" for key, only in FIXED.items() if flat.get(key, only) != only]
    strange += [f"{key}={flat[key]}" for key in ("radius", "nsample") if isinstance(flat.get(key), list)]
    if str(flat.get("sampler", "fps")).lower() not in SAMPLERS:
        strange.append(f"sampler={flat['sampler']}")
    if strange:
        raise Differs(f"{', '.join(strange)} of its network: there is no stem like it here")
    return flat


def _options(said: Mapping[str, Any]) -> dict[str, Any]:
    """Of our stem; openpoints' defaults where the file is silent."""
    strides, blocks = said.get("strides", [4, 4, 4, 4]), said.get("blocks", [1, 4, 7, 4, 4])
    if len(blocks) != len(strides) or strides[-1] != 1 or 1 in strides[1:-1]:
        raise Differs(
            f"strides={strides} of its network: more than one point is left at its end, or all are gathered twice"
        )
    network = {
        "hidden": said.get("width", 32), "strides": strides, "blocks": blocks, "num_layers": said.get("sa_layers", 1),
        "residual": said.get("sa_use_res", False), "radius": said.get("radius", 0.1),
        "radius_scaling": said.get("radius_scaling", 2), "in_radii": said.get("group_args.normalize_dp", False),
        "group_size": said.get("nsample", 32), "expansion": said.get("expansion", 4),
    }  # fmt: skip
    return {"network": network, "sampler": SAMPLERS[str(said.get("sampler", "fps")).lower()]}


def _network_tensors(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of all stages: stages.<stage>.<block>.layers.<layer>, the norms worked into them."""
    found: dict[str, torch.Tensor] = {}
    for name in weights:
        if not name.startswith(f"{ENCODER}.") or not name.endswith(".0.weight"):
            continue
        theirs = name.removesuffix(".0.weight")
        stage, block, *inner = theirs.removeprefix(f"{ENCODER}.").split(".")
        ours = {
            ("convs",): "layers", ("convs", "convs"): "layers", ("pwconv",): "mlp", ("skipconv",): "skip",
        }.get(tuple(word for word in inner if not word.isdigit()))  # fmt: skip
        if ours is None:
            raise Differs(f"its network has {name}, which openpoints' PointNeXt has not")
        place = "" if ours == "skip" else f".{inner[-1]}"
        for kind, value in folded(weights, f"{theirs}.0", f"{theirs}.1").items():
            # a convolution of one place is a linear layer
            found[f"stages.{stage}.{block}.{ours}{place}.{kind}"] = value.flatten(1) if kind == "weight" else value
    if not found:
        raise Differs(f"its layers are not those of openpoints' PointNeXt: there is no {ENCODER}")
    return found


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
