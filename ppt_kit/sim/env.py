"""What a simulator offers, and simulators by name: collecting and evaluating do not know which one it is."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.parts import find_part, place_of

# each is imported when it is first asked for
SIMULATORS: dict[str, Any] = {
    "gymnasium": "ppt_kit.sim.simulators.gym.env:GymEnv",
    "metaworld": "ppt_kit.sim.simulators.metaworld:MetaWorldEnv",
    "planar": "ppt_kit.sim.simulators.planar:PlanarEnv",
    "ur5": "ppt_kit.sim.simulators.ur5.env:UR5Env",
}

# what an environment must offer for each use; the rest of SimEnv it may leave out
NEEDED = {
    "collecting": ("reset", "step", "expert_action", "spec", "max_steps", "description"),
    "evaluating": ("reset", "step", "max_steps"),
    "filming": ("render",),
    "the control expert": ("expert_action",),
}


class SimEnv(Protocol):
    """One task in one simulator. The same seed gives the same episode, to the bit.

    A simulator is a class that is called with `task="…"` and options, all as keywords; a user's own is named by
    `module:Class`. Nothing is inherited: a class with these names is one. Collecting needs reset, step, expert_action,
    spec, max_steps and description; evaluating needs reset, step and max_steps; videos need render. subtasks,
    scores, over, hold_action, camera_info, show_only and close may be left out.

    Readings have the names of an EpisodeStore's columns (ppt_kit/data/store.py) and the shape of one row:

        obs/<name>                 (...) numbers: proprioception, e.g. obs/eef_pos (3,) m
        obs/pointcloud/pos         (P, 3) m, the same P in every step; obs/pointcloud/colors (P, 3) uint8 beside it
        obs/images/<camera>        (H, W, 3) uint8
        obs/depths/<camera>        (H, W, 1) m

    Any part of them may be missing, but every step gives the same names, shapes and types.
    """

    max_steps: int  # longest episode (control steps)
    description: str  # the task in words
    over: bool  # whether the simulator itself has ended the episode

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Starts an episode; its first readings."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        """One control step with an action (Da,): readings, reward, whether the task is solved at this step."""

    def hold_action(self) -> np.ndarray:
        """(Da,) what leaves the robot where it is now; without it that is zeros."""

    def subtasks(self) -> dict[str, bool]:
        """The parts of the task, in its order, and whether each has been reached so far in this episode."""

    def scores(self) -> dict[str, float]:
        """Numbers of its own that say how well this episode has gone so far, e.g. the best coverage."""

    def expert_action(self) -> np.ndarray:
        """(Da,) what the scripted expert does now."""

    def spec(self) -> dict[str, Any]:
        """What `make_env` needs to build this environment again: "simulator", "task" and options, as numbers and words.

        It is recorded with every dataset, and a policy is evaluated in what it says.
        """

    def render(self, size: int = 256) -> np.ndarray:
        """(size, size, 3) uint8 picture for people."""

    def camera_info(self) -> dict[str, np.ndarray]:
        """<camera>/intrinsics (3, 3) and <camera>/extrinsics (4, 4) camera to world."""

    def show_only(self, columns: Collection[str]) -> None:
        """From here on readings need hold no other columns: what nobody looks at need not be rendered.

        Those that they hold are the same to the bit, and so are the episodes.
        """

    def close(self) -> None:
        """Frees the renderer."""


def make_env(spec: Mapping[str, Any], *, uses: Sequence[str] = ()) -> SimEnv:
    """The environment that `spec()` describes.

    Args:
        spec: "simulator": a name in SIMULATORS or module:Class; the rest are its options, "task" among them.
        uses: what it is wanted for, of NEEDED.
    Raises:
        UserError: no such simulator, an option it does not take, or something that a use needs is not there; or it
            fails with these options, in its own words.
    """
    make, options = find_simulator(spec)
    with told(f"simulator={spec['simulator']}: cannot be made with {_listed(options)}"):
        env = make(**options)
    for use in uses:
        missing = [name for name in NEEDED[use] if not hasattr(env, name)]
        if missing:
            raise UserError(
                f"simulator={spec['simulator']} has no {', '.join(missing)}: {use} needs {', '.join(NEEDED[use])}. "
                "ppt_kit/sim/env.py says what each is."
            )
    if uses and (not isinstance(env.max_steps, (int, np.integer)) or env.max_steps < 1):
        raise UserError(f"simulator={spec['simulator']}: its max_steps={env.max_steps!r} is no whole number above 0.")
    return env


def find_simulator(spec: Mapping[str, Any]) -> tuple[Callable[..., SimEnv], dict[str, Any]]:
    """The class that `spec` names, and the options it is to be called with.

    Raises:
        UserError: there is none, it does not take one of the options, or needs one that is not given.
    """
    options = dict(spec)
    name = options.pop("simulator", None)
    if not isinstance(name, str):
        raise UserError(f"simulator={name}: names none. It takes {', '.join(SIMULATORS)}, or module:Class of yours.")
    make = find_part(name, SIMULATORS, option="simulator")
    if not callable(make):
        raise UserError(f"simulator={name}: is no class, but {make!r}.")
    parameters = inspect.signature(make).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        _refuse_unknown(name, options, takes=list(parameters))
    needed = [
        each.name
        for each in parameters.values()
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    missing = [option for option in needed if option not in options]
    if missing:
        raise UserError(f"simulator={name} needs {', '.join(missing)}. Type e.g. options.{missing[0]}=…")
    return make, options


@contextmanager
def told(what: str) -> Iterator[None]:
    """Inside a simulator's own code runs before the work, and whatever it raises is told in one line.

    Raises:
        UserError: `what`, and what it raised, with file and line.
    """
    try:
        yield
    except UserError:
        raise
    # a user's simulator raises whatever it likes
    except Exception as error:
        raise UserError(f"{what}: {in_words(error)}.") from None


def in_words(error: Exception) -> str:
    """Kind, text and place of an exception, in one line."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(where.filename).name}:{where.lineno})"


def code_of(spec: Mapping[str, Any]) -> str | None:
    """Eight hex digits of the file that a user's simulator is in; None of ours.

    Episodes before and after an edit are not one evaluation, nor one dataset.
    """
    if spec["simulator"] in SIMULATORS:
        return None
    file = Path(place_of(find_simulator(spec)[0]))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else None


def is_over(env: Any) -> bool:
    """Whether the simulator has ended the episode: nothing moves any more."""
    return bool(getattr(env, "over", False))


def show_only(env: SimEnv, columns: Collection[str]) -> None:
    """Tells an environment which columns are looked at, where it has something to leave out."""
    if hasattr(env, "show_only"):
        env.show_only(columns)


def close_env(env: SimEnv) -> None:
    """Frees what the environment holds, where it has something to free."""
    if hasattr(env, "close"):
        env.close()


def copied(reading: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A reading as arrays of our own: a simulator may give views of numbers that its next step changes."""
    return {name: np.array(value) for name, value in reading.items()}


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.60}" for name, value in options.items()) or "no option"


def _refuse_unknown(name: str, options: Mapping[str, Any], *, takes: list[str]) -> None:
    unknown = [option for option in options if option not in takes]
    if unknown:
        near = difflib.get_close_matches(unknown[0], takes, 1)
        raise UserError(
            f"{unknown[0]}={options[unknown[0]]}: simulator={name} takes no {unknown[0]}; "
            f"it takes {', '.join(takes) or 'no option at all'}." + (f" Did you mean {near[0]}?" if near else "")
        )
