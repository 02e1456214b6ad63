"""Episodes one after the other or several together, here or in processes; an exception is an error, not a failure.

Episode `seed` has the place seed % batch_envs among those that are stepped together, and a policy is asked for all
places whenever it is asked: so its actions depend, to the bit, on seed and batch_envs alone, and neither on the
processes nor on which episodes are left to run.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ppt_kit.files import write_whole
from ppt_kit.models.actor import Actor
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, close_env, in_words
from ppt_kit.sim.episodes import EpisodePlan
from ppt_kit.sim.rollout import Episode, Going, one_thread
from ppt_kit.sim.runner.controls import Driver
from ppt_kit.sim.watch import captioned, states_of, write_video
from ppt_kit.sim.workers import BEGUN, LONGEST_TRACE, Died, Work, work_in_processes

# an even end: each process gets so many groups of episodes
GROUPS_A_PROCESS = 4


def run_here(policy: PPTPolicy, env: SimEnv, plan: EpisodePlan, seeds: Sequence[int]) -> Generator[dict, None, None]:
    """One row a seed, as soon as it is run, with the keys of `ppt_kit.sim.results.Evaluation` that are an episode's.

    Where a video could not be written, video_error says why.

    Args:
        env: the first of the environments; it is closed in the end, as the others are.
    """
    places = Places(policy, plan, env=env)
    with contextlib.closing(places):
        for _, row in places.run(seeds):
            if row != BEGUN:
                yield row


def run_in_processes(
    policy: PPTPolicy, plan: EpisodePlan, seeds: Sequence[int], *, n_procs: int, timeout_s: float | None = None
) -> Generator[dict, None, None]:
    """As `run_here`, in the order in which they end. What the workers could not build has to be told before.

    Args:
        timeout_s: longest time of an episode, beyond which it is an error.
    Raises:
        UserError: the policy cannot be sent to other processes, or none of them could begin.
    """
    size = plan.batch_envs
    if size > 1:
        # each with some for every place
        size *= max(1, math.ceil(len(seeds) / (size * n_procs * GROUPS_A_PROCESS)))
    groups = [seeds[first : first + size] for first in range(0, len(seeds), size)]
    work = work_in_processes(partial(_begin, policy, plan), groups, n_procs=n_procs, timeout_s=timeout_s)
    with contextlib.closing(work) as results:
        for seed, result in results:
            yield error_row(seed, result.how, result.traceback) if isinstance(result, Died) else result


def error_row(seed: int, error: str, trace: str | None) -> dict:
    """The row of an episode that could not be run."""
    return {
        "seed": seed, "success": None, "success_last": None, "success_step": None, "steps": 0, "return": None,
        "error": error, "traceback": trace, "subtasks": {}, "scores": {}, "actions_sha256": None, "trace": None,
        "video": None, "policy_ms": None, "policy_share": None, "episode_s": None,
    }  # fmt: skip


class Places:
    """Environments side by side, an episode in each, and what acts in them.

    Args:
        env: the first of the environments; the others are made when they are needed, and anew after an exception.
    """

    def __init__(self, policy: PPTPolicy, plan: EpisodePlan, *, env: SimEnv):
        self.policy, self.plan, self.showing = policy, plan, plan.showing(policy)
        self.action_dim = policy.specs[plan.domain].action_dim
        self.envs: list[SimEnv | None] = [env, *[None] * (plan.batch_envs - 1)]
        self.going: list[Going | None] = [None] * plan.batch_envs
        self.actor: Actor | Driver = (
            Driver(plan.control, num_envs=plan.batch_envs, action_dim=self.action_dim)
            if plan.control is not None
            else Actor(
                policy,
                domain=plan.domain,
                num_envs=plan.batch_envs,
                execution=plan.execution,
                padded=plan.batch_envs > 1,
            )  # fmt: skip
        )

    def run(self, seeds: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """(seed, BEGUN) and later (seed, its row) of each."""
        size = self.plan.batch_envs
        waiting = [deque(seed for seed in seeds if seed % size == place) for place in range(size)]
        # chunks are due together where episodes begin together
        period = 1 if self.plan.execution.temporal_ensembling else self.plan.execution.execute_steps
        tick = 0
        while any(waiting) or any(self.going):
            if not any(self.going):
                tick = 0
            for place, left in enumerate(waiting):
                if tick % period == 0 and self.going[place] is None and left:
                    seed = left.popleft()
                    yield seed, BEGUN
                    yield from self._begin(place, seed)
            yield from self._step()
            tick += 1

    def close(self) -> None:
        """Frees the environments."""
        for place in range(len(self.envs)):
            self._forget(place)

    def _begin(self, place: int, seed: int) -> Iterator[tuple[int, dict]]:
        try:
            env = self.envs[place] = self.envs[place] or self.plan.open_env(self.policy)
            self.actor.reset(place, seed=[seed])
            film = seed in self.plan.film
            self.going[place] = Going(env, seed, self.showing, action_dim=self.action_dim, film=film)
        except Exception as error:
            yield seed, self._broken(place, seed, error)
        else:
            yield from self._ended(place)

    def _step(self) -> Iterator[tuple[int, dict]]:
        """One control step of every episode that is going on."""
        frames: list[Any] = [None] * len(self.going)
        for place, going in enumerate(self.going):
            if going is not None:
                try:
                    frames[place] = going.frame()
                except Exception as error:
                    yield going.episode.seed, self._broken(place, going.episode.seed, error)
        yield from self._act(frames)

    def _act(self, frames: Sequence[Any]) -> Iterator[tuple[int, dict]]:
        awake = [(place, going) for place, going in enumerate(self.going) if going is not None]
        if not awake:
            return
        try:
            with one_thread():
                actions = self._actions(frames)
        # what the policy raises it raises for all that it was asked for
        except Exception as error:
            for place, going in awake:
                yield going.episode.seed, self._broken(place, going.episode.seed, error)
            return
        for place, going in awake:
            try:
                going.step(actions[place])
            except Exception as error:
                yield going.episode.seed, self._broken(place, going.episode.seed, error)
            else:
                yield from self._ended(place)

    def _actions(self, frames: Sequence[Any]) -> np.ndarray:
        if isinstance(self.actor, Driver):
            return self.actor.act([env if frame is not None else None for env, frame in zip(self.envs, frames)])
        return self.actor.act(frames)

    def _ended(self, place: int) -> Iterator[tuple[int, dict]]:
        going = self.going[place]
        if going is None or not going.is_over:
            return
        seed = going.episode.seed
        try:
            if isinstance(self.actor, Actor):
                going.asked(self.actor, place)
            row = self._filmed(going.end())
        except Exception as error:
            row = self._broken(place, seed, error)
        self.going[place] = None
        yield seed, row

    def _filmed(self, episode: Episode) -> dict:
        row = _row(episode)
        try:
            return row | {"video": _film(self.plan, episode, self.policy.specs[self.plan.domain].names("state"))}
        # the episode was run, whatever the disk or the encoder says
        except Exception as error:
            return row | {"video_error": in_words(error)}

    def _broken(self, place: int, seed: int, error: Exception) -> dict:
        """The row of an episode that ended in an exception; nobody knows what is left of its environment."""
        self.going[place] = None
        with contextlib.suppress(Exception):
            self._forget(place)
        trace = "".join(traceback.format_exception(error))
        return error_row(seed, in_words(error), trace[-LONGEST_TRACE:])

    def _forget(self, place: int) -> None:
        env, self.envs[place] = self.envs[place], None
        if env is not None:
            close_env(env)


def _begin(policy: PPTPolicy, plan: EpisodePlan) -> Work:
    """In a worker process."""
    places = Places(policy, plan, env=plan.open_env(policy))
    return places.run, places.close


def _row(episode: Episode) -> dict:
    return {
        "seed": episode.seed, "success": episode.success, "success_last": episode.success_last,
        "success_step": episode.success_step, "steps": episode.steps, "return": episode.total_reward,
        "error": None, "traceback": None, "subtasks": episode.subtasks, "scores": episode.scores,
        "actions_sha256": episode.actions_sha256, "trace": episode.trace, "video": None,
        "policy_ms": 1e3 * episode.latency_s / episode.calls if episode.calls else None,
        "policy_share": episode.policy_s / episode.total_s, "episode_s": episode.total_s,
    }  # fmt: skip


def _film(plan: EpisodePlan, episode: Episode, names: Sequence[str]) -> str | None:
    if not episode.frames or plan.video_dir is None:
        return None
    path = plan.video_dir / f"{plan.stem}_{episode.seed}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = captioned(episode, told=plan.caption)
    write_whole(path, lambda beside: write_video(beside, frames, states=states_of(episode, names)))
    return str(path)
