"""The zarr replay buffer of ppt_learning, DP3 and Diffusion Policy: a folder or a `.zarr.zip`.

`/data/<key>` is time-major over all episodes, groups may nest; `/meta/episode_ends` (E,) int64, cumulative, exclusive.
ppt_learning and ppt_kit nest (`data/obs/images/<camera>`) and describe episodes and cameras under /meta; DP3 and
Diffusion Policy have flat keys (`data/img`, `data/point_cloud`, `data/state`, `data/action`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import ZipStore

from ppt_kit.cameras import Camera, camera_to_world
from ppt_kit.config import UserError
from ppt_kit.data.rows import PlainRows, Segment
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore, PlainColumn

NAME = "zarr replay buffer"
LOOKED_FOR = "data/ and meta/episode_ends in a folder or .zip"

# the flat keys of DP3 and Diffusion Policy
FLAT = {
    "img": "obs/images/camera", "depth": "obs/depths/camera", "point_cloud": "obs/pointcloud/pos", "state": "obs/state",
    "action": "actions", "keypoint": "obs/keypoint", "n_contacts": "obs/n_contacts",
}  # fmt: skip
RENAMED = {"obs/pointcloud/color": "obs/pointcloud/colors"}
MOST_FILES = 100_000  # of a plain array; above that its chunk files are read through zarr and cached


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
        root = zarr.open_group(ZipStore(path, mode="r") if path.is_file() else str(path), mode="r")
        ends = np.asarray(root["meta/episode_ends"][:], dtype=np.int64)  # type: ignore[index]
        found = dict(_walk(root["data"]))
        meta = dict(_walk(root["meta"]))
    except (KeyError, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a replay buffer: it needs meta/episode_ends and a group data ({type(error).__name__}: {str(error)[:80]})."
        ) from None
    flat = "action" in found
    columns: dict[str, Column] = {}
    for name, array in found.items():
        if name.split("/")[0] in ("initial_state", "states"):  # the simulator's own, not observations
            continue
        columns[_key(name, flat=flat)] = _column(path, name, array)
    attrs = json.loads(json.dumps(dict(root.attrs)))
    sentences = attrs.get("descriptions")
    if sentences is None and "episode_descriptions" in meta:
        sentences = [str(text) for text in meta["episode_descriptions"][:]]
    _check_per_episode(path, ends, sentences)
    return EpisodeStore(
        path=path, format=NAME, episode_ends=ends, columns=columns, attrs=attrs, sentences=sentences, cameras=_cameras(meta, attrs),
    )  # fmt: skip


def _key(name: str, *, flat: bool) -> str:
    if flat and name in FLAT:
        return FLAT[name]
    if flat and "/" not in name and name not in ("reward", "rewards", "done", "dones"):
        return f"obs/{name}"
    return RENAMED.get(name, name)


def _column(path: Path, name: str, array: Any) -> Column:
    rows = _plain_rows(path / "data" / name, array) if path.is_dir() else None
    if rows is not None:
        return PlainColumn(rows, stored_as=f"data/{name}", layout=_layout(array, plain=True))
    return DecodedColumn(
        tuple(array.shape),
        array.dtype,
        _decoder(path, name, array),
        stored_as=f"data/{name}",
        layout=_layout(array, plain=False),
    )


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
        if not file.is_file():  # zarr leaves out chunks that hold the fill value alone
            return None
        if file.stat().st_size < min(chunk, total - first) * row_bytes:
            raise UserError(
                f"{file}: {file.stat().st_size} bytes, fewer than its rows need: it was not written to its end."
            )
        segments.append(Segment(file, 0, min(chunk, total - first)))
    return PlainRows(segments, row_shape=tuple(meta["shape"][1:]), dtype=meta["dtype"]) if segments else None


def _decoder(path: Path, name: str, array: Any):
    """Whole chunks at a time: a chunk that was decompressed for one of its rows has them all."""
    chunk = int(array.chunks[0])

    def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for index in np.unique(rows // chunk).tolist():
            first = index * chunk
            try:
                yield first, np.asarray(array[first : first + chunk])
            except Exception as error:  # every codec has exceptions of its own
                raise UserError(
                    f"{path}/data/{name}: rows {first} to {first + chunk} cannot be decoded: {error}"
                ) from None

    return decode


def _layout(array: Any, *, plain: bool) -> str:
    chunks = -(-array.shape[0] // array.chunks[0])
    how = (
        "plain" if plain else ", ".join(type(codec).__name__ for codec in array.compressors) or "chunks that split rows"
    )
    return f"{how}, {chunks} chunk(s) of {array.chunks[0]} rows"


def _cameras(meta: dict[str, Any], attrs: dict) -> dict[str, Camera]:
    convention = attrs.get("camera_convention", "opengl")
    found = {}
    for key in meta:
        if key.startswith("camera_info/") and key.endswith("/intrinsics"):
            name = key.split("/")[1]
            pose = meta.get(f"camera_info/{name}/extrinsics")
            if pose is not None:
                found[name] = Camera(
                    np.asarray(meta[key][...]), camera_to_world(np.asarray(pose[...]), convention=convention)
                )
    return found


def _check_per_episode(path: Path, ends: np.ndarray, sentences: list[str] | None) -> None:
    if sentences is not None and len(sentences) != len(ends):
        raise UserError(f"{path}: {len(sentences)} descriptions for {len(ends)} episodes. The dataset is damaged.")


def _walk(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, child in sorted(group.members()):
        if isinstance(child, zarr.Group):
            found += _walk(child, f"{prefix}{name}/")
        else:
            found.append((f"{prefix}{name}", child))
    return found
