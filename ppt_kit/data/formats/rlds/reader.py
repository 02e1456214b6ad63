"""RLDS as TensorFlow Datasets writes it: a folder of shards, one record an episode; read without TensorFlow.

The folder holds dataset_info.json, features.json and `<name>-<split>.tfrecord-00000-of-0000N`, or one version's folder that
does. Of an episode's steps,
    action                        -> actions, or actions/<part> where it is a dictionary
    observation/<key>             -> obs/<key>, or obs/images/<key> for pictures and uint8 (H, W, 3), always with three colours
    observation/<key with depth>  -> obs/depths/<camera>, float32 metres as recorded; uint16 is taken for millimetres. The camera
                                     is the picture's that is called alike (wrist_depth, wrist_image), else the key less _depth
    language_instruction, natural_language_instruction (here or in observation) -> the episode's sentence: its first step's
    anything else of numbers      -> its own name: reward, discount, is_first, is_last, action_dict/…
Other texts, arrays without a fixed shape, sequences within a step and episode_metadata are left out. float64 comes back as
float64, but TensorFlow's records keep 32 bits of it. All steps are there: in many datasets the last step's action is a dummy.
filter_key names a split; without one it is "train", or the only one there is.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ppt_kit.data.formats.rlds import tfrecord
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore
from ppt_kit.errors import UserError

NAME = "RLDS (TFDS folder)"
LOOKED_FOR = "features.json or *.tfrecord-* in a folder or in the one version's folder inside"

SHARD = re.compile(r"(.+)-([^-]+)\.tfrecord-(\d+)-of-(\d+)")
SENTENCES = tuple(
    f"steps/{place}{name}" for name in ("language_instruction", "natural_language_instruction") for place in ("", "observation/")
)  # fmt: skip
# what tells an episode's length at the least cost: one byte a step
COUNTED = ("steps/is_first", "steps/is_last", "steps/is_terminal", "steps/reward", "steps/discount", "steps/action")


def recognises(path: Path) -> bool:
    return path.is_dir() and bool(_versions(path))


def open_store(path: Path, *, filter_key: str | None = None) -> EpisodeStore:
    folder = _folder(path)
    features = _features(folder)
    split, shards, promised = _shards(folder, filter_key)
    episodes = _Episodes(shards, features, promised)
    sentences = episodes.sentences
    return EpisodeStore(
        path=path, format=NAME, episode_ends=episodes.ends, columns=_columns(episodes, features),
        attrs={**_info(folder), "split": split, "filter_key": split}, sentences=sentences if any(sentences) else None,
    )  # fmt: skip


# ---- what is in the folder


def _versions(path: Path) -> list[Path]:
    """The folder itself, or the folders inside that hold a dataset."""
    folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
    found = [
        folder for folder in folders if (folder / "features.json").is_file() or any(folder.glob("*.tfrecord-*-of-*"))
    ]
    return found[:1] if path in found else found


def _folder(path: Path) -> Path:
    versions = _versions(path)
    if len(versions) > 1:
        names = ", ".join(version.name for version in versions)
        raise UserError(f"{path}: holds more than one version: {names}. Name one: {versions[-1]}.")
    return versions[0]


def _info(folder: Path) -> dict:
    file = folder / "dataset_info.json"
    told = _json(file) if file.is_file() else {}
    return {key: told[key] for key in ("name", "version", "description") if key in told}


def _json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}). TFDS writes it beside the shards: copy it again.") from None


def _shards(folder: Path, wanted: str | None) -> tuple[str, list[Path], list[int] | None]:
    """The split to read, its shards in order, and how many episodes dataset_info.json says each holds, if it does."""
    splits: dict[str, dict[int, Path]] = {}
    of: dict[str, int] = {}
    for file in folder.iterdir():
        if match := SHARD.fullmatch(file.name):
            splits.setdefault(match[2], {})[int(match[3])] = file
            of[match[2]] = int(match[4])
    known = ", ".join(sorted(splits)) or "none"
    if wanted is not None:
        split = wanted
    elif "train" in splits or len(splits) != 1:
        split = "train"
    else:
        split = next(iter(splits))
    if split not in splits:
        told = f"dataset.filter_key={wanted}" if wanted is not None else "dataset.filter_key is not set"
        raise UserError(f"{told}: {folder} has no shards of the split {split}; its splits: {known}. Name one of those.")
    missing = sorted(set(range(of[split])) - splits[split].keys())
    if missing:
        raise UserError(
            f"{folder}: shard {missing[0]} of {of[split]} of the split {split} is missing"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else ".")
            + " Copy it there."
        )
    return split, [splits[split][number] for number in range(of[split])], _promised(folder, split, of[split])


def _promised(folder: Path, split: str, num_shards: int) -> list[int] | None:
    file = folder / "dataset_info.json"
    told = _json(file).get("splits", []) if file.is_file() else []
    for note in told if isinstance(told, list) else []:
        lengths = note.get("shardLengths") or note.get("shard_lengths")
        if note.get("name") == split and lengths and len(lengths) == num_shards:
            return [int(length) for length in lengths]
    return None


# ---- what a step holds


@dataclass(frozen=True)
class Feature:
    """One array of a step, as features.json describes it."""

    kind: str  # "Tensor", "Image", "Text"
    shape: tuple[int | None, ...]
    dtype: str
    encoding: str  # of a tensor: "none", "bytes", "zlib"

    @property
    def is_picture(self) -> bool:
        return self.kind == "Image"

    @property
    def is_numbers(self) -> bool:
        return self.kind == "Tensor" and all(self.shape) and re.match("bool|u?int|float", self.dtype) is not None

    @property
    def is_read(self) -> bool:
        return self.is_numbers or self.is_picture

    @property
    def values_a_step(self) -> int:
        """How many values a record's list has for each step."""
        return 1 if self.is_picture or self.encoding != "none" else math.prod(self.fixed_shape)

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        return tuple(size or 0 for size in self.shape)


def _features(folder: Path) -> dict[str, Feature]:
    """The arrays of a step, by their names in a record."""
    file = folder / "features.json"
    if not file.is_file():
        raise UserError(
            f"{file} is missing: shapes and encodings stand there alone. Copy it from where the shards are from."
        )
    found = {name: feature for name, feature in _walk(_json(file), "") if name.startswith("steps/")}
    if not any(feature.is_read for feature in found.values()):
        raise UserError(f"{file}: describes no steps: this is no RLDS dataset, whose records are episodes of steps.")
    return found


def _walk(node: dict, prefix: str, *, depth: int = 0) -> Iterator[tuple[str, Feature]]:
    """Leaves of a feature: of what TFDS writes now (`pythonClassName`), and of what it wrote (`type`, `content`)."""
    kind = str(node.get("pythonClassName") or node.get("type") or "").rsplit(".", 1)[-1]
    content = node.get("content") or {}
    content = json.loads(content) if isinstance(content, str) else content
    if kind == "FeaturesDict" or "featuresDict" in node:
        inside = node.get("featuresDict", content)
        inside = inside.get("features", {}) if "featuresDict" in node or "proto_cls" in node else inside
        for name, child in inside.items():
            yield from _walk(child, f"{prefix}/{name}" if prefix else name, depth=depth)
    elif kind in ("Dataset", "Sequence") or "sequence" in node:
        if depth == 0:  # the steps; a sequence within a step has no fixed shape
            yield from _walk(node.get("sequence", content)["feature"], prefix, depth=1)
    else:
        yield prefix, _leaf(node, kind, content)


def _leaf(node: dict, kind: str, content: dict) -> Feature:
    names = {
        "tensor": "Tensor",
        "image": "Image",
        "text": "Text",
        "boundingBox": "BBoxFeature",
        "classLabel": "ClassLabel",
    }
    key = next((name for name in names if name in node), None)
    about = node[key] if key else content
    kind = names[key] if key else kind
    if kind == "Text":
        return Feature("Text", (), "string", "none")
    if kind == "Image":
        return Feature("Image", _shape(about) or (None, None, 3), _dtype(about, "uint8"), "none")
    default = {"ClassLabel": "int64", "BBox": "float32", "BBoxFeature": "float32"}.get(kind, "unknown")
    shape = (4,) if kind.startswith("BBox") else _shape(about)
    return Feature("Tensor", shape, _dtype(about, default), str(about.get("encoding") or "none").lower())


def _shape(about: dict) -> tuple[int | None, ...]:
    shape = about.get("shape") or []
    shape = shape.get("dimensions", []) if isinstance(shape, dict) else shape
    return tuple(None if size is None or int(size) < 0 else int(size) for size in shape)


def _dtype(about: dict, default: str) -> str:
    match = re.search(r"bool|string|u?int\d+|float\d+", str(about.get("dtype") or default))
    return match[0] if match else "unknown"


# ---- episodes and their steps


@dataclass(frozen=True)
class _Record:
    shard: int
    number: int  # in its shard
    begin: int
    end: int


class _Episodes:
    """The records of a split: where they lie, how long they are, what their first sentence is."""

    def __init__(self, shards: list[Path], features: dict[str, Feature], promised: list[int] | None):
        self.shards = shards
        self.records: list[_Record] = []
        self.sentences: list[str] = []
        lengths: list[int] = []
        needed = {name for name, feature in features.items() if feature.is_read}
        counted = next(name for name in (*COUNTED, *features) if name in needed)
        for shard, path in enumerate(shards):
            before = len(self.records)
            with _mapped(path) as data:
                try:
                    for begin, end in tfrecord.records(data):
                        found = tfrecord.lists(data, begin, end)
                        if absent := needed - found.keys():
                            raise tfrecord.Damaged(f"it has no {min(absent)}, which features.json describes")
                        lengths.append(tfrecord.count(data, *found[counted]) // features[counted].values_a_step)
                        if lengths[-1] == 0:
                            raise tfrecord.Damaged("it has no steps")
                        self.sentences.append(_first_text(data, [found[name] for name in SENTENCES if name in found]))
                        self.records.append(_Record(shard, len(self.records) - before, begin, end))
                except tfrecord.Damaged as error:
                    number = len(self.records)
                    raise UserError(
                        f"{path}: episode {number} (record {number - before} of the shard): {error}. Copy the shard again."
                    ) from None
            if promised is not None and len(self.records) - before != promised[shard]:
                raise UserError(
                    f"{path}: holds {len(self.records) - before} episodes, where dataset_info.json says {promised[shard]}. "
                    "Copy the shard again."
                )
        if not self.records:
            raise UserError(f"{shards[0]}: holds no episode.")
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self._lists = lru_cache(4096)(self._read_lists)
        self._places = lru_cache(4096)(self._read_places)  # 16 bytes a picture

    def steps(self, rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(episode, its first row, (n,) its steps) of sorted rows."""
        owner = np.searchsorted(self.ends, rows, side="right")
        for episode in np.unique(owner).tolist():
            start = int(self.ends[episode - 1]) if episode else 0
            yield episode, start, rows[owner == episode] - start

    def length(self, episode: int) -> int:
        return int(self.ends[episode]) - (int(self.ends[episode - 1]) if episode else 0)

    @contextmanager
    def reading(self, episode: int) -> Iterator[None]:
        """Says which episode it is that is damaged."""
        try:
            yield
        except tfrecord.Damaged as error:
            record = self.records[episode]
            raise UserError(
                f"{self.shards[record.shard]}: episode {episode} (record {record.number} of the shard): {error}. Copy the shard again."
            ) from None

    def numbers(self, episode: int, name: str, feature: Feature) -> np.ndarray:
        """(T, ...) of one array of an episode."""
        kind, begin, end = self._lists(episode)[name]
        shape = (self.length(episode), *feature.fixed_shape)
        if feature.encoding == "none":
            with _mapped(self._path(episode)) as data:
                values = tfrecord.numbers(data, kind, begin, end)
        else:
            undo = zlib.decompress if feature.encoding == "zlib" else bytes
            raw = b"".join(undo(text) for text in self.texts(episode, name, range(shape[0])))
            values = np.frombuffer(raw, feature.dtype)
        if values.size != math.prod(shape):
            raise tfrecord.Damaged(f"{name} has {values.size} values, expected {shape}")
        return values.reshape(shape)

    def texts(self, episode: int, name: str, steps: Iterable[int]) -> Iterator[bytes]:
        """The bytes that some steps of an episode have."""
        places = self._places(episode, name)
        if len(places) != self.length(episode):
            raise tfrecord.Damaged(f"{name} has {len(places)} values, expected {self.length(episode)}")
        with self._path(episode).open("rb", buffering=0) as file:
            for step in steps:
                begin, end = places[step].tolist()
                yield os.pread(file.fileno(), end - begin, begin)

    def _path(self, episode: int) -> Path:
        return self.shards[self.records[episode].shard]

    def _read_lists(self, episode: int) -> dict[str, tuple[int, int, int]]:
        record = self.records[episode]
        with _mapped(self._path(episode)) as data:
            tfrecord.check(data, record.begin, record.end)
            return tfrecord.lists(data, record.begin, record.end)

    def _read_places(self, episode: int, name: str) -> np.ndarray:
        _, begin, end = self._lists(episode)[name]
        with _mapped(self._path(episode)) as data:
            return tfrecord.places(data, begin, end)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """A shard's bytes."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise UserError(f"{path}: cannot be read ({error}). Copy the shard again.") from None
    with data:
        data.madvise(mmap.MADV_RANDOM)  # most of it is stepped over
        if data[:2] == b"\x1f\x8b" and not tfrecord.is_plain(data):
            raise UserError(f"{path}: GZIP-compressed records are not supported. Write them uncompressed.")
        yield data


def _first_text(data: mmap.mmap, candidates: list[tuple[int, int, int]]) -> str:
    for _, begin, end in candidates:
        if text := tfrecord.first(data, begin, end).decode(errors="replace").strip():
            return text
    return ""


# ---- columns


def _columns(episodes: _Episodes, features: dict[str, Feature]) -> dict[str, Column]:
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


def _number_column(episodes: _Episodes, name: str, feature: Feature, features: dict[str, Feature]):
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


def _picture_column(episodes: _Episodes, name: str, feature: Feature, features: dict[str, Feature]):
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
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises these three
        raise tfrecord.Damaged(f"{of} cannot be decoded ({error})") from None
    if dtype.startswith("float"):  # TFDS keeps the four bytes of a float as four colours
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
