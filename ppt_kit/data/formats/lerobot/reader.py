"""LeRobotDataset v2.0, v2.1 and v3.0, read in place: numbers and pictures in parquet, cameras in mp4.

Numbers are decoded a row group at a time and pictures one by one. A video's frame is found by its time: the one nearest to
the row's own timestamp (v3.0: after from_timestamp), within half a frame; whatever had to be decoded before it comes along.
An episode's sentence is the first of its tasks, also where its frames have several.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from ppt_kit.data.disk.video import RUN_BYTES, VideoFrames, runs_of
from ppt_kit.data.store import Column, DecodedColumn, EpisodeStore
from ppt_kit.errors import UserError

NAME = "LeRobot dataset"
LOOKED_FOR = "meta/info.json with a codebase_version or beside data/"
VERSIONS = ("v2.0", "v2.1", "v3.0")


def recognises(path: Path) -> bool:
    try:
        text = (path / "meta/info.json").read_text(errors="replace")
    except OSError:
        return False
    return "codebase_version" in text or (path / "data").is_dir()  # `open_store` tells what is damaged


def open_store(path: Path, *, filter_key: str | None = None) -> EpisodeStore:
    info = _read_info(path)
    episodes = _episodes_v3(path, info) if info["codebase_version"] == "v3.0" else _episodes_v2(path, info)
    episodes.check_files()
    selected = np.arange(len(episodes.lengths))
    if filter_key is not None:
        selected = _split(path, info, filter_key, count=len(selected))
    rows = _Rows(episodes, selected)
    columns: dict[str, Column] = {}
    names, skipped = {}, {}
    for feature, about in info["features"].items():
        why = _why_not(about)
        if why:
            skipped[feature] = why
            continue
        key = _key(feature, about, info["features"], taken=columns)
        columns[key] = _column(rows, feature, about)
        labels = _labels(about)
        if labels and len(labels) == int(np.prod(about["shape"])):
            names[key] = labels
    attrs = {"fps": info["fps"], "robot_type": info.get("robot_type"), "codebase_version": info["codebase_version"]}
    attrs |= {"names": names} if names else {}
    attrs |= {"skipped": skipped} if skipped else {}
    attrs |= {"filter_key": filter_key} if filter_key is not None else {}
    own = episodes.index[selected]
    return EpisodeStore(
        path=path, format=f"{NAME} {info['codebase_version']}", episode_ends=rows.ends, columns=columns, attrs=attrs,
        sentences=None if episodes.tasks is None else [episodes.tasks[e] for e in selected.tolist()],
        episode_names=None if (own == np.arange(len(own))).all() else [f"episode_index {i}" for i in own.tolist()],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ what meta/ says


@dataclass
class _Videos:
    """Where one camera's episodes are."""

    files: list[Path]
    file: np.ndarray  # (E,) into files
    from_s: np.ndarray  # (E,) float64, where the episode begins in it


@dataclass
class _Episodes:
    """All episodes of a dataset, and where they are."""

    path: Path
    fps: float
    index: np.ndarray  # (E,) the dataset's own numbers
    lengths: np.ndarray  # (E,)
    data_files: list[Path]
    data_file: np.ndarray  # (E,) into data_files
    data_first: np.ndarray  # (E,) first row in that file
    videos: dict[str, _Videos]
    tasks: list[str] | None

    def check_files(self) -> None:
        """Whether every file is there and a parquet's end is: a look at 10 000 takes a third of a second.

        Raises:
            UserError: names the file and its first episode.
        """
        firsts = {file: e for e, file in reversed(list(enumerate(self.data_file.tolist())))}
        for number, file in enumerate(self.data_files):
            if number in firsts:
                self._check(file, episode=firsts[number], ending=b"PAR1")
        for videos in self.videos.values():
            firsts = {file: e for e, file in reversed(list(enumerate(videos.file.tolist())))}
            for number, file in enumerate(videos.files):
                if number in firsts:
                    self._check(file, episode=firsts[number])

    def _check(self, file: Path, *, episode: int, ending: bytes = b"") -> None:
        whose = f"episode {self.index[episode]}"
        try:
            size = os.stat(file).st_size
            if ending:
                with open(file, "rb") as opened:
                    opened.seek(max(0, size - len(ending)))
                    if opened.read() != ending:
                        raise UserError(
                            f"{file}: cut off ({size} bytes, not ending as parquet does): {whose} is in it."
                        )
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}), but {whose} should be in it.") from None
        if not size:
            raise UserError(f"{file}: empty, but {whose} should be in it.")


def _read_info(path: Path) -> dict:
    try:
        info = json.loads((path / "meta/info.json").read_text())
        version, fps = info["codebase_version"], float(info["fps"])
        features = {name: {**about, "shape": tuple(about["shape"])} for name, about in info["features"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}/meta/info.json: damaged ({type(error).__name__}: {str(error)[:80]}). Copy it again."
        ) from None
    if version not in VERSIONS:
        raise UserError(
            f"{path}: a LeRobot dataset of version {version}; {', '.join(VERSIONS)} can be read. Convert it with LeRobot's own scripts."
        )
    if not (fps > 0 and math.isfinite(fps)):
        raise UserError(f"{path}/meta/info.json: fps={info['fps']}: must be a number above 0.")
    return {**info, "features": features}


def _episodes_v2(path: Path, info: Mapping) -> _Episodes:
    """One parquet file and one video a camera for each episode."""
    listed = sorted(_json_lines(path / "meta/episodes.jsonl"), key=lambda line: line.get("episode_index", -1))
    try:
        index = np.array([line["episode_index"] for line in listed], np.int64)
        lengths = np.array([line["length"] for line in listed], np.int64)
        places = [{"episode_chunk": e // info["chunks_size"], "episode_index": e} for e in index.tolist()]
        data_files = [path / info["data_path"].format(**place) for place in places]
        one_each = np.arange(len(index))
        videos = {
            key: _Videos(
                [path / info["video_path"].format(video_key=key, **place) for place in places],
                one_each,
                np.zeros(len(index)),
            )
            for key in _video_keys(info)
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}/meta: info.json and episodes.jsonl do not say where the episodes are ({type(error).__name__}: {error})."
        ) from None
    _check_totals(path, info, index, lengths)
    texts = {line.get("task_index"): line.get("task") for line in _json_lines(path / "meta/tasks.jsonl")}
    tasks = _first_tasks(path, [line.get("tasks") for line in listed], texts)
    return _Episodes(path, info["fps"], index, lengths, data_files, one_each, np.zeros_like(index), videos, tasks)


def _episodes_v3(path: Path, info: Mapping) -> _Episodes:
    """Many episodes a file; meta/episodes says which rows and seconds are whose."""
    keys = _video_keys(info)
    needed = [
        "episode_index",
        "length",
        "dataset_from_index",
        "dataset_to_index",
        "data/chunk_index",
        "data/file_index",
    ]
    for key in keys:
        needed += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    table = _episode_table(path, needed)
    table = {name: values[np.argsort(table["episode_index"], kind="stable")] for name, values in table.items()}
    index, lengths, begins = table["episode_index"], table["length"], table["dataset_from_index"]
    wrong = np.flatnonzero(table["dataset_to_index"] - begins != lengths)
    if len(wrong):
        e = int(wrong[0])
        raise UserError(
            f"{path}/meta/episodes: episode {index[e]} has length {lengths[e]}, but rows {begins[e]} to {table['dataset_to_index'][e]}."
        )
    _check_totals(path, info, index, lengths)
    try:
        files, file = _places(path, info["data_path"], table["data/chunk_index"], table["data/file_index"])
        videos = {}
        for key in keys:
            place = [table[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")]
            found, which = _places(path, info["video_path"], *place, video_key=key)
            videos[key] = _Videos(found, which, table[f"videos/{key}/from_timestamp"].astype(np.float64))
    except (KeyError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"{path}/meta/info.json: data_path or video_path: {type(error).__name__}: {error}.") from None
    first = np.full(len(files), np.iinfo(np.int64).max)
    np.minimum.at(first, file, begins)
    tasks = _first_tasks(path, table.get("tasks"), _task_texts(path))
    return _Episodes(path, info["fps"], index, lengths, files, file, begins - first[file], videos, tasks)


def _places(
    path: Path, template: str, chunk: np.ndarray, number: np.ndarray, **more: str
) -> tuple[list[Path], np.ndarray]:
    """The files, and which of them each episode is in."""
    both, which = np.unique(np.stack([chunk, number], axis=1).astype(np.int64), axis=0, return_inverse=True)
    files = [path / template.format(chunk_index=c, file_index=f, **more) for c, f in both.tolist()]
    return files, which.reshape(-1)


def _episode_table(path: Path, needed: list[str]) -> dict[str, np.ndarray]:
    """The columns of meta/episodes, all files together, without the statistics that most of them are."""
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise UserError(f"{path}/meta/episodes: holds no parquet file.")
    tables = []
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                there = opened.schema_arrow.names
                missing = [name for name in needed if name not in there]
                if missing:
                    raise UserError(f"{file}: has no column {missing[0]}.")
                names = needed + (["tasks"] if "tasks" in there else [])
                tables.append(opened.read(columns=names, use_threads=False).select(names))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: cannot be read: {_short(error)}") from None
    shared = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    whole = pa.concat_tables([table.select(shared) for table in tables])
    found = {name: whole.column(name).to_numpy() for name in shared if name != "tasks"}
    if "tasks" in shared:
        found["tasks"] = np.empty(len(whole), object)
        found["tasks"][:] = whole.column("tasks").to_pylist()
    return found


def _task_texts(path: Path) -> dict[Any, str]:
    """task_index -> sentence; the sentences are the index of the table, or its column task."""
    file = path / "meta/tasks.parquet"
    if not file.is_file():
        return {}
    try:
        with pq.ParquetFile(file) as opened:
            table = opened.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read: {_short(error)}") from None
    texts = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not texts or "task_index" not in table.column_names:
        return {}
    return dict(zip(table.column("task_index").to_pylist(), table.column(texts[0]).to_pylist()))


def _first_tasks(path: Path, tasks: Any, texts: dict[Any, Any]) -> list[str] | None:
    """One sentence an episode, None where the dataset names no tasks."""
    if tasks is None or all(listed is None for listed in tasks):
        return None
    sentences = []
    for number, listed in enumerate(tasks):
        first = (listed[0] if len(listed) else "") if isinstance(listed, (list, np.ndarray)) else listed
        if isinstance(first, (int, np.integer)):
            if first not in texts:
                raise UserError(f"{path}/meta: episode {number} has task {first}, which is not among the tasks.")
            first = texts[first]
        sentences.append(str(first or ""))
    return sentences


def _json_lines(file: Path) -> list[dict]:
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                raise UserError(f"{file}: line {number} is not JSON: the file is cut off or damaged.") from None
    return found


def _check_totals(path: Path, info: Mapping, index: np.ndarray, lengths: np.ndarray) -> None:
    if len(np.unique(index)) < len(index):
        raise UserError(f"{path}/meta: an episode is listed twice.")
    for name, found in (("total_episodes", len(index)), ("total_frames", int(lengths.sum()))):
        if info.get(name, found) != found:
            raise UserError(
                f"{path}/meta: info.json has {name}={info[name]}, its list of episodes {found}: it was not written to its end."
            )


def _split(path: Path, info: Mapping, name: str, *, count: int) -> np.ndarray:
    """Which episodes a split of info.json names, e.g. {"train": "0:50"}."""
    splits = info.get("splits") or {}
    if name not in splits:
        raise UserError(
            f"dataset.filter_key={name}: {path} has no split of that name; it has {', '.join(splits) or 'none'}."
        )
    try:
        begin, end = (int(part) if part else None for part in str(splits[name]).split(":"))
    except ValueError:
        raise UserError(f"{path}/meta/info.json: split {name}: {splits[name]!r} is not first:end.") from None
    return np.arange(count)[begin:end]


# ------------------------------------------------------------------------------------------------ which column is what


def _video_keys(info: Mapping) -> list[str]:
    return [name for name, about in info["features"].items() if about.get("dtype") == "video" and not _why_not(about)]


def _why_not(about: Mapping) -> str | None:
    """Why a feature is no column, None where it is one."""
    dtype = about.get("dtype")
    if dtype in ("image", "video"):
        details = about.get("info") or about.get("video_info") or {}
        depth = any(details.get(name) for name in ("video.is_depth_map", "is_depth_map"))
        if depth or any("depth" in label.lower() for label in _labels(about)):
            return "a depth map, whose unit the format does not say"
        return None if _picture_size(about["shape"], _labels(about)) else f"a picture of shape {about['shape']}"
    try:
        return None if np.dtype(dtype).kind in "biuf" else f"of type {dtype}"
    except TypeError:
        return f"of type {dtype}"


def _key(feature: str, about: Mapping, features: Mapping, *, taken: Mapping) -> str:
    """The column's name."""
    if about["dtype"] in ("image", "video"):
        name = feature.removeprefix("observation.").removeprefix("images.").replace(".", "_")
        key = f"obs/images/{name}"
        return key if key not in taken else f"obs/images/{feature.replace('.', '_')}"
    if feature in ("action", "actions"):
        return "actions" if "actions" not in taken else feature
    if feature.startswith("action.") and "action" not in features and "actions" not in features:
        return "actions/" + feature.removeprefix("action.").replace(".", "/")
    if feature.startswith("observation."):
        return "obs/" + feature.removeprefix("observation.").replace(".", "/")
    return feature


def _labels(about: Mapping) -> list[str]:
    """What info.json calls the numbers (or axes) of a feature; its lists may be grouped under names."""
    names = about.get("names")
    if isinstance(names, Mapping):
        lists = [part for part in names.values() if isinstance(part, list)]
        names = [label for part in lists for label in part] if lists else list(names)
    return [str(label) for label in names] if isinstance(names, list) else []


def _picture_size(shape: tuple[int, ...], names: list[str]) -> tuple[int, int] | None:
    """(H, W) of a feature stored as hwc or chw: as its names say, unless the channels would be no channels then."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        return None
    by_name = [axis for axis, name in enumerate(names[:3]) if name.lower().startswith("c")] if len(names) == 3 else []
    for axis in [*by_name, 2, 0]:
        if shape[axis] in (1, 3, 4) and axis != 1:
            height, width = (size for other, size in enumerate(shape) if other != axis)
            return height, width
    return None


def _column(rows: _Rows, feature: str, about: Mapping) -> DecodedColumn:
    count, files = int(rows.ends[-1]) if len(rows.ends) else 0, len(rows.episodes.data_files)
    if about["dtype"] not in ("image", "video"):
        dtype, shape = np.dtype(about["dtype"]), (count, *about["shape"])
        decode = _numbers(rows, feature, shape[1:], dtype)
        return DecodedColumn(shape, dtype, decode, stored_as=feature, layout=f"parquet, {files} file(s)")
    height, width = _picture_size(about["shape"], _labels(about)) or (0, 0)
    if about["dtype"] == "video":
        details = about.get("info") or about.get("video_info") or {}
        layout = f"video {details.get('video.codec', 'mp4')}, {len(rows.episodes.videos[feature].files)} file(s)"
        decode = _frames(rows, feature, height, width)
    else:
        layout, decode = f"pictures in parquet, {files} file(s)", _pictures(rows, feature, height, width)
    return DecodedColumn((count, height, width, 3), np.uint8, decode, stored_as=feature, layout=layout)


# ------------------------------------------------------------------------------------------------ rows

Decode = Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]


class _Rows:
    """Rows of the store <-> rows of the data files, for the episodes selected."""

    def __init__(self, episodes: _Episodes, selected: np.ndarray):
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
        """The row groups that hold the rows (M,): (file, the feature's values in the group, the store's row of each value).

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
                raise UserError(f"{path}: {feature} of {self.name(episode)} cannot be read: {_short(error)}") from None

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
            raise UserError(f"{path}: timestamp of {self.name(episode)} cannot be read: {_short(error)}") from None
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


def _numbers(rows: _Rows, feature: str, shape: tuple[int, ...], dtype: np.dtype) -> Decode:
    """Whole row groups: a column that was read for one row has them all."""

    def decode(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for file, column, places in rows.groups(wanted, feature):
            path = rows.episodes.data_files[file]
            values = _to_numpy(column, shape, dtype, where=f"{path}: {feature}", place=places, rows=rows)
            kept = places >= 0
            values, places = values[kept], places[kept]
            for begin, end in runs_of(places):
                yield int(places[begin]), values[begin:end]

    return decode


def _to_numpy(
    column: pa.ChunkedArray,
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    where: str,
    place: np.ndarray | None = None,
    rows: _Rows | None = None,
) -> np.ndarray:
    """(n, *shape) numbers of a parquet column, whose rows are numbers or lists of them."""
    count, array = len(column), column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    whose = ""
    if rows is not None and place is not None and (place >= 0).any():
        whose = f" ({rows.name(int(rows.owner(place[place >= 0])[0]))})"
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise UserError(f"{where}: {array.null_count} values are missing{whose}.")
        if not isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
            break
        sizes = pc.min_max(pc.list_value_length(array)).as_py()
        if sizes["min"] != sizes["max"]:
            raise UserError(f"{where}: its lists have {sizes['min']} to {sizes['max']} values, not the same{whose}.")
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    if values.size != count * int(np.prod(shape)):
        raise UserError(
            f"{where}: {values.size // max(1, count)} numbers a row, meta/info.json says {list(shape)}{whose}."
        )
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, dtype, "same_kind"):
        raise UserError(f"{where}: holds {values.dtype}, meta/info.json says {dtype}{whose}.")
    return values.astype(dtype, copy=False).reshape(count, *shape)


def _pictures(rows: _Rows, feature: str, height: int, width: int) -> Decode:
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


def _picture(rows: _Rows, feature: str, file: int, row: int, stored: Any, size: tuple[int, int]) -> np.ndarray:
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
        raise UserError(f"{whose} cannot be decoded: {_short(error)}") from None
    if pixels.shape[:2] != size:
        raise UserError(f"{whose} is {pixels.shape[:2]} pixels, meta/info.json says {size} (height, width).")
    return pixels


def _frames(rows: _Rows, feature: str, height: int, width: int) -> Decode:
    """Frames by their time; those decoded on the way that are rows of the dataset come along."""
    videos, fps = rows.episodes.videos[feature], float(rows.episodes.fps)
    files, begins = videos.file[rows.selected], videos.from_s[rows.selected]

    def decode(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        owner = rows.owner(wanted)
        for file in np.unique(files[owner]).tolist():
            mine = files[owner] == file
            yield from decode_file(file, wanted[mine], owner[mine])

    def decode_file(file: int, wanted: np.ndarray, owner: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        inside = wanted - rows.starts[owner]
        times = np.empty(len(wanted))
        for episode in np.unique(owner).tolist():
            times[owner == episode] = begins[episode] + rows.times(episode)[inside[owner == episode]]
        found = _Found(rows, np.flatnonzero(files == file), begins, fps)
        given, order = np.zeros(len(wanted), bool), np.argsort(times, kind="stable")
        try:
            with VideoFrames(videos.files[file], fps=fps) as video:
                if (video.height, video.width) != (height, width):
                    raise UserError(
                        f"{video.path}: its frames are {video.height}x{video.width}, meta/info.json says {height}x{width} (height x width)"
                    )
                for shown, frames in video.decode_times(times[order]):
                    for first, values in found.take(shown, frames):
                        given |= (wanted >= first) & (wanted < first + len(values))
                        yield first, values
                for first, values in found.rest():
                    given |= wanted == first
                    yield first, values
        except UserError as error:
            first = order[np.argmin(given[order])]
            raise UserError(f"{error} ({feature} of {rows.name(int(owner[first]))})") from None
        if not given.all():
            first = order[np.argmin(given[order])]
            raise UserError(
                f"{videos.files[file]}: no frame within half a frame of {times[first]:.3f} s, where {rows.name(int(owner[first]))} "
                f"has its frame {inside[first]}: the video is cut off, or its times are not the dataset's."
            )

    return decode


class _Found:
    """Which rows the frames of one video file are: each row once, from the frame nearest to its timestamp."""

    def __init__(self, rows: _Rows, episodes: np.ndarray, begins: np.ndarray, fps: float):
        self._rows, self._fps = rows, fps
        self._episodes = episodes[np.argsort(begins[episodes], kind="stable")]
        self._begins = begins[self._episodes]
        self._newest: dict[int, int] = {}  # episode -> its last row given
        self._held: dict[int, tuple[float, np.ndarray]] = {}  # row -> how far off its frame is

    def take(self, times: np.ndarray, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Runs (first row, values). The last frame is held back: the next run may begin with one nearer to its row."""
        found = list(self._nearest(times))
        rows, which, gap = (np.concatenate(part) for part in zip(*found)) if found else (np.empty(0, np.int64),) * 3
        for row, (before, frame) in self._held.items():
            again = rows == row
            if not (gap[again] < before).any():
                rows, which, gap = rows[~again], which[~again], gap[~again]
                yield row, frame[None]
        last = which == len(times) - 1
        self._held = {row: (off, frames[-1].copy()) for row, off in zip(rows[last].tolist(), gap[last].tolist())}
        rows, which = rows[~last], which[~last]
        for begin, end in runs_of(rows):
            yield int(rows[begin]), _those(frames, which[begin:end])

    def rest(self) -> Iterator[tuple[int, np.ndarray]]:
        """What was held back."""
        for row, (_, frame) in self._held.items():
            yield row, frame[None]
        self._held = {}

    def _nearest(self, times: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows, positions in `times`, gaps in s) (n,) each, an episode at a time."""
        half = 0.5 / self._fps
        low = max(0, int(np.searchsorted(self._begins, times[0] - half, side="right")) - 1)
        high = int(np.searchsorted(self._begins, times[-1] + half, side="right"))
        for episode, begin in zip(self._episodes[low:high].tolist(), self._begins[low:high].tolist()):
            stamps, start = self._rows.times(episode), int(self._rows.starts[episode])
            after = np.clip(np.searchsorted(stamps, times - begin), 1, max(1, len(stamps) - 1))
            after = np.minimum(after, len(stamps) - 1)
            earlier = np.abs(times - begin - stamps[after - 1]) < np.abs(times - begin - stamps[after])
            nearest = np.where(earlier, after - 1, after)
            gap = np.abs(times - begin - stamps[nearest])
            fresh = (nearest > self._newest.get(episode, -1)) | np.isin(nearest + start, list(self._held))
            near = np.flatnonzero((gap <= half * 1.001) & fresh)
            near = near[np.lexsort((gap[near], nearest[near]))]
            inside, first = np.unique(nearest[near], return_index=True)
            if len(inside):
                self._newest[episode] = int(inside[-1])
                yield inside + start, near[first], gap[near[first]]


def _those(frames: np.ndarray, which: np.ndarray) -> np.ndarray:
    """frames[which], without a copy where they follow each other."""
    if which[-1] - which[0] == len(which) - 1 and (np.diff(which) == 1).all():
        return frames[which[0] : which[-1] + 1]
    return frames[which]


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:160]
