"""Demonstrations by a simulator's scripted expert."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from ppt_kit.config import load_config, typed
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.errors import UserError
from ppt_kit.schema import CollectConfig
from ppt_kit.sim.env import SimEnv, close_env, copied, find_simulator, make_env
from ppt_kit.tracking import bar_pace


@dataclass
class Collected:
    """What collecting gave.

    Attributes:
        path: of the dataset.
        seeds: of its episodes.
        discarded_seeds: expert episodes that did not succeed, not stored.
        steps: of all its episodes.
    """

    path: Path
    seeds: list[int] = field(default_factory=list)
    discarded_seeds: list[int] = field(default_factory=list)
    steps: int = 0

    @property
    def episodes(self) -> int:
        """How many were kept."""
        return len(self.seeds)

    @property
    def discarded(self) -> int:
        """How many were not."""
        return len(self.discarded_seeds)


def collect(task: str, *words: str, **options: Any) -> Collected:
    """Demonstrations of `task`, written to <dataset_path>/<domain>.zarr.

    Args:
        words: as on the command line of scripts/collect_demos.py, e.g. "num_points=1024".
        options: the same as keyword arguments, e.g. episodes=10, simulator="my_lab.sim:MyEnv", options={"wind": 0.3}.
    Raises:
        UserError: an unknown task, key or simulator, an option that it does not take, a dataset of that name exists,
            or the expert fails too often.
    """
    given = [f"{name}={value if isinstance(value, str) else _text(value)}" for name, value in options.items()]
    return collect_demos(load_config("", f"task={task}", *given, *words, schema=CollectConfig))


def collect_demos(cfg: DictConfig) -> Collected:
    """Demonstrations as CollectConfig says; only the expert's successes are kept.

    Raises:
        UserError: see `collect`.
    """
    config: CollectConfig = typed(cfg)
    env = make_env(_spec(config), uses=["collecting"])
    try:
        # what is recorded must build it again, or nothing trained on it could be evaluated
        spec = env.spec()
        find_simulator(spec)
        path = Path(config.dataset_path) / f"{config.domain or spec['task']}.zarr"
        attrs = {"env": spec, "task": spec["task"], "expert": "scripted"}
        with ZarrWriter(path, attrs=attrs, overwrite=config.overwrite) as writer:
            return _record(env, config, writer)
    finally:
        close_env(env)


def expert_episode(env: SimEnv, *, seed: int) -> dict[str, np.ndarray] | None:
    """Column -> (T, ...) of one successful episode, up to and including the step that succeeds; None without success.

    Raises:
        UserError: the readings are not named as stored columns are.
    """
    reading, frames, actions = copied(env.reset(seed)), [], []
    _check_names(reading)
    for _ in range(env.max_steps):
        action = np.array(env.expert_action())
        frames.append(reading)
        actions.append(action)
        after, _, success = env.step(action)
        if success:
            columns = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
            return {**columns, "actions": np.stack(actions)}
        reading = copied(after)
    return None


def _record(env: SimEnv, config: CollectConfig, writer: ZarrWriter) -> Collected:
    done = Collected(writer.path)
    with tqdm(total=config.episodes, desc=f"collecting {config.task}", unit="demo", **bar_pace()) as bar:
        while done.episodes < config.episodes:
            seed = config.seed + done.episodes + done.discarded
            episode = expert_episode(env, seed=seed)
            if episode is None:
                done.discarded_seeds.append(seed)
                _check_failures(done.discarded, env, config)
                continue
            meta = {
                "episode_descriptions": np.str_(env.description), "env_names": np.str_(config.task),
                "episode_seeds": seed, "episode_success": True,
            }  # fmt: skip
            writer.append(episode, meta=meta)
            done.seeds.append(seed)
            done.steps += len(episode["actions"])
            bar.update()
    writer.attrs |= {
        "seeds": done.seeds, "discarded_seeds": done.discarded_seeds, "descriptions": [env.description] * done.episodes,
    }  # fmt: skip
    if hasattr(env, "camera_info"):
        writer.constants = {f"camera_info/{name}": value for name, value in env.camera_info().items()}
    return done


def _spec(config: CollectConfig) -> dict[str, Any]:
    """What `make_env` is asked for: the keys that were set, and the simulator's own options."""
    if not isinstance(config.options, dict):
        raise UserError(f"options={config.options}: takes options of the simulator by name, e.g. options.wind=0.3.")
    keys = {
        "camera": config.camera, "image_size": config.image_size, "num_points": config.num_points,
        "use_color": config.use_color, "save_images": config.save_images, "goal_marker": config.goal_marker,
        "max_steps": config.max_steps,
    }  # fmt: skip
    given = {name: value for name, value in keys.items() if value is not None}
    return {"simulator": config.simulator, "task": config.task, **given, **config.options}


def _check_names(reading: dict[str, np.ndarray]) -> None:
    if not any(name.startswith("obs/") for name in reading):
        raise UserError(
            f"the simulator's readings are {', '.join(reading) or 'none'}: none is an observation. "
            "Name them as columns are stored, e.g. obs/eef_pos; ppt_kit/sim/env.py lists the names."
        )


def _check_failures(failures: int, env: SimEnv, config: CollectConfig) -> None:
    if failures > config.max_failures:
        raise UserError(
            f"task={config.task}: the expert failed {failures} times within {env.max_steps} steps. "
            "Set max_steps or max_failures higher; nothing was written."
        )


def _text(value: Any) -> str:
    """A value of python as the word's text: null, true, lists and mappings as YAML reads them."""
    return json.dumps(value, default=str)
