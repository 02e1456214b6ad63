"""What the cameras of a MuJoCo scene see, as readings: pictures, metric depth and the cloud that is made of it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppt_kit.cameras import crop, farthest_points
from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.scene import SceneCameras

MOST = 1_000_000  # points, pixels, steps: what a machine could hold
CLOUD, COLORS = "obs/pointcloud/pos", "obs/pointcloud/colors"
# save_images -> the kinds of pictures that are given
PICTURES: dict[Any, tuple[str, ...]] = {True: ("images", "depths"), False: (), "rgb": ("images",), "depth": ("depths",)}


@dataclass(frozen=True)
class CameraOptions:
    """What is looked at.

    Attributes:
        cameras: whose pictures are given.
        cloud_cameras: those whose depth the cloud is made from, all points together.
        num_points: of the cloud; 0 = no cloud.
        use_color: give the points' colours.
        save_images: give pictures of each camera: True = rgb and metric depth, or "rgb" or "depth" alone.
        crop_box: (2, 3) corners of what is in the cloud (m).
    """

    cameras: Sequence[str]
    cloud_cameras: Sequence[str]
    num_points: int
    use_color: bool
    save_images: bool | str
    crop_box: np.ndarray


class MujocoCameras:
    """The cameras of one scene that somebody looks through. Nothing is rendered that is not shown."""

    def __init__(self, scene: SceneCameras, options: CameraOptions):
        self._scene, self._options = scene, options
        self._shown: frozenset[str] | None = None
        self._kept: list[tuple[np.ndarray, float]] = []

    def show_only(self, columns: Collection[str]) -> None:
        """As SimEnv says."""
        self._shown = frozenset(columns)

    def keep(self, spheres: Sequence[tuple[np.ndarray, float]]) -> None:
        """What is drawn within these is in the cloud, also out of the crop box: (centre (3,) m, radius m) each."""
        low, high = self._options.crop_box
        self._kept = [(at, r) for at, r in spheres if (at - r < low).any() or (at + r > high).any()]

    def readings(self) -> dict[str, np.ndarray]:
        """The columns of SimEnv's readings that are shown of these cameras."""
        options, scene = self._options, self._scene
        cloud = [name for name in (CLOUD, COLORS)[: 1 + options.use_color] if options.num_points and self._shows(name)]
        # each picture that anybody wants is drawn once
        depth = {name: scene.depth(name) for name in self._seen_by("depths", of_cloud=bool(cloud))}
        rgb = {name: scene.rgb(name) for name in self._seen_by("images", of_cloud=COLORS in cloud)}
        reading = self._cloud(cloud, depth, rgb) if cloud else {}
        for name in self._pictured("images"):
            reading[f"obs/images/{name}"] = scene.stored(name, rgb[name])
        for name in self._pictured("depths"):
            reading[f"obs/depths/{name}"] = scene.stored(name, depth[name])[..., None]
        return reading

    def calibration(self) -> dict[str, np.ndarray]:
        """<camera>/intrinsics (3, 3) in pixels and <camera>/extrinsics (4, 4) camera to world.

        Of the cameras that stay where they are: one pose would be wrong of those on the hand.
        """
        return {
            f"{name}/{what}": value
            for name in filter(self._scene.is_fixed, self._options.cameras)
            for what, value in self._scene.calibration(name).items()
        }

    def _shows(self, column: str) -> bool:
        return self._shown is None or column in self._shown

    def _pictured(self, kind: str) -> list[str]:
        """The cameras whose pictures of a kind are given."""
        given = self._options.cameras if kind in PICTURES[self._options.save_images] else ()
        return [name for name in given if self._shows(f"obs/{kind}/{name}")]

    def _seen_by(self, kind: str, *, of_cloud: bool) -> list[str]:
        """The cameras of which a kind of picture is drawn."""
        return list(dict.fromkeys([*self._pictured(kind), *(self._options.cloud_cameras if of_cloud else ())]))

    def _cloud(
        self, columns: Collection[str], depth: dict[str, np.ndarray], rgb: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        names, options = self._options.cloud_cameras, self._options
        points = {name: self._scene.points(name, depth[name]) for name in names}
        inside = {name: self._inside(points[name]) for name in names}
        position = np.concatenate([points[name][inside[name]] for name in names])
        chosen = farthest_points(position, options.num_points)
        cloud = {CLOUD: position[chosen]}
        if COLORS in columns:
            cloud[COLORS] = np.concatenate([rgb[name].reshape(-1, 3)[inside[name]] for name in names])[chosen]
        return cloud

    def _inside(self, points: np.ndarray) -> np.ndarray:
        """Indices of the points (P, 3) that are in the cloud, increasing."""
        inside = crop(points, self._options.crop_box)
        for centre, radius in self._kept:
            inside = np.union1d(inside, np.flatnonzero(np.linalg.norm(points - centre, axis=1) < radius))
        return inside


def camera_names(given: Any, known: Sequence[str], *, option: str, task: str) -> list[str]:
    """Of "corner2,corner3", or of a list.

    Raises:
        UserError: it names none, one that is not known, or one twice.
    """
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{option}={given!r}: takes a name, or several, e.g. {option}={','.join(known[:2])}.")
    names = [name.strip() for name in names]
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        near = difflib.get_close_matches(strange, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{option}={strange}: {task} has {', '.join(known)}.{hint}")
    if len(set(names)) < len(names):
        raise UserError(f"{option}={','.join(names)}: names a camera twice. Name each once.")
    return names


def check_number(name: str, value: Any, least: int) -> None:
    """Refuses what is no whole number from `least` to MOST.

    Raises:
        UserError: so it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise UserError(f"{name}={value!r}: takes a whole number from {least} to {MOST}.")
