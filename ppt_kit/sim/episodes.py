"""Episodes of an evaluation, one after the other or in several processes; an exception is an error, not a failure."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.chunks import ChunkExecutor
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, close_env, make_env
from ppt_kit.sim.rollout import Episode, rollout
from ppt_kit.sim.watch import write_video


@dataclass(frozen=True)
class EpisodePlan:
    """What an episode needs beside the policy and its seed; it goes to every process.

    Attributes:
        env: what `make_env` builds.
        film: seeds of the episodes to film.
        video_dir: where their videos go, as <stem>_<seed>.mp4; None = nowhere.
    """

    env: dict
    domain: str
    execute_steps: int
    temporal_ensembling: bool = False
    zero_keys: tuple[str, ...] = ()
    film: frozenset[int] = frozenset()
    video_dir: Path | None = None
    stem: str = "eval"

    def open_env(self) -> SimEnv:
        """The environment.

        Raises:
            UserError: see `make_env`.
        """
        return make_env(self.env, uses=["evaluating", *(["filming"] if self.film else [])])

    def executor(self, policy: PPTPolicy) -> ChunkExecutor:
        """What cuts the policy's chunks into actions.

        Raises:
            UserError: a chunk does not hold so many actions.
        """
        try:
            return ChunkExecutor(
                policy.horizon, execute_steps=self.execute_steps, temporal_ensembling=self.temporal_ensembling
            )
        except ValueError as error:
            raise UserError(str(error)) from None


def run_episodes(policy: PPTPolicy, plan: EpisodePlan, seeds: Sequence[int], *, n_procs: int = 1) -> Iterator[dict]:
    """One row a seed, as soon as it is run: seed, success, steps, return, error, subtasks, actions_sha256, video.

    Raises:
        UserError: the environment cannot be built, or does not show what the policy sees.
    """
    env = plan.open_env()
    try:
        _check_seen(policy, env, plan, seed=seeds[0])
        if n_procs <= 1:
            for seed in seeds:
                yield run_one(policy, env, plan, seed)
            return
    finally:
        close_env(env)
    # what cannot be built has been told by now, once, and not as a crash of every worker
    yield from _run_in_processes(policy, plan, seeds, n_procs=n_procs)


def run_one(policy: PPTPolicy, env: SimEnv, plan: EpisodePlan, seed: int) -> dict:
    """The row of one episode; its error is text where it could not be run."""
    try:
        episode = rollout(
            policy, env, domain=plan.domain, seed=seed, executor=plan.executor(policy), zero_keys=plan.zero_keys,
            film=seed in plan.film,
        )  # fmt: skip
        return _row(episode, video=_film(plan, episode))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _error_row(seed, f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")


def _check_seen(policy: PPTPolicy, env: SimEnv, plan: EpisodePlan, *, seed: int) -> None:
    view = View.from_plain(policy.card["views"][plan.domain])
    reading = env.reset(seed)
    missing = [column for column in view.needs() if column not in reading]
    if view.made_from is not None and not hasattr(env, "camera_info"):
        missing.append("camera_info()")
    if view.language and not hasattr(env, "description"):
        missing.append("description")
    if missing:
        raise UserError(
            f"the policy of {plan.domain} sees {', '.join(missing)}, which {plan.env['simulator']} does not give; "
            f"it gives {', '.join(reading)}. "
            "Evaluate in the simulator and with the options that the data was recorded with."
        )
    _check_widths(view, reading, plan)


def _check_widths(view: View, reading: Mapping[str, Any], plan: EpisodePlan) -> None:
    for column, width in view.state.items():
        given = int(np.size(reading[column]))
        if given != width:
            raise UserError(
                f"the policy of {plan.domain} sees {width} numbers of {column}, {plan.env['simulator']} gives {given}. "
                "Evaluate in the simulator and with the options that the data was recorded with."
            )


def _run_in_processes(policy: PPTPolicy, plan: EpisodePlan, seeds: Sequence[int], *, n_procs: int) -> Iterator[dict]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_procs, context, initializer=_start_worker, initargs=(policy, plan)) as pool:
        futures = {pool.submit(run_in_worker, seed): seed for seed in seeds}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                # a worker died: its episodes, and those not yet begun, have not been run
                yield _error_row(futures[future], "the worker process died")


_worker: dict[str, Any] = {}


def _start_worker(policy: PPTPolicy, plan: EpisodePlan) -> None:
    _worker.update(policy=policy, plan=plan, env=plan.open_env())


def run_in_worker(seed: int) -> dict:
    """`run_one` with what the worker process was started with."""
    return run_one(_worker["policy"], _worker["env"], _worker["plan"], seed)


def _row(episode: Episode, *, video: Path | None) -> dict:
    return {
        "seed": episode.seed, "success": episode.success, "steps": episode.steps, "return": episode.total_reward,
        "error": None, "subtasks": episode.subtasks, "actions_sha256": episode.actions_sha256,
        "video": str(video) if video else None,
    }  # fmt: skip


def _error_row(seed: int, error: str) -> dict:
    return {
        "seed": seed, "success": None, "steps": 0, "return": None, "error": error, "subtasks": {},
        "actions_sha256": None, "video": None,
    }  # fmt: skip


def _film(plan: EpisodePlan, episode: Episode) -> Path | None:
    if not episode.frames or plan.video_dir is None:
        return None
    return write_video(plan.video_dir / f"{plan.stem}_{episode.seed}.mp4", episode.frames)
