"""What one domain's observations and actions are, in sizes: they build the policy and its blank rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import MODALITIES


@dataclass(frozen=True)
class Spec:
    """Sizes of one domain.

    Attributes:
        state: key -> how many numbers, in the order they are concatenated.
        action: the same of the action.
        points, channels: of a cloud (P, C); 0 = there are none.
        rgb, depth: camera -> (height, width) in pixels.
        language: whether its episodes come with a sentence.
    """

    state: dict[str, int] = field(default_factory=dict)
    action: dict[str, int] = field(default_factory=dict)
    points: int = 0
    channels: int = 0
    rgb: dict[str, tuple[int, int]] = field(default_factory=dict)
    depth: dict[str, tuple[int, int]] = field(default_factory=dict)
    language: bool = False

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Spec:
        """Of what `plain` gave, e.g. out of a checkpoint."""
        sizes = {kind: {name: tuple(size) for name, size in plain[kind].items()} for kind in ("rgb", "depth")}
        return cls(**{**plain, **sizes})

    def plain(self) -> dict[str, Any]:
        """As dictionaries, lists and numbers."""
        return asdict(self)

    @property
    def state_dim(self) -> int:
        """Ds, numbers of obs.state."""
        return sum(self.state.values())

    @property
    def action_dim(self) -> int:
        """Da, numbers of an action."""
        return sum(self.action.values())

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of MODALITIES that there are."""
        there = (self.state_dim, self.points, self.rgb, self.depth, self.language)
        return tuple(name for name, has in zip(MODALITIES, there) if has)

    def cameras(self, modality: str) -> dict[str, tuple[int, int]]:
        """camera -> (height, width) of "rgb" or "depth"; {} of another modality."""
        return {"rgb": self.rgb, "depth": self.depth}.get(modality, {})

    def only(self, modalities: Iterable[str]) -> Spec:
        """Without the other modalities."""
        kept, plain = set(modalities), self.plain()
        gone: dict[str, Any] = {"state": {}, "points": 0, "channels": 0, "rgb": {}, "depth": {}, "language": False}
        fields = {"pointcloud": ("points", "channels")}
        for name in set(MODALITIES) - kept:
            plain |= {field: gone[field] for field in fields.get(name, (name,))}
        return Spec.from_plain(plain)

    def layout(self, kind: str) -> dict[str, tuple[int, int]]:
        """{key: (first column, one past the last)} of "state" or "action"."""
        found, end = {}, 0
        for name, width in (self.state if kind == "state" else self.action).items():
            found[name] = (end, end + width)
            end += width
        return found

    def names(self, kind: str) -> list[str]:
        """One a number of "state" or "action": eef_pos 0, eef_pos 1, …, gripper."""
        widths = self.state if kind == "state" else self.action
        return [f"{key} {place}" if width > 1 else key for key, width in widths.items() for place in range(width)]

    def blank(self, rows: int, horizon: Horizon, *, device: torch.device | str = "cpu") -> dict[str, Any]:
        """obs of `rows` windows in which nothing is seen: zeros, and empty sentences."""
        frames = (rows, horizon.observation)
        zeros = lambda *size, dtype=torch.float32: torch.zeros(*frames, *size, dtype=dtype, device=device)
        obs: dict[str, Any] = {
            "state": zeros(self.state_dim),
            "pointcloud": zeros(self.points, self.channels),
            "rgb": {name: zeros(*size, 3, dtype=torch.uint8) for name, size in self.rgb.items()},
            "depth": {name: zeros(*size, 1) for name, size in self.depth.items()},
            "language": [""] * rows,
        }
        return {name: obs[name] for name in self.modalities}
