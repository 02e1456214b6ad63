"""Episodes in a simulator: what acts in one, a control step at a time, and what came of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ppt_kit.data.view import View
from ppt_kit.models.actor import Actor
from ppt_kit.sim.env import SimEnv, copied, is_over

VIDEO_SIZE = 256  # pixels


@dataclass
class Episode:
    """How one episode went.

    Attributes:
        success: at any step; success_last: at the last one.
        success_step: control steps until the first success; None without.
        subtasks: the parts of the task that the simulator tells of, in its order, then "success".
        scores: its own numbers.
        actions_sha256: of the bytes of the executed actions: the same episode again has the same.
        trace: of each step four hex digits of all that was seen until then, and four of all that was done.
        calls, latency_s: how often the policy was asked, and how long that took, all calls together (s).
        policy_s, total_s: the policy's part of this episode's time, and all: several share a call (s).
        frames: (size, size, 3) uint8, only when filmed.
        states: (Ds,) what the policy saw of the state in each step that it acted in, only when filmed.
    """

    seed: int
    success: bool = False
    success_last: bool = False
    success_step: int | None = None
    steps: int = 0
    total_reward: float = 0.0
    subtasks: dict[str, bool] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    actions_sha256: str = ""
    trace: str = ""
    calls: int = 0
    latency_s: float = 0.0
    policy_s: float = 0.0
    total_s: float = 0.0
    frames: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Showing:
    """What of an episode is shown to the policy, when it ends, and what is kept.

    Attributes:
        view: what the policy sees; None = nothing is looked at.
        zero_keys: modalities replaced by zeros.
        sentence: what the policy is told instead of env.description.
        stop_at_success: end with the first step that succeeds; False = go on to env.max_steps.
        warmup_steps: control steps of `hold_action` before the policy acts; they count as steps.
    """

    view: View | None
    zero_keys: Sequence[str] = ()
    sentence: str | None = None
    stop_at_success: bool = True
    warmup_steps: int = 0


class Going:
    """An episode that is going on: `frame`, an action, `step` with it, until it `is_over`; then its `end`.

    Args:
        env: begins the episode now.
        action_dim: of what it is stepped with.
        film: keep a frame a step.
    """

    def __init__(self, env: SimEnv, seed: int, showing: Showing, *, action_dim: int, film: bool = False):
        self.env, self.showing, self.film = env, showing, film
        self.episode, self._done, self._seen = Episode(seed), hashlib.sha256(), hashlib.sha256()
        self._shown: Mapping[str, Any] | None = None
        with self._timed():
            self._reading = env.reset(seed)
            self._film()
        for _ in range(showing.warmup_steps):
            if not self.is_over:
                self.step(hold_action(env, action_dim))

    @property
    def is_over(self) -> bool:
        """Whether there is no step left."""
        ends = self.episode.success and self.showing.stop_at_success
        return ends or self.episode.steps >= self.env.max_steps or is_over(self.env)

    def frame(self) -> dict[str, Any]:
        """obs of this control step, as the training data's were; {} where nothing is looked at."""
        if self.showing.view is None:
            return {}
        with self._timed():
            frame = seen_of(self.showing.view, self.env, self._reading, self.showing.sentence)
            self._shown = frame | {name: _zeroed(frame[name]) for name in self.showing.zero_keys}
            if self.film and "state" in self._shown:
                self.episode.states.append(self._shown["state"])
            return self._shown

    def step(self, action: np.ndarray) -> None:
        """One control step with an action (Da,)."""
        with self._timed():
            self._trace(action)
            self._reading, reward, success = self.env.step(action)
            episode = self.episode
            episode.steps += 1
            episode.total_reward += float(reward)
            episode.success_last = bool(success)
            if success and not episode.success:
                episode.success, episode.success_step = True, episode.steps
            self._film()

    def end(self) -> Episode:
        """What came of it."""
        episode, parts = self.episode, self.env.subtasks() if hasattr(self.env, "subtasks") else {}
        reached = {str(name): bool(reached) for name, reached in parts.items()}
        episode.subtasks = {**reached, "success": episode.success}
        scores = self.env.scores() if hasattr(self.env, "scores") else {}
        episode.scores = {str(name): float(score) for name, score in scores.items()}
        episode.actions_sha256 = self._done.hexdigest()
        return episode

    def asked(self, actor: Actor, index: int) -> None:
        """Takes the time that the actor's calls took for the environment `index`."""
        episode = self.episode
        episode.calls, episode.latency_s = int(actor.calls[index]), float(actor.latency_s[index])
        episode.total_s += float(actor.share_s[index]) - episode.policy_s
        episode.policy_s = float(actor.share_s[index])

    def _trace(self, action: np.ndarray) -> None:
        """Of this step: what was shown, or, where nobody looks, the simulator's readings; and what is done then."""
        _digest_into(self._seen, self._reading if self._shown is None else self._shown)
        self._done.update(action.tobytes())
        self._shown = None
        self.episode.trace += self._seen.hexdigest()[:4] + self._done.hexdigest()[:4]

    def _film(self) -> None:
        if self.film:
            self.episode.frames.append(self.env.render(VIDEO_SIZE))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.episode.total_s += time.perf_counter() - began


def hold_action(env: SimEnv, action_dim: int) -> np.ndarray:
    """(Da,) what leaves the robot where it is: as the simulator says, else zeros."""
    return np.array(env.hold_action()) if hasattr(env, "hold_action") else np.zeros(action_dim)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch with one thread: the last bits of sums depend on their number, and workers have fewer than their parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seen_of(view: View, env: Any, reading: Mapping[str, Any], sentence: str | None) -> dict[str, Any]:
    """obs of one frame, as the training data's were.

    Args:
        env: gives camera_info() and description where they are needed.
        sentence: what the policy is told; None = env.description.
    """
    frame = view.live(copied(reading), env.camera_info() if view.made_from else None)
    if not view.language:
        return frame
    return {**frame, "language": env.description if sentence is None else sentence}


def _digest_into(digest: Any, frame: Mapping[str, Any]) -> None:
    """Every byte of one frame."""
    for name, value in sorted(frame.items()):
        digest.update(name.encode())
        if isinstance(value, Mapping):
            _digest_into(digest, value)
        else:
            digest.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())


def _zeroed(readings: Any) -> Any:
    if isinstance(readings, dict):
        return {name: _zeroed(value) for name, value in readings.items()}
    return "" if isinstance(readings, str) else np.zeros_like(readings)
