"""What meta/info.json says: version, features and splits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.formats.lerobot.listed import read_text
from ppt_kit.errors import UserError

VERSIONS = ("v2.0", "v2.1", "v3.0")
# where info.json keeps what LeRobot has no word for, and of it what an evaluation reads: simulator and seeds
OURS, RECORDED = "ppt_kit", ("env", "seeds", "code")


def read_info(path: Path) -> dict:
    """What it says, shapes as tuples.

    Raises:
        UserError: it is damaged, or of another version.
    """
    file = path / "meta/info.json"
    text = read_text(file)
    try:
        info = json.loads(text)
        version, fps, features = info["codebase_version"], info["fps"], dict(info["features"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {str(error)[:80]}). Copy it again.") from None
    if version not in VERSIONS:
        said = " ".join(str(version).split())[:20]
        raise UserError(
            f"{path}: a LeRobot dataset of version {said}; {', '.join(VERSIONS)} can be read. "
            "Convert it with LeRobot's own scripts."
        )
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (fps > 0 and math.isfinite(fps)):
        raise UserError(f"{file}: fps={fps!r}: must be a number above 0. Copy it again.")
    return {**info, "features": {name: _feature(file, name, about) for name, about in features.items()}}


def _feature(file: Path, name: str, about: Any) -> dict:
    """What is said of one feature, its shape as a tuple; () of what is no numbers and has none."""
    if not isinstance(about, Mapping):
        raise UserError(f"{file}: damaged (the feature {name} is {str(about)[:40]!r}, not an object). Copy it again.")
    shape = about.get("shape")
    fine = isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
    if not fine and why_not({**about, "shape": ()}) is None:
        raise UserError(f"{file}: feature {name}: shape={shape!r}: takes a list of whole numbers. Copy it again.")
    return {**about, "shape": tuple(shape) if fine and shape is not None else ()}


def video_keys(info: Mapping) -> list[str]:
    """The features that are videos and can be read."""
    return [name for name, about in info["features"].items() if about.get("dtype") == "video" and not why_not(about)]


def why_not(about: Mapping) -> str | None:
    """Why a feature is no column, None where it is one."""
    dtype = about.get("dtype")
    if dtype in ("image", "video"):
        depth = any(details_of(about).get(name) for name in ("video.is_depth_map", "is_depth_map"))
        if depth or any("depth" in label.lower() for label in labels_of(about)):
            return "a depth map, whose unit the format does not say"
        return None if picture_size(about) else f"a picture of shape {about['shape']}"
    if not isinstance(dtype, str):
        return f"of type {dtype}"
    try:
        return None if np.dtype(dtype).kind in "biuf" else f"of type {dtype}"
    except TypeError:
        return f"of type {dtype}"


def details_of(about: Mapping) -> Mapping:
    """What is said of a video: codec, size, whether it is depth."""
    found = about.get("info") or about.get("video_info")
    return found if isinstance(found, Mapping) else {}


def labels_of(about: Mapping) -> list[str]:
    """What info.json calls the numbers (or axes) of a feature; its lists may be grouped under names, or in lists."""
    names = about.get("names")
    if isinstance(names, Mapping):
        lists = [part for part in names.values() if isinstance(part, list)]
        names = lists or list(names)
    return _flat(names) if isinstance(names, list) else []


def _flat(names: list) -> list[str]:
    return [label for name in names for label in (_flat(name) if isinstance(name, list) else [str(name)])]


def picture_size(about: Mapping) -> tuple[int, int] | None:
    """(H, W) of a feature stored as hwc or chw, None where it is no picture.

    As its names say, unless the channels would be no channels then; which is the height, its video's details know best.
    """
    shape, names, details = about["shape"], labels_of(about), details_of(about)
    found = _two_sizes(shape, names)
    told = (details.get("video.height"), details.get("video.width"))
    return told if found and told == (found[1], found[0]) else found


def _two_sizes(shape: tuple[int, ...], names: list[str]) -> tuple[int, int] | None:
    if 0 in shape:
        return None
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
    splits = info.get("splits")
    splits = splits if isinstance(splits, Mapping) else {}
    if name not in splits:
        raise UserError(
            f"dataset.filter_key={name}: {path} has no split of that name; it has {', '.join(splits) or 'none'}."
        )
    try:
        begin, end = (int(part) if part else None for part in str(splits[name]).split(":"))
    except ValueError:
        raise UserError(f"{path}/meta/info.json: split {name}: {splits[name]!r} is not first:end.") from None
    chosen = np.arange(count)[begin:end]
    if not len(chosen):
        raise UserError(f"dataset.filter_key={name}: {path} has {count} episodes, none of them in {splits[name]}.")
    return chosen
