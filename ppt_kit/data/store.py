"""Episodes on disk: the zarr replay buffer that ppt_learning, DP3 and Diffusion Policy share, read in place and written whole.

`/data/<key>` is time-major over all episodes, groups may nest; `/meta/episode_ends` (E,) int64, cumulative, exclusive.
What this writes is zarr v2 without compression, so that an array is plain bytes and reading a row is a memory copy.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from ppt_kit.config import UserError

CHUNK_BYTES = 64 << 20


class EpisodeStore(Protocol):
    """What every format offers: rows of named arrays, cut into episodes."""

    path: Path
    episode_ends: np.ndarray  # (E,) int64, one past the last row of each episode
    attrs: dict  # what was recorded with the data: task, camera, seeds

    def keys(self) -> list[str]:
        """Names of the arrays, `/` between groups."""

    def shape(self, key: str) -> tuple[int, ...]:
        """(N, ...) of one array."""

    def dtype(self, key: str) -> np.dtype:
        """Element type of one array."""

    def read(self, key: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), ...) rows of one array, in the order asked for, repeats included."""


class ZarrStore:
    """A replay buffer on disk.

    Raises:
        UserError: the folder is not one, or its episode_ends do not fit its arrays.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(
                f"{self.path}: no such dataset. Collect one with `python scripts/collect_demos.py task={self.path.stem}`, "
                "or set dataset_path and domains to one that exists."
            )
        try:
            root = zarr.open_group(str(self.path), mode="r")
            self.episode_ends = np.asarray(root["meta/episode_ends"][:], dtype=np.int64)  # type: ignore[index]
        except (KeyError, FileNotFoundError, ValueError, TypeError):
            raise UserError(f"{self.path}: not a replay buffer: it needs meta/episode_ends and a group data.") from None
        self._arrays = dict(_walk(root["data"]))
        self._meta = dict(_walk(root["meta"]))
        self.attrs = json.loads(json.dumps(dict(root.attrs)))
        self._maps: dict[str, list[np.ndarray] | None] = {}
        self._check_ends()

    def keys(self) -> list[str]:
        return list(self._arrays)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._arrays[key].shape)

    def dtype(self, key: str) -> np.dtype:
        return np.dtype(self._arrays[key].dtype)

    def meta(self, key: str) -> np.ndarray | None:
        """One array of /meta, or None."""
        return np.asarray(self._meta[key][:]) if key in self._meta else None

    def read(self, key: str, rows: np.ndarray) -> np.ndarray:
        if key not in self._maps:
            self._maps[key] = _memory_maps(self.path / "data" / key, self._arrays[key])
        maps = self._maps[key]
        if maps is None:
            return np.asarray(self._arrays[key].oindex[np.asarray(rows)])
        if len(maps) == 1:
            return maps[0][rows]
        chunk = maps[0].shape[0]
        out = np.empty((len(rows), *maps[0].shape[1:]), maps[0].dtype)
        owner = np.asarray(rows) // chunk
        for index in np.unique(owner):
            mine = owner == index
            out[mine] = maps[index][np.asarray(rows)[mine] - index * chunk]
        return out

    def __reduce__(self):
        return ZarrStore, (self.path,)  # another process maps the files itself

    def _check_ends(self) -> None:
        ends, steps = self.episode_ends, {array.shape[0] for array in self._arrays.values()}
        if len(ends) == 0 or not self._arrays:
            raise UserError(f"{self.path}: holds no episode.")
        starts = np.concatenate([[0], ends[:-1]])
        if (ends <= starts).any():
            bad = int(np.argmax(ends <= starts))
            raise UserError(
                f"{self.path}: episode {bad} is empty: episode_ends goes from {starts[bad]} to {ends[bad]}."
            )
        short = {name: array.shape[0] for name, array in self._arrays.items() if array.shape[0] != ends[-1]}
        if short:
            name, length = next(iter(short.items()))
            raise UserError(
                f"{self.path}: data/{name} has {length} rows, but episode {len(ends) - 1} ends at {ends[-1]} "
                f"(lengths found: {sorted(steps)}). The store is damaged or was not written to its end."
            )


class ZarrWriter:
    """Writes a replay buffer: beside its name while episodes come in, under its name once it is whole.

    Use as a context manager; an exception inside leaves nothing behind, and what stood under that name stays.

    Raises:
        UserError: something stands under that name and `overwrite` is false, or the folder is read-only.
    """

    def __init__(self, path: str | Path, *, attrs: dict | None = None, overwrite: bool = False):
        self.path, self.attrs, self.overwrite = Path(path), dict(attrs or {}), overwrite
        if self.path.exists() and not overwrite:
            raise UserError(
                f"{self.path} exists already. Type overwrite=true to replace it, or choose another domain=…."
            )
        self._beside = self.path.with_name(f".{self.path.name}.writing-{os.getpid()}")
        self._files: dict[str, Any] = {}
        self._rows: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        self._ends: list[int] = []
        self._meta: dict[str, list] = {}
        self.constants: dict[str, np.ndarray] = {}  # stored as /meta/<name>, the same for every episode

    def __enter__(self) -> ZarrWriter:
        try:
            (self._beside / "spool").mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: cannot be written to ({error.strerror}). Set dataset_path to a folder of yours."
            ) from None
        return self

    def append(self, arrays: Mapping[str, np.ndarray], *, meta: Mapping[str, Any] | None = None) -> None:
        """One episode.

        Args:
            arrays: key -> (T, ...), the same keys, shapes and types for each episode.
            meta: name -> one value an episode, stored as /meta/<name> (E,).
        Raises:
            ValueError: keys, lengths, shapes or types differ from the episodes before, or a value is not finite.
        """
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"{self.path}: an episode's arrays must have one length above 0, got {sorted(lengths)}")
        rows = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
        if self._ends and rows != self._rows:
            raise ValueError(
                f"{self.path}: episode {len(self._ends)} differs from those before: {rows} is not {self._rows}"
            )
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise ValueError(f"{self.path}: episode {len(self._ends)}: {name} holds values that are not finite")
        self._rows = rows
        for name, array in arrays.items():
            if name not in self._files:
                self._files[name] = open(self._beside / "spool" / name.replace("/", "."), "wb")  # noqa: SIM115
            self._files[name].write(np.ascontiguousarray(array).tobytes())
        self._ends.append((self._ends[-1] if self._ends else 0) + lengths.pop())
        for name, value in (meta or {}).items():
            self._meta.setdefault(name, []).append(value)

    def __exit__(self, kind, error, trace) -> None:
        for file in self._files.values():
            file.close()
        try:
            if kind is None and self._ends:
                self._finish()
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)

    def _finish(self) -> None:
        root = zarr.open_group(str(self._beside / "store"), mode="w", zarr_format=2)
        root.attrs.update(self.attrs)
        for name, (shape, dtype) in self._rows.items():
            spooled = np.memmap(self._beside / "spool" / name.replace("/", "."), dtype=dtype, mode="r").reshape(
                -1, *shape
            )
            _write_array(root, f"data/{name}", spooled)
        _write_array(root, "meta/episode_ends", np.asarray(self._ends, np.int64))
        for name, values in self._meta.items():
            array = np.asarray(values)
            _write_array(root, f"meta/{name}", array.astype("U100") if array.dtype.kind == "U" else array)
        for name, constant in self.constants.items():
            _write_array(root, f"meta/{name}", np.asarray(constant))
        for file in (self._beside / "store").rglob("*"):
            if file.is_file():
                _fsync(file)
        if self.path.exists() and self.overwrite:
            aside = self._beside / "replaced"
            os.rename(self.path, aside)
        os.rename(self._beside / "store", self.path)
        _fsync(self.path.parent)


def open_store(dataset_path: str | Path, domain: str) -> ZarrStore:
    """The dataset of one domain.

    Raises:
        UserError: it is not there; the line names the domains that are.
    """
    path = Path(dataset_path) / f"{domain}.zarr"
    if not path.exists():
        there = sorted(other.stem for other in Path(dataset_path).glob("*.zarr"))
        known = f"{dataset_path} holds {', '.join(there)}. " if there else f"{dataset_path} holds no dataset. "
        raise UserError(
            f"domains={domain}: no {path}. {known}Set domains=… and dataset_path=…, "
            f"or collect it with `python scripts/collect_demos.py task={domain}`."
        )
    return ZarrStore(path)


def _walk(group: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, child in sorted(group.members()):
        if isinstance(child, zarr.Group):
            found += _walk(child, f"{prefix}{name}/")
        else:
            found.append((f"{prefix}{name}", child))
    return found


def _memory_maps(folder: Path, array: Any) -> list[np.ndarray] | None:
    """One map a chunk, where chunks are plain bytes of whole rows; None where they are not."""
    meta_file = folder / ".zarray"
    if not meta_file.is_file():
        return None
    meta = json.loads(meta_file.read_text())
    plain = meta["compressor"] is None and not meta.get("filters") and meta["order"] == "C"
    if not plain or meta["chunks"][1:] != meta["shape"][1:] or array.dtype.kind not in "biuf":
        return None
    chunk, rows = meta["chunks"][0], meta["shape"][0]
    separator = meta.get("dimension_separator", ".")
    maps: list[np.ndarray] = []
    for index in range(-(-rows // chunk)):
        name = separator.join([str(index)] + ["0"] * (len(meta["shape"]) - 1))
        if not (folder / name).is_file():  # zarr leaves out chunks that hold the fill value alone
            return None
        maps.append(np.memmap(folder / name, dtype=np.dtype(meta["dtype"]), mode="r", shape=tuple(meta["chunks"])))
    return maps


def _write_array(root: Any, name: str, values: np.ndarray) -> None:
    bytes_a_row = max(1, values[:1].nbytes)
    chunks = max(1, -(-len(values) * bytes_a_row // CHUNK_BYTES))
    rows = max(1, -(-len(values) // chunks))
    array = root.create_array(
        name, shape=values.shape, chunks=(rows, *values.shape[1:]), dtype=values.dtype, compressors=None,
        config={"write_empty_chunks": True},
    )  # fmt: skip
    for start in range(0, len(values), rows):
        array[start : start + rows] = values[start : start + rows]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
