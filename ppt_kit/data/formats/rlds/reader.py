"""RLDS as TensorFlow Datasets writes it: a folder of shards, one record an episode; read without TensorFlow.

The folder holds dataset_info.json, features.json and `<name>-<split>.tfrecord-00000-of-0000N`, or one version's folder
that does. Of an episode's steps,
    action                        -> actions, or actions/<part> where it is a dictionary
    observation/<key>             -> obs/<key>, or obs/images/<key> for pictures and uint8 (H, W, 3), always with three
                                     colours
    observation/<key with depth>  -> obs/depths/<camera>, float32 metres as recorded; uint16 is taken for millimetres.
                                     The camera is the picture's that is called alike (wrist_depth, wrist_image), else
                                     the key less _depth
    language_instruction, natural_language_instruction (here or in observation)
                                  -> the episode's sentence: its first step's
    anything else of numbers      -> its own name: reward, discount, is_first, is_last, action_dict/…
Other texts, episode_metadata, and arrays and sequences whose shape differs from step to step are left out, and
`EpisodeStore.left_out` names them. float64 comes back as float64, but TensorFlow's records keep 32 bits of it. All
steps are there: in many datasets the last step's action is a dummy. filter_key names a split; without one all are read,
"train" first. Shards may be GZIP-compressed: TFDS does not note it, their first bytes tell.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ppt_kit.data.formats.rlds import tfrecord
from ppt_kit.data.formats.rlds.episodes import SENTENCES, Episodes
from ppt_kit.data.formats.rlds.features import Feature, features_of
from ppt_kit.data.formats.rlds.shards import folder_of, info_of, splits_of, versions_in
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore

NAME = "RLDS (TFDS folder)"
LOOKED_FOR = "features.json or *.tfrecord-* in a folder or in the one version's folder inside"


def recognises(path: Path) -> bool:
    return path.is_dir() and bool(versions_in(path))


def open_store(path: Path, *, filter_key: str | None = None) -> EpisodeStore:
    folder = folder_of(path)
    features, of_episodes = features_of(folder)
    splits = splits_of(folder, filter_key)
    episodes = Episodes(splits, features)
    names, sentences = "+".join(split.name for split in splits), episodes.sentences
    left_out = _left_out(episodes, features) | dict.fromkeys(of_episodes, "of the episode, not of its steps")
    return EpisodeStore(
        path=path, format=NAME, episode_ends=episodes.ends, columns=_columns(episodes, episodes.features),
        attrs={**info_of(folder), "split": names, "filter_key": names}, sentences=sentences if any(sentences) else None,
        left_out=left_out,
    )  # fmt: skip


def _left_out(episodes: Episodes, features: dict[str, Feature]) -> dict[str, str]:
    found = {}
    for name, feature in features.items():
        if name in episodes.features or name in SENTENCES:
            continue
        lengths = episodes.ragged.get(name)
        how = f" ({lengths[0]} to {lengths[1]} long)" if lengths else ""
        found[name] = f"{feature.why_not()}{how}"
    return found


def _columns(episodes: Episodes, features: dict[str, Feature]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name, feature in features.items():
        if feature.is_picture:
            key, shape, dtype, decode, layout = _picture_column(episodes, name, feature, features)
        elif feature.is_numbers:
            key, shape, dtype, decode, layout = _number_column(episodes, name, feature, features)
        else:
            continue
        shape = (int(episodes.ends[-1]), *shape)
        columns[key] = DecodedColumn(shape, dtype, decode, stored_as=name, layout=layout)
    return columns


def _number_column(episodes: Episodes, name: str, feature: Feature, features: dict[str, Feature]):
    """Decoded an episode at a time."""
    is_depth = _is_depth(name, feature)
    is_colour = feature.dtype == "uint8" and len(feature.shape) == 3 and feature.shape[-1] == 3
    dtype = np.dtype(np.float32 if is_depth else feature.dtype)

    def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for episode, start, _ in episodes.steps(rows):
            with episodes.reading(episode):
                values = episodes.numbers(episode, name, feature)
            yield start, _metres(values, feature.dtype) if is_depth else values.astype(dtype)

    return _key(name, features, is_depth=is_depth, is_colour=is_colour), feature.fixed_shape, dtype, decode, "TFRecord"


def _picture_column(episodes: Episodes, name: str, feature: Feature, features: dict[str, Feature]):
    """Decoded a picture at a time."""
    is_depth, is_colour = _is_depth(name, feature), feature.dtype == "uint8"
    dtype = np.dtype(np.float32 if is_depth else feature.dtype)
    with episodes.reading(0):
        first = _decoded(next(episodes.texts(0, name, [0])), feature.dtype, of=f"{name} of step 0")

    def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for episode, start, steps in episodes.steps(rows):
            with episodes.reading(episode):
                for step, text in zip(steps.tolist(), episodes.texts(episode, name, steps)):
                    picture = _decoded(text, feature.dtype, of=f"{name} of step {step}")
                    if picture.shape != first.shape:
                        raise tfrecord.Damaged(f"{name} of step {step} is {picture.shape}, the first {first.shape}")
                    yield start + step, (_metres(picture, feature.dtype) if is_depth else picture)[None]

    key = _key(name, features, is_depth=is_depth, is_colour=is_colour)
    return key, first.shape, dtype, decode, "TFRecord, encoded pictures"


def _decoded(text: bytes, dtype: str, *, of: str) -> np.ndarray:
    """(H, W, 3) uint8, or (H, W, 1) uint16 or float32."""
    try:
        with Image.open(io.BytesIO(text)) as picture:
            values = np.asarray(picture.convert("RGB") if dtype == "uint8" else picture)
    # Pillow raises these three
    except (OSError, ValueError, SyntaxError) as error:
        raise tfrecord.Damaged(f"{of} cannot be decoded ({error})") from None
    if dtype.startswith("float"):
        # TFDS keeps the four bytes of a float as four colours
        return np.ascontiguousarray(values).view("<f4")
    return values if dtype == "uint8" else values.astype(np.uint16)[..., None]


def _is_depth(name: str, feature: Feature) -> bool:
    shape_fits = len(feature.shape) == 2 or len(feature.shape) == 3 and feature.shape[-1] == 1
    return (
        name.startswith("steps/observation/")
        and "depth" in name.rsplit("/", 1)[-1]
        and shape_fits
        and (feature.dtype.startswith("float") or feature.dtype == "uint16")
    )


def _metres(values: np.ndarray, stored: str) -> np.ndarray:
    values = values.astype(np.float32)
    return values / np.float32(1000) if stored == "uint16" else values


def _key(name: str, features: dict[str, Feature], *, is_depth: bool, is_colour: bool) -> str:
    step, *rest = name.split("/")[1:]
    if step == "action":
        return "/".join(["actions", *rest])
    if step != "observation":
        return "/".join([step, *rest])
    if is_depth:
        camera = rest[-1].replace("depth", "image")
        if "/".join(["steps/observation", *rest[:-1], camera]) not in features:
            camera = rest[-1].removesuffix("_depth")
        return "obs/depths/" + "_".join([*rest[:-1], camera])
    return "obs/images/" + "_".join(rest) if is_colour else "/".join(["obs", *rest])
