"""A launched job as a cell shows it: its processes, the log of a rank, Stop, Kill and Resume; the run's panel below."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from ppt_kit.errors import UserError
from ppt_kit.jobs.job import Job
from ppt_kit.notebook.live.panel import Panel

HERE = Path(__file__).parent
LOG_LINES, LONGEST_LINE = 300, 400
ASKED = {
    "stop": "asked to save and stop",
    "kill": "asked to end at once",
    "resume": "going on from the newest checkpoint",
}


class JobPanel(anywidget.AnyWidget):
    """What is about the job's processes; the page asks once a second what there is to show.

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

    def __init__(self, job: Job):
        super().__init__()
        self._job, self._message = job, ("", False)
        self.on_msg(self._hear)
        self.observe(lambda _: self.refresh(), "rank")
        self.refresh()

    def refresh(self) -> None:
        """Brings what is shown up to now."""
        self._job.follow()
        self.told = told_of(self._job, message=self._message)
        self.log = shown_log(self._job.log(self.rank, last=LOG_LINES))

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
    """The panel of a job, and below it that of its run: progress, curves, and what a run can be asked."""
    live = Panel(job.run_dir, failure=lambda: _end_without_a_row(job), headed=False)
    return ipywidgets.VBox([JobPanel(job), live])


def _end_without_a_row(job: Job) -> ChildProcessError | None:
    """How a job ended that could not write it into its metrics."""
    state = job.state
    return ChildProcessError(": ".join(state)) if state.word in ("failed", "killed", "vanished") else None


def told_of(job: Job, *, message: tuple[str, bool] = ("", False)) -> dict[str, Any]:
    """What a page shows of a job, as JSON; `message`: what came of the last click, and whether it was refused."""
    state, record = job.state, job.record
    failure, lives = job.failure() if state.word == "failed" else None, state.word in ("running", "queued")
    return {
        "run": "/".join(job.run_dir.absolute().parts[-2:]),
        "run_dir": str(job.run_dir),
        "word": state.word,
        "detail": "" if state.word == "running" else state.detail,
        "lives": lives,
        "where": f"{record.ranks.total} rank{'s' * (record.ranks.total > 1)} on {record.host}",
        "ranks": record.ranks.total,
        "failure": "" if failure is None else failure.text,
        "failed": None if failure is None else failure.rank,
        "command": job.command_line,
        "message": message[0],
        "refused": message[1],
    }


def shown_log(text: str) -> str:
    """A log as a terminal shows it: of lines that were written over the last, long ones cut."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in lines)
