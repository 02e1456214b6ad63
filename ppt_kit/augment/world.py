"""Moves of the world's frame: how far each sample's goes, and which columns of states and actions follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ppt_kit.augment.motion import Motion
from ppt_kit.augment.numbers import around_zero
from ppt_kit.checks import part_names
from ppt_kit.errors import UserError
from ppt_kit.randomness import uniform
from ppt_kit.schema import PART_WIDTHS, AugmentConfig
from ppt_kit.spec import Spec


class World:
    """Draws how the world of each sample moves, and moves what lies in it.

    Args:
        options: `augment` of the configuration; it turns or shifts the world.
        specs: domain -> its sizes, in the order of the batch's "domain".
    Raises:
        UserError: parts that do not fit a state or an action.
    """

    def __init__(self, options: AugmentConfig, specs: Mapping[str, Spec]):
        self._largest = torch.tensor([[math.radians(angle) for angle in options.rotation_deg], options.translation_m])
        self._center = torch.tensor(options.rotation_center)
        self._parts = {"action": _action_parts(options.action_parts, specs)}
        self._parts["state"] = _state_parts(options.state_parts, specs)

    def motion(self, seeds: torch.Tensor) -> Motion:
        """Of each sample, by its seed (B,)."""
        self._follow(seeds.device)
        angles, shift = around_zero(uniform(seeds, (2, 3), stream="augment.world"), self._largest).unbind(1)
        return Motion.turn(angles, shift=shift, center=self._center)

    def moved(self, kind: str, values: torch.Tensor, *, motion: Motion, domain: torch.Tensor) -> torch.Tensor:
        """Values (B, T, D) of "state" or "action", each part moved in the domains that have it; padding stays zero.

        Args:
            domain: (B,) int64, the batch's.
        """
        parts = self._parts[kind]
        if not parts:
            return values
        out = values.clone()
        for part in parts:
            new, mine = getattr(motion, part.kind)(part.of(values)), part.domains[domain]
            part.of(out).copy_(torch.where(mine[:, None, None], new, part.of(out)))
        return out

    def _follow(self, device: torch.device) -> None:
        """Once: a copy at every step would make the host wait for the device."""
        if self._center.device != device:
            self._largest, self._center = self._largest.to(device), self._center.to(device)
            for part in (*self._parts["state"], *self._parts["action"]):
                part.domains = part.domains.to(device)


@dataclass
class _Part:
    """Columns that follow the world, in the domains that have them there.

    Attributes:
        kind: a name in PART_WIDTHS.
        start: the first column.
        domains: (number of domains,) bool.
    """

    kind: str
    start: int
    domains: torch.Tensor

    def of(self, values: torch.Tensor) -> torch.Tensor:
        return values[..., self.start : self.start + PART_WIDTHS[self.kind]]


def _action_parts(action_parts: Any, specs: Mapping[str, Spec]) -> list[_Part]:
    found: dict[tuple[str, int], list[bool]] = {}
    for number, (domain, spec) in enumerate(specs.items()):
        given = action_parts[domain] if isinstance(action_parts, dict) else action_parts
        names, what = part_names(given), f"the action of {domain}"
        columns = _columns(names, 0, spec.action_dim, option="action_parts", what=what)
        _note(found, columns, number, len(specs))
    return [_Part(kind, start, torch.tensor(has)) for (kind, start), has in found.items()]


def _state_parts(state_parts: dict, specs: Mapping[str, Spec]) -> list[_Part]:
    found: dict[tuple[str, int], list[bool]] = {}
    for number, (domain, spec) in enumerate(specs.items()):
        for name, (start, stop) in spec.layout("state").items():
            if name not in state_parts:
                raise UserError(_says_nothing_of(name, state_parts, spec))
            names, option = part_names(state_parts[name]), f"state_parts.{name}"
            columns = _columns(names, start, stop, option=option, what=f"{name} of {domain}")
            _note(found, columns, number, len(specs))
    return [_Part(kind, start, torch.tensor(has)) for (kind, start), has in found.items()]


def _says_nothing_of(name: str, state_parts: dict, spec: Spec) -> str:
    typed = ", ".join(f"{key}: {state_parts.get(key, 'none')}" for key in spec.state)
    return (
        "augment.rotation_deg or augment.translation_m moves the world, "
        f"but augment.state_parts says nothing of the state key {name}. "
        f'Type "augment.state_parts={{{typed}}}", with the parts of those that are poses: {", ".join(PART_WIDTHS)}.'
    )


def _columns(parts: list[str], start: int, stop: int, *, option: str, what: str) -> list[tuple[str, int]]:
    """(kind, first column) of the parts that fill `start` to `stop` one by one; a last none takes the rest."""
    found, at = [], start
    for kind in parts:
        if kind != "none":
            found.append((kind, at))
        at += PART_WIDTHS[kind]
    if parts[-1] == "none":
        at = max(at - 1, stop)
    if at != stop:
        raise UserError(
            f"augment.{option}=[{','.join(parts)}] are {at - start} numbers, but {what} has {stop - start}. "
            "Name them all, in order; a last none stands for every number behind that is no pose."
        )
    return found


def _note(found: dict[tuple[str, int], list[bool]], columns: list[tuple[str, int]], domain: int, count: int) -> None:
    for column in columns:
        found.setdefault(column, [False] * count)[domain] = True
