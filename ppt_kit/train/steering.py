"""What a run that trains is asked: files in <run_dir>/control, which rank 0 reads between two steps for all ranks.

So one panel steers a run of this kernel, a launched job, and one on another machine that shares the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppt_kit.errors import UserError
from ppt_kit.files import json_row, write_text
from ppt_kit.train.assemble import num_steps

if TYPE_CHECKING:
    from ppt_kit.train.assemble import Run

log = logging.getLogger(__name__)

FOLDER = "control"
# a folder on a shared disk is not listed at every step of a fast run
POLL_S = 0.2
STOP, SAVE, LR, EPOCHS = "stop", "save", "lr", "epochs"
HIGHEST_LR = 100.0


@dataclass(frozen=True)
class Request:
    """One thing that a run is asked.

    Attributes:
        what: stop, save, lr (the learning rate's peak) or epochs (how many the run has).
        value: of lr and epochs.
        id: of the row of kind steer in metrics.jsonl that answers it.
    """

    what: str
    value: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])


def ask(run_dir: str | Path, what: str, value: Any = None, *, epoch: int = 1) -> Request:
    """Asks a run that trains, here or elsewhere; it answers with a row of kind steer after its next step.

    Args:
        what: stop, save, lr or epochs.
        value: of lr and epochs, a number or its text.
        epoch: that the run is in, as far as is known here.
    Raises:
        UserError: the value is none that a run could take.
        OSError: the disk does not take the file.
    """
    request = Request(what, value if what in (STOP, SAVE) else checked(what, value, epoch=epoch))
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{time.time_ns()}-{request.id}.json", json.dumps(asdict(request)))
    return request


def checked(what: str, value: Any, *, epoch: int) -> float:
    """The value of lr or epochs as a number.

    Raises:
        UserError: it is none that a run in `epoch` could take.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if what == LR:
        if not 0 < number <= HIGHEST_LR:
            raise UserError(
                f"learning rate {value}: it has to be above 0 and at most {HIGHEST_LR:g}. Type one such as 1e-4."
            )
        return number
    if what != EPOCHS:
        raise UserError(f"{what!r}: a run can be asked to {STOP}, to {SAVE}, or for {LR} and {EPOCHS}.")
    if not number.is_integer():
        raise UserError(f"epochs {value}: it has to be a whole number. Type one from {epoch} on.")
    if number < epoch:
        raise UserError(f"epochs {value}: the run is in epoch {epoch} already. Type {epoch} or more, or press Stop.")
    return number


class Requests:
    """Those that wait in a run's folder, oldest first; only rank 0 looks."""

    def __init__(self, run_dir: Path):
        self._folder, self._looked = run_dir / FOLDER, -math.inf

    def take(self) -> list[Request]:
        """What has come since; each is given once. The folder is looked at every POLL_S seconds."""
        now = time.monotonic()
        if now - self._looked < POLL_S:
            return []
        self._looked = now
        return [request for path in _files(self._folder) if (request := _read(path)) is not None]


def forget_requests(run_dir: Path, *, before: float) -> None:
    """Takes away what was asked of an earlier part of the run, which ended before it could answer.

    Args:
        before: seconds since 1970.
    """
    for path in _files(run_dir / FOLDER):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()


def obey(run: Run, requests: Sequence[Request], *, done: int) -> list[dict]:
    """Changes a run as it was asked after the step `done`, on every rank alike; the rows that say so.

    A row has what was asked, value, was (the value before), and refused: null, or why it could not be.
    """
    rows = []
    for request in requests:
        was, refused = _was(run, request.what), None
        try:
            _change(run, request, done=done)
        except UserError as error:
            refused = str(error)
        if run.engine.world.is_first:
            _say(request, done=done, was=was, refused=refused)
        rows.append(answer(run, request, done=done, was=was, refused=refused))
    return rows


def answer(run: Run, request: Request, *, done: int, was: float | None = None, refused: str | None = None) -> dict:
    """The row of kind steer of a request that was obeyed, or refused."""
    return run.tracker.row(
        "steer", step=done, epoch=run.epoch_of(done - 1) + 1, asked=request.what, value=request.value, was=was,
        refused=refused, id=request.id,
    )  # fmt: skip


def _say(request: Request, *, done: int, was: float | None, refused: str | None) -> None:
    told = "" if was is None else f" {request.value:g}, was {was:g}"
    if refused:
        log.warning("asked after step %d and refused: %s", done, refused)
    else:
        log.info("asked after step %d: %s%s", done, request.what, told)


def _was(run: Run, what: str) -> float | None:
    return {LR: run.schedule.peak, EPOCHS: float(run.num_epochs)}.get(what)


def _change(run: Run, request: Request, *, done: int) -> None:
    """Of lr and epochs; to stop and to save is the loop's.

    Raises:
        UserError: the run cannot do it where it is.
    """
    if request.what in (STOP, SAVE):
        return
    value = checked(request.what, request.value, epoch=run.epoch_of(done - 1) + 1)
    if request.what == LR:
        run.steer_rate(value)
        return
    total_iters = run.cfg.train.total_iters
    if total_iters or run.cfg.debug:
        decides = f"train.total_iters={total_iters}" if total_iters else "debug=true"
        raise UserError(f"epochs {value:g}: {decides} decides how long this run is. Press Stop to end it here.")
    if num_steps(run.cfg, run.plan, epochs=int(value)) <= done:
        raise UserError(f"epochs {value:g}: the run has just finished that many. Type more, or press Stop.")
    run.steer_epochs(int(value), done=done)


def _files(folder: Path) -> list[Path]:
    """Oldest first; none where the folder is not there, or cannot be listed just now."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return []


def _read(path: Path) -> Request | None:
    """The request of a file, which is taken away; None of what is no request."""
    try:
        row = json_row(path.read_bytes())
        path.unlink()
    # another part of the run took it, or the disk is away: what is still there is met again
    except OSError:
        return None
    if row is None or not isinstance(row.get("what"), str) or row["what"] not in (STOP, SAVE, LR, EPOCHS):
        log.warning("%s: not a request of this project; left out", path)
        return None
    return Request(row["what"], row.get("value"), str(row.get("id")))
