"""Sources that are not there: cameras that failed, modalities that are left out, cameras that only another domain has.

A source is what can be missing by itself: a modality, or one camera of a modality whose stem can do without some. What
is missing enters nothing: its readings are blanked, a stem masks what it made of a missing camera, and the tokens of a
missing modality are replaced by a learned one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ppt_kit.randomness import uniform
from ppt_kit.spec import Spec

# modality, and camera or ""
Source = tuple[str, str]
# modality -> (B,) bool, or of each camera
Missing = dict[str, Any]


def sources_of(specs: Sequence[Spec], modalities: Sequence[str], *, by_camera: Collection[str]) -> list[Source]:
    """Of all domains, in one order.

    Args:
        by_camera: modalities of which one camera can be missing.
    """
    found: list[Source] = []
    for name in modalities:
        cameras = dict.fromkeys(camera for spec in specs for camera in spec.cameras(name))
        found += [(name, camera) for camera in cameras] if name in by_camera else [(name, "")]
    return found


def sources_there(specs: Sequence[Spec], sources: Sequence[Source]) -> torch.Tensor:
    """(domains, sources) bool: whether a domain has it."""
    return torch.tensor([[not camera or camera in spec.cameras(name) for name, camera in sources] for spec in specs])


def left_out(there: torch.Tensor, seeds: torch.Tensor, *, rate: float) -> torch.Tensor:
    """(B, sources) bool: each source of a sample with probability `rate`, but never all that it has.

    Args:
        there: (B, sources) bool.
        seeds: (B,) int64, one a sample.
    """
    drawn = uniform(seeds, (there.shape[1],), stream="modality dropout").masked_fill(~there, -1.0)
    place = torch.arange(there.shape[1], device=seeds.device)
    return there & (drawn < rate) & (place != drawn.argmax(dim=1, keepdim=True))


def by_modality(gone: torch.Tensor, sources: Sequence[Source]) -> Missing:
    """(B, sources) bool as what stems and tokens are masked by."""
    missing: Missing = {}
    for (name, camera), column in zip(sources, gone.unbind(1)):
        if camera:
            missing.setdefault(name, {})[camera] = column
        else:
            missing[name] = column
    return missing


def blanked(obs: Mapping[str, Any], missing: Missing) -> dict[str, Any]:
    """obs with zeros for what is missing, so that no value of it can spread; sentences stay, their tokens go."""
    return {name: _blanked(readings, missing.get(name)) for name, readings in obs.items()}


def of_modality(missing: Missing, name: str, spec: Spec) -> tuple[torch.Tensor | None, dict[str, torch.Tensor] | None]:
    """(B,) bool whether all of a modality is missing, and the same of each camera where others are left.

    Args:
        spec: whose cameras they are.
    """
    gone = missing.get(name)
    if not isinstance(gone, dict):
        return gone, None
    own = {camera: gone[camera] for camera in spec.cameras(name)}
    whole = torch.stack([*own.values()]).all(0)
    # of a modality that is gone nothing is masked: attention to no key at all is not a number
    return whole, {camera: each & ~whole for camera, each in own.items()}


def _blanked(readings: Any, missing: Any) -> Any:
    if missing is None or isinstance(readings, (list, tuple)):
        return readings
    if isinstance(readings, Mapping):
        of = missing if isinstance(missing, dict) else dict.fromkeys(readings, missing)
        return {name: _blanked(value, of.get(name)) for name, value in readings.items()}
    return readings.masked_fill(missing.view(-1, *[1] * (readings.ndim - 1)), 0)
