"""Any environment of the Gymnasium API with continuous actions, as a simulator of ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.parts import find_part
from ppt_kit.sim.simulators.gym.making import find_spec, make
from ppt_kit.sim.simulators.gym.pictures import fitted
from ppt_kit.sim.simulators.gym.rules import Rule, Step, success_rule
from ppt_kit.sim.simulators.gym.spaces import check_actions, idle_action, parts_of, to_action

log = logging.getLogger(__name__)

RENDERED = "obs/images/render"


@dataclass(frozen=True)
class Known:
    """What is said here of an environment that does not say it itself."""

    expert: str | None = None
    hold: Callable[[Any], np.ndarray] | None = None
    description: str | None = None
    subtasks: Mapping[str, str] = field(default_factory=dict)


KNOWN = {
    "gym_pusht/PushT-v0": Known(
        expert="ppt_kit.sim.simulators.gym.pusher:Pusher",
        # an action is where the pusher is to go
        hold=lambda env: np.array(env.agent.position),
        description="push the T onto its place",
        subtasks={f"coverage_{percent}": f"coverage>={percent / 100}" for percent in (50, 75, 90)},
    )
}


class GymEnv:
    """An environment of Gymnasium: its observations by name, its reward, and what it says of success.

    Pictures are obs/images/<key>, depth obs/depths/<key>, numbers obs/<key>; `gym.spaces` says how they are read. An
    action is brought into the environment's bounds. A seed begins the same episode again where the environment's own
    `reset(seed=…)` does; where it does not, a line says so.

    Args:
        task: an id as gymnasium.make takes it: Pendulum-v1, gym_pusht/PushT-v0, my_lab.envs:MyTask-v0.
        max_steps: longest episode; None = as registered.
        expert: module:Name of yours for demonstrations: Name(env) is called when an episode begins, with the
            environment without its wrappers; what it gives is called with each observation and gives an action.
        success: what counts: a key of the step's info, terminated, or a bound as reward>=0.9; None = info's is_success
            or success.
        subtasks: name -> what counts, in the order of the task.
        keys: the observation's key -> another name; None = it is left out.
        image_size: height and width of pictures of `render()` that are seen as obs/images/render; None = none.
        description: the task in words; None = made of its id.
        options: everything else goes to the environment.
    Raises:
        UserError: there is no such environment, its actions are not continuous, its observations cannot be read, it
            says nothing of success, or has no end.
    """

    def __init__(
        self,
        task: str,
        *,
        max_steps: int | None = None,
        expert: str | None = None,
        success: str | None = None,
        subtasks: Mapping[str, str] | None = None,
        keys: Mapping[str, str | None] | None = None,
        image_size: int | None = None,
        description: str | None = None,
        **options: Any,
    ):
        self.task, self.image_size = task, image_size
        spec, known = find_spec(task), KNOWN.get(task, Known())
        self._env = make(spec, task=task, max_steps=max_steps, options=options)
        self.max_steps = _limit(max_steps or self._env.spec.max_episode_steps, task)
        self.description = description or known.description or _words(spec.name)
        self._actions = check_actions(self._env.action_space, task=task)
        self._parts = parts_of(self._env.observation_space, _mapping(keys, "keys"))
        self._wanted: Collection[str] | None = None
        self._last, self.over = Step(), False
        self._reached: set[str] = set()
        self._scores: dict[str, float] = {}
        self._act: Callable[[Any], Any] | None = None
        named = {**known.subtasks} if subtasks is None else _mapping(subtasks, "subtasks")
        self._subtasks = {name: Rule.of(word, option=f"options.subtasks.{name}") for name, word in named.items()}
        self._expert_name = expert or known.expert
        self._make_expert = _expert(self._expert_name)
        self._given = {
            "max_steps": max_steps, "expert": expert, "success": success, "subtasks": subtasks, "keys": keys,
            "image_size": image_size, "description": description, **options,
        }  # fmt: skip
        self._success = success_rule(success, self._try_out(), task=task)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._begin(seed)
        self._act = None
        return self._reading()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        """One step; after the environment has ended its episode nothing moves, and nothing is gained."""
        if self.over:
            return self._reading(), 0.0, self._success.holds(self._last)
        self._observation, reward, terminated, truncated, info = self._env.step(to_action(self._actions, action))
        self.over = bool(terminated or truncated)
        total = self._last.total_reward + float(reward)
        self._last = Step(float(reward), total, bool(terminated), over=self.over, info=info)
        self._reached |= {name for name, rule in self._subtasks.items() if rule.holds(self._last)}
        self._note_scores()
        return self._reading(), self._last.reward, self._success.holds(self._last)

    def expert_action(self) -> np.ndarray:
        """(Da,) float64, within the environment's bounds.

        Raises:
            UserError: there is no expert.
        """
        if self._make_expert is None:
            raise UserError(
                f"task={self.task}: no expert is known here. Give one of yours, options.expert=my_lab.experts:MyExpert "
                "(MyExpert(env) is called when an episode begins, and what it gives with each observation), or train "
                "on demonstrations from a file and evaluate with simulator=gymnasium."
            )
        if self._act is None:
            self._act = self._make_expert(self._env.unwrapped)
        return to_action(self._actions, self._act(self._observation)).astype(np.float64).reshape(-1)

    def hold_action(self) -> np.ndarray:
        """(Da,) float64 what leaves the robot where it is: 0, or what is nearest to it, where nothing is known."""
        hold = KNOWN.get(self.task, Known()).hold
        action = idle_action(self._actions) if hold is None else hold(self._env.unwrapped)
        return to_action(self._actions, action).astype(np.float64).reshape(-1)

    def subtasks(self) -> dict[str, bool]:
        """What has been reached so far in this episode."""
        return {name: name in self._reached for name in self._subtasks}

    def scores(self) -> dict[str, float]:
        """The highest reward of a step of this episode so far, and of the numbers that subtasks are told by."""
        return dict(self._scores)

    def spec(self) -> dict[str, Any]:
        given = {name: value for name, value in self._given.items() if value is not None}
        return {"simulator": "gymnasium", "task": self.task, **given, "max_steps": self.max_steps}

    def render(self, size: int = 256) -> np.ndarray:
        """(size, size, 3) uint8: the environment's own picture, whole, on black where it is not square.

        Raises:
            UserError: it renders no pictures.
        """
        picture = self._env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise UserError(
                f"task={self.task}: render() gives no picture (render_mode={self._env.render_mode}). "
                "Type videos=0, and leave image_size out."
            )
        return fitted(picture, size)

    def show_only(self, columns: Collection[str]) -> None:
        self._wanted = frozenset(columns)

    def close(self) -> None:
        self._env.close()

    def _begin(self, seed: int) -> None:
        self._observation, info = self._env.reset(seed=seed)
        self._last, self.over = Step(info=info), False
        self._reached, self._scores = set(), {}

    def _try_out(self) -> Mapping[str, Any]:
        """The info of one step that does nothing, once two beginnings were compared."""
        self._begin(0)
        first = self._reading()
        self._begin(0)
        again = self._reading()
        if not all(np.array_equal(first[name], again[name], equal_nan=True) for name in first):
            log.warning(
                "task=%s: the same seed begins another episode: its episodes cannot be repeated, nor compared in pairs",
                self.task,
            )
        return self._env.step(to_action(self._actions, idle_action(self._actions)))[4]

    def _reading(self) -> dict[str, np.ndarray]:
        wanted = [part for part in self._parts if self._wanted is None or part.column in self._wanted]
        reading = {part.column: part.read(self._observation) for part in wanted}
        if self.image_size is not None and (self._wanted is None or RENDERED in self._wanted):
            reading[RENDERED] = self.render(self.image_size)
        return reading

    def _note_scores(self) -> None:
        names = ["reward", *(rule.name for rule in self._subtasks.values() if rule.bound is not None)]
        for name in dict.fromkeys(names):
            value = self._last.number(name)
            if not np.isnan(value):
                self._scores[name] = max(value, self._scores.get(name, -np.inf))


def _limit(max_steps: int | None, task: str) -> int:
    if max_steps is None:
        raise UserError(f"task={task}: is registered without a time limit. Say how long an episode is: max_steps=300.")
    return max_steps


def _expert(name: str | None) -> Callable[[Any], Callable[[Any], Any]] | None:
    if name is None:
        return None
    part = find_part(name, {}, option="options.expert")
    if not callable(part):
        raise UserError(f"options.expert={name}: is {part!r}, and has to be called with an environment.")
    return part


def _mapping(given: Any, name: str) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"options.{name}={given!r}: takes names, e.g. options.{name}.pixels=….")
    return dict(given or {})


def _words(name: str) -> str:
    """PushT -> push t."""
    return " ".join(re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+", name)).lower()
