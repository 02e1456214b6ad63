"""Columns of a store as LeRobot's features: their names, types and cells."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError

LEAST_FPS, MOST_FPS = 0.001, 10_000
# LeRobot's own columns, which are counted anew
COUNTED = {
    "timestamp": np.float32, "frame_index": np.int64, "episode_index": np.int64, "index": np.int64,
    "task_index": np.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """One column of the store as LeRobot has it."""

    name: str
    key: str
    kind: str  # "numbers", "image" or "video"
    dtype: np.dtype
    shape: tuple[int, ...]
    labels: list[str] | None

    @property
    def type(self) -> pa.DataType:
        """What it is in the tables."""
        if self.kind == "image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kind = pa.from_numpy_dtype(self.dtype)
        if self.shape == (1,):
            return kind
        if len(self.shape) == 1:
            return pa.list_(kind, self.shape[0])
        for _ in self.shape:
            kind = pa.list_(kind)
        return kind

    def cells(self, values: np.ndarray) -> pa.Array:
        """(n, ...) values as a column of a table."""
        if self.kind == "image":
            return pa.array([{"bytes": _png(image), "path": None} for image in values], self.type)
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        if len(self.shape) == 1:
            return array if self.shape == (1,) else pa.FixedSizeListArray.from_arrays(array, self.shape[0])
        for size in reversed(self.shape):
            array = pa.ListArray.from_arrays(pa.array(np.arange(0, len(array) + 1, size, dtype=np.int32)), array)
        return array


def fps_of(store: EpisodeStore, fps: float | None) -> float:
    """Control steps a second: those given, or else those that the dataset says."""
    found = fps if fps is not None else store.attrs.get("fps")
    if found is None:
        raise UserError(
            f"fps=null: {store.path} does not say its steps a second. Type fps=10, or what it was recorded at."
        )
    if not isinstance(found, (int, float)) or not LEAST_FPS <= found <= MOST_FPS:
        whose = "" if fps is not None else f" (as {store.path} says)"
        raise UserError(
            f"fps={found}{whose}: no number of steps a second from {LEAST_FPS} to {MOST_FPS}. Type fps=10, or what it "
            "was recorded at."
        )
    return found


def features_of(store: EpisodeStore, keys: Sequence[str], *, video: bool) -> list[Feature]:
    """The columns that `keys` name.

    Args:
        video: whether pictures go into videos, or into the tables.
    Raises:
        UserError: LeRobot has no feature for one, or would call two the same.
    """
    named = [(_feature_name(key), key) for key in keys]
    found = [
        _picture(store, name, key, video=video) if key.startswith("obs/images/") else _number(store, name, key)
        for name, key in named
        if name not in COUNTED
    ]
    twice = [feature.name for feature in found if sum(other.name == feature.name for other in found) > 1]
    if twice or not found:
        why = f"two columns would be called {twice[0]}" if twice else "no column to write"
        raise UserError(f"{store.path}: {why}. Set keys=[…].")
    return found


def _picture(store: EpisodeStore, name: str, key: str, *, video: bool) -> Feature:
    shape, dtype = store.shape(key)[1:], store.dtype(key)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise UserError(
            f"{store.path}: {key} is {dtype} of shape {shape}; LeRobot's pictures are uint8 (H, W, 3). "
            "Leave it out: keys=[…]."
        )
    if video and (shape[0] % 2 or shape[1] % 2):
        raise UserError(f"{store.path}: {key} is {shape[0]}x{shape[1]}: videos have even sizes. Type video=false.")
    return Feature(name, key, "video" if video else "image", dtype, shape, ["height", "width", "channels"])


def _number(store: EpisodeStore, name: str, key: str) -> Feature:
    shape, dtype = store.shape(key)[1:], store.dtype(key)
    if key.startswith("obs/depths/"):
        dtype, shape = np.dtype(np.float32), (*shape[:2], 1)
    if dtype.kind not in "biuf" or 0 in shape:
        raise UserError(
            f"{store.path}: {key} is {dtype} of shape {shape}, which LeRobot has no feature for. "
            "Leave it out: keys=[…]."
        )
    return Feature(name, key, "numbers", dtype, shape or (1,), store.attrs.get("names", {}).get(key))


def _feature_name(key: str) -> str:
    for begin, instead in (("obs/", "observation."), ("actions/", "action.")):
        if key.startswith(begin):
            return instead + key.removeprefix(begin).replace("/", ".")
    return "action" if key == "actions" else key.replace("/", ".")


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
