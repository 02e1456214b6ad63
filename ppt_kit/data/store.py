"""Episodes, whatever the format: named columns of rows, cut into episodes.

Every format opens into an EpisodeStore whose columns have these names, so that nothing behind it knows the format:

    actions                      (N, Da), or actions/<part> where the data keeps its parts apart
    obs/<name>                   (N, ...) numbers: proprioception
    obs/images/<camera>          (N, H, W, 3) uint8
    obs/depths/<camera>          (N, H, W) or (N, H, W, 1) metres, or whole numbers of millimetres: see `metres`
    obs/pointcloud/pos           (N, P, 3) metres, or (N, P, 6) with colours behind; /colors, /seg beside it
    anything else                stays under its own name: rewards, simulator states

What is read and is not finite is refused where it is read: see `check_finite`.

A column is either plain (its rows lie on disk as bytes: reading is a memory copy) or decoded (compressed chunks,
video, pictures, tables: decoding costs, so decoded rows are kept in a cache on disk, see disk/cache.py). What a format
of one's own has read into memory is an ArrayColumn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppt_kit.cameras import Camera
from ppt_kit.data.calibration import check_cameras
from ppt_kit.data.disk.buffers import empty
from ppt_kit.data.disk.cache import RowCache
from ppt_kit.data.disk.rows import PlainRows, spread
from ppt_kit.errors import UserError


class Column(Protocol):
    """Rows of one array, time-major over all episodes."""

    # (N, ...)
    shape: tuple[int, ...]
    dtype: np.dtype
    # the dataset's own name for it
    stored_as: str
    # how it lies on disk, in words: "plain, 12 chunks of 64 MiB", "video av1"
    layout: str

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), ...) rows in the order asked for, repeats included."""


class ArrayColumn:
    """Rows that are in memory, or in a memory map.

    Args:
        values: (N, ...) numbers, time-major over all episodes.
    Raises:
        UserError: they are no numbers.
    """

    def __init__(self, values: np.ndarray | Sequence, *, stored_as: str, layout: str = "in memory"):
        self._values = np.asarray(values)
        self.shape, self.dtype, self.stored_as, self.layout = (
            self._values.shape, self._values.dtype, stored_as, layout,
        )  # fmt: skip
        if self.dtype.kind not in "biuf" or not self.shape:
            raise UserError(f"{stored_as}: {self.dtype} of shape {self.shape}; a column is (N, ...) numbers.")

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._values[np.asarray(rows)]


class PlainColumn:
    """Rows that lie on disk as plain bytes."""

    def __init__(self, rows: PlainRows, *, stored_as: str, layout: str = ""):
        self._rows = rows
        self.shape, self.dtype, self.stored_as = rows.shape, rows.dtype, stored_as
        self.layout = layout or f"plain bytes in {len(rows.segments)} piece(s)"

    def read(self, rows: np.ndarray) -> np.ndarray:
        out = empty((len(rows), *self.shape[1:]), self.dtype)
        self._rows.read_into(out, np.asarray(rows))
        return out


class DecodedColumn:
    """Rows that have to be decoded, and are kept in a cache where one is attached.

    Args:
        shape: (N, ...).
        decode: called by several threads; takes (M,) sorted, distinct rows; gives runs (first row, values (n, ...))
            that cover them, in any order, and may give more rows than asked for where those had to be decoded on the
            way.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype | type | str,
        decode: Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]],
        *,
        stored_as: str,
        layout: str,
    ):
        self.shape, self.dtype, self.stored_as, self.layout = tuple(shape), np.dtype(dtype), stored_as, layout
        self.decode = decode
        self.cache: RowCache | None = None

    def read(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        out = empty((len(rows), *self.shape[1:]), self.dtype)
        missing = np.ones(len(rows), bool) if self.cache is None else ~self.cache.read_into(out, rows)
        if missing.any():
            self._decode_into(out, rows, missing)
        return out

    def _decode_into(self, out: np.ndarray, rows: np.ndarray, missing: np.ndarray) -> None:
        places = np.flatnonzero(missing)
        wanted = rows[places]
        left = len(places)
        for first, values in self.decode(np.unique(wanted)):
            if self.cache is not None:
                self.cache.put(first, values)
            hit = (wanted >= first) & (wanted < first + len(values))
            out[places[hit]] = values[wanted[hit] - first]
            left -= int(hit.sum())
        assert left == 0, f"{self.stored_as}: {left} rows were not decoded"


class ConvertedColumn:
    """A column whose rows become something else after they were read: another order of axes, another type."""

    def __init__(
        self,
        source: Column,
        convert: Callable[[np.ndarray], np.ndarray],
        *,
        row_shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self.source, self._convert = source, convert
        self.shape, self.dtype = (source.shape[0], *row_shape), np.dtype(dtype)
        self.stored_as, self.layout = source.stored_as, f"{source.layout}, converted from {source.dtype}"

    def read(self, rows: np.ndarray) -> np.ndarray:
        """
        Raises:
            NotFinite: whole numbers are to be made of a value that is none.
        """
        values = self.source.read(rows)
        if self.dtype.kind != "f":
            bad = not_finite_at(values)
            if bad is not None:
                raise NotFinite(int(np.asarray(rows)[bad]))
        return self._convert(values)


class NotFinite(ValueError):
    """A row holds a value that is not finite; who knows the file and the episode says so."""

    def __init__(self, row: int):
        super().__init__(f"row {row} is not finite")
        self.row = row


def decoded_part(column: Column) -> DecodedColumn | None:
    """What of a column has to be decoded; None where nothing has."""
    inner = column.source if isinstance(column, ConvertedColumn) else column
    return inner if isinstance(inner, DecodedColumn) else None


def picture_column(column: Column) -> Column:
    """Pictures as the contract has them, (N, H, W, 3) uint8, out of pictures with the channels first or of floats.

    Whether floats go to 1 or to 255 is decided once for the column, by 16 of its pictures. What has no three colours
    stays as it is.
    """
    if len(column.shape) != 4 or 3 not in (column.shape[1], column.shape[-1]):
        return column
    first = column.shape[-1] != 3 and column.shape[1] == 3
    if not first and column.dtype == np.uint8:
        return column
    scale: list[float] = []

    def convert(pictures: np.ndarray) -> np.ndarray:
        if pictures.dtype.kind == "f":
            if not scale:
                some = column.read(spread(16, column.shape[0]))
                scale.append(255.0 if np.nanmax(some, initial=0) <= 1 else 1.0)
            pictures = np.rint(pictures * scale[0])
        pictures = pictures.clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)) if first else pictures

    height, width = column.shape[2:4] if first else column.shape[1:3]
    return ConvertedColumn(column, convert, row_shape=(height, width, 3), dtype=np.dtype(np.uint8))


@dataclass
class EpisodeStore:
    """One opened dataset.

    Attributes:
        format: for people: "zarr replay buffer", "robomimic HDF5", …
        episode_ends: (E,) int64, one past the last row of each episode.
        attrs: what was recorded with the data: simulator, task, seeds, fps.
        sentences: one an episode.
        episode_names: the dataset's own, where it has some: demo_12.
        left_out: what the dataset holds and is no column -> why, and what to type where something helps.
        read_by: what else than the files the decoded rows depend on: the state of a user's own format.
    Raises:
        UserError: no episode, an empty one, columns whose length is not where the last episode ends, or attrs of
            another kind than what reads them takes.
    """

    path: Path
    format: str
    episode_ends: np.ndarray
    columns: dict[str, Column]
    attrs: dict = field(default_factory=dict)
    sentences: list[str] | None = None
    cameras: dict[str, Camera] = field(default_factory=dict)
    episode_names: Sequence[str] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    read_by: str = ""

    def __post_init__(self) -> None:
        self.episode_ends = np.asarray(self.episode_ends, dtype=np.int64)
        ends = self.episode_ends
        if len(ends) == 0 or not self.columns:
            raise UserError(f"{self.path}: holds no episode.")
        starts = np.concatenate([[0], ends[:-1]])
        if (ends <= starts).any():
            bad = int(np.argmax(ends <= starts))
            raise UserError(
                f"{self.path}: {self.episode_name(bad)} is empty: episode_ends goes from {starts[bad]} to {ends[bad]}. "
                "They increase, one past the last row of each episode: the dataset is damaged."
            )
        _check_attrs(self.path, self.attrs)
        check_cameras(self.path, self.cameras, rows=int(ends[-1]))
        for column in self.columns.values():
            if column.shape[0] != ends[-1]:
                found = sorted({other.shape[0] for other in self.columns.values()})
                raise UserError(
                    f"{self.path}: {column.stored_as} has {column.shape[0]} rows, but "
                    f"{self.episode_name(len(ends) - 1)} ends at {ends[-1]} (lengths found: {found}). "
                    "The dataset is damaged or was not written to its end."
                )

    def keys(self) -> list[str]:
        """Names of the columns, `/` between groups."""
        return list(self.columns)

    def shape(self, key: str) -> tuple[int, ...]:
        """(N, ...) of one column."""
        return self.columns[key].shape

    def dtype(self, key: str) -> np.dtype:
        """Element type of one column."""
        return self.columns[key].dtype

    def read(self, key: str, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """(len(rows), ...) rows of one column, in the order asked for, repeats included.

        Raises:
            UserError: what is on disk cannot be decoded, or a picture of floats is not finite; the line names the file
                and the episode.
        """
        try:
            return self.columns[key].read(np.asarray(rows))
        except NotFinite as error:
            raise UserError(self.says_not_finite(key, error.row)) from None

    def says_not_finite(self, key: str, row: int) -> str:
        """The line that names file, column, episode and row of a value that is not finite."""
        stored, episode = self.columns[key].stored_as, self.episode_name(self.episode_of(row))
        return (
            f"{self.path}: {stored} of {episode} (row {row}) is not finite. Leave that episode out of the dataset, "
            "or repair it."
        )

    def bounds(self, episode: int) -> tuple[int, int]:
        """First row of an episode and one past its last."""
        return int(self.episode_ends[episode - 1]) if episode else 0, int(self.episode_ends[episode])

    def episode_of(self, row: int) -> int:
        """The episode that a row belongs to."""
        return int(np.searchsorted(self.episode_ends, row, side="right"))

    def episode_name(self, episode: int) -> str:
        """How an episode is called in a message: its number, and its name in the file where it has one."""
        return f"episode {episode}" + (f" ({self.episode_names[episode]})" if self.episode_names is not None else "")


def metres(depth: np.ndarray) -> np.ndarray:
    """(N, H, W, 1) float32 out of stored depth; whole numbers are millimetres, as depth cameras have them."""
    depth = depth.astype(np.float32) / 1000 if depth.dtype.kind in "iu" else depth.astype(np.float32, copy=False)
    return depth if depth.ndim == 4 else depth[..., None]


def check_finite(store: EpisodeStore, key: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Refuses values that are no numbers.

    Args:
        rows: (M,) where `values` (M, ...) come from.
    Raises:
        UserError: names file, column, episode and row of the first.
    """
    bad = not_finite_at(values)
    if bad is not None:
        raise UserError(store.says_not_finite(key, int(rows[bad])))


def not_finite_at(values: np.ndarray) -> int | None:
    """The first row of values (M, ...) that holds one which is not finite; None where all are."""
    if values.dtype.kind != "f":
        return None
    fine = np.isfinite(values)
    return None if fine.all() else int(np.argmin(fine.reshape(len(values), -1).all(axis=1)))


def _check_attrs(path: Path, attrs: dict) -> None:
    """What others read of the attributes: the simulator, and the seeds that an evaluation keeps away from."""
    env, seeds = attrs.get("env"), attrs.get("seeds", [])
    if env is not None and not isinstance(env, dict):
        raise UserError(f"{path}: the attribute env is {str(env)[:60]}, not a mapping (simulator, task, …). Mend it.")
    if not isinstance(seeds, (list, tuple)) or not all(type(s) is int or isinstance(s, np.integer) for s in seeds):
        raise UserError(f"{path}: the attribute seeds is {str(seeds)[:60]}, not a list of whole numbers. Mend it.")


def plain(value: Any) -> Any:
    """What of `attrs` JSON cannot take, as it can: arrays as lists, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
