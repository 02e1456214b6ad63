"""Observation and action spaces of Gymnasium as columns of numbers and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from ppt_kit.errors import UserError

# narrower planes of bytes are a board or a mask, not a grey picture (pixels)
LEAST_SIDE = 16


@dataclass(frozen=True)
class Part:
    """One leaf of an observation, and the column it becomes.

    Attributes:
        path: of keys and positions that lead to it.
        column: as it is stored, e.g. obs/images/front.
        convert: of a value to the column's row.
    """

    path: tuple[Any, ...]
    column: str
    convert: Callable[[Any], np.ndarray]

    def read(self, observation: Any) -> np.ndarray:
        """Its row of an observation."""
        for key in self.path:
            observation = observation[key]
        return self.convert(observation)


def parts_of(space: gymnasium.Space, keys: Mapping[str, str | None]) -> list[Part]:
    """What of an observation is read: pictures as obs/images/<name>, depth as obs/depths/<name>, numbers as obs/<name>.

    A name is the observation's key, keys of dictionaries in dictionaries joined by _; a space without keys is
    called image or state. Pictures are (H, W, 3) uint8, numbers (D,) float32: what is not a picture is laid flat, and
    a choice among n is n numbers, of which one is 1.

    Args:
        keys: name -> another one, so that a simulator's readings are named as a dataset is; None = it is left out.
    Raises:
        UserError: a part is neither picture nor numbers, two have one name, `keys` names none of them, or none is left.
    """
    leaves = [("_".join(map(str, path)) or _named(leaf), path, leaf) for path, leaf in _leaves(space)]
    names = [name for name, _, _ in leaves]
    unknown = [name for name in keys if name not in names]
    if unknown:
        raise UserError(f"options.keys.{unknown[0]}: the observation has no such key; it has {', '.join(names)}.")
    found: dict[str, Part] = {}
    for name, path, leaf in leaves:
        called = keys.get(name, name)
        if called is None:
            continue
        part = _part(path, leaf, called, where=f"the observation's {name}")
        if part.column in found:
            raise UserError(
                f"the observation's {name} would be stored as {part.column}, as another part of it is. "
                f"Rename one: options.keys.{name}=other_name."
            )
        found[part.column] = part
    if not found:
        raise UserError("options.keys leaves nothing of the observation: a policy would see nothing.")
    return list(found.values())


def check_actions(space: gymnasium.Space, *, task: str) -> gymnasium.spaces.Box:
    """The space of actions, a Box of real numbers.

    Raises:
        UserError: it is another one.
    """
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f":
        kind = "a choice among actions" if isinstance(space, gymnasium.spaces.Discrete) else "no Box of real numbers"
        raise UserError(
            f"task={task}: its actions are {space}, {kind}: a policy here writes real numbers. Choose a task with "
            "continuous actions (e.g. Pendulum-v1, MountainCarContinuous-v0), or register a wrapped one of your own "
            "and name it as task=my_lab.envs:MyTask-v0."
        )
    return space


def to_action(space: gymnasium.spaces.Box, action: np.ndarray) -> np.ndarray:
    """(Da,) numbers as the environment takes them: within its bounds, of its shape and type."""
    shaped = np.asarray(action, np.float64).reshape(space.shape)
    return np.clip(shaped, space.low, space.high).astype(space.dtype)


def idle_action(space: gymnasium.spaces.Box) -> np.ndarray:
    """(Da,) float64: 0, or the bound that is nearest to it."""
    return np.clip(0.0, space.low.astype(np.float64), space.high.astype(np.float64)).reshape(-1)


def _leaves(space: gymnasium.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], gymnasium.Space]]:
    if isinstance(space, gymnasium.spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, gymnasium.spaces.Tuple):
        for position, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, position))
    else:
        yield path, space


def _named(space: gymnasium.Space) -> str:
    """What a space without a key is called."""
    shape = space.shape or ()
    flat = space.dtype == np.uint8 and len(shape) == 2 and min(shape) >= LEAST_SIDE
    return "image" if len(shape) == 3 or flat else "state"


def _part(path: tuple[Any, ...], space: gymnasium.Space, name: str, *, where: str) -> Part:
    if isinstance(space, gymnasium.spaces.Box):
        folder, convert = _box(space, name, where)
        return Part(path, f"obs/{folder}{name}", convert)
    choices = (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary)
    if isinstance(space, choices):
        return Part(path, f"obs/{name}", lambda value: _flat(gymnasium.spaces.flatten(space, value)))
    raise UserError(f"{where} is {space}: neither numbers nor a picture. Leave it out: options.keys.{name}=null.")


def _box(space: gymnasium.spaces.Box, name: str, where: str) -> tuple[str, Callable[[Any], np.ndarray]]:
    """Folder of the column, and what makes its row."""
    shape, is_bytes = space.shape, space.dtype == np.uint8
    if is_bytes and len(shape) == 2 and min(shape) >= LEAST_SIDE:
        return "images/", lambda value: _colours(np.asarray(value)[..., None])
    if len(shape) > 3 and (is_bytes or 3 in shape):
        raise UserError(
            f"{where} is {space.dtype} {shape}: more than one picture. A policy keeps the frames before by itself "
            "(dataset.observation_horizon): take the stacking wrapper off, or leave this key out."
        )
    if len(shape) != 3:
        return "", _flat
    first = _channels_first(shape, where)
    last = lambda value: np.moveaxis(np.asarray(value), 0, -1) if first else np.asarray(value)
    if is_bytes:
        return "images/", lambda value: _colours(last(value))
    if space.dtype.kind == "f" and "depth" in name.lower():
        if (shape[0] if first else shape[-1]) != 1:
            raise UserError(f"{where} is {space.dtype} {shape}: depth has one channel, in metres.")
        return "depths/", lambda value: np.ascontiguousarray(last(value), np.float32)
    scale = _scale(space, where)
    return "images/", lambda value: _colours(np.rint(np.clip(last(value) * scale, 0, 255)).astype(np.uint8))


def _channels_first(shape: Sequence[int], where: str) -> bool:
    """Whether (C, H, W) rather than (H, W, C) is meant."""
    first, last = (size in (1, 3) for size in (shape[0], shape[-1]))
    if first and last and not shape[0] == shape[1] == shape[-1]:
        raise UserError(
            f"{where} is {tuple(shape)}: height, width and channels of a picture, or channels, height and width? "
            "Either would be one. Leave it out with options.keys, or give it another shape by a wrapper."
        )
    if not first and not last:
        raise UserError(
            f"{where} is {tuple(shape)}: a picture has 1 or 3 channels, first or last. Leave it out: "
            "options.keys.NAME=null; or lay numbers flat by a wrapper (gymnasium.wrappers.FlattenObservation)."
        )
    return first and not last


def _scale(space: gymnasium.spaces.Box, where: str) -> float:
    """What brings a picture of real or wide numbers to 0 … 255."""
    low, high = float(space.low.min()), float(space.high.max())
    if low < 0 or high not in (1.0, 255.0):
        raise UserError(
            f"{where} is {space.dtype} {space.shape} from {low:g} to {high:g}: a picture goes from 0 to 1 or to 255. "
            "Depth in metres is called so (options.keys.NAME=depth); else leave it out: options.keys.NAME=null."
        )
    return 255.0 / high


def _colours(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of (H, W, 1 or 3)."""
    grey = picture.shape[-1] == 1
    return np.repeat(picture, 3, axis=-1) if grey else np.ascontiguousarray(picture)


def _flat(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32).reshape(-1)
