"""What the lists in meta/ say, JSON lines and tables, and which of it cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer

AGAIN = "Copy it again, or write it anew with LeRobot's own scripts"
# columns of tasks.parquet that the sentences may be: pandas calls an index without a name so
TEXTS = ("task", "__index_level_0__")


def read_text(file: Path) -> str:
    """
    Raises:
        UserError: it cannot be read, is a note of Git LFS, or no text.
    """
    refuse_lfs_pointer(file)
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}). {AGAIN}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: no text (byte {error.start} is {error.object[error.start]:#x}). {AGAIN}.") from None


def json_lines(file: Path) -> list[dict]:
    """The objects of a file that has one a line.

    Raises:
        UserError: names the line that is none.
    """
    found = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{file}: line {number} is not JSON: the file is cut off or damaged. {AGAIN}.") from None
        if not isinstance(value, dict):
            raise UserError(f"{file}: line {number} is {line[:40]}, not an object {{…}}. {AGAIN}.")
        found.append(value)
    return found


def read_table(file: Path, *, needed: Sequence[str] = (), also: Sequence[str] = ()) -> pa.Table:
    """Columns of a parquet file: those needed, and of `also` those that are there; all, where none are named.

    Raises:
        UserError: it cannot be read, or lacks one.
    """
    refuse_lfs_pointer(file)
    try:
        with pq.ParquetFile(file) as opened:
            there = opened.schema_arrow.names
            missing = [name for name in needed if name not in there]
            if missing:
                raise UserError(f"{file}: has no column {missing[0]}. {AGAIN}.")
            names = [*needed, *(name for name in also if name in there)]
            return opened.read(columns=names or None, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read: {short(error)}. {AGAIN}.") from None


def whole_numbers(values: Sequence[Any], *, name: str, file: Path, low: int = 0) -> np.ndarray:
    """(E,) int64 of what a list says of each episode.

    Raises:
        UserError: names the first line that is no whole number from `low` on.
    """
    for line, value in enumerate(values, 1):
        fine = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value < 1 << 62
        if not fine:
            raise UserError(f"{file}: entry {line}: {name}={_said(value)}: takes whole numbers from {low} on. {AGAIN}.")
    return np.asarray(values, np.int64)


def seconds(values: Sequence[Any], *, name: str, file: Path) -> np.ndarray:
    """(E,) float64 of what a list says of each episode.

    Raises:
        UserError: names the first line that is no time from 0 on.
    """
    for line, value in enumerate(values, 1):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < np.inf:
            raise UserError(f"{file}: entry {line}: {name}={_said(value)}: takes times from 0 on (s). {AGAIN}.")
    return np.asarray(values, np.float64)


def task_texts(path: Path, *, lines: bool) -> dict[int, str]:
    """task_index -> sentence; {} where the dataset lists none.

    Args:
        lines: in tasks.jsonl, as v2 has them; else tasks.parquet, whose index they are, or its column task.
    Raises:
        UserError: the list is damaged.
    """
    if lines:
        file = path / "meta/tasks.jsonl"
        listed = json_lines(file)
        numbers, texts = [[line.get(name) for line in listed] for name in ("task_index", "task")]
    else:
        file = path / "meta/tasks.parquet"
        if not file.is_file():
            return {}
        table = read_table(file)
        column = next((name for name in TEXTS if name in table.column_names), None)
        if column is None or "task_index" not in table.column_names:
            return {}
        numbers, texts = table.column("task_index").to_pylist(), table.column(column).to_pylist()
    found = whole_numbers(numbers, name="task_index", file=file).tolist()
    if len(set(found)) < len(found):
        twice = next(number for number in found if found.count(number) > 1)
        raise UserError(f"{file}: task_index={twice} is listed twice. {AGAIN}.")
    wrong = next((number for number, text in zip(found, texts) if not isinstance(text, str | None)), None)
    if wrong is not None:
        raise UserError(f"{file}: task {wrong} is {_said(texts[found.index(wrong)])}, not a sentence. {AGAIN}.")
    return {number: text or "" for number, text in zip(found, texts)}


def first_tasks(file: Path, index: np.ndarray, tasks: Sequence[Any], texts: Mapping[int, str]) -> list[str] | None:
    """One sentence an episode, None where the dataset names no tasks.

    Args:
        index: (E,) the episodes' numbers.
        tasks: what `file` lists of each: sentences, or numbers of some.
    Raises:
        UserError: an episode's task is none.
    """
    if all(listed is None for listed in tasks):
        return None
    sentences = []
    for number, listed in zip(index.tolist(), tasks):
        first = (listed[0] if len(listed) else "") if isinstance(listed, (list, np.ndarray)) else listed
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            if first not in texts:
                raise UserError(f"{file}: episode {number} has task {first}, which is not among the tasks. {AGAIN}.")
            first = texts[int(first)]
        if not isinstance(first, str | None):
            raise UserError(f"{file}: episode {number} has the task {_said(first)}, which is no sentence. {AGAIN}.")
        sentences.append(first or "")
    return sentences


def check_totals(file: Path, info: Mapping, index: np.ndarray, lengths: np.ndarray) -> None:
    """Whether there are episodes, none twice, and as many as info.json says.

    Raises:
        UserError: the first that does not fit.
    """
    if not len(index):
        raise UserError(f"{file}: lists no episode. {AGAIN}.")
    numbers, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        number = int(numbers[np.argmax(counts > 1)])
        raise UserError(f"{file}: episode {number} is listed {counts.max()} times. {AGAIN}.")
    for name, found in (("total_episodes", len(index)), ("total_frames", int(lengths.sum()))):
        if info.get(name) is not None and info[name] != found:
            raise UserError(
                f"{file}: lists {name}={found}, info.json says {info[name]!r}: one of them was not written to its end, "
                f"or is from another copy. {AGAIN}."
            )


def short(error: BaseException) -> str:
    """The first line of what a library says."""
    return str(error).split("\n")[0][:160]


def _said(value: Any) -> str:
    return "null" if value is None else repr(value)[:40]
