"""Rows of the store <-> rows of the data files, and the numbers and pictures that are in those."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ppt_kit.data.disk.video import RUN_BYTES, runs_of
from ppt_kit.data.formats.lerobot.episodes import Episodes, short
from ppt_kit.errors import UserError

Decode = Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]


class Rows:
    """Rows of the store <-> rows of the data files, for the episodes selected."""

    def __init__(self, episodes: Episodes, selected: np.ndarray):
        self.episodes, self.selected = episodes, selected
        self.lengths = episodes.lengths[selected]
        self.ends = np.cumsum(self.lengths)
        self.starts = self.ends - self.lengths
        self.file, self.first = episodes.data_file[selected], episodes.data_first[selected]
        self._file_rows = np.zeros(len(episodes.data_files), np.int64)
        np.add.at(self._file_rows, episodes.data_file, episodes.lengths)
        self._times: dict[int, np.ndarray | None] = {}

    def owner(self, rows: np.ndarray) -> np.ndarray:
        """The selected episode each row belongs to."""
        return np.searchsorted(self.ends, rows, side="right")

    def name(self, episode: int) -> str:
        """As the dataset counts."""
        return f"episode {self.episodes.index[self.selected[episode]]}"

    def of_file(self, file: int, begin: int, end: int) -> np.ndarray:
        """(end - begin,) the store's rows that these rows of a data file are, -1 where they were not selected."""
        found = np.full(end - begin, -1, np.int64)
        overlap = (self.file == file) & (self.first < end) & (self.first + self.lengths > begin)
        for episode in np.flatnonzero(overlap).tolist():
            first, length = int(self.first[episode]), int(self.lengths[episode])
            low, high = max(begin, first), min(end, first + length)
            found[low - begin : high - begin] = np.arange(low, high) - first + self.starts[episode]
        return found

    def groups(self, rows: np.ndarray, feature: str) -> Iterator[tuple[int, pa.ChunkedArray, np.ndarray]]:
        """The row groups that hold the rows (M,).

        Returns:
            (file, the feature's values in the group, the store's row of each value) of each.
        Raises:
            UserError: a file cannot be read, has another number of rows than its episodes, or lacks the feature.
        """
        owner = self.owner(rows)
        for file in np.unique(self.file[owner]).tolist():
            mine = self.file[owner] == file
            inside = self.first[owner[mine]] + rows[mine] - self.starts[owner[mine]]
            path, episode = self.episodes.data_files[file], int(owner[mine][0])
            try:
                with pq.ParquetFile(path) as opened:
                    self._check_file(opened, file, feature, episode)
                    sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
                    ends = np.cumsum(sizes)
                    for group in np.unique(np.searchsorted(ends, inside, side="right")).tolist():
                        values = opened.read_row_group(group, columns=[feature], use_threads=False).column(feature)
                        yield file, values, self.of_file(file, int(ends[group]) - sizes[group], int(ends[group]))
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path}: {feature} of {self.name(episode)} cannot be read: {short(error)}") from None

    def times(self, episode: int) -> np.ndarray:
        """(T,) float64 timestamps of an episode's rows, s after its start."""
        file, first, length = int(self.file[episode]), int(self.first[episode]), int(self.lengths[episode])
        if file not in self._times:
            self._times[file] = self._read_times(file, episode)
        found = self._times[file]
        return np.arange(length) / self.episodes.fps if found is None else found[first : first + length]

    def _read_times(self, file: int, episode: int) -> np.ndarray | None:
        """Timestamps of a whole file; None where they count the frames, as they nearly always do."""
        path = self.episodes.data_files[file]
        try:
            with pq.ParquetFile(path) as opened:
                if "timestamp" not in opened.schema_arrow.names:
                    return None
                self._check_file(opened, file, "timestamp", episode)
                column = opened.read(columns=["timestamp"], use_threads=False).column("timestamp")
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: timestamp of {self.name(episode)} cannot be read: {short(error)}") from None
        found = _to_numpy(column, (), np.dtype(np.float64), where=f"{path}: timestamp")
        counted = np.full(len(found), np.nan)
        for first, length in zip(*self._all_in(file)):
            counted[first : first + length] = np.arange(length) / self.episodes.fps
        return None if np.abs(found - counted).max() < 0.01 / self.episodes.fps else found

    def _all_in(self, file: int) -> tuple[list[int], list[int]]:
        """First rows and lengths of all the episodes in a file, selected or not."""
        mine = self.episodes.data_file == file
        return self.episodes.data_first[mine].tolist(), self.episodes.lengths[mine].tolist()

    def _check_file(self, opened: pq.ParquetFile, file: int, feature: str, episode: int) -> None:
        path, count, due = self.episodes.data_files[file], opened.metadata.num_rows, int(self._file_rows[file])
        if count != due:
            several = int((self.episodes.data_file == file).sum())
            whose = self.name(episode) if several == 1 else f"{self.name(episode)} and {several - 1} more"
            raise UserError(f"{path}: {count} rows, but {whose} in it should have {due}. The dataset is damaged.")
        if feature not in opened.schema_arrow.names:
            raise UserError(f"{path}: has no column {feature}, which meta/info.json names ({self.name(episode)}).")


def numbers(rows: Rows, feature: str, shape: tuple[int, ...], dtype: np.dtype) -> Decode:
    """Whole row groups: a column that was read for one row has them all."""

    def decode(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for file, column, places in rows.groups(wanted, feature):
            kept = places >= 0
            whose = rows.name(int(rows.owner(places[kept])[0])) if kept.any() else ""
            where = f"{rows.episodes.data_files[file]}: {feature}"
            values, places = _to_numpy(column, shape, dtype, where=where, whose=whose)[kept], places[kept]
            for begin, end in runs_of(places):
                yield int(places[begin]), values[begin:end]

    return decode


def pictures(rows: Rows, feature: str, height: int, width: int) -> Decode:
    """Only the pictures asked for."""
    at_once = max(1, RUN_BYTES // (height * width * 3))

    def decode(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for file, column, places in rows.groups(wanted, feature):
            inside = np.flatnonzero(np.isin(places, wanted))
            stored = column.take(pa.array(inside))
            for begin, end in runs_of(places[inside]):
                for low in range(begin, end, at_once):
                    high = min(low + at_once, end)
                    out = np.empty((high - low, height, width, 3), np.uint8)
                    for slot in range(low, high):
                        row = int(places[inside[slot]])
                        out[slot - low] = _picture(rows, feature, file, row, stored[slot].as_py(), (height, width))
                    yield int(places[inside[low]]), out

    return decode


def _picture(rows: Rows, feature: str, file: int, row: int, stored: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 out of {bytes, path}, plain bytes, or a path."""
    if not isinstance(stored, dict):
        stored = {"path": stored} if isinstance(stored, str) else {"bytes": stored}
    data, name = stored.get("bytes"), stored.get("path")
    path = rows.episodes.path / name if data is None and name else rows.episodes.data_files[file]
    episode = int(rows.owner(np.array([row]))[0])
    whose = f"{path}: {feature} of {rows.name(episode)}, frame {row - int(rows.starts[episode])},"
    if data is None and not name:
        raise UserError(f"{whose} is missing.")
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{whose} is a picture of mode {image.mode}, not of colours: depth?")
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{whose} cannot be decoded: {short(error)}") from None
    if pixels.shape[:2] != size:
        raise UserError(f"{whose} is {pixels.shape[:2]} pixels, meta/info.json says {size} (height, width).")
    return pixels


def _to_numpy(
    column: pa.ChunkedArray, shape: tuple[int, ...], dtype: np.dtype, *, where: str, whose: str = ""
) -> np.ndarray:
    """(n, *shape) numbers of a parquet column, whose rows are numbers or lists of them.

    Args:
        where, whose: file and column, and the episode, for a message.
    """
    count, whose = len(column), f" ({whose})" if whose else ""
    values = _flat(column.combine_chunks(), where=where, whose=whose).to_numpy(zero_copy_only=False)
    if values.size != count * int(np.prod(shape)):
        raise UserError(
            f"{where}: {values.size // max(1, count)} numbers a row, meta/info.json says {list(shape)}{whose}."
        )
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, dtype, "same_kind"):
        raise UserError(f"{where}: holds {values.dtype}, meta/info.json says {dtype}{whose}.")
    return values.astype(dtype, copy=False).reshape(count, *shape)


def _flat(array: Any, *, where: str, whose: str) -> pa.Array:
    """The numbers of lists, however deep, one after the other."""
    if isinstance(array, pa.ChunkedArray):
        # of a table without rows there is no chunk at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise UserError(f"{where}: {array.null_count} values are missing{whose}.")
        if not isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
            return array
        sizes = pc.min_max(pc.list_value_length(array)).as_py()
        if sizes["min"] != sizes["max"]:
            raise UserError(f"{where}: its lists have {sizes['min']} to {sizes['max']} values, not the same{whose}.")
        array = array.flatten()
