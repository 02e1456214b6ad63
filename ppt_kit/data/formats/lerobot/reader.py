"""LeRobotDataset v2.0, v2.1 and v3.0, read in place: numbers and pictures in parquet, cameras in mp4.

Numbers are decoded a row group at a time and pictures one by one. A video's frame is found by its time: the one nearest
to the row's own timestamp (v3.0: after from_timestamp), within half a frame; whatever had to be decoded before it comes
along. An episode's sentence is the first of its tasks, also where its frames have several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppt_kit.data.formats.lerobot.episodes import Episodes, episodes_v2, episodes_v3
from ppt_kit.data.formats.lerobot.frames import frames_of
from ppt_kit.data.formats.lerobot.info import (
    OURS,
    RECORDED,
    details_of,
    labels_of,
    picture_size,
    read_info,
    split_of,
    why_not,
)
from ppt_kit.data.formats.lerobot.rows import Rows, numbers, pictures
from ppt_kit.data.formats.lerobot.whole import whole_episodes
from ppt_kit.data.formats.wanted import Wanted
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore
from ppt_kit.lfs import is_lfs_pointer

NAME = "LeRobot dataset"
LOOKED_FOR = "meta/info.json with a codebase_version or beside data/"


def recognises(path: Path) -> bool:
    file = path / "meta/info.json"
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return False
    # `open_store` tells what is damaged
    return "codebase_version" in text or (path / "data").is_dir() or is_lfs_pointer(file)


def open_store(path: Path, *, filter_key: str | None = None, wanted: Wanted | None = None) -> EpisodeStore:
    """
    Args:
        wanted: files that hold nothing of it need not be there.
    """
    info = read_info(path)
    episodes = episodes_v3(path, info) if info["codebase_version"] == "v3.0" else episodes_v2(path, info)
    selected = np.arange(len(episodes.lengths))
    if filter_key is not None:
        selected = split_of(path, info, filter_key, count=len(selected))
    store = _store(episodes, selected, info)
    selected, fewer = whole_episodes(episodes, selected, store, wanted or Wanted())
    if fewer:
        store = _store(episodes, selected, info)
        # rows that were decoded of other episodes are not its rows
        store.read_by = hashlib.sha256(selected.tobytes()).hexdigest()[:12]
    store.attrs |= {"filter_key": filter_key} if filter_key is not None else {}
    return store


def _store(episodes: Episodes, selected: np.ndarray, info: Mapping) -> EpisodeStore:
    """The episodes selected, with every column that info.json names."""
    rows = Rows(episodes, selected)
    columns, notes = _columns(rows, info["features"])
    attrs = {"fps": info["fps"], "robot_type": info.get("robot_type"), "codebase_version": info["codebase_version"]}
    attrs |= {name: note for name, note in notes.items() if note}
    ours = info.get(OURS)
    attrs |= {name: ours[name] for name in RECORDED if name in ours} if isinstance(ours, Mapping) else {}
    own = episodes.index[selected]
    return EpisodeStore(
        path=episodes.path, format=f"{NAME} {info['codebase_version']}", episode_ends=rows.ends, columns=columns,
        attrs=attrs, sentences=None if episodes.tasks is None else [episodes.tasks[e] for e in selected.tolist()],
        episode_names=None if (own == np.arange(len(own))).all() else [f"episode_index {i}" for i in own.tolist()],
    )  # fmt: skip


def _columns(rows: Rows, features: Mapping) -> tuple[dict[str, Column], dict[str, dict]]:
    """The columns, and what the dataset calls their numbers and why a feature is none."""
    columns: dict[str, Column] = {}
    names, skipped = {}, {}
    for feature, about in features.items():
        why = why_not(about)
        if why:
            skipped[feature] = why
            continue
        key = _key(feature, about, features, taken=columns)
        # two names that differ in their dots alone
        key = feature if key in columns else key
        columns[key] = _column(rows, feature, about)
        labels = labels_of(about)
        if labels and len(labels) == int(np.prod(about["shape"])):
            names[key] = labels
    return columns, {"names": names, "skipped": skipped}


def _key(feature: str, about: Mapping, features: Mapping, *, taken: Mapping) -> str:
    """The column's name."""
    if about["dtype"] in ("image", "video"):
        name = feature.removeprefix("observation.").removeprefix("images.").replace(".", "_")
        key = f"obs/images/{name}"
        return key if key not in taken else f"obs/images/{feature.replace('.', '_')}"
    if feature in ("action", "actions"):
        return "actions" if "actions" not in taken else feature
    if feature.startswith("action.") and "action" not in features and "actions" not in features:
        return "actions/" + feature.removeprefix("action.").replace(".", "/")
    if feature.startswith("observation."):
        return "obs/" + feature.removeprefix("observation.").replace(".", "/")
    return feature


def _column(rows: Rows, feature: str, about: Mapping) -> DecodedColumn:
    count, files = int(rows.ends[-1]) if len(rows.ends) else 0, len(rows.episodes.data_files)
    if about["dtype"] not in ("image", "video"):
        dtype, shape = np.dtype(about["dtype"]), (count, *about["shape"])
        decode = numbers(rows, feature, shape[1:], dtype)
        return DecodedColumn(shape, dtype, decode, stored_as=feature, layout=f"parquet, {files} file(s)")
    height, width = picture_size(about) or (0, 0)
    if about["dtype"] == "video":
        layout = (
            f"video {details_of(about).get('video.codec', 'mp4')}, {len(rows.episodes.videos[feature].files)} file(s)"
        )
        decode = frames_of(rows, feature, height, width)
    else:
        layout, decode = f"pictures in parquet, {files} file(s)", pictures(rows, feature, height, width)
    return DecodedColumn((count, height, width, 3), np.uint8, decode, stored_as=feature, layout=layout)
