"""One episode of a policy in a simulator, and its video."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppt_kit.data.clouds import compose_cloud
from ppt_kit.models.act import ChunkExecutor
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv

VIDEO_SIZE, VIDEO_FPS = 256, 30


@dataclass
class Episode:
    """How one episode went."""

    seed: int
    success: bool
    steps: int
    total_reward: float
    subtasks: dict[str, bool] = field(default_factory=dict)
    frames: list[np.ndarray] = field(default_factory=list)  # (size, size, 3) uint8, only when filmed


def rollout(
    policy: PPTPolicy,
    env: SimEnv,
    *,
    domain: str,
    seed: int,
    executor: ChunkExecutor,
    zero_keys: Sequence[str] = (),
    film: bool = False,
) -> Episode:
    """Runs the policy until it succeeds or env.max_steps are over.

    Args:
        policy: loaded by `load_policy`: its card says which state keys and points it was trained on.
        zero_keys: parts of obs ("state", "pointcloud") replaced by zeros: the control experiment.
        film: keep a frame a step.
    """
    history: deque[dict] = deque(maxlen=policy.observation_horizon)
    executor.reset()
    device = next(policy.parameters()).device

    def ask() -> np.ndarray:
        padded = [history[0]] * (policy.observation_horizon - len(history)) + list(history)
        obs = {
            name: torch.from_numpy(np.stack([frame[name] for frame in padded])[None]).to(device) for name in padded[0]
        }
        for name in zero_keys:
            obs[name] = torch.zeros_like(obs[name])
        return policy.act(obs, domain)[0].cpu().numpy()

    reading, total, success, steps, frames = env.reset(seed), 0.0, False, 0, []
    while steps < env.max_steps and not success:
        steps += 1
        if film:
            frames.append(env.render(VIDEO_SIZE))
        history.append(policy_view(reading, policy.card["sources"][domain]))
        reading, reward, success = env.step(executor.next_action(ask))
        total += reward
    if film:
        frames.append(env.render(VIDEO_SIZE))
    return Episode(
        seed=seed, success=success, steps=steps, total_reward=total, subtasks={"success": success}, frames=frames
    )


def policy_view(reading: dict[str, np.ndarray], source: dict[str, Any]) -> dict[str, np.ndarray]:
    """state (Ds,) and pointcloud (P, C) of a simulator's reading, made as the training data's were (`describe_source`).

    Raises:
        KeyError: the simulator has no such state key.
    """
    cloud = compose_cloud(
        reading["pointcloud/pos"],
        color=reading.get("pointcloud/colors"),
        channels=source["point_channels"],
        num_points=source["num_points"],
    )
    state = np.concatenate([np.asarray(reading[key], np.float32).ravel() for key in source["state_keys"]])
    return {"state": state, "pointcloud": cloud}


def write_video(path: Path, frames: Sequence[np.ndarray], *, fps: int = VIDEO_FPS) -> Path:
    """An H.264 file of (H, W, 3) uint8 frames; H and W even."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path
