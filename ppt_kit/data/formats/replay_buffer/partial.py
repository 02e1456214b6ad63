"""Episodes of a dataset that is not complete yet: each is safe as it comes, whatever becomes of the process.

.<name>.partial/plan.json        what decides the episodes, and which folder `new` is
                episodes.jsonl   one line a whole episode
                new/             the dataset in the making
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.files import append_whole, json_row, write_text

log = logging.getLogger(__name__)

Kinds = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Episode:
    """One that is whole.

    Attributes:
        rows: how many.
        meta: name -> its value, as plain values.
        constants: name -> array, the same for every episode.
    """

    rows: int
    meta: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)


class Partial:
    """What was begun under the name `path`.

    Args:
        plan: what decides the episodes, as plain values by name.
        anew: what is there of another plan is replaced instead of refused.
        at_most: episodes that are taken up; None = all.
        key: what the user sets the place with.
    Attributes:
        episodes: those taken up, in order.
        kinds: array -> shape and type of its rows, once there is an episode.
    """

    def __init__(
        self, path: Path, plan: Mapping[str, Any], *, anew: bool = False, at_most: int | None = None, key: str
    ):
        self.path, self.folder = path, path.with_name(f".{path.name}.partial")
        # as the file gives it back
        self.plan = json.loads(json.dumps(plan, default=str))
        self.anew, self.at_most, self.key = anew, at_most, key
        self.episodes: list[Episode] = []
        self.kinds: Kinds = {}
        self._lock: int | None = None

    def open(self) -> Path:
        """The folder that holds `new`, with nothing in it but what the episodes taken up have.

        Raises:
            UserError: another process writes there, what is there is of another plan, or the disk refuses.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._read()
            if not self.episodes:
                self._begin()
            else:
                self._clear()
        except OSError as error:
            self._drop_lock()
            raise UserError(
                f"{self.folder}: cannot be written to ({error.strerror}). Set {self.key} to a folder of yours."
            ) from None
        except BaseException:
            self._drop_lock()
            raise
        return self.folder

    def commit(self, episode: Episode, kinds: Kinds) -> None:
        """Says that an episode is whole; its rows are on the disk."""
        line = {
            "rows": episode.rows,
            "meta": {name: _plain(value) for name, value in episode.meta.items()},
            "constants": {name: _packed(value) for name, value in episode.constants.items()},
            "kinds": {name: [list(shape), dtype.str] for name, (shape, dtype) in kinds.items()},
        }
        append_whole(self._log, (json.dumps(line) + "\n").encode())
        self.episodes.append(episode)

    def close(self, *, keep: bool) -> None:
        """Without an episode, or when the dataset is complete, the folder goes."""
        if self._lock is None:
            return
        if not keep or not self.episodes:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._drop_lock()

    @property
    def _log(self) -> Path:
        return self.folder / "episodes.jsonl"

    @property
    def _new(self) -> Path:
        return self.folder / "new"

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._drop_lock()
            raise UserError(
                f"{self.path}: another process is writing it now. Wait for it, or choose another name."
            ) from None
        # some network disks know no locks
        except OSError:
            log.debug("%s: this disk knows no locks", self.folder)

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self) -> None:
        """Takes up what is there, where it is of this plan."""
        aside = self.folder / "replaced"
        if aside.exists() and not os.path.lexists(self.path):
            # killed between two renames
            os.rename(aside, self.path)
        stored = _read_json(self.folder / "plan.json")
        if stored is None or not self._new.is_dir() or stored.get("new") != self._new.stat().st_ino:
            # nothing was begun; or it was finished, and `new` is what stood at `path` before
            return
        lines = _lines(self._log)
        before, differs = stored.get("plan"), _first_difference(stored.get("plan"), self.plan)
        if lines and differs:
            said = f"with {differs}={_show(before, differs)}"
            if not self.anew:
                raise UserError(
                    f"{self.path}: a collection of it stopped after {len(lines)} demonstrations, {said}, and this "
                    f"one has {differs}={_show(self.plan, differs)}. "
                    "Type the former to go on with it, or overwrite=true to start anew."
                )
            log.warning(
                "%s: what a stopped collection left (%d demonstrations, %s) is replaced", self.path, len(lines), said
            )
            return
        if lines:
            self._refuse_fewer(len(lines))
            self.episodes = [_episode(line) for line in lines[: self.at_most]]
            self.kinds = {name: (tuple(shape), np.dtype(kind)) for name, (shape, kind) in lines[-1]["kinds"].items()}
            write_text(self._log, "".join(json.dumps(line) + "\n" for line in lines[: self.at_most]))
            left_out = len(lines) - len(self.episodes)
            log.warning(
                "%s: going on with a collection that stopped after %d demonstrations%s",
                self.path, len(lines), f"; {left_out} of them are left out" if left_out else "",
            )  # fmt: skip

    def _refuse_fewer(self, num_kept: int) -> None:
        """What was collected is not thrown away unasked."""
        if self.at_most is not None and num_kept > self.at_most and not self.anew:
            raise UserError(
                f"{self.path}: a collection of it stopped after {num_kept} demonstrations, and this one wants "
                f"{self.at_most}. Type episodes={num_kept} or more to go on with it, or overwrite=true for a dataset "
                "without the others."
            )

    def _begin(self) -> None:
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._new.mkdir()
        write_text(self.folder / "plan.json", json.dumps({"plan": self.plan, "new": self._new.stat().st_ino}))

    def _clear(self) -> None:
        """What a process that was about to finish wrote beside the rows."""
        shutil.rmtree(self._new / "meta", ignore_errors=True)
        for entry in [*self._new.glob(".z*"), *(self._new / "data").rglob(".z*")]:
            entry.unlink()


def sweep(path: Path) -> None:
    """Takes away what is left beside a dataset by a process that was killed when it was complete already."""
    folder = path.with_name(f".{path.name}.partial")
    stored, new = _read_json(folder / "plan.json"), folder / "new"
    if path.is_dir() and stored is not None and not (new.is_dir() and new.stat().st_ino == stored.get("new")):
        shutil.rmtree(folder, ignore_errors=True)


def _lines(path: Path) -> list[dict]:
    """What was committed, in order; behind a line that is not whole nothing counts."""
    found: list[dict] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        row = json_row(line)
        if row is None or not line.endswith(b"\n") or not {"rows", "meta", "kinds"} <= set(row):
            break
        found.append(row)
    return found


def _episode(line: Mapping[str, Any]) -> Episode:
    constants = {name: np.array(values, dtype) for name, (dtype, values) in line["constants"].items()}
    return Episode(line["rows"], line["meta"], constants)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _packed(value: Any) -> list:
    array = np.asarray(value)
    return [array.dtype.str, array.tolist()]


def _read_json(path: Path) -> dict | None:
    with contextlib.suppress(OSError):
        return json_row(path.read_bytes())
    return None


def _first_difference(before: Any, now: Mapping[str, Any]) -> str | None:
    if not isinstance(before, dict):
        return "plan"
    return next((name for name in [*now, *before] if before.get(name) != now.get(name)), None)


def _show(plan: Any, name: str) -> str:
    value = plan.get(name) if isinstance(plan, dict) else plan
    return value if isinstance(value, str) else json.dumps(value)
