"""An evaluated episode run again from its seed, and everything of it kept: what was seen, predicted and done."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.models.actor import Actor
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import in_words
from ppt_kit.sim.episodes import EpisodePlan
from ppt_kit.sim.rollout import VIDEO_SIZE, Going, one_thread
from ppt_kit.sim.runner.controls import Driver
from ppt_kit.sim.runner.options import PartOptions
from ppt_kit.sim.runner.plan import plan_of
from ppt_kit.sim.runner.together import Places

# hex digits of a row's trace that a step has
DIGITS = 8


@dataclass
class Replay:
    """One episode, step by step.

    Attributes:
        frames: obs of each step, as the policy saw them; {} where nothing is looked at.
        actions: (T, Da) float64 what was done.
        rewards: (T,) what the simulator gave for it.
        reached: subtask -> the step in which it was reached first, from 0; None where it never was.
        chunks: step -> (Ta, Da) float32 what the policy predicted then, in the dataset's units.
        pictures: (VIDEO_SIZE, VIDEO_SIZE, 3) uint8 of each step, for people; [] where the simulator renders none.
        success_step: the step after which it had succeeded first, from 0; None without.
        differs_at: the step in which it first differs from the evaluated episode, from 0; None where it is the same.
        broken: the exception that ended it; None without.
    """

    frames: list[dict[str, Any]] = field(default_factory=list)
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    rewards: list[float] = field(default_factory=list)
    reached: dict[str, int | None] = field(default_factory=dict)
    chunks: dict[int, np.ndarray] = field(default_factory=dict)
    pictures: list[np.ndarray] = field(default_factory=list)
    success_step: int | None = None
    differs_at: int | None = None
    broken: str | None = None


def replay(policy: PPTPolicy, options: PartOptions, row: Mapping[str, Any]) -> Replay:
    """Runs the episode of a row again, as `options` say that it was run.

    Raises:
        UserError: it cannot be run here at all.
    """
    plan = plan_of(policy, options)
    with closing(Places(policy, plan, env=plan.open_env(policy))) as places:
        return _Running(places, plan, row).run()


class _Running:
    """One replay as it goes."""

    def __init__(self, places: Places, plan: EpisodePlan, row: Mapping[str, Any]):
        self.places, self.row, self.place = places, row, row["seed"] % plan.batch_envs
        self.env, self.kept = places.envs[0], Replay()
        self.renders = hasattr(self.env, "render")
        self.actions: list[np.ndarray] = []

    def run(self) -> Replay:
        places, seed, size = self.places, self.row["seed"], len(self.places.envs)
        # in its own place among those that are stepped together, to the bit as it was evaluated
        places.envs = [self.env if place == self.place else None for place in range(size)]
        actor = places.actor
        if isinstance(actor, Actor):
            actor.listener = lambda _, chunk: self.kept.chunks.__setitem__(len(self.actions), chunk)
        try:
            actor.reset(self.place, seed=[seed])
            going = Going(self.env, seed, places.showing, action_dim=places.action_dim)  # type: ignore[arg-type]
            while not going.is_over:
                self._step(going, actor)
        # an evaluated episode that ended in an error is looked at for it
        except Exception as error:
            self.kept.broken = in_words(error)
        if not self.actions:
            raise UserError(f"seed {seed}: it ends before its first step ({self.kept.broken or 'warm-up only'}).")
        self.kept.actions = np.stack(self.actions)
        differs = _differs_at(going.episode.trace, self.row.get("trace"))
        self.kept.differs_at = differs if differs is None else max(0, differs - places.plan.warmup_steps)
        return self.kept

    def _step(self, going: Going, actor: Actor | Driver) -> None:
        frame, kept = going.frame(), self.kept
        picture = self.env.render(VIDEO_SIZE) if self.renders else None  # type: ignore[union-attr]
        frames = [frame if place == self.place else None for place in range(len(self.places.envs))]
        with one_thread():
            given = actor.act(self.places.envs) if isinstance(actor, Driver) else actor.act(frames)
        before, step = going.episode.total_reward, len(self.actions)
        kept.frames.append(frame)
        if picture is not None:
            kept.pictures.append(np.array(picture))
        self.actions.append(given[self.place].copy())
        going.step(given[self.place])
        kept.rewards.append(going.episode.total_reward - before)
        parts = self.env.subtasks() if hasattr(self.env, "subtasks") else {}  # type: ignore[union-attr]
        for name, reached in parts.items():
            if kept.reached.get(name) is None:
                kept.reached[str(name)] = step if reached else None
        if going.episode.success and kept.success_step is None:
            kept.success_step = step


def _differs_at(here: str, there: str | None) -> int | None:
    """The first step of two traces that is not the same; None also where the row has no trace to compare with."""
    if there is None or here == there:
        return None
    same = next((at for at, (a, b) in enumerate(zip(here, there)) if a != b), min(len(here), len(there)))
    return same // DIGITS
