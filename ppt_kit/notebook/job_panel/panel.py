"""A launched job as a cell shows it: what it does, the log of a rank, curves; Stop, Kill and Resume."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from ppt_kit.config import from_file
from ppt_kit.errors import UserError
from ppt_kit.jobs.job import Job
from ppt_kit.jobs.record import CONFIG, FOLDER
from ppt_kit.jobs.state import newest_rows
from ppt_kit.notebook.job_panel.curves import Curves

HERE = Path(__file__).parent
LOG_LINES, LONGEST_LINE = 300, 400
ASKED = {
    "stop": "asked to save and stop",
    "kill": "asked to end at once",
    "resume": "going on from the newest checkpoint",
}


class JobPanel(anywidget.AnyWidget):
    """The panel without its curves; the page asks once a second what there is to show.

    Attributes:
        told: what the page shows of the job.
        log: the last lines that the chosen rank has printed.
        rank: which of the ranks that is.
    """

    _esm = HERE / "panel.js"
    _css = HERE / "panel.css"
    told = traitlets.Dict().tag(sync=True)
    log = traitlets.Unicode().tag(sync=True)
    rank = traitlets.Int(0).tag(sync=True)

    def __init__(self, job: Job, curves: Curves):
        super().__init__()
        self._job, self._curves, self._message = job, curves, ("", False)
        self._epochs = from_file(job.run_dir / FOLDER / CONFIG).train.total_epochs
        self.on_msg(self._hear)
        self.observe(lambda _: self.refresh(), "rank")
        self.refresh()

    def refresh(self) -> None:
        """Brings what is shown up to now."""
        self._job.follow()
        self.told = told_of(self._job, epochs=self._epochs, message=self._message)
        self.log = shown_log(self._job.log(self.rank, last=LOG_LINES))
        self._curves.refresh()

    def _hear(self, _: Any, content: dict, __: Any) -> None:
        """A click, or the question what is new, which is answered: a kernel that does not answer is seen."""
        asked = content.get("do")
        if asked in ASKED:
            try:
                self._act(asked)
                self._message = (ASKED[asked], False)
            except (UserError, OSError) as error:
                self._message = (str(error), True)
        self.refresh()
        self.send({"answer": asked})

    def _act(self, asked: str) -> None:
        job = self._job
        if asked == "stop":
            job.send(signal.SIGTERM)
        elif asked == "kill":
            job.kill_ranks()
        else:
            job.resume()


def job_panel(job: Job) -> ipywidgets.VBox:
    """The panel of a job, with its curves below."""
    curves = Curves(job.run_dir)
    return ipywidgets.VBox([JobPanel(job, curves), curves.widget])


def told_of(job: Job, *, epochs: int, message: tuple[str, bool] = ("", False)) -> dict[str, Any]:
    """What a page shows of a job, as JSON.

    Args:
        epochs: of the whole run, where its rows do not say so.
        message: what came of the last click, and whether it was refused.
    """
    state, record, row = job.state, job.record, newest_rows(job.run_dir).train
    failure, lives = job.failure() if state.word == "failed" else None, state.word in ("running", "queued")
    return {
        "run": "/".join(job.run_dir.absolute().parts[-2:]),
        "run_dir": str(job.run_dir),
        "word": state.word,
        "detail": "" if state.word == "running" else state.detail,
        "lives": lives,
        "where": f"{record.ranks.total} rank{'s' * (record.ranks.total > 1)} on {record.host}",
        "ranks": record.ranks.total,
        "numbers": numbers_of(row, epochs=epochs, runs=state.word == "running"),
        "done": fraction_of(row, epochs=epochs, ended=state.word == "ended"),
        "failure": "" if failure is None else failure.text,
        "failed": None if failure is None else failure.rank,
        "command": job.command_line,
        "message": message[0],
        "refused": message[1],
    }


def fraction_of(row: dict, *, epochs: int, ended: bool) -> float:
    """How much of a run is done, 0 to 1, by its newest row of training."""
    if ended:
        return 1.0
    if not row:
        return 0.0
    total = row.get("total_steps")
    return min(1.0, row["step"] / total if total else (row["epoch"] - 1) / row.get("epochs", epochs))


def numbers_of(row: dict, *, epochs: int, runs: bool) -> list[str]:
    """The newest row of training in words."""
    if not row:
        return ["starting"] if runs else []
    total = row.get("total_steps")
    said = [
        f"step {row['step']}" + (f" of {total}" if total else ""),
        f"epoch {row['epoch']} of {row.get('epochs', epochs)}",
        f"loss {row['loss']:.4g}",
        f"lr {row['lr']:.3g}",
    ]
    if runs:
        said.append(f"{row['samples_per_s']:.0f} samples/s")
    if runs and total and row["steps_per_s"]:
        said.append(f"{_duration((total - row['step']) / row['steps_per_s'])} left")
    return said


def shown_log(text: str) -> str:
    """A log as a terminal shows it: of lines that were written over the last, long ones cut."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
