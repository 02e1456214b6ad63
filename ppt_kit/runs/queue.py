"""The runs of a sweep as child processes: as many at a time as there is room for, each in its own folder."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from omegaconf import OmegaConf

from ppt_kit.config import from_file
from ppt_kit.errors import UserError
from ppt_kit.jobs.job import Job
from ppt_kit.jobs.taken import refuse_second
from ppt_kit.keys import leaves_of, show
from ppt_kit.runs.devices import Slot
from ppt_kit.runs.grid import PlannedRun
from ppt_kit.runs.state import FINISHED, RUNNING, config_file, last_row, living_job, state_of
from ppt_kit.schema import Config
from ppt_kit.tracking import METRICS

POLL_S = 0.25
# what a run gets to save in, before it is killed
STOP_S = 120.0
# of a stored configuration, what says how the run began, and not what it is
FREE = ("train.resume",)


@dataclass
class _Running:
    run: PlannedRun
    job: Job
    slot: Slot


def check_folders(planned: Sequence[PlannedRun]) -> None:
    """Raises UserError when a folder holds a run of another configuration, or another process trains there."""
    for run in planned:
        file = config_file(run.run_dir)
        if file is not None:
            _check_same(run, file)
        job = living_job(run.run_dir)
        # one whose sweep was killed saves, and leaves by itself
        if job is not None and (job.record.parent is None or psutil.pid_exists(job.record.parent)):
            refuse_second(run.run_dir)
        if job is None and state_of(run.run_dir)[0] == RUNNING:
            raise UserError(
                f"{run.run_dir}: a process that was not launched writes {METRICS} there. Stop it, or wait two minutes."
            )


def run_queue(
    planned: Sequence[PlannedRun],
    slots: Sequence[Slot],
    *,
    on_start: Callable[[PlannedRun], Any],
    on_end: Callable[[PlannedRun], Any],
    on_poll: Callable[[Sequence[PlannedRun]], Any],
) -> None:
    """Trains what is not finished; however it ends, none of the runs goes on alone.

    Args:
        on_start, on_end: called with a run, before it starts and once it has ended.
        on_poll: called several times a second with those that train.
    Raises:
        KeyboardInterrupt: the runs that trained were told to save, and have left.
    """
    waiting = [run for run in planned if state_of(run.run_dir)[0] != FINISHED]
    running: list[_Running] = []
    # an interrupt may come while it is being started
    newest: PlannedRun | None = None
    try:
        for run in waiting:
            _await_orphan(run.run_dir)
        while waiting or running:
            while waiting and len(running) < len(slots):
                newest, slot = waiting.pop(0), _free(slots, running)
                on_start(newest)
                running.append(_Running(newest, _start(newest, slot), slot))
            on_poll([each.run for each in running])
            time.sleep(POLL_S)
            for each in [each for each in running if not each.job.running]:
                running.remove(each)
                each.job.wait()
                on_end(each.run)
    finally:
        known = [each.job for each in running]
        if newest is not None and newest not in [each.run for each in running]:
            known += [job for job in [living_job(newest.run_dir)] if job is not None]
        _stop(known)


def progress_of(run: PlannedRun) -> float:
    """The share of a run that is done, from 0 to 1, as its newest row tells."""
    row, train = last_row(run.run_dir) or {}, run.cfg.train
    if row.get("kind") == "end" and row.get("reason") == FINISHED:
        return 1.0
    # the row of an epoch is one of its steps
    by_epoch = max(0.0, (row.get("epoch") or 0) - 0.5) / train.total_epochs
    by_step = (row.get("step") or 0) / train.total_iters if train.total_iters else 0.0
    return min(1.0, max(by_epoch, by_step))


def _start(run: PlannedRun, slot: Slot) -> Job:
    return Job.start(
        run.cfg, run.run_dir, world_size=run.cfg.world_size, num_devices=len(slot.devices), own_logs=True, env=slot.env
    )


def _free(slots: Sequence[Slot], running: Sequence[_Running]) -> Slot:
    """One that nobody has; compared by place, since the slots of a CPU machine are alike."""
    taken = [each.slot for each in running]
    left = list(slots)
    for slot in taken:
        left.remove(slot)
    return left[0]


def _await_orphan(run_dir: Path) -> None:
    """What a killed sweep has left is saving."""
    job = living_job(run_dir)
    if job is not None:
        with contextlib.suppress(TimeoutError):
            job.wait(STOP_S)
        job.stop(STOP_S)


def _stop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.send(signal.SIGTERM)
    end = time.monotonic() + STOP_S
    for job in jobs:
        try:
            job.wait(max(0.0, end - time.monotonic()))
        except TimeoutError:
            job.stop(0.0)


def _check_same(run: PlannedRun, file: Path) -> None:
    stored = from_file(file)
    for key in leaves_of(Config):
        here, there = (OmegaConf.select(cfg, key) for cfg in (run.cfg, stored))
        if key not in FREE and here != there:
            raise UserError(
                f"{run.run_dir} holds a run with {key}={show(there)[:80]}, and this sweep has {key}={show(here)[:80]}. "
                "Set it back, or give the sweep another suffix=…."
            )
