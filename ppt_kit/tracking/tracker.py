"""What a run has to tell: each row into metrics.jsonl, whatever the disk does, and from there to the mirrors."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import threading
from pathlib import Path
from typing import Any

from ppt_kit.tracking.logs import add_handlers, remove_handlers
from ppt_kit.tracking.mirrors import MirrorOptions, Mirrors
from ppt_kit.tracking.rows import METRICS, drop_later_rows

log = logging.getLogger(__name__)


class Tracker:
    """Writes what a run has to tell. On ranks other than the first it does nothing.

    Args:
        active: whether this process writes.
        mirrors: where rows go beside metrics.jsonl; none unless it says so.
        resumed_step: rows of later steps are dropped, the run writes them again; None for a new run.
        on_screen: the log is on the screen too; otherwise only its warnings are.
    Attributes:
        wandb_id: of the mirror, for the part of the run that goes on after this one.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        active: bool,
        job_name: str,
        mirrors: MirrorOptions | None = None,
        resumed_step: int | None = None,
        on_screen: bool = True,
    ):
        options = mirrors or MirrorOptions()
        self.run_dir, self.active, self.wandb_id = run_dir, active, options.wandb_id
        self._lock = threading.Lock()
        if not active:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        if resumed_step is not None:
            drop_later_rows(run_dir / METRICS, resumed_step)
        self._file = open(run_dir / METRICS, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        # rows that a full disk did not take
        self._unwritten = b""
        self._handlers = add_handlers(run_dir / f"{job_name}.log", on_screen=on_screen)
        self._mirrors = Mirrors(run_dir, options)
        self.wandb_id = self._mirrors.wandb_id

    def row(self, kind: str, **values: Any) -> dict:
        """One line of metrics.jsonl, flushed; numbers that are not finite become null with a `<name>_text` beside them.

        While the disk takes none, rows wait for it in memory.
        """
        row = {"kind": kind, **{name: _plain(value) for name, value in values.items()}}
        for name, value in list(row.items()):
            if isinstance(value, float) and not math.isfinite(value):
                row[name], row[f"{name}_text"] = None, str(value)
        if self.active:
            # the thread that saves tells its rows too
            with self._lock:
                self._write(json.dumps(row) + "\n")
                self._mirrors.log(row)
        return row

    def sync(self) -> None:
        """The rows so far are on the disk.

        Raises:
            OSError: they are not, and a state saved now would go on without them.
        """
        if self.active:
            with self._lock:
                if self._unwritten:
                    raise OSError(errno.ENOSPC, "rows wait for the disk", str(self.run_dir / METRICS))
                os.fsync(self._file.fileno())

    def close(self, *, exit_code: int = 0) -> None:
        """Ends the files and the mirrors; what was written stays."""
        if not self.active:
            return
        with self._lock:
            self._write("")
            self._file.close()
        remove_handlers(self._handlers)
        self._mirrors.close(exit_code=exit_code)

    def _write(self, line: str) -> None:
        waited = bool(self._unwritten)
        self._unwritten += line.encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not waited:
                log.error("%s: %s; its rows wait in memory", self.run_dir / METRICS, error)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
