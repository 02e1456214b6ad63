"""Episodes of a comparison as they are run: all sides on a seed, then the next, in one process or several.

With batch_envs, all sides on so many seeds that are stepped together, then on the next ones.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from ppt_kit.models.policy import PPTPolicy
from ppt_kit.signals import Stopped, held_back, stops_raise
from ppt_kit.sim.compare.sides import Side
from ppt_kit.sim.env import close_env
from ppt_kit.sim.episodes import EpisodePlan, open_checked
from ppt_kit.sim.evaluate import LONGEST_S
from ppt_kit.sim.runner.options import EvaluateOptions
from ppt_kit.sim.runner.together import Places, error_row
from ppt_kit.sim.workers import BEGUN, Died, Work, work_in_processes
from ppt_kit.tracking import bar_pace

log = logging.getLogger(__name__)

# (which side, seed)
Task = tuple[int, int]
# which side: the policy that can be run there, and how
Runnable = dict[int, tuple[PPTPolicy, EpisodePlan]]


def run_seeds(
    sides: Sequence[Side], seeds: Sequence[int], options: EvaluateOptions, *, enough: Callable[[list[dict]], bool]
) -> None:
    """Runs what is not there yet, every side on a seed before the next one, until it is enough.

    Rows go to their sides as they come.

    Args:
        seeds: in the order in which their rows are looked at, whatever the order in which they end: an episode that
            ends early is likely to be a success, and would be looked at first.
        options: n_procs, batch_envs, retries and episode_timeout_s of them are read here.
        enough: is shown the rows of each seed, one a side, in that order.
    Raises:
        UserError: an environment cannot be built, or does not show what its policy sees.
        Stopped: a stop signal, or a notebook's interrupt, came; the rows of the episodes that ended are kept.
    """
    groups = _groups(sides, seeds, size=options.batch_envs)
    with stops_raise():
        try:
            with contextlib.closing(_rows(sides, groups, options)) as rows:
                with tqdm(total=len(seeds), desc="comparing", unit="goal", **bar_pace()) as bar:
                    for seed in seeds:
                        _wait_for(seed, sides, rows)
                        bar.update()
                        if enough([side.rows[seed] for side in sides]):
                            _fill(bar)
                            break
        except KeyboardInterrupt as stop:
            raise Stopped(getattr(stop, "number", signal.SIGINT), _kept(sides)) from None


def _fill(bar: tqdm) -> None:
    """A bar that ends early is a full one; in a notebook `reset` alone changes how long it is."""
    if bar.disable:
        return
    count, began = bar.n, bar.start_t
    bar.reset(total=count)
    bar.start_t = began
    bar.update(count)


def _groups(sides: Sequence[Side], seeds: Sequence[int], *, size: int) -> list[list[Task]]:
    """What is left to run: of each `size` seeds, those of every side that are stepped together."""
    chunks = [seeds[first : first + size] for first in range(0, len(seeds), size)]
    groups = [
        [(place, seed) for seed in chunk if seed not in side.rows]
        for chunk in chunks
        for place, side in enumerate(sides)
    ]  # fmt: skip
    return [group for group in groups if group]


def _wait_for(seed: int, sides: Sequence[Side], rows: Iterator[tuple[Task, dict]]) -> None:
    """Until all sides have the row of a seed."""
    while any(seed not in side.rows for side in sides):
        (place, _), row = next(rows)
        # what is said to be kept is what is in the file
        with held_back():
            sides[place].add(row)


def _rows(
    sides: Sequence[Side], groups: Sequence[Sequence[Task]], options: EvaluateOptions
) -> Generator[tuple[Task, dict], None, None]:
    """The rows of groups of tasks as they end."""
    needed = {place for group in groups for place, _ in group}
    parts = {
        place: (side.policy, side.plan)
        for place, side in enumerate(sides)
        if place in needed and side.policy is not None and side.plan is not None
    }
    envs = {place: open_checked(*part, seed=groups[0][0][1]) for place, part in parts.items()}
    if options.n_procs == 1 and options.episode_timeout_s is None:
        crew = {place: Places(*part, env=envs[place]) for place, part in parts.items()}
        try:
            for group in groups:
                for task, row in _work(crew, options.retries, group):
                    if row != BEGUN:
                        yield task, row
        finally:
            _close(crew)
        return
    # a worker builds its own, and may need the room; what takes too long can only be ended in a process of its own
    for env in envs.values():
        close_env(env)
    if groups:
        yield from _in_processes(parts, groups, options)


def _in_processes(
    parts: Runnable, groups: Sequence[Sequence[Task]], options: EvaluateOptions
) -> Generator[tuple[Task, dict], None, None]:
    limit = LONGEST_S if options.episode_timeout_s is None else options.episode_timeout_s
    work = work_in_processes(
        partial(_begin, parts, options.retries), groups, n_procs=min(options.n_procs, len(groups)), timeout_s=limit,
        retries=options.retries,
    )  # fmt: skip
    deaths = Counter[Task]()
    with contextlib.closing(work) as results:
        for task, result in results:
            if not isinstance(result, Died):
                yield task, result | {"attempts": result["attempts"] + deaths[task]}
                continue
            deaths[task] += 1
            if result.is_last:
                yield task, error_row(task[1], result.how, result.traceback) | {"attempts": deaths[task]}
            else:
                log.warning("seed %d: %s; it is run again", task[1], result.how)


def _begin(parts: Runnable, retries: int) -> Work:
    """In a worker process."""
    crew = {place: Places(policy, plan, env=plan.open_env(policy)) for place, (policy, plan) in parts.items()}
    return partial(_work, crew, retries), partial(_close, crew)


def _work(crew: dict[int, Places], retries: int, group: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
    """(task, BEGUN) and then (task, its row) of each of one side; errors are run again as often as is asked."""
    place, left = group[0][0], [seed for _, seed in group]
    for attempt in range(1, retries + 2):
        broken = []
        for seed, row in crew[place].run(left):
            if row == BEGUN:
                # a task begins once, however often it is tried
                if attempt == 1:
                    yield (place, seed), BEGUN
            elif row["error"] is None or attempt > retries:
                yield (place, seed), row | {"attempts": attempt}
            else:
                broken.append(seed)
        left = broken
        if not left:
            return


def _close(crew: dict[int, Places]) -> None:
    for places in crew.values():
        places.close()


def _kept(sides: Sequence[Side]) -> str:
    files = " and ".join(dict.fromkeys(str(side.file.path) for side in sides if side.file is not None))
    if not files:
        return "no rows are kept; with out_dir=… they are, and the same call goes on"
    return f"the rows of the episodes that ended are in {files}; the same again goes on with the others"
