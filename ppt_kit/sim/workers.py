"""Worker processes that end with their parent, however it ends, and lose no task but the one they died in.

Imports nothing heavy: a worker reads this first, and knows whose it is before it spends seconds on torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.signals import end_with_parent, held_back, leave_stops_to_parent

# what workers without a task get to close what they opened (s)
CLOSING_S = 5.0

Work = tuple[Callable[[Any], Any], Callable[[], Any]]


@dataclass(frozen=True)
class Died:
    """What there is of a task whose worker is gone: how it ended."""

    how: str


def work_in_processes(
    begin: Callable[[], Work], tasks: Sequence[Any], *, n_procs: int
) -> Generator[tuple[Any, Any], None, None]:
    """(task, its result) as soon as there is one; a Died instead of a result where the worker died in it.

    Whether the iteration ends, is left or is interrupted: no worker is left.

    Args:
        begin: called in each worker: the function that makes a result of a task, and one that tidies up.
    Raises:
        UserError: it cannot be sent to a worker, or no worker could begin.
    """
    crew = _Crew(_pickled(begin), tasks)
    try:
        for _ in range(min(n_procs, len(tasks))):
            crew.hire()
        yield from crew.results()
    finally:
        crew.dismiss()


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Any = None
    # has a task; before its first message it imports and opens
    busy: bool = False
    told_to_end: bool = False


class _Crew:
    """The workers, and what is left to do."""

    def __init__(self, begin: bytes, tasks: Sequence[Any]):
        self.begin, self.waiting, self.workers = begin, deque(tasks), dict[Connection, _Worker]()
        self.context = multiprocessing.get_context("spawn")
        self.trouble = ""

    def hire(self) -> None:
        """Starts one more worker."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_work, args=(theirs, os.getpid(), os.getcwd(), self.begin), name="ppt_kit-worker"
        )
        self.workers[ours] = _Worker(process, ours)
        # Python's own helper: to start it lets signals in again
        resource_tracker.ensure_running()
        # else Ctrl-C in a terminal, which goes to each process, would have each of them print where it was
        with held_back():
            process.start()
        theirs.close()

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Hands out tasks until each has its result."""
        while self.waiting or any(worker.busy for worker in self.workers.values()):
            if not self.workers:
                raise UserError(
                    f"no worker process could begin: {self.trouble}. "
                    "Evaluate in one process: n_procs=1, on the command line eval_mode=sequential."
                )
            for connection in wait(list(self.workers)):
                worker = self.workers[connection]  # type: ignore[index]
                try:
                    kind, said = worker.connection.recv()
                except (EOFError, OSError):
                    yield from self._bury(worker)
                    continue
                if kind == "failed":
                    self.trouble = said
                elif kind == "done":
                    yield worker.task, said
                if kind != "failed":
                    self._give_next(worker)

    def dismiss(self) -> None:
        """Ends every worker: those that were told to end may tidy up, the others have nothing to keep."""
        for worker in self.workers.values():
            worker.connection.close()
        for worker in self.workers.values():
            if worker.process.pid is None:
                continue
            if worker.told_to_end:
                worker.process.join(CLOSING_S)
            if worker.process.is_alive():
                _kill_with_children(worker.process.pid)
            worker.process.join()

    def _give_next(self, worker: _Worker) -> None:
        worker.busy = bool(self.waiting)
        worker.task = self.waiting.popleft() if self.waiting else None
        worker.told_to_end = not worker.busy
        # one that died meanwhile is met when it is next listened to
        with contextlib.suppress(OSError):
            worker.connection.send((worker.busy, worker.task))

    def _bury(self, worker: _Worker) -> Iterator[tuple[Any, Any]]:
        """After a worker's last word: what became of its task, and another worker where one is needed."""
        del self.workers[worker.connection]
        worker.connection.close()
        worker.process.join()
        how = _how_it_ended(worker.process.exitcode)
        if not worker.busy:
            self.trouble = self.trouble or how
            return
        yield worker.task, Died(how)
        if len(self.waiting) > sum(not each.busy for each in self.workers.values()):
            self.hire()


def _work(connection: Connection, parent: int, folder: str, begin: bytes) -> None:
    """What a worker does until it is told to end, or its parent is gone."""
    end_with_parent(signal.SIGKILL)
    # it may have gone before that was said
    if os.getppid() != parent:
        os._exit(1)
    leave_stops_to_parent()
    os.chdir(folder)
    try:
        work, close = pickle.loads(begin)()
    # whatever a user's parts raise, in the words that the parent tells
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
        return
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(("ready", None))
        while True:
            more, task = connection.recv()
            if not more:
                break
            connection.send(("done", work(task)))
    close()


def _pickled(begin: Callable[[], Work]) -> bytes:
    try:
        return pickle.dumps(begin)
    # each class has its own reasons
    except Exception as error:
        raise UserError(
            f"n_procs: this cannot be sent to another process ({type(error).__name__}: {error}). "
            "Parts of your own belong into a file beside the notebook; or evaluate with n_procs=1."
        ) from None


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the worker process died of {signal.Signals(-code).name}"
    return f"the worker process died with exit code {code}"


def _kill_with_children(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        worker = psutil.Process(pid)
        for process in [worker, *worker.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
