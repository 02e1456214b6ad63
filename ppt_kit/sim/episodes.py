"""What the episodes of an evaluation need, and whether a simulator shows what the policy sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.chunks import Execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, close_env, copied, make_env, show_only, told
from ppt_kit.sim.rollout import VIDEO_SIZE, Showing
from ppt_kit.sim.runner.controls import Control


@dataclass(frozen=True)
class EpisodePlan:
    """What an episode needs beside the policy and its seed; it goes to every process.

    Attributes:
        env: what `make_env` builds.
        execution: how the policy's chunks are executed.
        sentence: what the policy is told; None = what the environment says.
        stop_at_success: whether an episode ends with its first success.
        warmup_steps: control steps that nobody acts in.
        control: who acts instead of the policy; None = the policy.
        batch_envs: environments that are stepped together, their policy asked once for all.
        film: seeds of the episodes to film.
        video_dir: where their videos go, as <stem>_<seed>.mp4; None = nowhere.
        caption: of each frame: what is run, e.g. its task and its checkpoint.
    """

    env: dict
    domain: str
    execution: Execution
    zero_keys: tuple[str, ...] = ()
    sentence: str | None = None
    stop_at_success: bool = True
    warmup_steps: int = 0
    control: Control | None = None
    batch_envs: int = 1
    film: frozenset[int] = frozenset()
    video_dir: Path | None = None
    stem: str = "eval"
    caption: str = ""

    def open_env(self, policy: PPTPolicy) -> SimEnv:
        """The environment; it renders no more than the policy sees.

        Raises:
            UserError: see `make_env`.
        """
        uses = ["evaluating", *(["filming"] if self.film else [])]
        if self.control is not None and self.control.name == "expert":
            uses.append("the control expert")
        env = make_env(self.env, uses=uses)
        show_only(env, self.view_of(policy).needs() if self.control is None else [])
        return env

    def showing(self, policy: PPTPolicy) -> Showing:
        """What of an episode the policy is shown, and when it ends."""
        return Showing(
            self.view_of(policy) if self.control is None else None, zero_keys=self.zero_keys, sentence=self.sentence,
            stop_at_success=self.stop_at_success, warmup_steps=self.warmup_steps,
        )  # fmt: skip

    def view_of(self, policy: PPTPolicy) -> View:
        """How the policy sees the domain."""
        return View.from_plain(policy.card["views"][self.domain])


def open_checked(policy: PPTPolicy, plan: EpisodePlan, *, seed: int) -> SimEnv:
    """The environment of the plan, once it has shown what the policy sees, and has been filmed where it is to be.

    Raises:
        UserError: it cannot be built, does not begin, or does not show what the policy sees.
    """
    env = plan.open_env(policy)
    try:
        check_seen(plan.view_of(policy), env, plan, seed=seed)
        return env
    except BaseException:
        close_env(env)
        raise


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
    if plan.control is not None:
        # who acts looks at nothing
        return
    check_reading(
        view, reading, env, sentence=plan.sentence, domain=plan.domain, source=name,
        remedy="Evaluate in the simulator and with the options that the data was recorded with.",
    )  # fmt: skip


def check_reading(
    view: View, reading: Mapping[str, Any], env: Any, *, sentence: str | None, domain: str, source: str, remedy: str
) -> None:
    """Whether first readings have what a policy sees, in its sizes.

    Args:
        env: gives them.
        sentence: what the policy is told; None = what the environment says.
        source, remedy: how the environment is called, and what is said to be typed.
    Raises:
        UserError: something is missing, or has another size.
    """
    missing = [column for column in view.needs() if column not in reading]
    if view.made_from is not None and not hasattr(env, "camera_info"):
        missing.append("camera_info()")
    if view.language and sentence is None and not hasattr(env, "description"):
        missing.append("description")
    if missing:
        raise UserError(
            f"the policy of {domain} sees {', '.join(missing)}, which {source} does not give; "
            f"it gives {', '.join(reading) or 'nothing'}. {remedy}"
        )
    for sees, gives in _other_sizes(view, reading):
        raise UserError(f"the policy of {domain} sees {sees}, {source} gives {gives}. {remedy}")


def _other_sizes(view: View, reading: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the policy sees and what is given instead, in words."""
    for column, width in view.state.items():
        given = int(np.size(reading[column]))
        if given != width:
            yield f"{width} numbers of {column}", str(given)
    cloud = view.cloud.get("pos")
    if cloud is not None and view.made_from is None and np.shape(reading[cloud])[1:] != (3,):
        yield f"points (P, 3) of {cloud}", f"an array {np.shape(reading[cloud])}"
    for column in (*view.rgb.values(), *view.depth.values()):
        (height, width), shape = view.sizes[column], np.shape(reading[column])
        if shape[:2] != (height, width):
            yield f"{height} x {width} pixels of {column}", f"an array {shape}"
