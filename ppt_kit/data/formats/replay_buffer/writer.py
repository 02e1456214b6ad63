"""Writes the zarr replay buffer: beside its name while episodes come in, under its name once it is whole.

What this writes is zarr v2 without compression, in chunks of whole rows, so that an array is plain bytes: reading a row
is a memory copy, and any zarr reader reads it too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zarr

from ppt_kit.data.formats.replay_buffer.partial import Episode, Partial
from ppt_kit.data.replaceable import check_replaceable
from ppt_kit.files import begin_folder, finish_folder, fsync
from ppt_kit.signals import held_back

CHUNK_BYTES = 64 << 20
# the attribute that says what was written: array -> [element type, shape]
WRITTEN_BY = "written_by_ppt_kit"


class ZarrWriter:
    """A replay buffer in the making.

    Use as a context manager; an exception inside leaves nothing behind, and what stood under that name stays. With a
    `plan` whole episodes stay, also when the process is killed: a writer with the same plan begins with them.

    Args:
        key: what the user sets the place with; named where the place cannot be written to.
        plan: what decides the episodes, as plain values by name; None = nothing stays of what is not finished.
        at_most: episodes that are taken up.
    Raises:
        UserError: something stands under that name that may not be replaced, the folder is read-only, or what is left
            there is of another plan and `overwrite` is false.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        attrs: dict | None = None,
        overwrite: bool = False,
        key: str = "dataset_path",
        plan: Mapping[str, Any] | None = None,
        at_most: int | None = None,
    ):
        self.path, self.attrs, self.overwrite = Path(path), dict(attrs or {}), overwrite
        check_replaceable(self.path, kind="zarr", overwrite=overwrite, key=key)
        self._key, self._beside = key, Path()
        self._partial = None if plan is None else Partial(self.path, plan, anew=overwrite, at_most=at_most, key=key)
        self._arrays: dict[str, _ChunkWriter] = {}
        self._ends: list[int] = []
        self._meta: dict[str, list] = {}
        # stored as /meta/<name>, the same for every episode
        self.constants: dict[str, np.ndarray] = {}

    def __enter__(self) -> ZarrWriter:
        if self._partial is None:
            self._beside = begin_folder(self.path, key=self._key)
            return self
        self._beside = self._partial.open()
        for episode in self._partial.episodes:
            self._ends.append(self.num_rows + episode.rows)
            for name, value in episode.meta.items():
                self._meta.setdefault(name, []).append(value)
            self.constants = episode.constants
        for name, (shape, dtype) in self._partial.kinds.items():
            folder = self._beside / "new/data" / name
            self._arrays[name] = _ChunkWriter(folder, row_shape=shape, dtype=dtype, count=self.num_rows, durable=True)
        return self

    @property
    def num_rows(self) -> int:
        """Rows of the episodes that are whole."""
        return self._ends[-1] if self._ends else 0

    @property
    def num_episodes(self) -> int:
        """Episodes that are whole."""
        return len(self._ends)

    def meta(self, name: str) -> list:
        """What was given as `meta` of that name, one value an episode."""
        return list(self._meta.get(name, []))

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
        end = self.num_rows + length
        short = {name: writer.count for name, writer in self._arrays.items() if writer.count != end}
        if short:
            raise ValueError(f"{self.path}: episode {len(self._ends)} ends at row {end}, but {short} were written")
        if self._partial is not None:
            for writer in self._arrays.values():
                writer.flush()
        kinds = {name: (writer.row_shape, writer.dtype) for name, writer in self._arrays.items()}
        # a stop between them would tell of one episode less than there is
        with held_back():
            if self._partial is not None:
                self._partial.commit(Episode(length, dict(meta or {}), self.constants), kinds)
            self._ends.append(end)
            for name, value in (meta or {}).items():
                self._meta.setdefault(name, []).append(value)

    def _rows_of(self, name: str, values: np.ndarray) -> _ChunkWriter:
        if name not in self._arrays:
            folder = self._beside / "new/data" / name
            durable = self._partial is not None
            self._arrays[name] = _ChunkWriter(folder, row_shape=values.shape[1:], dtype=values.dtype, durable=durable)
        return self._arrays[name]

    def __exit__(self, kind, error, trace) -> None:
        finished = False
        try:
            if kind is None and self._ends:
                self._finish()
                finished = True
        finally:
            for writer in self._arrays.values():
                # on a full disk closing fails too; what is whole was closed before
                with suppress(OSError):
                    writer.close()
            if self._partial is not None:
                self._partial.close(keep=not finished)
            else:
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
        # a second time elsewhere: the first can be lost, with all else that is said of the dataset
        root["meta"].attrs[WRITTEN_BY] = True
        finish_folder(self._beside, self.path, overwrite=self.overwrite)


class _ChunkWriter:
    """The chunk files of one array, written as the rows come.

    Args:
        count: rows that are there already; what lies behind them is cut off.
        durable: rows are on the disk when `flush` returns.
    """

    def __init__(
        self, folder: Path, *, row_shape: tuple[int, ...], dtype: np.dtype, count: int = 0, durable: bool = False
    ):
        self.folder, self.row_shape, self.dtype, self.count = folder, tuple(row_shape), np.dtype(dtype), count
        self._durable = durable
        self._row_bytes = max(1, int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize)
        self._chunk_rows = max(1, CHUNK_BYTES // self._row_bytes)
        self._file: BinaryIO | None = None
        folder.mkdir(parents=True, exist_ok=count > 0)
        if count:
            self._take_up()

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        while len(values):
            inside = self.count % self._chunk_rows
            if inside == 0:
                self.close()
                self._file = open(self._chunk(self.count // self._chunk_rows), "wb")  # noqa: SIM115
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

    def flush(self) -> None:
        """Puts what was appended on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            fsync(self.folder)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())

    def _chunk(self, number: int) -> Path:
        return self.folder / ".".join([str(number)] + ["0"] * len(self.row_shape))

    def _take_up(self) -> None:
        """Cuts off what is behind the rows that count, and opens the chunk that the next row goes into."""
        number, inside = divmod(self.count, self._chunk_rows)
        kept = {self._chunk(each).name for each in range(number + (inside > 0))}
        for entry in self.folder.iterdir():
            # arrays may lie in the folder of another
            if entry.is_file() and entry.name not in kept:
                entry.unlink()
        for each in range(number):
            os.truncate(self._chunk(each), self._chunk_rows * self._row_bytes)
        if inside:
            os.truncate(self._chunk(number), inside * self._row_bytes)
            self._file = open(self._chunk(number), "ab")  # noqa: SIM115


def _create(root: Any, name: str, *, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> Any:
    return root.create_array(
        name, shape=shape, chunks=(max(1, rows), *shape[1:]), dtype=dtype, compressors=None,
        config={"write_empty_chunks": True},
    )  # fmt: skip


def _write_array(root: Any, name: str, values: np.ndarray) -> None:
    _create(root, name, shape=values.shape, dtype=values.dtype, rows=len(values) if values.ndim else 1)[...] = values


def _arrays(group: Any) -> list[tuple[str, Any]]:
    # a folder lists its entries in no order
    return sorted((name, child) for name, child in group.members(max_depth=None) if isinstance(child, zarr.Array))
