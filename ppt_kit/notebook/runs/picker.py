"""A list of runs to pick from in a notebook: sorted, filtered, with their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import pandas as pd
import traitlets

from ppt_kit.errors import UserError
from ppt_kit.notebook.runs.compare import Runs, compare_runs
from ppt_kit.notebook.runs.curves import words_of
from ppt_kit.runs.grid import short_name

HERE = Path(__file__).parent
# of a run, beside what differs
SHOWN = ("state", "epoch", "loss", "val_loss", "success", "minutes")
OF_CHECKPOINTS = ("epoch", "loss", "val_loss", "success", "size_mb", "path")


def pick_runs(dirs: Any) -> RunPicker:
    """A list of runs in a cell: tick some, unfold one to choose a checkpoint of it.

    `picker.runs` is `compare_runs` of those that are ticked; `picker.checkpoint` is a file for `load_policy`.

    Args:
        dirs: as for `compare_runs`; a pattern is looked up again by the button Read again.
    Raises:
        UserError: a folder that is not there or is no run.
    """
    return RunPicker(dirs)


class RunPicker(anywidget.AnyWidget):
    """The widget.

    Attributes:
        picked: names of the runs that are ticked.
        checkpoint: path of the checkpoint that was chosen; "" = none.
    """

    _esm = HERE / "picker.js"
    _css = HERE / "picker.css"

    columns: Any = traitlets.List().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)
    picked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    checkpoint = traitlets.Unicode("").tag(sync=True)

    def __init__(self, dirs: Any):
        super().__init__()
        self._dirs = dirs
        self.read()
        self.on_msg(lambda _, message, __: self.read() if message == "read" else None)

    def read(self) -> None:
        """Looks the runs up on the disk, again; what is ticked stays."""
        self._all = compare_runs(self._dirs)
        summary, keys = self._all.summary, self._all.keys
        known = [name for name in SHOWN if summary[name].notna().any()]
        self.columns = [
            {"key": name, "name": short_name(name, keys) if name in keys else name.replace("_", " ")}
            for name in ("run", *keys, *known)
        ]
        files = self._all.checkpoints
        self.rows = [
            {
                "cells": {name: _cell(line[name]) for name in ("run", *keys, *known)},
                "checkpoints": _plain(files[files["run"] == line["run"]][[*OF_CHECKPOINTS]]),
                "error": line["error"] if isinstance(line["error"], str) else "",
            }
            for line in summary.to_dict("records")
        ]
        self.picked = [name for name in self.picked if name in self._all.paths]

    @property
    def runs(self) -> Runs:
        """Those that are ticked, to be compared.

        Raises:
            UserError: none is.
        """
        if not self.picked:
            raise UserError("no run is ticked. Tick some in the list, then run this cell again.")
        unknown = next((name for name in self.picked if name not in self._all.paths), None)
        if unknown is not None:
            raise UserError(f"picked: there is no run {unknown}. There is {', '.join(self._all.paths)}.")
        return Runs({name: path for name, path in self._all.paths.items() if name in self.picked})

    def __repr__(self) -> str:
        return f"picker of {len(self.rows)} runs, {len(self.picked)} ticked"


def _cell(value: Any) -> dict:
    """{what is shown, what it is sorted by}."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return {"text": "–", "value": None}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    text = f"{value:.4g}" if isinstance(value, float) else words_of(value)
    return {"text": text, "value": float(value) if number else text}


def _plain(table: pd.DataFrame) -> list[dict]:
    return [
        {name: None if not isinstance(value, str) and pd.isna(value) else value for name, value in line.items()}
        for line in table.to_dict("records")
    ]
