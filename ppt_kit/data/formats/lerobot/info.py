"""What meta/info.json says: version, features and splits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppt_kit.errors import UserError

VERSIONS = ("v2.0", "v2.1", "v3.0")


def read_info(path: Path) -> dict:
    """What it says, shapes as tuples.

    Raises:
        UserError: it is damaged, or of another version.
    """
    try:
        info = json.loads((path / "meta/info.json").read_text())
        version, fps = info["codebase_version"], float(info["fps"])
        features = {name: {**about, "shape": tuple(about["shape"])} for name, about in info["features"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}/meta/info.json: damaged ({type(error).__name__}: {str(error)[:80]}). Copy it again."
        ) from None
    if version not in VERSIONS:
        raise UserError(
            f"{path}: a LeRobot dataset of version {version}; {', '.join(VERSIONS)} can be read. "
            "Convert it with LeRobot's own scripts."
        )
    if not (fps > 0 and math.isfinite(fps)):
        raise UserError(f"{path}/meta/info.json: fps={info['fps']}: must be a number above 0.")
    return {**info, "features": features}


def video_keys(info: Mapping) -> list[str]:
    """The features that are videos and can be read."""
    return [name for name, about in info["features"].items() if about.get("dtype") == "video" and not why_not(about)]


def why_not(about: Mapping) -> str | None:
    """Why a feature is no column, None where it is one."""
    dtype = about.get("dtype")
    if dtype in ("image", "video"):
        details = about.get("info") or about.get("video_info") or {}
        depth = any(details.get(name) for name in ("video.is_depth_map", "is_depth_map"))
        if depth or any("depth" in label.lower() for label in labels_of(about)):
            return "a depth map, whose unit the format does not say"
        return None if picture_size(about["shape"], labels_of(about)) else f"a picture of shape {about['shape']}"
    try:
        return None if np.dtype(dtype).kind in "biuf" else f"of type {dtype}"
    except TypeError:
        return f"of type {dtype}"


def labels_of(about: Mapping) -> list[str]:
    """What info.json calls the numbers (or axes) of a feature; its lists may be grouped under names."""
    names = about.get("names")
    if isinstance(names, Mapping):
        lists = [part for part in names.values() if isinstance(part, list)]
        names = [label for part in lists for label in part] if lists else list(names)
    return [str(label) for label in names] if isinstance(names, list) else []


def picture_size(shape: tuple[int, ...], names: list[str]) -> tuple[int, int] | None:
    """(H, W) of a feature stored as hwc or chw: as its names say, unless the channels would be no channels then."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        return None
    by_name = [axis for axis, name in enumerate(names[:3]) if name.lower().startswith("c")] if len(names) == 3 else []
    for axis in [*by_name, 2, 0]:
        if shape[axis] in (1, 3, 4) and axis != 1:
            height, width = (size for other, size in enumerate(shape) if other != axis)
            return height, width
    return None


def split_of(path: Path, info: Mapping, name: str, *, count: int) -> np.ndarray:
    """Which episodes a split of info.json names, e.g. {"train": "0:50"}."""
    splits = info.get("splits") or {}
    if name not in splits:
        raise UserError(
            f"dataset.filter_key={name}: {path} has no split of that name; it has {', '.join(splits) or 'none'}."
        )
    try:
        begin, end = (int(part) if part else None for part in str(splits[name]).split(":"))
    except ValueError:
        raise UserError(f"{path}/meta/info.json: split {name}: {splits[name]!r} is not first:end.") from None
    return np.arange(count)[begin:end]
