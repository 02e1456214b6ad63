"""Stems of clouds of ppt_learning: DP3's encoder, and how clouds are made ready for any."""

from __future__ import annotations

from typing import Any

import yaml

from ppt_kit.adopt.old import Differs, Old, Part
from ppt_kit.migration.parts import CLOUD_POINTS

# where ppt_learning says how a cloud is made ready, by stem.pointcloud.pcd_domain; and what its own two say
SETUP = "ppt_learning/models/pointnet_cfg/{}/pcd_setup.yaml"
CENTRES, PLAIN = "PointCloudCenterAndNormalize", {"PointsToTensor", "PointCloudToTensor"}
KNOWN_SETUPS: dict[str, dict[str, Any]] = {
    domain: {"num_points": points, "datatransforms": {"val": [CENTRES], "kwargs": {"gravity_dim": 1}}}
    for domain, points in CLOUD_POINTS.items()
}


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
    ready = made_ready(old, channels)
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
        told={"clouds made ready": ready["where"]},
    )


def _projection(names: set[str]) -> str:
    if "final_projection.1.weight" in names:
        return "norm"
    return "linear" if "final_projection.weight" in names else "none"


def made_ready(old: Old, channels: int) -> dict[str, Any]:
    """How clouds were made ready for it: num_points, up, unit_sphere."""
    domain = old.value("stem.pointcloud.pcd_domain", "")
    said, where = read_file(
        old, SETUP.format(domain), f"stem.pointcloud.pcd_domain={domain}: how its clouds were made ready",
        known=KNOWN_SETUPS.get(domain),
    )  # fmt: skip
    transforms = said.get("datatransforms") or {}
    if not isinstance(transforms, dict):
        raise Differs(f"{where}: datatransforms={transforms} is no table")
    steps, more = [name for name in transforms.get("val") or [] if name not in PLAIN], transforms.get("kwargs") or {}
    strange = [name for name in steps if name != CENTRES]
    switched = [name for name in ("centering", "normalize", "append_xyz") if name in more]
    if strange or switched or (channels == 4 and not steps):
        raise Differs(f"{where} makes clouds ready in another way: {', '.join(strange or switched) or 'no height'}")
    return {
        "num_points": said.get("num_points", 1024), "up": more.get("gravity_dim", 2), "unit_sphere": bool(steps),
        "where": where,
    }  # fmt: skip


def read_file(old: Old, path: str, what: str, *, known: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """A file of ppt_learning, and where it was read; what ppt_learning ships where it is not there.

    Args:
        what: is said by it, for the reason.
        known: that it ships.
    Raises:
        Differs: there is neither, or it cannot be read.
    """
    file = old.project / path
    if not file.is_file():
        if known is None:
            raise Differs(f"{what} is said by {file}, which is not there. Give --project=<your folder of ppt_learning>")
        return known, f"as ppt_learning ships {path} (none below --project={old.project})"
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Differs(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(said, dict):
        raise Differs(f"{file}: does not hold keys with values")
    return said, str(file)
