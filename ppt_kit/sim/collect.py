"""Demonstrations by a simulator's scripted expert."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.auto import tqdm

from ppt_kit.checks import check_name, domain_of, part_names
from ppt_kit.config import load_config, typed
from ppt_kit.data.formats import open_store
from ppt_kit.data.formats.replay_buffer.partial import sweep
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.replaceable import check_replaceable
from ppt_kit.errors import UserError
from ppt_kit.files import check_place, show_short
from ppt_kit.keys import fits, leaves_of, type_name
from ppt_kit.schema import CollectConfig
from ppt_kit.signals import Stopped, stops_raise
from ppt_kit.sim.env import SimEnv, close_env, code_of, copied, find_simulator, is_over, make_env, told
from ppt_kit.tracking import bar_pace

log = logging.getLogger(__name__)


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        lost = f"; of {len(self.discarded_seeds)} more seeds the expert did not succeed" if self.discarded_seeds else ""
        return f"{self.path}: {self.episodes} demonstrations, {self.steps} steps, seeds from {min(self.seeds)}{lost}"

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
        UserError: an unknown task, key or simulator, an option that it does not take, another dataset of that name, or
            the expert fails too often.
        Stopped: see `collect_demos`.
    """
    kinds = leaves_of(CollectConfig)
    wrong = next((name for name, value in options.items() if name in kinds and not fits(value, kinds[name][0])), None)
    if wrong is not None:
        raise UserError(f"{wrong}={show_short(options[wrong])}: takes {type_name(kinds[wrong][0])}.")
    given = [f"{name}={value if isinstance(value, str) else _text(value)}" for name, value in options.items()]
    return collect_demos(load_config("", f"task={task}", *given, *words, schema=CollectConfig))


def collect_demos(cfg: DictConfig) -> Collected:
    """Demonstrations as CollectConfig says; only the expert's successes are kept.

    Each is on the disk as it comes, in a hidden folder beside the dataset's name, which it takes once it is complete.
    The same call goes on with what a stopped one left, to the same dataset to the bit; of a complete one it says that
    it is there.

    Raises:
        UserError: see `collect`.
        Stopped: a stop signal, or a notebook's interrupt, came.
    """
    config: CollectConfig = typed(cfg)
    asked = _spec(config)
    name = domain_of(config.task) if config.domain is None else config.domain
    check_name(name, key="domain")
    check_place(Path(config.dataset_path), key="dataset_path")
    path = Path(config.dataset_path) / f"{name}.zarr"
    sweep(path)
    there = _there(config, path)
    if there is None or not asked.items() <= there.env.items():
        check_replaceable(path, kind="zarr", overwrite=config.overwrite, key="domain")
    with stops_raise():
        env = make_env(asked, uses=["collecting"])
        try:
            # what is recorded must build it again, or nothing trained on it could be evaluated
            spec = env.spec()
            find_simulator(spec)
            name = domain_of(spec["task"]) if config.domain is None else config.domain
            check_name(name, key="domain")
            if there is not None and there.made_by(spec):
                log.warning("%s: these %d demonstrations are there already", there.done.path, there.done.episodes)
                return there.done
            return _collected(env, config, spec, path=Path(config.dataset_path) / f"{name}.zarr")
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
        if is_over(env):
            break
        reading = copied(after)
    return None


@dataclass(frozen=True)
class _There:
    """A complete dataset of as many episodes from the same seed on, and what simulated it."""

    done: Collected
    env: dict[str, Any]
    code: str | None

    def made_by(self, spec: Mapping[str, Any]) -> bool:
        """Whether it is what collecting in the simulator `spec` would give."""
        # as a file gives it back
        return self.env == json.loads(json.dumps(spec, default=str)) and self.code == code_of(spec)


def _there(config: CollectConfig, path: Path) -> _There | None:
    if config.overwrite or not path.is_dir():
        return None
    try:
        store = open_store(path, cache_gb=0)
    # whatever stands there is no dataset that could be taken: it is refused by its name
    except UserError:
        return None
    env, seeds, failed = (store.attrs.get(name) for name in ("env", "seeds", "discarded_seeds"))
    if not (isinstance(env, dict) and isinstance(seeds, list) and isinstance(failed, list)):
        return None
    if len(seeds) != config.episodes or min([*seeds, *failed]) != config.seed:
        return None
    return _There(Collected(path, seeds, failed, int(store.episode_ends[-1])), env, store.attrs.get("code"))


def _collected(env: SimEnv, config: CollectConfig, spec: dict[str, Any], *, path: Path) -> Collected:
    """The dataset, or one line that says what there is of it."""
    attrs = {"env": spec, "task": spec["task"], "expert": "scripted", "code": code_of(spec)}
    plan = {"seed": config.seed, **spec, "code": code_of(spec)}
    writer = ZarrWriter(path, attrs=attrs, overwrite=config.overwrite, plan=plan, at_most=config.episodes)
    try:
        with writer:
            return _record(env, config, writer)
    except KeyboardInterrupt as stop:
        raise Stopped(getattr(stop, "number", signal.SIGINT), _kept(writer, config)) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Make room. {_kept(writer, config)}") from None


def _record(env: SimEnv, config: CollectConfig, writer: ZarrWriter) -> Collected:
    seeds = writer.meta("episode_seeds")
    failed = sorted(set(range(config.seed, seeds[-1])) - set(seeds)) if seeds else []
    done = Collected(writer.path, seeds, failed, writer.num_rows)
    title, total = f"collecting {config.task}", config.episodes
    with tqdm(total=total, initial=done.episodes, desc=title, unit="demo", **bar_pace()) as bar:
        while done.episodes < config.episodes:
            seed = config.seed + done.episodes + done.discarded
            episode = _tried(env, config, writer, seed=seed)
            if episode is None:
                done.discarded_seeds.append(seed)
                _check_failures(done.discarded, env, config, writer)
                continue
            _append(writer, env, config, episode, seed=seed)
            done.seeds.append(seed)
            done.steps += len(episode["actions"])
            bar.update()
    descriptions = writer.meta("episode_descriptions")
    writer.attrs |= {
        "seeds": done.seeds, "discarded_seeds": done.discarded_seeds, "descriptions": list(map(str, descriptions)),
    }  # fmt: skip
    return done


def _tried(env: SimEnv, config: CollectConfig, writer: ZarrWriter, *, seed: int) -> dict[str, np.ndarray] | None:
    """As `expert_episode`; what a user's simulator raises is one line."""
    try:
        with told(f"simulator={config.simulator}: fails in the episode of seed {seed}"):
            return expert_episode(env, seed=seed)
    except UserError as error:
        raise UserError(f"{error} {_kept(writer, config)}") from None


def _append(
    writer: ZarrWriter, env: SimEnv, config: CollectConfig, episode: dict[str, np.ndarray], *, seed: int
) -> None:
    """Puts one episode on the disk."""
    meta = {
        "episode_descriptions": np.str_(env.description), "env_names": np.str_(config.task),
        "episode_seeds": seed, "episode_success": True,
    }  # fmt: skip
    if hasattr(env, "camera_info"):
        writer.constants = {f"camera_info/{name}": value for name, value in env.camera_info().items()}
    try:
        writer.append(episode, meta=meta)
    except ValueError as error:
        raise UserError(f"simulator={config.simulator}: seed {seed}: {error}. {_kept(writer, config)}") from None


def _kept(writer: ZarrWriter, config: CollectConfig) -> str:
    """What there is of a dataset that is not complete."""
    if not writer.num_episodes:
        return "Nothing was written."
    return f"{writer.num_episodes} of {config.episodes} demonstrations are kept; the same again goes on."


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
    if isinstance(config.camera, str | list):
        # several are recorded so
        given["camera"] = ",".join(part_names(config.camera))
    return {"simulator": config.simulator, "task": config.task, **given, **config.options}


def _check_names(reading: dict[str, np.ndarray]) -> None:
    if not any(name.startswith("obs/") for name in reading):
        raise UserError(
            f"the simulator's readings are {', '.join(reading) or 'none'}: none is an observation. "
            "Name them as columns are stored, e.g. obs/eef_pos; ppt_kit/sim/env.py lists the names."
        )


def _check_failures(failures: int, env: SimEnv, config: CollectConfig, writer: ZarrWriter) -> None:
    if failures > config.max_failures:
        kept = f"{writer.num_episodes} are kept" if writer.num_episodes else "nothing was written"
        raise UserError(
            f"task={config.task}: the expert failed {failures} times within {env.max_steps} steps; {kept}. "
            "Set max_failures higher to go on, or max_steps higher (with overwrite=true, which starts anew)."
        )


def _text(value: Any) -> str:
    """A value of python as the word's text: null, true, lists and mappings as YAML reads them."""
    return json.dumps(value, default=str)
