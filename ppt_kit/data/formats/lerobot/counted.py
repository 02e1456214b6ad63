"""Whether the rows of a table are those that the list of episodes says: LeRobot's own columns count them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ppt_kit.data.formats.lerobot.cells import to_numpy
from ppt_kit.data.formats.lerobot.episodes import Episodes
from ppt_kit.data.formats.lerobot.listed import AGAIN
from ppt_kit.errors import UserError

log = logging.getLogger(__name__)

# in the order they are looked at: which rows, in which order, when
LOOKED_AT = ("episode_index", "index", "frame_index", "timestamp", "task_index")


def check_rows(
    table: pa.Table, file: Path, episodes: Episodes, selected: Iterable[int], *, told: set[str]
) -> np.ndarray | None:
    """(n,) float64 timestamps of a whole data file, None where it has none.

    Args:
        table: those of LeRobot's own columns that the file has, all n rows.
        selected: episodes of it, all of whose rows are looked at.
        told: columns of which a warning was given; those that are given are added.
    Raises:
        UserError: names the file, the column, and the first episode and row that does not fit.
    """
    found: dict[str, np.ndarray] = {}
    for episode in selected:
        first, end = _bounds(episodes, episode)
        number = int(episodes.index[episode])
        if end > len(table):
            raise UserError(
                f"{file}: {len(table)} rows, but episode {number} is in rows {first} to {end - 1}. {AGAIN}."
            )
        found = found or _all(table, file, episodes)
        steps = {name: values[first:end] for name, values in found.items()}
        for name, wrong, why in _wrong(steps, number=number, tasks=episodes.task_numbers):
            at = int(np.argmax(wrong))
            raise UserError(
                f"{file}: {name} of episode {number} is {steps[name][at]:g} in row {first + at} of the file "
                f"(step {at}), {why}. {AGAIN}."
            )
        for name, due in (("index", int(episodes.from_index[episode])), ("frame_index", 0)):
            if name in steps and name not in told and steps[name][0] != due:
                told.add(name)
                log.warning(
                    "%s: %s of episode %d begins at %d in row %d, not at %d: episodes were taken out or put together? "
                    "Rows are taken by their place in the file", file, name, number, steps[name][0], first, due,
                )  # fmt: skip
    return found.get("timestamp")


def _all(table: pa.Table, file: Path, episodes: Episodes) -> dict[str, np.ndarray]:
    """Column -> (n,) numbers."""
    place = next(number for number, each in enumerate(episodes.data_files) if each == file)
    mine = np.flatnonzero(episodes.data_file == place).tolist()

    def locate(row: int) -> str:
        for episode in mine:
            first, end = _bounds(episodes, episode)
            if first <= row < end:
                return f"episode {episodes.index[episode]}, row {row} of the file"
        return f"row {row} of the file"

    found = {}
    for name in (name for name in LOOKED_AT if name in table.column_names):
        kind = np.dtype(np.float64 if name == "timestamp" else np.int64)
        found[name] = to_numpy(table.column(name), (), kind, where=f"{file}: {name}", locate=locate)
    return found


def _bounds(episodes: Episodes, episode: int) -> tuple[int, int]:
    """Its first row in its file and one past its last."""
    first = int(episodes.data_first[episode])
    return first, first + int(episodes.lengths[episode])


def _wrong(steps: Mapping[str, np.ndarray], *, number: int, tasks: list[int]) -> Iterator[tuple[str, np.ndarray, str]]:
    """(column, (T,) bool where it is wrong, what was due) of each column of one episode that is."""
    for name, values in steps.items():
        if name == "episode_index":
            wrong, why = values != number, f"where {number} is due: a row of another episode"
        elif name == "timestamp":
            wrong = ~np.isfinite(values) | ~(np.diff(values, prepend=values[0] - 1) > 0)
            why = "which is no time later than the step before"
        elif name == "task_index":
            wrong = ~np.isin(values, tasks) if tasks else np.zeros(len(values), bool)
            why = "which is not among the dataset's tasks"
        else:
            wrong = np.diff(values, prepend=values[0] - 1) != 1
            why = "not one more than the step before: rows are lost, doubled or in another order"
        if wrong.any():
            yield name, wrong, why
