"""One episode of a policy in a simulator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ppt_kit.data.view import View
from ppt_kit.models.actor import Actor
from ppt_kit.models.chunks import Execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, copied

VIDEO_SIZE = 256  # pixels


@dataclass
class Episode:
    """How one episode went."""

    seed: int
    success: bool = False
    steps: int = 0
    total_reward: float = 0.0
    subtasks: dict[str, bool] = field(default_factory=dict)
    actions_sha256: str = ""  # of the bytes of the executed actions: the same episode again has the same
    trace: str = ""  # of each step four hex digits of what was seen until then, and four of what was done
    frames: list[np.ndarray] = field(default_factory=list)  # (size, size, 3) uint8, only when filmed


def rollout(
    policy: PPTPolicy,
    env: SimEnv,
    *,
    domain: str,
    seed: int,
    execution: Execution | None = None,
    zero_keys: Sequence[str] = (),
    film: bool = False,
) -> Episode:
    """Runs the policy until it succeeds or env.max_steps are over.

    The same checkpoint, seed and options give the same actions, to the bit, in any process on one kind of machine.

    Args:
        policy: loaded by `load_policy`: its card says how it saw the data.
        execution: how its chunks are executed; None = 4 actions of each.
        zero_keys: modalities replaced by zeros: the control experiment.
        film: keep a frame a step.
    """
    episode, digest, seen = Episode(seed), hashlib.sha256(), hashlib.sha256()
    view = View.from_plain(policy.card["views"][domain])
    actor = Actor(policy, domain=domain, execution=execution)
    actor.reset(seed=seed)
    reading = env.reset(seed)
    while episode.steps < env.max_steps and not episode.success:
        if film:
            episode.frames.append(env.render(VIDEO_SIZE))
        frame = _seen(view, env, reading)
        frame |= {name: _zeroed(frame[name]) for name in zero_keys}
        with _one_thread():
            action = actor.act([frame])[0]
        digest.update(action.tobytes())
        _digest_into(seen, frame)
        episode.trace += seen.hexdigest()[:4] + digest.hexdigest()[:4]
        reading, reward, success = env.step(action)
        episode.steps += 1
        episode.success = bool(success)
        episode.total_reward += float(reward)
    if film:
        episode.frames.append(env.render(VIDEO_SIZE))
    episode.subtasks, episode.actions_sha256 = {"success": episode.success}, digest.hexdigest()
    return episode


def _seen(view: View, env: SimEnv, reading: Mapping[str, Any]) -> dict[str, Any]:
    """obs of one frame, as the training data's were."""
    frame = view.live(copied(reading), env.camera_info() if view.made_from else None)
    return {**frame, "language": env.description} if view.language else frame


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch with one thread: the last bits of sums depend on their number, and workers have fewer than their parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
