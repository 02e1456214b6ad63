"""How a policy sees one domain: stored columns -> obs, of a dataset's rows and of a simulator's readings alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ppt_kit.data.clouds import CloudSource, compose_cloud
from ppt_kit.data.store import metres
from ppt_kit.spec import Spec

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class View:
    """What of one domain is seen, and how; a checkpoint carries it, so that a simulator is seen as the data was.

    Attributes:
        state, action: stored column -> how many numbers, in the order they are concatenated.
        cloud: "pos", "colors", "seg" -> stored column, those that `channels` needs; {} = no clouds are seen.
        points, channels: of a cloud (P, C).
        color_range: what float colours go to, 1 or 255.
        made_from: what clouds are made from where no column holds them.
        rgb, depth: camera -> stored column.
        sizes: stored column of a camera -> (height, width) in pixels.
        language: whether each episode's sentence is seen.
    """

    state: dict[str, int] = field(default_factory=dict)
    action: dict[str, int] = field(default_factory=dict)
    cloud: dict[str, str] = field(default_factory=dict)
    points: int = 0
    channels: int = 0
    color_range: float = 1.0
    made_from: CloudSource | None = None
    rgb: dict[str, str] = field(default_factory=dict)
    depth: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    language: bool = False

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> View:
        """Of what `plain` gave, e.g. out of a checkpoint."""
        made = CloudSource(**plain["made_from"]) if plain["made_from"] else None
        sizes = {name: tuple(size) for name, size in plain["sizes"].items()}
        return cls(**{**plain, "made_from": made, "sizes": sizes})

    def plain(self) -> dict[str, Any]:
        """As dictionaries, lists and numbers."""
        return asdict(self)

    @property
    def spec(self) -> Spec:
        """The sizes of what is seen."""
        short = lambda columns: {name.removeprefix("obs/"): width for name, width in columns.items()}
        pixels = lambda cameras: {camera: self.sizes[column] for camera, column in cameras.items()}
        return Spec(
            state=short(self.state), action=short(self.action), points=self.points, channels=self.channels,
            rgb=pixels(self.rgb), depth=pixels(self.depth), language=self.language,
        )  # fmt: skip

    def columns(self) -> dict[str, list[str]]:
        """{modality or "action": stored columns} that are read."""
        read = {
            "action": list(self.action), "state": list(self.state), "pointcloud": list(self.cloud.values()),
            "rgb": list(self.rgb.values()), "depth": list(self.depth.values()),
        }  # fmt: skip
        return {kind: columns for kind, columns in read.items() if columns}

    def needs(self) -> list[str]:
        """Stored columns that a simulator must give to be seen."""
        names = [name for kind, columns in self.columns().items() if kind != "action" for name in columns]
        if self.made_from is None:
            return names
        kinds = ("depths", "images") if self.made_from.with_color else ("depths",)
        made = [f"obs/{kind}/{camera}" for kind in kinds for camera in self.made_from.cameras]
        return [name for name in names if name not in self.cloud.values()] + made

    def observe(self, read: Read, *, kinds: Iterable[str] | None = None) -> dict[str, Any]:
        """obs of N frames without sentences: state (N, Ds), pointcloud (N, P, C), rgb, depth {camera: (N, H, W, …)}.

        Args:
            read: stored column -> (N, ...) its frames.
            kinds: modalities that are wanted; None = all that are seen.
        """
        wanted = self.spec.modalities if kinds is None else kinds
        make = {"state": self._state, "pointcloud": self._cloud, "rgb": self._rgb, "depth": self._depth}
        return {kind: make[kind](read) for kind in wanted if kind in make}

    def live(
        self, reading: Mapping[str, np.ndarray], cameras: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, Any]:
        """obs of one frame of a simulator, as `observe` gives them for a stored one, without the leading N.

        Args:
            reading: stored column -> its reading, e.g. obs/eef_pos (3,).
            cameras: <camera>/intrinsics and <camera>/extrinsics, for clouds that are made from depth.
        Raises:
            KeyError: the simulator does not give a column that is seen.
        """
        made = {}
        if self.made_from is not None and self.points:
            made["obs/pointcloud/pos"] = self.made_from.of_reading(reading, cameras or {}, num_points=self.points)

        def read(column: str) -> np.ndarray:
            values = made[column] if column in made else reading[column]
            return np.asarray(values)[None]

        return _first(self.observe(read))

    def numbers(self, kind: str, read: Read) -> np.ndarray:
        """(N, D) float32 of the columns of "state" or "action" one after the other."""
        columns = self.state if kind == "state" else self.action
        parts = [part.reshape(len(part), -1) for part in map(read, columns)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return joined.astype(np.float32, copy=False)

    def _state(self, read: Read) -> np.ndarray:
        return self.numbers("state", read)

    def _cloud(self, read: Read) -> np.ndarray:
        parts = {part: read(column) for part, column in self.cloud.items()}
        return compose_cloud(
            parts["pos"], color=parts.get("colors"), segmentation=parts.get("seg"), channels=self.channels,
            num_points=self.points, color_range=self.color_range,
        )  # fmt: skip

    def _rgb(self, read: Read) -> dict[str, np.ndarray]:
        return {camera: read(column) for camera, column in self.rgb.items()}

    def _depth(self, read: Read) -> dict[str, np.ndarray]:
        return {camera: metres(read(column)) for camera, column in self.depth.items()}


def _first(tree: Any) -> Any:
    return {name: _first(value) for name, value in tree.items()} if isinstance(tree, dict) else tree[0]
