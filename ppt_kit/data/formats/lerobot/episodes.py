"""Where the episodes of a dataset are: which rows of which files, which seconds of which videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.formats.lerobot.info import video_keys
from ppt_kit.data.formats.lerobot.listed import (
    AGAIN,
    check_totals,
    first_tasks,
    json_lines,
    read_table,
    seconds,
    short,
    task_texts,
    whole_numbers,
)  # fmt: skip
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
    from_index: np.ndarray  # (E,) first row, as the dataset counts all of them
    data_files: list[Path]
    data_file: np.ndarray  # (E,) into data_files
    data_first: np.ndarray  # (E,) first row in that file
    videos: dict[str, Videos]
    tasks: list[str] | None
    task_numbers: list[int]  # those that rows may have; [] = any


def episodes_v2(path: Path, info: Mapping) -> Episodes:
    """One parquet file and one video a camera for each episode."""
    file = path / "meta/episodes.jsonl"
    listed = json_lines(file)
    index = whole_numbers([line.get("episode_index") for line in listed], name="episode_index", file=file)
    order = np.argsort(index, kind="stable")
    listed, index = [listed[place] for place in order.tolist()], index[order]
    lengths = whole_numbers([line.get("length") for line in listed], name="length", file=file, low=1)
    check_totals(file, info, index, lengths)
    try:
        places = [{"episode_chunk": e // info["chunks_size"], "episode_index": e} for e in index.tolist()]
        data_files = _apart([path / info["data_path"].format(**place) for place in places])
        one_each = np.arange(len(index))
        videos = {
            key: Videos(
                _apart([path / info["video_path"].format(video_key=key, **place) for place in places]),
                one_each,
                np.zeros(len(index)),
            )
            for key in video_keys(info)
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise _no_place(path, error) from None
    texts = task_texts(path, lines=True)
    tasks = first_tasks(file, index, [line.get("tasks") for line in listed], texts)
    return Episodes(
        path, info["fps"], index, lengths, np.cumsum(lengths) - lengths, data_files, one_each, np.zeros_like(index),
        videos, tasks, list(texts),
    )  # fmt: skip


def episodes_v3(path: Path, info: Mapping) -> Episodes:
    """Many episodes a file; meta/episodes says which rows and seconds are whose."""
    keys, where = video_keys(info), path / "meta/episodes"
    table = _episode_table(where, [*NEEDED, *(f"videos/{key}/{part}" for key in keys for part in NEEDED_OF_VIDEOS)])
    index, lengths, begins = table["episode_index"], table["length"], table["dataset_from_index"]
    check_totals(where, info, index, lengths)
    wrong = np.flatnonzero(table["dataset_to_index"] - begins != lengths)
    if len(wrong):
        e = int(wrong[0])
        raise UserError(
            f"{where}: episode {index[e]} has length {lengths[e]}, but rows {begins[e]} to "
            f"{table['dataset_to_index'][e]}. {AGAIN}."
        )
    try:
        files, file = _places(path, info["data_path"], table["data/chunk_index"], table["data/file_index"])
        videos = {}
        for key in keys:
            place = [table[f"videos/{key}/{part}"] for part in ("chunk_index", "file_index")]
            found, which = _places(path, info["video_path"], *place, video_key=key)
            videos[key] = Videos(found, which, table[f"videos/{key}/from_timestamp"])
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise _no_place(path, error) from None
    _check_apart(where, index, file, begins, begins + lengths, what="rows {} to {} of one file")
    for key in keys:
        _check_seconds(where, index, videos[key], table.get(f"videos/{key}/to_timestamp"), key=key, fps=info["fps"])
    first = np.full(len(files), np.iinfo(np.int64).max)
    np.minimum.at(first, file, begins)
    texts = task_texts(path, lines=False)
    tasks = first_tasks(where, index, table.get("tasks", []), texts)
    return Episodes(
        path, info["fps"], index, lengths, begins, files, file, begins - first[file], videos, tasks, list(texts)
    )


def _no_place(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}/meta/info.json: chunks_size, data_path and video_path do not say where the episodes are "
        f"({type(error).__name__}: {short(error)}). {AGAIN}."
    )


def _places(
    path: Path, template: str, chunk: np.ndarray, number: np.ndarray, **more: str
) -> tuple[list[Path], np.ndarray]:
    """The files, and which of them each episode is in."""
    both, which = np.unique(np.stack([chunk, number], axis=1), axis=0, return_inverse=True)
    files = _apart([path / template.format(chunk_index=c, file_index=f, **more) for c, f in both.tolist()])
    return files, which.reshape(-1)


def _apart(files: list[Path]) -> list[Path]:
    """
    Raises:
        ValueError: one is there twice: what should tell them apart is not in the template.
    """
    if len(set(files)) < len(files):
        raise ValueError(f"several would be in {next(file.name for file in files if files.count(file) > 1)}")
    return files


def _check_apart(
    where: Path, index: np.ndarray, file: np.ndarray, begins: np.ndarray, ends: np.ndarray, *, what: str
) -> None:
    """Whether no two episodes have a stretch of one file in common.

    Raises:
        UserError: names both.
    """
    order = np.lexsort((begins, file))
    before, after = order[:-1], order[1:]
    both = np.flatnonzero((file[before] == file[after]) & (begins[after] < ends[before]))
    if len(both):
        one, other = int(before[both[0]]), int(after[both[0]])
        share = what.format(begins[other], min(ends[one], ends[other]))
        raise UserError(f"{where}: episodes {index[one]} and {index[other]} both have {share}. {AGAIN}.")


def _check_seconds(
    where: Path, index: np.ndarray, videos: Videos, ends: np.ndarray | None, *, key: str, fps: float
) -> None:
    """Whether each episode has seconds of its own in the videos of a camera.

    Raises:
        UserError: one has none, or two have the same.
    """
    if ends is None:
        ends = videos.from_s
    elif (ends <= videos.from_s).any():
        e = int(np.argmax(ends <= videos.from_s))
        span = f"{videos.from_s[e]:.3f} to {ends[e]:.3f} s"
        raise UserError(f"{where}: episode {index[e]} goes from {span} of its video of {key}. {AGAIN}.")
    # the times are sums of others: two that meet may overlap by a rounding, never by half a frame
    ends = np.maximum(ends - 0.5 / fps, videos.from_s + 1e-6)
    _check_apart(where, index, videos.file, videos.from_s, ends, what=f"{{:.3f}} to {{:.3f}} s of one video of {key}")


def _episode_table(where: Path, needed: list[str]) -> dict[str, Any]:
    """The columns of meta/episodes, all files together, by episode_index; not the statistics that most of them are."""
    files = sorted(where.glob("*/*.parquet"))
    if not files:
        raise UserError(f"{where}: holds no parquet file. {AGAIN}.")
    ends = [name.replace("from_timestamp", "to_timestamp") for name in needed if name.endswith("/from_timestamp")]
    tables = [(file, read_table(file, needed=needed, also=["tasks", *ends])) for file in files]
    found: dict[str, Any] = {}
    for name in tables[0][1].column_names:
        if name == "tasks" or not all(name in table.column_names for _, table in tables):
            continue
        check = seconds if name.endswith("timestamp") else whole_numbers
        low = {"low": 1} if name == "length" else {}
        parts = [check(table.column(name).to_pylist(), name=name, file=file, **low) for file, table in tables]
        found[name] = np.concatenate(parts)
    order = np.argsort(found["episode_index"], kind="stable")
    found = {name: values[order] for name, values in found.items()}
    if all("tasks" in table.column_names for _, table in tables):
        tasks = [each for _, table in tables for each in table.column("tasks").to_pylist()]
        found["tasks"] = [tasks[place] for place in order.tolist()]
    return found
