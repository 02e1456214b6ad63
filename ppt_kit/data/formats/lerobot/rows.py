"""Rows of the store <-> rows of the data files, and the numbers and pictures that are in those."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ppt_kit.data.disk.video import RUN_BYTES, runs_of
from ppt_kit.data.formats.lerobot.cells import to_numpy
from ppt_kit.data.formats.lerobot.counted import check_rows
from ppt_kit.data.formats.lerobot.episodes import Episodes
from ppt_kit.data.formats.lerobot.features import COUNTED
from ppt_kit.data.formats.lerobot.listed import AGAIN, short
from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer

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
        # of each file that was looked at, where they do not count the frames
        self._times: dict[int, np.ndarray | None] = {}
        self._told: set[str] = set()

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
            UserError: a file cannot be read, has other rows than its episodes, or lacks the feature.
        """
        owner = self.owner(rows)
        for file in np.unique(self.file[owner]).tolist():
            mine = self.file[owner] == file
            inside = self.first[owner[mine]] + rows[mine] - self.starts[owner[mine]]
            path, episode = self.episodes.data_files[file], int(owner[mine][0])
            try:
                with pq.ParquetFile(path) as opened:
                    self._look_at(opened, file, episode)
                    if feature not in opened.schema_arrow.names:
                        raise UserError(
                            f"{path}: has no column {feature}, which meta/info.json names ({self.name(episode)})."
                        )
                    sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
                    ends = np.cumsum(sizes)
                    for group in np.unique(np.searchsorted(ends, inside, side="right")).tolist():
                        values = opened.read_row_group(group, columns=[feature], use_threads=False).column(feature)
                        yield file, values, self.of_file(file, int(ends[group]) - sizes[group], int(ends[group]))
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path}: {feature} of {self.name(episode)} cannot be read: {short(error)}") from None

    def place(self, row: int) -> str:
        """A row of the store as the dataset counts."""
        episode = int(self.owner(np.array([row]))[0])
        return f"{self.name(episode)}, step {row - int(self.starts[episode])}"

    def times(self, episode: int) -> np.ndarray:
        """(T,) float64 timestamps of an episode's rows, s after its start."""
        file, first, length = int(self.file[episode]), int(self.first[episode]), int(self.lengths[episode])
        if file not in self._times:
            path = self.episodes.data_files[file]
            try:
                with pq.ParquetFile(path) as opened:
                    self._look_at(opened, file, episode)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path}: timestamp of {self.name(episode)} cannot be read: {short(error)}") from None
        found = self._times[file]
        return np.arange(length) / self.episodes.fps if found is None else found[first : first + length]

    def _look_at(self, opened: pq.ParquetFile, file: int, episode: int) -> None:
        """Compares a data file with the list of episodes, once: its number of rows, and what they say they are."""
        if file in self._times:
            return
        path, count, due = self.episodes.data_files[file], opened.metadata.num_rows, int(self._file_rows[file])
        if count != due:
            several = int((self.episodes.data_file == file).sum())
            whose = self.name(episode) if several == 1 else f"{self.name(episode)} and {several - 1} more"
            raise UserError(f"{path}: {count} rows, but {whose} in it should have {due}. {AGAIN}.")
        names = [name for name in COUNTED if name in opened.schema_arrow.names]
        table = opened.read(columns=names, use_threads=False)
        mine = self.selected[self.file == file].tolist()
        times = check_rows(table, path, self.episodes, mine, told=self._told)
        # of those that count the frames, as they nearly always do, none are kept
        inside = np.flatnonzero(self.file == file).tolist()
        counted = times is None or all(self._counts(times, each) for each in inside)
        self._times[file] = None if counted else times

    def _counts(self, times: np.ndarray, episode: int) -> bool:
        first, length = int(self.first[episode]), int(self.lengths[episode])
        off = times[first : first + length] - np.arange(length) / self.episodes.fps
        return bool(np.abs(off).max() < 0.01 / self.episodes.fps)


def numbers(rows: Rows, feature: str, shape: tuple[int, ...], dtype: np.dtype) -> Decode:
    """Whole row groups: a column that was read for one row has them all."""

    def decode(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for file, column, places in rows.groups(wanted, feature):
            kept = places >= 0
            yield from runs(file, column.filter(pa.array(kept)), places[kept])

    def runs(file: int, column: pa.ChunkedArray, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        where = f"{rows.episodes.data_files[file]}: {feature}"
        values = to_numpy(column, shape, dtype, where=where, locate=lambda row: rows.place(int(places[row])))
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
    whose = f"{path}: {feature} of {rows.place(row).replace('step', 'frame')},"
    if data is None and not name:
        raise UserError(f"{whose} is missing.")
    if data is None:
        refuse_lfs_pointer(path)
    elif not isinstance(data, bytes):
        raise UserError(f"{whose} is {type(data).__name__}, not the bytes of a picture.")
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
