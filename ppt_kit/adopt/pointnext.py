"""openpoints' PointNeXt, ppt_learning's usual stem of clouds, as ours with its norms in its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ppt_kit.adopt.clouds import made_ready, read_file
from ppt_kit.adopt.layers import folded
from ppt_kit.adopt.old import Differs, Old, Part
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.models.hpt.cloud import HPTPointNeXtStem
from ppt_kit.models.part import Sizes
from ppt_kit.spec import Spec

# where ppt_learning says how a network of openpoints is put together; and what of the one that its configurations name
NETWORK = "ppt_learning/models/pointnet_cfg/{}/{}.yaml"
KNOWN_NETWORKS: dict[tuple[str, str], dict[str, Any]] = {
    ("dense", "pointnext-s"): {"model": {"encoder_args": {
        "NAME": "PointNextEncoder", "sampler": "random", "blocks": [1, 1, 1, 1, 1, 1], "strides": [1, 2, 2, 2, 2, 1],
        "width": 32, "in_channels": 4, "sa_layers": 2, "sa_use_res": True, "radius": 0.15, "radius_scaling": 1.5,
        "nsample": 32, "expansion": 4, "aggr_args": {"feature_type": "dp_fj", "reduction": "max"},
        "group_args": {"NAME": "ballquery", "normalize_dp": True}, "conv_args": {"order": "conv-norm-act"},
        "act_args": {"act": "relu"}, "norm_args": {"norm": "bn"},
    }}}
}  # fmt: skip
# what our stem does, what it can do, and what changes nothing; a network that says anything else is another one
FIXED = {
    "NAME": "PointNextEncoder", "block": "InvResMLP", "aggr_args.feature_type": "dp_fj", "aggr_args.reduction": "max",
    "group_args.NAME": "ballquery", "conv_args.order": "conv-norm-act", "act_args.act": "relu", "norm_args.norm": "bn",
    "use_res": True, "nsample_scaling": 1,
}  # fmt: skip
READ = {
    "width", "strides", "blocks", "sa_layers", "sa_use_res", "radius", "radius_scaling", "group_args.normalize_dp",
    "nsample", "expansion", "sampler", "in_channels",
}  # fmt: skip
HARMLESS = {"act_args.inplace", "group_args.radius", "group_args.nsample"}
SAMPLERS = {"random": "random", "fps": "farthest"}
ENCODER = "pointnet.encoder.encoder"


def pointnext(old: Old, domain: str, name: str) -> Part:
    """openpoints' PointNeXt; tensors below our stem.

    Raises:
        Differs: it is another network, or saw its points in another way.
    """
    for switch in ("global_feat", "color_extra"):
        if old.value(f"stem.{name}.{switch}"):
            raise Differs(f"stem.{name}.{switch}={old.value(f'stem.{name}.{switch}')}: there is no such stem here")
    weights, (said, where) = old.stem(domain, name), _network(old, name)
    channels = said.get("in_channels", 4)
    if channels not in (3, 4):
        raise Differs(f"points of {channels} numbers: what the other ones are is not known here")
    ready, tensors = made_ready(old, channels), _network_tensors(weights)
    if "mlp.weight" in weights:
        tensors |= {f"project.0.{kind}": weights[f"mlp.{kind}"] for kind in ("weight", "bias")}
    options = {
        "network": _options(said), "sampler": SAMPLERS[str(said.get("sampler", "fps")).lower()], "up": ready["up"],
        "projection": "linear" if "mlp.weight" in weights else "none", "unit_sphere": ready["unit_sphere"],
    }  # fmt: skip
    _check_fits(old, options, tensors, channels=channels, points=ready["num_points"], where=where)
    stem = "policy.stems.pointcloud"
    return Part(
        options={f"{stem}.kind": "hpt_pointnext", **{f"{stem}.options.{key}": value for key, value in options.items()}}
        | {"dataset.point_channels": channels, "dataset.num_points": ready["num_points"]},
        tensors=tensors,
        told={"network of the clouds": where, "clouds made ready": ready["where"]},
    )


def _network(old: Old, name: str) -> tuple[dict[str, Any], str]:
    """What is said of a network's encoder, flat ("aggr_args.reduction" -> "max"), and where.

    Raises:
        Differs: nothing says it, or it is another one than ours can be.
    """
    domain, file = old.value(f"stem.{name}.pcd_domain", ""), old.value(f"stem.{name}.cfg_name", "")
    read, where = read_file(
        old, NETWORK.format(domain, file), f"stem.{name}.cfg_name={file}: how its network is put together",
        known=KNOWN_NETWORKS.get((domain, file)),
    )  # fmt: skip
    model = read.get("model")
    encoder = model.get("encoder_args") if isinstance(model, dict) else None
    if not isinstance(encoder, dict):
        raise Differs(f"{where}: has no model.encoder_args")
    flat: dict[str, Any] = {}
    for key, value in encoder.items():
        flat |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    strange = [key for key in flat if key not in READ | HARMLESS | set(FIXED)]
    strange += [key for key, only in FIXED.items() if flat.get(key, only) != only]
    strange += [key for key in ("radius", "nsample") if isinstance(flat.get(key), list)]
    if str(flat.get("sampler", "fps")).lower() not in SAMPLERS:
        strange.append("sampler")
    if strange:
        said = ", ".join(f"{key}={flat[key]}" for key in strange)
        raise Differs(f"{where}: {said}: there is no stem like it here")
    return flat, where


def _options(said: Mapping[str, Any]) -> dict[str, Any]:
    """Of our network; openpoints' defaults where nothing is said."""
    return {
        "hidden": said.get("width", 32), "strides": said.get("strides", [4, 4, 4, 4]),
        "blocks": said.get("blocks", [1, 4, 7, 4, 4]), "num_layers": said.get("sa_layers", 1),
        "residual": said.get("sa_use_res", False), "radius": said.get("radius", 0.1),
        "radius_scaling": said.get("radius_scaling", 2), "in_radii": said.get("group_args.normalize_dp", False),
        "group_size": said.get("nsample", 32), "expansion": said.get("expansion", 4),
    }  # fmt: skip


def _check_fits(
    old: Old, options: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, channels: int, points: int, where: str
) -> None:
    """Raises Differs unless our stem takes these options, and has these tensors."""
    spec = Spec(state={}, action={"actions": 1}, points=points, channels=channels)
    sizes = Sizes(
        width=old.width, num_heads=1, dropout=0.0, horizon=Horizon(old.frames, old.actions), spec=spec, name="stem",
        modality="pointcloud", num_latents=None,
    )  # fmt: skip
    try:
        with torch.device("meta"):
            ours = HPTPointNeXtStem(sizes, **options).state_dict()
    except UserError as reason:
        raise Differs(f"{where}: there is no stem like it here: {reason}") from None
    wrong = [
        name for name in sorted({*ours, *tensors})
        if name not in ours or name not in tensors or ours[name].shape != tensors[name].shape
    ]  # fmt: skip
    if wrong:
        raise Differs(f"{where}: says another network than the weights are of: {', '.join(wrong[:3])} differ")


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
