"""Worker processes that end with their parent, however it ends, and lose no task but the one they died in.

Imports nothing heavy: a worker reads this first, and knows whose it is before it spends seconds on torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.signals import end_with_parent, held_back, leave_stops_to_parent

# what workers without a task get to close what they opened (s)
CLOSING_S = 5.0
# what a worker gets to import and to open, at least (s)
BEGINNING_S = 600.0
# what a worker that hangs gets to write down where (s)
TELLING_S = 1.0
# of a worker that hangs or dies, what is kept of where it was (characters)
LONGEST_TRACE = 4000

# instead of a result: the task has been begun
BEGUN = "begun"
Work = tuple[Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]], Callable[[], Any]]


@dataclass(frozen=True)
class Died:
    """What there is of a task whose worker is gone: how it ended, and where it was as far as that is known.

    is_last: it is not run again.
    """

    how: str
    traceback: str | None = None
    is_last: bool = True


def work_in_processes(
    begin: Callable[[], Work],
    groups: Sequence[Sequence[Any]],
    *,
    n_procs: int,
    timeout_s: float | None = None,
    retries: int = 0,
) -> Generator[tuple[Any, Any], None, None]:
    """(task, its result) as soon as there is one; a Died instead of a result where the worker died in it.

    Whether the iteration ends, is left or is interrupted: no worker is left.

    Args:
        begin: called in each worker: a function that gives (task, BEGUN) and then (task, its result) of each task of a
            group, in any order, and one that tidies up. Of several tasks that were going on when a worker died, each is
            run again in a worker of its own: only the one that it dies of is lost.
        groups: of tasks, no task twice.
        timeout_s: longest time of a task; a worker that takes longer is killed. None = no limit.
        retries: how often a task whose worker died in it is begun again, at once; each death is told.
    Raises:
        UserError: it cannot be sent to a worker, or no worker could begin.
    """
    with tempfile.TemporaryDirectory(prefix="ppt_kit-workers-") as folder:
        crew = _Crew(_pickled(begin), groups, timeout_s=timeout_s, retries=retries, folder=Path(folder))
        try:
            for _ in range(min(n_procs, len(groups))):
                crew.hire()
            yield from crew.results()
        finally:
            crew.dismiss()


@dataclass(eq=False)
class _Worker:
    """One process; `going` and `queue` are the tasks of its group that it has begun (and when), and has not."""

    process: BaseProcess
    connection: Connection
    trace: Path
    hired_at: float
    queue: list[Any] = field(default_factory=list)
    going: dict[Any, float] = field(default_factory=dict)
    # has a group; before its first message it imports and opens
    busy: bool = False
    ready: bool = False
    told_to_end: bool = False


class _Crew:
    """The workers, and what is left to do."""

    def __init__(
        self, begin: bytes, groups: Sequence[Sequence[Any]], *, timeout_s: float | None, retries: int, folder: Path
    ):
        self.begin, self.timeout_s, self.retries, self.folder = begin, timeout_s, retries, folder
        self.deaths = Counter[Any]()
        self.waiting, self.workers = deque(list(group) for group in groups), dict[Connection, _Worker]()
        self.context = multiprocessing.get_context("spawn")
        self.trouble, self.hired = "", 0

    def hire(self) -> None:
        """Starts one more worker."""
        ours, theirs = self.context.Pipe()
        self.hired += 1
        trace = self.folder / str(self.hired)
        process = self.context.Process(
            target=_work, args=(theirs, os.getpid(), os.getcwd(), str(trace), self.begin), name="ppt_kit-worker"
        )
        self.workers[ours] = _Worker(process, ours, trace, time.monotonic())
        # Python's own helper: to start it lets signals in again
        resource_tracker.ensure_running()
        # else Ctrl-C in a terminal, which goes to each process, would have each of them print where it was
        with held_back():
            process.start()
        theirs.close()

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Hands out groups until each task has its result."""
        while self.waiting or any(worker.busy for worker in self.workers.values()):
            if not self.workers:
                raise UserError(
                    f"no worker process could begin: {self.trouble}. "
                    "Evaluate in one process: n_procs=1, on the command line eval_mode=sequential."
                )
            for connection in wait(list(self.workers), timeout=self._patience()):
                worker = self.workers[connection]  # type: ignore[index]
                try:
                    said = worker.connection.recv()
                except (EOFError, OSError):
                    yield from self._bury(worker)
                    continue
                yield from self._hear(worker, *said)
            yield from self._end_late()

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

    def _hear(self, worker: _Worker, kind: str, said: Any) -> Iterator[tuple[Any, Any]]:
        if kind == "failed":
            self.trouble = said
        elif kind == "task":
            task, result = said
            if result == BEGUN:
                worker.queue.remove(task)
                worker.going[task] = time.monotonic()
            else:
                del worker.going[task]
                yield task, result
        else:
            worker.ready = True
            self._give_next(worker)

    def _give_next(self, worker: _Worker) -> None:
        worker.busy = bool(self.waiting)
        worker.queue = self.waiting.popleft() if self.waiting else []
        worker.told_to_end = not worker.busy
        # one that died meanwhile is met when it is next listened to
        with contextlib.suppress(OSError):
            worker.connection.send(list(worker.queue))

    def _patience(self) -> float | None:
        """Seconds until the first worker is late."""
        ends = [end for worker in self.workers.values() if (end := self._end_of(worker)) is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _end_of(self, worker: _Worker) -> float | None:
        if self.timeout_s is None or worker.told_to_end:
            return None
        if not worker.ready:
            return worker.hired_at + max(self.timeout_s, BEGINNING_S)
        return min(worker.going.values()) + self.timeout_s if worker.going else None

    def _end_late(self) -> Iterator[tuple[Any, Any]]:
        """Kills the workers whose time is over."""
        now = time.monotonic()
        for worker in list(self.workers.values()):
            end = self._end_of(worker)
            # what it has said meanwhile is heard first
            if end is None or end > now or worker.connection.poll():
                continue
            _ask_where(worker.process.pid)
            late = [task for task, began in worker.going.items() if began + (self.timeout_s or 0) <= now]
            if worker.process.pid is not None:
                _kill_with_children(worker.process.pid)
            yield from self._bury(worker, late=late)

    def _bury(self, worker: _Worker, *, late: Sequence[Any] = ()) -> Iterator[tuple[Any, Any]]:
        """After a worker's last word: what became of its tasks, and another worker where one is needed."""
        del self.workers[worker.connection]
        worker.connection.close()
        worker.process.join()
        how = f"it took longer than {self.timeout_s:g} s" if late else _how_it_ended(worker.process.exitcode)
        if not worker.busy:
            self.trouble = self.trouble or how
            return
        # it may have died between two of them
        going = list(worker.going) or [worker.queue.pop(0)] if worker.going or worker.queue else []
        lost = late or (going if len(going) == 1 else [])
        self.waiting.extendleft([task] for task in going if task not in lost)
        if worker.queue:
            self.waiting.appendleft(worker.queue)
        trace = _read(worker.trace)
        self.deaths.update(lost)
        again = [task for task in lost if self.deaths[task] <= self.retries]
        self.waiting.extendleft([task] for task in again)
        for task in lost:
            yield task, Died(how, trace, is_last=task not in again)
        # one that was told to end takes no more
        free = sum(not each.busy and not each.told_to_end for each in self.workers.values())
        if len(self.waiting) > free:
            self.hire()


def _work(connection: Connection, parent: int, folder: str, trace: str, begin: bytes) -> None:
    """What a worker does until it is told to end, or its parent is gone."""
    end_with_parent(signal.SIGKILL)
    # it may have gone before that was said
    if os.getppid() != parent:
        os._exit(1)
    leave_stops_to_parent()
    os.chdir(folder)
    with open(trace, "w", encoding="utf-8") as told:
        # where it was is the last that is heard of it, whether it dies or is asked
        faulthandler.enable(told)
        faulthandler.register(signal.SIGUSR2, told)
        _do_groups(connection, begin)


def _do_groups(connection: Connection, begin: bytes) -> None:
    try:
        work, close = pickle.loads(begin)()
    # whatever a user's parts raise, in the words that the parent tells
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
        return
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(("ready", None))
        while group := connection.recv():
            for task, result in work(group):
                connection.send(("task", (task, result)))
            connection.send(("done", None))
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


def _ask_where(pid: int | None) -> None:
    """Has a worker that hangs write down where, also in code that no signal of Python's interrupts."""
    with contextlib.suppress(OSError):
        if pid is not None:
            os.kill(pid, signal.SIGUSR2)
            time.sleep(TELLING_S)


def _read(trace: Path) -> str | None:
    with contextlib.suppress(OSError):
        return trace.read_text(encoding="utf-8", errors="replace")[-LONGEST_TRACE:] or None
    return None


def _kill_with_children(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        worker = psutil.Process(pid)
        for process in [worker, *worker.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
