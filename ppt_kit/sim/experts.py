"""Demonstrations by a simulator's scripted expert."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from ppt_kit.config import load_config
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.errors import UserError
from ppt_kit.schema import CollectConfig
from ppt_kit.sim.env import SimEnv, make_env
from ppt_kit.tracking import bar_pace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """What collecting gave."""

    path: Path
    episodes: int
    discarded: int  # expert episodes that did not succeed, not stored
    steps: int
    seeds: list[int]


def collect(task: str, *words: str, **options: object) -> Collected:
    """Demonstrations of `task`, written to <dataset_path>/<domain>.zarr.

    Args:
        words: as on the command line of scripts/collect_demos.py, e.g. "num_points=1024".
        options: the same as keyword arguments, e.g. episodes=10.
    Raises:
        UserError: an unknown task or key, a dataset of that name exists, or the expert fails too often.
    """
    given = [f"{name}={value}" for name, value in options.items()]
    return collect_demos(load_config("", f"task={task}", *given, *words, schema=CollectConfig))


def collect_demos(cfg: DictConfig) -> Collected:
    """Demonstrations as CollectConfig says; only the expert's successes are kept.

    Raises:
        UserError: see `collect`.
    """
    env = make_env(
        {
            "simulator": "metaworld", "task": cfg.task, "camera": cfg.camera, "image_size": cfg.image_size,
            "num_points": cfg.num_points, "use_color": cfg.use_color, "save_images": cfg.save_images,
            "goal_marker": cfg.goal_marker, "max_steps": cfg.max_steps,
        }
    )  # fmt: skip
    path = Path(cfg.dataset_path) / f"{cfg.domain or env.spec()['task']}.zarr"
    attrs: dict = {"env": env.spec(), "task": env.spec()["task"], "expert": "scripted"}
    seeds: list[int] = []
    lengths: list[int] = []
    failed: list[int] = []
    try:
        with ZarrWriter(path, attrs=attrs, overwrite=cfg.overwrite) as writer:
            with tqdm(total=cfg.episodes, desc=f"collecting {cfg.task}", unit="demo", **bar_pace()) as bar:
                while len(seeds) < cfg.episodes:
                    seed = cfg.seed + len(seeds) + len(failed)
                    episode = expert_episode(env, seed=seed)
                    if episode is None:
                        failed.append(seed)
                        _check_failures(failed, cfg)
                        continue
                    meta = {
                        "episode_descriptions": np.str_(env.description), "env_names": np.str_(cfg.task),
                        "episode_seeds": seed, "episode_success": True,
                    }  # fmt: skip
                    writer.append(episode, meta=meta)
                    seeds.append(seed)
                    lengths.append(len(episode["actions"]))
                    bar.update()
            writer.attrs |= {
                "seeds": seeds, "discarded_seeds": failed, "descriptions": [env.description] * len(seeds),
            }  # fmt: skip
            writer.constants = {f"camera_info/{name}": value for name, value in env.camera_info().items()}
    finally:
        env.close()
    return Collected(path=path, episodes=len(seeds), discarded=len(failed), steps=sum(lengths), seeds=seeds)


def expert_episode(env: SimEnv, *, seed: int) -> dict[str, np.ndarray] | None:
    """Stored key -> (T, ...) of one successful episode, up to and including the step that succeeds; None without success."""
    obs, frames, actions = env.reset(seed), [], []
    for _ in range(env.max_steps):
        action = env.expert_action()
        frames.append(obs)
        actions.append(action)
        obs, _, success = env.step(action)
        if success:
            stacked = {f"obs/{name}": np.stack([frame[name] for frame in frames]) for name in frames[0]}
            return {**stacked, "actions": np.stack(actions)}
    return None


def _check_failures(failed: list[int], cfg: DictConfig) -> None:
    if len(failed) > cfg.max_failures:
        raise UserError(
            f"task={cfg.task}: the expert failed {len(failed)} times within {cfg.max_steps} steps. Set max_steps or max_failures higher; nothing was written."
        )
