"""The zarr replay buffer of ppt_learning, DP3 and Diffusion Policy: a folder or a `.zarr.zip`.

`/data/<key>` is time-major over all episodes, groups may nest; `/meta/episode_ends` (E,) int64, cumulative, exclusive.
ppt_learning and ppt_kit nest (`data/obs/images/<camera>`) and describe episodes and cameras under /meta; DP3 and
Diffusion Policy have flat keys (`data/img`, `data/point_cloud`, `data/state`, `data/action`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from ppt_kit.cameras import Camera, camera_to_world
from ppt_kit.data.disk.rows import PlainRows, Segment
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore, PlainColumn, picture_column
from ppt_kit.errors import UserError

NAME = "zarr replay buffer"
LOOKED_FOR = "data/ and meta/episode_ends in a folder or .zip"

# the flat keys of DP3 and Diffusion Policy
FLAT = {
    "img": "obs/images/camera", "depth": "obs/depths/camera", "point_cloud": "obs/pointcloud/pos", "state": "obs/state",
    "action": "actions", "actions": "actions",
}  # fmt: skip
RENAMED = {"obs/pointcloud/color": "obs/pointcloud/colors"}
# of a plain array; above that its chunk files are read through zarr and cached
MOST_FILES = 100_000


def recognises(path: Path) -> bool:
    if path.is_dir():
        return (
            (path / "meta/episode_ends").is_dir()
            or (path / "data").is_dir()
            and (path / ".zgroup").is_file()
            or path.suffix == ".zarr"
        )
    if path.suffix != ".zip":
        return False
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def open_store(path: Path, *, filter_key: str | None = None) -> EpisodeStore:
    if filter_key is not None:
        raise UserError(f"dataset.filter_key={filter_key}: {path} is a zarr replay buffer, which has no named parts.")
    try:
        source = _Source(path)
        ends = np.asarray(source.root["meta/episode_ends"][:], dtype=np.int64)
        found = dict(_walk(source.root["data"]))
        meta = {name: np.asarray(array[...]) for name, array in _walk(source.root["meta"])}
    # zip files, codecs and JSON have exceptions of their own
    except Exception as error:
        raise UserError(
            f"{path}: not a replay buffer that can be read: it needs meta/episode_ends and a group data "
            f"({type(error).__name__}: {str(error)[:120]})."
        ) from None
    attrs = json.loads(json.dumps(dict(source.root.attrs)))
    sentences = attrs.get("descriptions")
    if sentences is None and "episode_descriptions" in meta:
        sentences = [str(text) for text in meta["episode_descriptions"]]
    if sentences is not None and len(sentences) != len(ends):
        raise UserError(f"{path}: {len(sentences)} descriptions for {len(ends)} episodes. The dataset is damaged.")
    return EpisodeStore(
        path=path, format=NAME, episode_ends=ends, columns=_columns(source, found, ends=ends), attrs=attrs,
        sentences=sentences, cameras=_cameras(meta, attrs),
    )  # fmt: skip


class _Source:
    """The opened group.

    A zip is opened again in a forked process: two that share a file's position read each other's bytes.
    """

    def __init__(self, path: Path):
        self.path = path
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        store = ZipStore(self.path, mode="r") if self.path.is_file() else str(self.path)
        self.root: Any = zarr.open_group(store, mode="r")

    def array(self, name: str) -> Any:
        if self._pid != os.getpid():
            self._open()
        return self.root[f"data/{name}"]


def _columns(source: _Source, arrays: dict[str, Any], *, ends: np.ndarray) -> dict[str, Column]:
    flat = not any(name.startswith("obs/") for name in arrays)
    columns: dict[str, Column] = {}
    for name, array in arrays.items():
        # the simulator's own, not observations
        if name.startswith(("initial_state/", "states/")):
            continue
        key = _flat_key(name, array) if flat else RENAMED.get(name, name)
        column = _column(source, name, array, ends=ends)
        columns[key] = picture_column(column) if key.startswith("obs/images/") else column
    return columns


def _flat_key(name: str, array: Any) -> str:
    """The name here of a key of DP3, Diffusion Policy or UMI; pictures are told by their shape, as robomimic's are."""
    shape = array.shape
    if name in FLAT:
        return FLAT[name]
    if "depth" in name and array.dtype.kind in "uif" and (len(shape) == 3 or (len(shape) == 4 and shape[-1] == 1)):
        return f"obs/depths/{name.removesuffix('_depth')}"
    if len(shape) == 4 and 3 in (shape[1], shape[-1]) and min(shape[2:]) > 1 and array.dtype.kind in "uf":
        return f"obs/images/{re.sub('_(rgb|image|img)$', '', name)}"
    if "/" in name or name in ("reward", "rewards", "done", "dones", "states"):
        return name
    return f"obs/{name}"


def _column(source: _Source, name: str, array: Any, *, ends: np.ndarray) -> Column:
    rows = _plain_rows(source.path / "data" / name, array) if source.path.is_dir() else None
    if rows is not None:
        return PlainColumn(rows, stored_as=f"data/{name}", layout=_layout(array, plain=True))
    return DecodedColumn(
        tuple(array.shape), array.dtype, _decoder(source, name, array, ends=ends), stored_as=f"data/{name}",
        layout=_layout(array, plain=False),
    )  # fmt: skip


def _plain_rows(folder: Path, array: Any) -> PlainRows | None:
    """Where the rows lie, when chunks are plain bytes of whole rows; None when they are not."""
    meta_file = folder / ".zarray"
    if not meta_file.is_file():
        return None
    meta = json.loads(meta_file.read_text())
    plain = meta["compressor"] is None and not meta.get("filters") and meta["order"] == "C"
    if not plain or meta["chunks"][1:] != meta["shape"][1:] or array.dtype.kind not in "biuf":
        return None
    chunk, total = meta["chunks"][0], meta["shape"][0]
    if -(-total // chunk) > MOST_FILES:
        return None
    separator = meta.get("dimension_separator", ".")
    row_bytes = int(np.prod(meta["shape"][1:], dtype=np.int64)) * array.dtype.itemsize
    segments = []
    for first in range(0, total, chunk):
        file = folder / separator.join([str(first // chunk)] + ["0"] * (len(meta["shape"]) - 1))
        # zarr leaves out chunks that hold the fill value alone
        if not file.is_file():
            return None
        if file.stat().st_size < min(chunk, total - first) * row_bytes:
            raise UserError(
                f"{file}: {file.stat().st_size} bytes, fewer than its rows need: it was not written to its end."
            )
        segments.append(Segment(file, 0, min(chunk, total - first)))
    return PlainRows(segments, row_shape=tuple(meta["shape"][1:]), dtype=meta["dtype"]) if segments else None


def _decoder(source: _Source, name: str, array: Any, *, ends: np.ndarray):
    """Whole chunks at a time: a chunk that was decompressed for one of its rows has them all."""
    chunk = int(array.chunks[0])

    def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        stored = source.array(name)
        for index in np.unique(rows // chunk).tolist():
            first = index * chunk
            try:
                _refuse_cut_chunks(source.path / "data" / name, stored, index)
                yield first, np.asarray(stored[first : first + chunk])
            # every codec has exceptions of its own
            except Exception as error:
                episode = int(np.searchsorted(ends, first, side="right"))
                raise UserError(
                    f"{source.path}: data/{name} of episode {episode} "
                    f"(rows {first} to {min(first + chunk, stored.shape[0]) - 1}) cannot be decoded: {error}"
                ) from None

    return decode


def _refuse_cut_chunks(folder: Path, array: Any, index: int) -> None:
    """Blosc reads past the end of a chunk file that was cut, and gives numbers: its header says how long it must be.

    Raises:
        ValueError: a file of the chunk row `index` is shorter.
    """
    if not folder.is_dir() or not any("blosc" in type(codec).__name__.lower() for codec in array.compressors):
        return
    if array.metadata.zarr_format == 2:
        separator = array.metadata.dimension_separator
    else:
        folder, separator = folder / "c", "/"
    counts = [-(-size // part) for size, part in zip(array.shape[1:], array.chunks[1:])]
    for place in np.ndindex(*counts):
        file = folder / separator.join(map(str, (index, *place)))
        if file.is_file():
            with file.open("rb") as opened:
                header = opened.read(16)
            needed = int.from_bytes(header[12:16], "little")
            if len(header) < 16 or file.stat().st_size < needed:
                raise ValueError(f"{file} has {file.stat().st_size} bytes of {needed}: it was not written to its end")


def _layout(array: Any, *, plain: bool) -> str:
    chunks = -(-array.shape[0] // array.chunks[0])
    how = (
        "plain" if plain else ", ".join(type(codec).__name__ for codec in array.compressors) or "chunks that split rows"
    )
    return f"{how}, {chunks} chunk(s) of {array.chunks[0]} rows"


def _cameras(meta: dict[str, np.ndarray], attrs: dict) -> dict[str, Camera]:
    convention = attrs.get("camera_convention", "opengl")
    found = {}
    for key, intrinsics in meta.items():
        if key.startswith("camera_info/") and key.endswith("/intrinsics"):
            name = key.split("/")[1]
            pose = meta.get(f"camera_info/{name}/extrinsics")
            if pose is not None:
                found[name] = Camera(intrinsics, camera_to_world(pose, convention=convention))
    return found


def _walk(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, child in sorted(group.members()):
        if isinstance(child, zarr.Group):
            found += _walk(child, f"{prefix}{name}/")
        else:
            found.append((f"{prefix}{name}", child))
    return found
