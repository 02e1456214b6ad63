"""Episodes of an evaluation, one after the other or in several processes; an exception is an error, not a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.files import write_whole
from ppt_kit.models.chunks import Execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, close_env, copied, in_words, make_env, show_only, told
from ppt_kit.sim.rollout import VIDEO_SIZE, Episode, rollout
from ppt_kit.sim.watch import write_video
from ppt_kit.sim.workers import Died, Work, work_in_processes


@dataclass(frozen=True)
class EpisodePlan:
    """What an episode needs beside the policy and its seed; it goes to every process.

    Attributes:
        env: what `make_env` builds.
        execution: how the policy's chunks are executed.
        film: seeds of the episodes to film.
        video_dir: where their videos go, as <stem>_<seed>.mp4; None = nowhere.
    """

    env: dict
    domain: str
    execution: Execution
    zero_keys: tuple[str, ...] = ()
    film: frozenset[int] = frozenset()
    video_dir: Path | None = None
    stem: str = "eval"

    def open_env(self, policy: PPTPolicy) -> SimEnv:
        """The environment; it renders no more than the policy sees.

        Raises:
            UserError: see `make_env`.
        """
        env = make_env(self.env, uses=["evaluating", *(["filming"] if self.film else [])])
        show_only(env, View.from_plain(policy.card["views"][self.domain]).needs())
        return env


def open_checked(policy: PPTPolicy, plan: EpisodePlan, *, seed: int) -> SimEnv:
    """The environment of the plan, once it has shown what the policy sees, and has been filmed where it is to be.

    Raises:
        UserError: it cannot be built, does not begin, or does not show what the policy sees.
    """
    env = plan.open_env(policy)
    try:
        check_seen(View.from_plain(policy.card["views"][plan.domain]), env, plan, seed=seed)
        return env
    except BaseException:
        close_env(env)
        raise


def run_here(policy: PPTPolicy, env: SimEnv, plan: EpisodePlan, seeds: Sequence[int]) -> Generator[dict, None, None]:
    """One row a seed, as soon as it is run: seed, success, steps, return, error, subtasks, actions_sha256, video.

    Where a video could not be written, video_error says why.
    """
    for seed in seeds:
        yield run_one(policy, env, plan, seed)


def run_in_processes(
    policy: PPTPolicy, plan: EpisodePlan, seeds: Sequence[int], *, n_procs: int
) -> Generator[dict, None, None]:
    """As `run_here`, in the order in which they end. What the workers could not build has to be told before.

    Raises:
        UserError: the policy cannot be sent to other processes, or none of them could begin.
    """
    with contextlib.closing(work_in_processes(partial(_begin, policy, plan), seeds, n_procs=n_procs)) as results:
        for seed, result in results:
            yield _error_row(seed, result.how) if isinstance(result, Died) else result


def run_one(policy: PPTPolicy, env: SimEnv, plan: EpisodePlan, seed: int) -> dict:
    """The row of one episode; its error is text where it could not be run."""
    try:
        episode = rollout(
            policy, env, domain=plan.domain, seed=seed, execution=plan.execution, zero_keys=plan.zero_keys,
            film=seed in plan.film,
        )  # fmt: skip
    except Exception as error:
        return _error_row(seed, in_words(error))
    row = _row(episode)
    try:
        return row | {"video": _film(plan, episode)}
    # the episode was run, whatever the disk or the encoder says
    except Exception as error:
        return row | {"video_error": in_words(error)}


def _begin(policy: PPTPolicy, plan: EpisodePlan) -> Work:
    """In a worker process."""
    env = plan.open_env(policy)
    return partial(run_one, policy, env, plan), partial(close_env, env)


def check_seen(view: View, env: SimEnv, plan: EpisodePlan, *, seed: int) -> None:
    """Begins an episode, and tells what of `view` the environment does not show.

    Raises:
        UserError: it does not begin, lacks something, or shows it in another size.
    """
    name = plan.env["simulator"]
    with told(f"simulator={name}: fails when it begins an episode (seed {seed})"):
        reading = copied(env.reset(seed))
        pictures = [env.render(VIDEO_SIZE)] if plan.film else []
    for picture in pictures:
        if np.shape(picture) != (VIDEO_SIZE, VIDEO_SIZE, 3):
            raise UserError(
                f"simulator={name}: render({VIDEO_SIZE}) gives an array {np.shape(picture)}, "
                f"and a video needs ({VIDEO_SIZE}, {VIDEO_SIZE}, 3). Mend it, or type videos=0."
            )
    missing = [column for column in view.needs() if column not in reading]
    if view.made_from is not None and not hasattr(env, "camera_info"):
        missing.append("camera_info()")
    if view.language and not hasattr(env, "description"):
        missing.append("description")
    if missing:
        raise UserError(
            f"the policy of {plan.domain} sees {', '.join(missing)}, which {name} does not give; "
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
    for column in (*view.rgb.values(), *view.depth.values()):
        (height, width), given = view.sizes[column], np.shape(reading[column])
        if given[:2] != (height, width):
            raise UserError(
                f"the policy of {plan.domain} sees {height} x {width} pixels of {column}, {plan.env['simulator']} "
                f"gives an array {given}. Evaluate in the simulator and with the options that the data was recorded "
                "with."
            )


def _row(episode: Episode) -> dict:
    return {
        "seed": episode.seed, "success": episode.success, "steps": episode.steps, "return": episode.total_reward,
        "error": None, "subtasks": episode.subtasks, "actions_sha256": episode.actions_sha256, "trace": episode.trace,
        "video": None,
    }  # fmt: skip


def _error_row(seed: int, error: str) -> dict:
    return {
        "seed": seed, "success": None, "steps": 0, "return": None, "error": error, "subtasks": {},
        "actions_sha256": None, "trace": None, "video": None,
    }  # fmt: skip


def _film(plan: EpisodePlan, episode: Episode) -> str | None:
    if not episode.frames or plan.video_dir is None:
        return None
    path = plan.video_dir / f"{plan.stem}_{episode.seed}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda beside: write_video(beside, episode.frames))
    return str(path)
