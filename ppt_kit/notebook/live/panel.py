"""The panel of a run: a widget that is told what is new, and hands on what its buttons ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppt_kit.errors import UserError
from ppt_kit.notebook.live.following import Following, thinned
from ppt_kit.runs.state import FAILED, state_of
from ppt_kit.train.steering import ask

PERIOD_S = 0.5
# a file of rows that is younger is being written
FRESH_S = 3.0
# between two looks for the process of an older one
LOOKS_S = 10.0
# after that many without an answer, a page is taken to have what it was sent: while a cell runs some cannot answer
UNANSWERED = 60
HERE = Path(__file__).parent


class Panel(anywidget.AnyWidget):
    """Follows a run folder from a thread of its own.

    The page says how many rows it has, and is sent the others: it may come late, or be loaded again.

    Args:
        run_dir: may come into being later.
        failure: what ended a run of this process, if anything did; None = it is another process's.
        headed: whether it says which run this is and how it stands, and stops it; what it is part of may do so.
    Attributes:
        news: rows from a place on, and what is known besides; what the page draws.
    """

    _esm = HERE / "panel.js"
    _css = HERE / "panel.css"
    news = traitlets.Dict().tag(sync=True)
    headed = traitlets.Bool(True).tag(sync=True)

    def __init__(
        self, run_dir: Path, *, failure: Callable[[], BaseException | None] | None = None, headed: bool = True
    ):
        self.run_dir = run_dir
        self._following, self._failure, self._headed = Following(run_dir), failure, headed
        # rows that the page has, and how often it was sent some since it last said so
        self._has, self._sent, self._unanswered = 0, 0, 0
        self._lock, self._closed = threading.Lock(), threading.Event()
        # what a request came to: a sentence, which request (the page's number, the row's id), whether it was refused
        self._said: dict[str, Any] = {}
        # the learning rate's peak of the configuration, read once a part of the run
        self._configured: tuple[int, float | None] = (0, None)
        self._looked = (-LOOKS_S, False)
        self._following.read()
        super().__init__(news=self._news(0), headed=headed)
        self._sent = len(self._following.rows)
        _answer_while_busy(self.comm)
        self.on_msg(self._hear)
        threading.Thread(target=self._follow, name="ppt_kit-panel", daemon=True).start()

    def close(self) -> None:
        """It follows no longer, and is taken off the page."""
        self._closed.set()
        super().close()

    def __repr__(self) -> str:
        return f"<panel of {self.run_dir}>"

    def _follow(self) -> None:
        while not self._closed.wait(PERIOD_S):
            self._tell()

    def _tell(self, *, anyway: bool = False) -> None:
        """Sends what the page lacks, if something is new."""
        with self._lock:
            part = self._following.part
            is_new = self._following.read()
            if self._following.part != part:
                self._has = self._sent = 0
            if not (anyway or is_new or any(self.news.get(name) != value for name, value in self._ended().items())):
                return
            self._unanswered += 1
            if self._unanswered > UNANSWERED:
                self._has = self._sent
            self._sent = len(self._following.rows)
            self.news = self._news(self._has)

    def _news(self, first: int) -> dict:
        rows = self._following.rows
        return {
            "run": "/".join(self.run_dir.parts[-2:]),
            "folder": str(self.run_dir),
            "part": self._following.part,
            "first": first,
            "end": len(rows),
            "rows": thinned(rows[first:]),
            "age_s": self._following.age_s(),
            "peak": self._peak(),
            "said": self._said,
            **self._ended(),
        }

    def _ended(self) -> dict[str, Any]:
        """How it ended, where no row says it."""
        error = self._failure() if self._failure is not None else None
        interrupted = isinstance(error, KeyboardInterrupt)
        failed = f"{type(error).__name__}: {error}" if error is not None and not interrupted else None
        return {"failed": failed, "interrupted": interrupted, "gone": self._gone()}

    def _gone(self) -> bool:
        """Whether a run that is not over has no process any more, as far as this host can tell."""
        rows, age = self._following.rows, self._following.age_s()
        if self._failure is not None or not self._headed or not rows or rows[-1].get("kind") == "end":
            return False
        if age is None or age < FRESH_S:
            return False
        at, was = self._looked
        # a queue is not asked at every turn
        if time.monotonic() - at > LOOKS_S:
            try:
                was = state_of(self.run_dir)[0] == FAILED
            # what is there of a launch cannot be read, or asked
            except (UserError, OSError, ImportError):
                was = False
            self._looked = (time.monotonic(), was)
        return was

    def _peak(self) -> float | None:
        """Of the learning rate: what was asked last, or what the configuration says."""
        for row in reversed(self._following.rows):
            if row.get("kind") == "steer" and row.get("asked") == "lr" and not row.get("refused"):
                return row["value"]
        part = self._following.part
        if self._configured[0] != part or self._configured[1] is None:
            self._configured = (part, _configured_rate(self.run_dir / "config.yaml"))
        return self._configured[1]

    def _hear(self, _: Any, content: dict, buffers: Any) -> None:
        """What the page says; in whichever thread the kernel hears it."""
        if "has" in content:
            with self._lock:
                self._unanswered = 0
                same = content.get("part") == self._following.part
                self._has = min(int(content["has"]), len(self._following.rows)) if same else 0
                behind = self._has < self._sent
            if behind:
                self._tell(anyway=True)
        if "ask" in content:
            self._ask(content["ask"], content.get("value"), number=content.get("number"))

    def _ask(self, what: str, value: Any, *, number: Any) -> None:
        epoch = next((row["epoch"] for row in reversed(self._following.rows) if row.get("epoch")), 1)
        try:
            request = ask(self.run_dir, what, value, epoch=epoch)
            self._said = {"number": number, "id": request.id}
        except (UserError, OSError) as error:
            self._said = {"number": number, "refused": str(error)}
        self._tell(anyway=True)


def _configured_rate(path: Path) -> float | None:
    try:
        return float(OmegaConf.load(path).optimizer.lr)
    # not there yet, being written, or of another program
    except (OSError, ValueError, TypeError, AttributeError, OmegaConfBaseException):
        return None


def _answer_while_busy(comm: Any) -> None:
    """Has the kernel hear the page in the thread that the page chose, also while the main thread runs a cell.

    JupyterLab sends what widgets say to a thread of the kernel's beside the main one (a subshell, ipykernel 7).
    ipykernel 7.4 hands it to the thread that wrote to the page last instead, which for a cell is the busy one.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default
