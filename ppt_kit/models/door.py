"""What a policy refuses: observations and batches that are not of the sizes, kinds and horizon it was made for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ppt_kit.horizon import Horizon
from ppt_kit.spec import Spec


def check_obs(obs: Mapping[str, Any], spec: Spec, horizon: Horizon, *, device: torch.device) -> int:
    """How many windows obs holds; what is absent from it is not looked at.

    Raises:
        ValueError: a reading has another shape, kind or place than the policy takes; it says which and what.
    """
    if not isinstance(obs, Mapping):
        raise ValueError(f"obs is a {type(obs).__name__}: takes a dictionary of {', '.join(spec.modalities)}")
    sizes: dict[str, int] = {}
    for name in spec.modalities:
        if name not in obs:
            continue
        if name == "language":
            sizes[name] = _num_sentences(obs[name])
            continue
        cameras = spec.cameras(name)
        if cameras and not isinstance(obs[name], Mapping):
            raise ValueError(f"obs.{name} is a {_told(obs[name])}: takes {{camera: readings}} of {', '.join(cameras)}")
        for camera in [camera for camera in cameras if camera in obs[name]] if cameras else [""]:
            where, value = (f"{name}.{camera}", obs[name][camera]) if camera else (name, obs[name])
            sizes[where] = _num_windows(where, value, _frame(spec, name, camera), horizon=horizon, device=device)
    odd = next((where for where, size in sizes.items() if size != next(iter(sizes.values()))), None)
    if odd is not None:
        first = next(iter(sizes))
        raise ValueError(f"obs.{first} holds {sizes[first]} windows and obs.{odd} {sizes[odd]}: takes as many of each")
    return next(iter(sizes.values()), 0)


def absent(obs: Mapping[str, Any], spec: Spec) -> dict[str, list[str]]:
    """Modality -> its cameras that obs lacks ([""] of a modality without cameras); {} when all is there."""
    found = {}
    for name in spec.modalities:
        cameras = list(spec.cameras(name)) or [""]
        gone = [camera for camera in cameras if name not in obs or (camera and camera not in obs[name])]
        if gone:
            found[name] = gone
    return found


def check_absent(obs: Mapping[str, Any], spec: Spec, *, learned: bool, by_camera: Collection[str]) -> None:
    """Refuses an obs that lacks what the policy cannot do without.

    Args:
        learned: whether policy.modality_dropout trained it to.
        by_camera: modalities whose stem does without one camera.
    Raises:
        ValueError: names the first.
    """
    gone = absent(obs, spec)
    for name, cameras in gone.items():
        of_camera = name in obs and cameras != [""]
        where = f"obs.{name} has no camera {cameras[0]}" if of_camera else f"obs has no {name}"
        sees = f"this policy sees {', '.join(spec.cameras(name) if of_camera else spec.modalities)}"
        if not learned:
            raise ValueError(f"{where}: {sees}. Train with policy.modality_dropout=0.1 for one that acts without it")
        if name not in by_camera and len(cameras) < len(spec.cameras(name) or cameras):
            raise ValueError(
                f"{where}: {sees}, and its stem cannot leave one out (takes_missing = False). "
                f"Leave all of obs.{name} out"
            )
    if all(len(gone.get(name, ())) == len(spec.cameras(name) or [""]) for name in spec.modalities):
        raise ValueError(f"obs has nothing that this policy sees, {', '.join(spec.modalities)}")


def check_given(head: nn.Module, seeds: Any, known: Any, num_steps: int | None, *, takes: tuple[int, int, int]) -> None:
    """Whether what act() was told beside obs fits.

    Args:
        takes: (B, Ta, Da).
    Raises:
        ValueError: a shape is another, or the head can do nothing with it.
    """
    if seeds is not None and (tuple(seeds.shape) != takes[:1] or seeds.dtype != torch.int64):
        raise ValueError(f"seeds are {tuple(seeds.shape)} {_dtype(seeds)}; takes ({takes[0]},) int64, one a window")
    if known is not None and tuple(known.shape) != takes:
        raise ValueError(f"known is {tuple(known.shape)}; takes {takes}: (B, Ta, Da), NaN where an action is free")
    for name, value in (("known", known), ("num_steps", num_steps)):
        if value is not None and not getattr(head, "takes_given", False):
            raise ValueError(f"{name}=…: {type(head).__name__} takes none; a head with takes_given = True can")


def check_batch(batch: Mapping[str, Any], specs: Iterable[Spec], horizon: Horizon, *, raw: Iterable[str]) -> None:
    """Shapes of a training batch, as data/dataset.py states them: no look at a value.

    Args:
        raw: modalities that reach a stem as they are in the batch.
    Raises:
        ValueError: one does not fit; it says which and what.
    """
    size, every = len(batch["domain"]), list(specs)
    widest = max(spec.action_dim for spec in every)
    _check_shape("action", batch["action"], (size, horizon.action, widest), widens=True)
    _check_shape("action_is_pad", batch["action_is_pad"], (size, horizon.action))
    for name in raw:
        if name not in batch["obs"]:
            raise ValueError(f"obs has no {name}: this policy sees {', '.join(every[0].modalities)}")
        readings = batch["obs"][name]
        if name == "language":
            if len(readings) != size:
                raise ValueError(f"obs.language holds {len(readings)} sentences: takes {size}, one a window")
        elif isinstance(readings, Mapping):
            cameras = {camera: size for spec in every for camera, size in spec.cameras(name).items()}
            for camera in cameras.keys() & readings.keys():
                frame = (size, horizon.observation, *cameras[camera], 3 if name == "rgb" else 1)
                _check_shape(f"obs.{name}.{camera}", readings[camera], frame)
        elif name == "state":
            width = max(spec.state_dim for spec in every)
            _check_shape("obs.state", readings, (size, horizon.observation, width), widens=True)
        else:
            _check_shape("obs.pointcloud", readings, (size, horizon.observation, None, every[0].channels))


def _check_shape(where: str, value: torch.Tensor, takes: Sequence[int | None], *, widens: bool = False) -> None:
    """Args: takes: None = any; widens: the last axis may be longer."""
    shape = tuple(value.shape)
    fits = len(shape) == len(takes) and all(want in (None, have) for want, have in zip(takes[:-1], shape))
    if not fits or not (shape[-1] == takes[-1] or (widens and shape[-1] >= (takes[-1] or 0))):
        told = ", ".join("any" if want is None else str(want) for want in takes)
        raise ValueError(f"{where} is {shape}; this policy takes ({told})")


def _frame(spec: Spec, name: str, camera: str) -> tuple[str, tuple[int | None, ...], bool]:
    """(what its axes are, sizes after (B, To), whether it is floating point) of a reading."""
    if name == "state":
        return "Ds", (spec.state_dim,), True
    if name == "pointcloud":
        return "P, C", (None, spec.channels), True
    return (
        "H, W, 3" if name == "rgb" else "H, W, 1",
        (*spec.cameras(name)[camera], 3 if name == "rgb" else 1),
        (name != "rgb"),
    )


def _num_windows(
    where: str, value: Any, frame: tuple[str, tuple[int | None, ...], bool], *, horizon: Horizon, device: torch.device
) -> int:
    axes, sizes, floats = frame
    kind = "floating point" if floats else "uint8"
    told = ", ".join("P" if size is None else str(size) for size in sizes)
    takes = f"this policy takes (B, {horizon.observation}, {told}) {kind}: (B, To, {axes})"
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"obs.{where} is a {_told(value)}; {takes}. Make a tensor of it by torch.as_tensor(…)")
    shape = tuple(value.shape)
    if len(shape) > 1 and shape[1] != horizon.observation and len(shape) == 2 + len(sizes):
        raise ValueError(f"obs.{where} is {shape}: axis 1 must be observation_horizon={horizon.observation}; {takes}")
    if len(shape) != 2 + len(sizes) or any(want not in (None, have) for want, have in zip(sizes, shape[2:])):
        raise ValueError(f"obs.{where} is {shape}; {takes}")
    if 0 in shape:
        raise ValueError(f"obs.{where} is {shape}, which holds nothing; {takes}")
    if value.is_floating_point() if not floats else not value.is_floating_point():
        raise ValueError(f"obs.{where} is {_dtype(value)}; {takes}")
    if not floats and value.dtype != torch.uint8:
        raise ValueError(f"obs.{where} is {_dtype(value)}; {takes}")
    if value.device != device:
        raise ValueError(f"obs.{where} lies on {value.device} and the policy on {device}: move it by .to(…)")
    return shape[0]


def _num_sentences(value: Any) -> int:
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(s, str) for s in value):
        raise ValueError(f"obs.language is a {_told(value)}; this policy takes a list of B sentences")
    return len(value)


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {tuple(shape)}" if shape is not None else "")


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
