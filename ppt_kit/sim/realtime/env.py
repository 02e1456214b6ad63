"""What a robot offers, or a simulator in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.sim.env import close_env, copied

NEEDED = ("reset", "step")


class Env(Protocol):
    """What a policy acts in, one control step at a time. Nothing is inherited: a class with these names is one.

    A robot needs reset and step; description where the policy reads language, camera_info where its clouds are made
    from depth. observe, stop, close and max_steps may be left out. Every simulator (`ppt_kit.sim.env.SimEnv`) is one
    too, which promises more: that a seed gives the same episode again.

    Readings have the names of a dataset's columns and the shape of one row: obs/<name> (...) numbers,
    obs/images/<camera> (H, W, 3) uint8, obs/depths/<camera> (H, W, 1) m, obs/pointcloud/pos (P, 3) m. Actions are in
    the dataset's own units.
    """

    description: str  # the task in words
    max_steps: int  # longest episode (control steps)

    def reset(self, seed: int | None = None) -> Mapping[str, Any]:
        """Makes ready for an episode; the readings now. A robot has no use for the seed."""

    def step(self, action: np.ndarray) -> tuple[Mapping[str, Any], float | None, bool | None]:
        """Sends an action (Da,) and returns at once: readings, reward, whether the task is done at this step.

        Reward and success are None where nobody knows: a robot seldom does.
        """

    def observe(self) -> Mapping[str, Any]:
        """The readings now. Without it those of the last step are taken, which are one control step old."""

    def stop(self) -> None:
        """Holds still. Called however a run ends; where it is not there, an end by an exception closes instead."""

    def camera_info(self) -> Mapping[str, np.ndarray]:
        """<camera>/intrinsics (3, 3) and <camera>/extrinsics (4, 4) camera to world."""

    def close(self) -> None:
        """Lets go of the hardware."""


def check_env(env: Any) -> None:
    """Refuses what no policy can act in.

    Raises:
        UserError: something is not there.
    """
    missing = [name for name in NEEDED if not callable(getattr(env, name, None))]
    if missing:
        raise UserError(
            f"{type(env).__name__} has no {', '.join(missing)}: an environment needs {' and '.join(NEEDED)}. "
            "ppt_kit.Env says what each is."
        )


def observed(env: Any, last: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is read now, as arrays of our own: of `observe`, or of the last step."""
    return copied(env.observe() if hasattr(env, "observe") else last)


def brought_to_rest(env: Any, *, failed: bool) -> None:
    """Stops a robot; one that cannot be stopped is let go of after a failure."""
    if hasattr(env, "stop"):
        env.stop()
    elif failed:
        close_env(env)
