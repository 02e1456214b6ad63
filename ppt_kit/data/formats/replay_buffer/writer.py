"""Writes the zarr replay buffer: beside its name while episodes come in, under its name once it is whole.

What this writes is zarr v2 without compression, in chunks of whole rows, so that an array is plain bytes: reading a row
is a memory copy, and any zarr reader reads it too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zarr

from ppt_kit.errors import UserError
from ppt_kit.files import begin_folder, finish_folder

CHUNK_BYTES = 64 << 20
# the attribute that says what was written: array -> [element type, shape]
WRITTEN_BY = "written_by_ppt_kit"


class ZarrWriter:
    """A replay buffer in the making.

    Use as a context manager; an exception inside leaves nothing behind, and what stood under that name stays.

    Args:
        key: what the user sets the place with; named where the place cannot be written to.
    Raises:
        UserError: something stands under that name and `overwrite` is false, or the folder is read-only.
    """

    def __init__(
        self, path: str | Path, *, attrs: dict | None = None, overwrite: bool = False, key: str = "dataset_path"
    ):
        self.path, self.attrs, self.overwrite = Path(path), dict(attrs or {}), overwrite
        if self.path.exists() and not overwrite:
            raise UserError(
                f"{self.path} exists already. Type overwrite=true to replace it, or choose another domain=…."
            )
        self._key, self._beside = key, Path()
        self._arrays: dict[str, _ChunkWriter] = {}
        self._ends: list[int] = []
        self._meta: dict[str, list] = {}
        # stored as /meta/<name>, the same for every episode
        self.constants: dict[str, np.ndarray] = {}

    def __enter__(self) -> ZarrWriter:
        self._beside = begin_folder(self.path, key=self._key)
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
        kinds = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
        before = {name: (writer.row_shape, writer.dtype) for name, writer in self._arrays.items()}
        if self._ends and kinds != before:
            raise ValueError(
                f"{self.path}: episode {len(self._ends)} differs from those before: {kinds} is not {before}"
            )
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{self.path}: episode {len(self._ends)}: {name} holds values that are not finite")
        for name, array in arrays.items():
            self._rows_of(name, array).append(array)
        self.end_episode(lengths.pop(), meta=meta)

    def append_rows(self, name: str, values: np.ndarray) -> None:
        """Rows (n, ...) of one array of the episode that `end_episode` ends.

        For what does not fit into memory at once.
        """
        self._rows_of(name, values).append(values)

    def end_episode(self, length: int, *, meta: Mapping[str, Any] | None = None) -> None:
        """Ends an episode of so many rows.

        Raises:
            ValueError: an array got another number of rows.
        """
        end = (self._ends[-1] if self._ends else 0) + length
        short = {name: writer.count for name, writer in self._arrays.items() if writer.count != end}
        if short:
            raise ValueError(f"{self.path}: episode {len(self._ends)} ends at row {end}, but {short} were written")
        self._ends.append(end)
        for name, value in (meta or {}).items():
            self._meta.setdefault(name, []).append(value)

    def _rows_of(self, name: str, values: np.ndarray) -> _ChunkWriter:
        if name not in self._arrays:
            folder = self._beside / "new/data" / name
            self._arrays[name] = _ChunkWriter(folder, row_shape=values.shape[1:], dtype=values.dtype)
        return self._arrays[name]

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._ends:
                self._finish()
        finally:
            for writer in self._arrays.values():
                # on a full disk closing fails too; what is whole was closed before
                with suppress(OSError):
                    writer.close()
            shutil.rmtree(self._beside, ignore_errors=True)

    def _finish(self) -> None:
        root = zarr.open_group(str(self._beside / "new"), mode="a", zarr_format=2)
        for name, writer in self._arrays.items():
            _create(
                root, f"data/{name}", shape=(writer.count, *writer.row_shape), dtype=writer.dtype, rows=writer.finish()
            )
        _write_array(root, "meta/episode_ends", np.asarray(self._ends, np.int64))
        for name, values in self._meta.items():
            array = np.asarray(values)
            _write_array(root, f"meta/{name}", array.astype("U100") if array.dtype.kind == "U" else array)
        for name, constant in self.constants.items():
            _write_array(root, f"meta/{name}", np.asarray(constant))
        arrays = {f"{group}/{name}": array for group in ("data", "meta") for name, array in _arrays(root[group])}
        root.attrs.update({**self.attrs, WRITTEN_BY: {n: [a.dtype.str, list(a.shape)] for n, a in arrays.items()}})
        finish_folder(self._beside, self.path, overwrite=self.overwrite)


class _ChunkWriter:
    """The chunk files of one array, written as the rows come."""

    def __init__(self, folder: Path, *, row_shape: tuple[int, ...], dtype: np.dtype):
        self.folder, self.row_shape, self.dtype, self.count = folder, tuple(row_shape), np.dtype(dtype), 0
        self._row_bytes = max(1, int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize)
        self._chunk_rows = max(1, CHUNK_BYTES // self._row_bytes)
        self._file: BinaryIO | None = None
        folder.mkdir(parents=True)

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        while len(values):
            inside = self.count % self._chunk_rows
            if inside == 0:
                self.close()
                name = ".".join([str(self.count // self._chunk_rows)] + ["0"] * len(self.row_shape))
                self._file = open(self.folder / name, "wb")  # noqa: SIM115
            assert self._file is not None
            part = values[: self._chunk_rows - inside]
            self._file.write(part.tobytes())
            self.count, values = self.count + len(part), values[len(part) :]

    def finish(self) -> int:
        """Rows a chunk; the last chunk is filled up, as zarr wants it, without taking room on disk."""
        rows = min(self._chunk_rows, self.count)
        if self._file is not None:
            self._file.truncate(rows * self._row_bytes)
        self.close()
        return rows

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _create(root: Any, name: str, *, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> Any:
    return root.create_array(
        name, shape=shape, chunks=(max(1, rows), *shape[1:]), dtype=dtype, compressors=None,
        config={"write_empty_chunks": True},
    )  # fmt: skip


def _write_array(root: Any, name: str, values: np.ndarray) -> None:
    _create(root, name, shape=values.shape, dtype=values.dtype, rows=len(values) if values.ndim else 1)[...] = values


def _arrays(group: Any) -> list[tuple[str, Any]]:
    return [(name, child) for name, child in group.members(max_depth=None) if isinstance(child, zarr.Array)]
