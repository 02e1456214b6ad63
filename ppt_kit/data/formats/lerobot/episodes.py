"""Where the episodes of a dataset are: which rows of which files, which seconds of which videos."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppt_kit.data.formats.lerobot.info import video_keys
from ppt_kit.errors import UserError

# columns of meta/episodes
NEEDED = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")
NEEDED_OF_VIDEOS = ("chunk_index", "file_index", "from_timestamp")


@dataclass
class Videos:
    """Where one camera's episodes are."""

    files: list[Path]
    file: np.ndarray  # (E,) into files
    from_s: np.ndarray  # (E,) float64, where the episode begins in it


@dataclass
class Episodes:
    """All episodes of a dataset, and where they are."""

    path: Path
    fps: float
    index: np.ndarray  # (E,) the dataset's own numbers
    lengths: np.ndarray  # (E,)
    data_files: list[Path]
    data_file: np.ndarray  # (E,) into data_files
    data_first: np.ndarray  # (E,) first row in that file
    videos: dict[str, Videos]
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


def episodes_v2(path: Path, info: Mapping) -> Episodes:
    """One parquet file and one video a camera for each episode."""
    listed = sorted(_json_lines(path / "meta/episodes.jsonl"), key=lambda line: line.get("episode_index", -1))
    try:
        index = np.array([line["episode_index"] for line in listed], np.int64)
        lengths = np.array([line["length"] for line in listed], np.int64)
        places = [{"episode_chunk": e // info["chunks_size"], "episode_index": e} for e in index.tolist()]
        data_files = [path / info["data_path"].format(**place) for place in places]
        one_each = np.arange(len(index))
        videos = {
            key: Videos(
                [path / info["video_path"].format(video_key=key, **place) for place in places],
                one_each,
                np.zeros(len(index)),
            )
            for key in video_keys(info)
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}/meta: info.json and episodes.jsonl do not say where the episodes are "
            f"({type(error).__name__}: {error})."
        ) from None
    _check_totals(path, info, index, lengths)
    texts = {line.get("task_index"): line.get("task") for line in _json_lines(path / "meta/tasks.jsonl")}
    tasks = _first_tasks(path, [line.get("tasks") for line in listed], texts)
    return Episodes(path, info["fps"], index, lengths, data_files, one_each, np.zeros_like(index), videos, tasks)


def episodes_v3(path: Path, info: Mapping) -> Episodes:
    """Many episodes a file; meta/episodes says which rows and seconds are whose."""
    keys = video_keys(info)
    table = _episode_table(path, [*NEEDED, *(f"videos/{key}/{part}" for key in keys for part in NEEDED_OF_VIDEOS)])
    table = {name: values[np.argsort(table["episode_index"], kind="stable")] for name, values in table.items()}
    index, lengths, begins = table["episode_index"], table["length"], table["dataset_from_index"]
    wrong = np.flatnonzero(table["dataset_to_index"] - begins != lengths)
    if len(wrong):
        e = int(wrong[0])
        raise UserError(
            f"{path}/meta/episodes: episode {index[e]} has length {lengths[e]}, but rows {begins[e]} to "
            f"{table['dataset_to_index'][e]}."
        )
    _check_totals(path, info, index, lengths)
    try:
        files, file = _places(path, info["data_path"], table["data/chunk_index"], table["data/file_index"])
        videos = {}
        for key in keys:
            place = [table[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")]
            found, which = _places(path, info["video_path"], *place, video_key=key)
            videos[key] = Videos(found, which, table[f"videos/{key}/from_timestamp"].astype(np.float64))
    except (KeyError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"{path}/meta/info.json: data_path or video_path: {type(error).__name__}: {error}.") from None
    first = np.full(len(files), np.iinfo(np.int64).max)
    np.minimum.at(first, file, begins)
    tasks = _first_tasks(path, table.get("tasks"), _task_texts(path))
    return Episodes(path, info["fps"], index, lengths, files, file, begins - first[file], videos, tasks)


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
            raise UserError(f"{file}: cannot be read: {short(error)}") from None
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
        raise UserError(f"{file}: cannot be read: {short(error)}") from None
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
                f"{path}/meta: info.json has {name}={info[name]}, its list of episodes {found}: "
                "it was not written to its end."
            )


def short(error: BaseException) -> str:
    """The first line of what a library says."""
    return str(error).split("\n")[0][:160]
