"""The zarr replay buffer of ppt_learning, DP3 and Diffusion Policy: a folder or a `.zarr.zip`.

`/data/<key>` is time-major over all episodes, groups may nest; `/meta/episode_ends` (E,) int64, cumulative, exclusive.
ppt_learning and ppt_kit nest (`data/obs/images/<camera>`) and describe episodes and cameras under /meta; DP3 and
Diffusion Policy have flat keys (`data/img`, `data/point_cloud`, `data/state`, `data/action`).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning
from zarr.storage import ZipStore

from ppt_kit.cameras import Camera
from ppt_kit.data.calibration import checked_camera
from ppt_kit.data.formats.replay_buffer.chunks import (
    Chunks,
    member_sizes,
    refuse_cut_blosc,
    refuse_pointers,
    written_by_us,
)
from ppt_kit.data.formats.replay_buffer.writer import WRITTEN_BY
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore, PlainColumn, picture_column
from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer

NAME = "zarr replay buffer"
LOOKED_FOR = "data/ and meta/episode_ends in a folder or .zip"

# the flat keys of DP3 and Diffusion Policy
FLAT = {
    "img": "obs/images/camera", "depth": "obs/depths/camera", "point_cloud": "obs/pointcloud/pos", "state": "obs/state",
    "action": "actions", "actions": "actions",
}  # fmt: skip
RENAMED = {"obs/pointcloud/color": "obs/pointcloud/colors"}
# what zarr says of arrays and groups
DESCRIPTIONS = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


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
    with _opening(path), warnings.catch_warnings():
        # of folders that are neither array nor group; they are refused below, by name
        warnings.simplefilter("ignore", ZarrUserWarning)
        source = _Source(path)
        attrs = json.loads(json.dumps(dict(source.root.attrs)))
        arrays = dict(_walk(source.root["data"], "data/")) | dict(_walk(source.root["meta"], "meta/"))
        sizes, noted = member_sizes(path), WRITTEN_BY in source.root["meta"].attrs
    if noted and WRITTEN_BY not in attrs:
        raise UserError(
            f"{path}/.zattrs: lost, or not as written: ppt_kit wrote this dataset, and notes there what it wrote. "
            "Copy the dataset again."
        )
    _refuse_lost_descriptions(path, arrays)
    ours = written_by_us(attrs, arrays, path=path)
    attrs.pop(WRITTEN_BY, None)
    chunks = {name: Chunks(path, name, array, ours=name in ours, sizes=sizes) for name, array in arrays.items()}
    with _opening(path):
        meta = {name[5:]: np.asarray(array[...]) for name, array in arrays.items() if name.startswith("meta/")}
    ends = _episode_ends(meta.get("episode_ends"), path)
    found = {name[5:]: each for name, each in chunks.items() if name.startswith("data/")}
    return EpisodeStore(
        path=path, format=NAME, episode_ends=ends, columns=_columns(source, found, ends=ends), attrs=attrs,
        sentences=_sentences(attrs, meta, path=path, count=len(ends)), cameras=_cameras(meta, attrs, path=path),
        left_out=_left_out(found),
    )  # fmt: skip


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Says of what cannot be opened which file it is."""
    try:
        yield
    # zip files, codecs and JSON have exceptions of their own
    except Exception as error:
        if isinstance(error, UserError):
            raise
        for file in sorted(path.rglob("*")) if path.is_dir() else ():
            if file.is_file():
                refuse_lfs_pointer(file)
                if file.name in DESCRIPTIONS:
                    _check_json(file)
        raise UserError(
            f"{path}: not a replay buffer that can be read: it needs meta/episode_ends and a group data "
            f"({type(error).__name__}: {str(error)[:120]})."
        ) from None


def _check_json(file: Path) -> None:
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: no JSON ({error}). Copy the dataset again.") from None
    if not isinstance(told, dict):
        raise UserError(f"{file}: {str(told)[:40]}, where zarr has a mapping. Copy the dataset again.")


def _refuse_lost_descriptions(path: Path, arrays: Mapping[str, Any]) -> None:
    """An array whose .zarray is gone, or a group whose .zgroup is, would be left out without a word."""
    waiting = [path / "data", path / "meta"] if path.is_dir() else []
    while waiting:
        for entry in sorted(waiting.pop().iterdir()):
            name = entry.relative_to(path).as_posix()
            if entry.name.startswith(".") or name in arrays or not entry.is_dir():
                continue
            inside = [child.name for child in entry.iterdir()]
            if ".zarray" in inside:
                raise UserError(
                    f"{path}: {name} is there and .zmetadata, which lists the arrays, does not have it: make that anew "
                    "with zarr.consolidate_metadata, or move that folder out of the dataset."
                )
            if {".zgroup", "zarr.json"} & set(inside):
                waiting.append(entry)
            elif inside:
                raise UserError(
                    f"{path}: {name} holds files ({inside[0]}, …) and no description (.zarray, .zgroup): what it is "
                    "cannot be told. Copy the dataset again, or move that folder out of it."
                )


def _episode_ends(values: np.ndarray | None, path: Path) -> np.ndarray:
    """(E,) int64, increasing."""
    if values is None:
        raise UserError(f"{path}: has no meta/episode_ends, so where episodes end is not known. Copy it again.")
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(
            f"{path}: meta/episode_ends is {values.dtype} of shape {values.shape}; it takes whole numbers (E,), one "
            "past the last row of each episode. Write it again."
        )
    return values.astype(np.int64)


def _sentences(attrs: dict, meta: Mapping[str, np.ndarray], *, path: Path, count: int) -> list[str] | None:
    sentences = attrs.get("descriptions")
    if sentences is None and "episode_descriptions" in meta:
        sentences = [str(text) for text in np.atleast_1d(meta["episode_descriptions"])]
    if sentences is None:
        return None
    if not isinstance(sentences, list) or not all(isinstance(text, str) for text in sentences):
        raise UserError(f"{path}: descriptions in .zattrs is {str(sentences)[:60]}, not a list of texts. Mend it.")
    if len(sentences) != count:
        raise UserError(f"{path}: {len(sentences)} descriptions for {count} episodes. The dataset is damaged.")
    return sentences


def _left_out(found: Mapping[str, Chunks]) -> dict[str, str]:
    """What is no column, and why."""
    why = {
        name: f"{chunks.array.dtype}: no numbers, so it is no column"
        for name, chunks in found.items()
        if chunks.array.dtype.kind not in "biuf" and not _is_simulators(name)
    }
    simulators = {name: "the simulator's own, not observations" for name in found if _is_simulators(name)}
    return {f"data/{name}": text for name, text in {**why, **simulators}.items()}


def _is_simulators(name: str) -> bool:
    return name.startswith(("initial_state/", "states/"))


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


def _columns(source: _Source, found: dict[str, Chunks], *, ends: np.ndarray) -> dict[str, Column]:
    flat = not any(name.startswith("obs/") for name in found)
    columns: dict[str, Column] = {}
    for name, chunks in found.items():
        if _is_simulators(name) or chunks.array.dtype.kind not in "biuf" or not chunks.array.ndim:
            continue
        key = _flat_key(name, chunks.array) if flat else RENAMED.get(name, name)
        column = _column(source, name, chunks, ends=ends)
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


def _column(source: _Source, name: str, chunks: Chunks, *, ends: np.ndarray) -> Column:
    rows, array = chunks.plain_rows(), chunks.array
    layout = _layout(array, plain=rows is not None) + (f"; {chunks.absent}" if chunks.absent else "")
    if rows is not None:
        return PlainColumn(rows, stored_as=f"data/{name}", layout=layout)
    decode = _decoder(source, name, array, ends=ends)
    return DecodedColumn(tuple(array.shape), array.dtype, decode, stored_as=f"data/{name}", layout=layout)


def _decoder(source: _Source, name: str, array: Any, *, ends: np.ndarray):
    """Whole chunks at a time: a chunk that was decompressed for one of its rows has them all."""
    chunk = int(array.chunks[0])

    def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        stored = source.array(name)
        for index in np.unique(rows // chunk).tolist():
            first = index * chunk
            try:
                refuse_cut_blosc(source.path / "data" / name, stored, first)
                yield first, np.asarray(stored[first : first + chunk])
            # every codec has exceptions of its own
            except Exception as error:
                refuse_pointers(source.path / "data" / name, stored, first)
                episode = int(np.searchsorted(ends, first, side="right"))
                raise UserError(
                    f"{source.path}: data/{name} of episode {episode} "
                    f"(rows {first} to {min(first + chunk, stored.shape[0]) - 1}) cannot be decoded: {error}"
                ) from None

    return decode


def _layout(array: Any, *, plain: bool) -> str:
    chunks = -(-array.shape[0] // array.chunks[0])
    how = (
        "plain" if plain else ", ".join(type(codec).__name__ for codec in array.compressors) or "chunks that split rows"
    )
    return f"{how}, {chunks} chunk(s) of {array.chunks[0]} rows"


def _cameras(meta: dict[str, np.ndarray], attrs: dict, *, path: Path) -> dict[str, Camera]:
    convention = attrs.get("camera_convention", "opengl")
    names = {key.split("/")[1] for key in meta if re.fullmatch("camera_info/[^/]+/(intrinsics|extrinsics)", key)}
    found = {}
    for name in sorted(names):
        where = f"{path}: meta/camera_info/{name}"
        both = [meta.get(f"camera_info/{name}/{what}") for what in ("intrinsics", "extrinsics")]
        found[name] = checked_camera(where, *both, convention=convention)
    return found


def _walk(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, child in sorted(group.members()):
        if isinstance(child, zarr.Group):
            found += _walk(child, f"{prefix}{name}/")
        else:
            found.append((f"{prefix}{name}", child))
    return found
