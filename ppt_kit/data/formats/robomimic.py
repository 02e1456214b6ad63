"""robomimic's HDF5, and those of robosuite, robocasa, MimicGen and LIBERO, which share its layout.

`/data/demo_i` holds `actions (T, A)`, `obs/<key>` and, if recorded, `states`, `rewards`, `dones`; `next_obs` repeats
obs and is left out, and so is what is no array of numbers. Demos are in the order of their numbers; a group that is
called otherwise is left out with a warning. Of `obs`,
    uint8 (T, H, W, 3) or (T, 3, H, W)      -> obs/images/<camera>, always (N, H, W, 3); the camera is the key less
                                               _image or _rgb
    <camera>_depth, float (T, H, W[, 1])    -> obs/depths/<camera>, metres as recorded
    anything else                           -> obs/<key>
`/mask/<name>` lists demos: filter_key=<name> reads those alone, in the order of their numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ppt_kit.data.formats.hdf5 import Episodes, is_hdf5, numbered, open_file, reading, warn_of_unnumbered
from ppt_kit.data.store import Column, EpisodeStore
from ppt_kit.errors import UserError

NAME = "robomimic HDF5"
LOOKED_FOR = "data/demo_<number> in a file"

WANTED = ("actions", "actions_abs", "obs", "states", "rewards", "dones")


def recognises(path: Path) -> bool:
    if not is_hdf5(path):
        return False
    with open_file(path) as file:
        data = file.get("data")
        return isinstance(data, h5py.Group) and any(name.startswith("demo_") for name in data)


def open_store(path: Path, *, filter_key: str | None = None) -> EpisodeStore:
    with open_file(path) as file:
        with reading(path, "data"):
            data = file["data"]
        demos = numbered(data, "demo_")
        unnumbered = warn_of_unnumbered(path, data, demos, prefix="demo_") if filter_key is None else {}
        if filter_key is not None:
            chosen = _masked(path, file, filter_key, demos=demos)
            demos = [name for name in demos if name in chosen]
        episodes = Episodes(path, file, [f"data/{name}" for name in demos], wanted=WANTED)
        if "actions" not in episodes.names:
            raise UserError(f"{path}: {episodes.groups[0]} holds no actions.")
        with reading(path, "data"):
            env_args, common = _parsed(data.attrs.get("env_args")), dict(_texts(data.attrs))
        lengths, sentences = [], []
        for demo, found in zip(demos, episodes.found):
            with reading(path, f"data/{demo}"):
                own = data[demo].attrs
                lengths.append(int(own.get("num_samples", found["actions"].shape[0])))
                sentences.append(_sentence(dict(_texts(own)), common, env_args))
        episodes.set_lengths(lengths)
        with reading(path, "data"):
            attrs = {"env_args": env_args, "total": int(data.attrs.get("total", episodes.ends[-1]))}
        if filter_key is not None:
            attrs["filter_key"] = filter_key
    return EpisodeStore(
        path=path, format=NAME, episode_ends=episodes.ends, columns=_columns(episodes), attrs=attrs,
        episode_names=demos, sentences=[text or "" for text in sentences] if any(sentences) else None,
        left_out={**episodes.left_out, **unnumbered}, read_by=episodes.read_by,
    )  # fmt: skip


def _columns(episodes: Episodes) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name in episodes.names:
        first = episodes.found[0][name]
        row, key, convert = first.shape[1:], name, None
        if name.startswith("obs/"):
            is_image = first.dtype == np.uint8 and len(row) == 3 and 3 in (row[0], row[2])
            if is_image:
                key = f"obs/images/{re.sub('_(image|rgb)$', '', name[4:])}"
                convert = _channels_last if row[2] != 3 else None
            elif name.endswith("_depth") and first.dtype.kind == "f" and (len(row) == 2 or row[2:] == (1,)):
                key = f"obs/depths/{name[4:].removesuffix('_depth')}"
        # agentview_image and agentview_rgb: the second keeps its whole name
        if key in columns:
            key = f"{key.rsplit('/', 1)[0]}/{name[4:]}"
        columns[key] = episodes.column(
            name, convert=convert, row_shape=(row[1], row[2], row[0]) if convert is not None else None
        )
    return columns


def _channels_last(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, 1, -1)


def _masked(path: Path, file: h5py.File, filter_key: str, *, demos: list[str]) -> set[str]:
    """The demos of a mask, all of which are there."""
    masks = file.get("mask")
    there = sorted(masks) if isinstance(masks, h5py.Group) else []
    if filter_key not in there:
        known = f"It has {', '.join(there)}" if there else "It has no masks: leave it null"
        raise UserError(f"dataset.filter_key={filter_key}: {path} has no mask of that name. {known}.")
    with reading(path, f"mask/{filter_key}"):
        listed = np.atleast_1d(file[f"mask/{filter_key}"][()])
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in listed]
    absent = [name for name in names if name not in set(demos)]
    if absent or not names:
        holds = f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
        why = f"names {absent[0]}, which is not among its demos (the mask holds {holds})" if absent else "holds no demo"
        raise UserError(
            f"dataset.filter_key={filter_key}: that mask of {path} {why}. Choose another, or leave it null."
        )
    return set(names)


LANGUAGE = ("language_instruction", "lang")


def _texts(attrs: h5py.AttributeManager) -> list[tuple[str, Any]]:
    """Those attributes that can hold a sentence; reading all of them would read each demo's model file."""
    return [(name, attrs[name]) for name in (*LANGUAGE, "ep_meta", "problem_info") if name in attrs]


def _sentence(demo: dict, data: dict, env_args: Any) -> str | None:
    """What a demo was asked to do: its own attributes, robocasa's ep_meta, LIBERO's problem_info, the environment's."""
    places = [demo, _parsed(demo.get("ep_meta")), data, _parsed(data.get("problem_info")), env_args]
    if isinstance(env_args, dict):
        places.append(env_args.get("env_kwargs"))
    for place in places:
        for key in LANGUAGE:
            text = place.get(key) if isinstance(place, dict) else None
            if isinstance(text, bytes):
                text = text.decode()
            if isinstance(text, str) and text.strip():
                return text.strip()
    return None


def _parsed(text: Any) -> Any:
    """JSON, or the text itself when it is none."""
    try:
        return json.loads(text) if isinstance(text, str | bytes) else text
    except ValueError:
        return text
