"""What the cameras of a MuJoCo scene see, as readings: pictures, metric depth and the cloud that is made of it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from ppt_kit.cameras import crop, depth_to_points, farthest_points, intrinsics_from_fovy
from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.rendering import rendering

MOST = 1_000_000  # points, pixels: what a machine could hold
CLOUD, COLORS = "obs/pointcloud/pos", "obs/pointcloud/colors"
# save_images -> the kinds of pictures that are given
PICTURES: dict[Any, tuple[str, ...]] = {True: ("images", "depths"), False: (), "rgb": ("images",), "depth": ("depths",)}


class _Renderer(mujoco.Renderer):
    """Of one that could not be made mujoco's own clean-up would fail in turn, and print that beside the error."""

    _gl_context = _mjr_context = None


@dataclass(frozen=True)
class CameraOptions:
    """What is looked at, and how.

    Attributes:
        cameras: of the scene, as "a,b" or a list.
        image_size: height and width of a picture (pixels).
        num_points: of the cloud, which all of `cameras` give their points to; 0 = no cloud.
        use_color: give the points' colours.
        save_images: give pictures of each camera: True = rgb and metric depth, or "rgb" or "depth" alone.
        crop_box: (2, 3) corners of what is in the cloud (m).
    """

    cameras: str | Sequence[str]
    image_size: int
    num_points: int
    use_color: bool
    save_images: bool | str
    crop_box: np.ndarray

    def check(self) -> None:
        """Refuses what no camera could do.

        Raises:
            UserError: an option of another kind or size, or colours without a cloud.
        """
        for name, least in (("image_size", 16), ("num_points", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
                raise UserError(f"{name}={value!r}: takes a whole number from {least} to {MOST}.")
        if not isinstance(self.use_color, bool):
            raise UserError(f"use_color={self.use_color!r}: takes true or false.")
        if not isinstance(self.save_images, (bool, str)) or self.save_images not in PICTURES:
            raise UserError(f"save_images={self.save_images!r}: takes true, false, rgb or depth.")
        if self.use_color and not self.num_points:
            raise UserError("use_color=true, but num_points=0: there is no cloud to colour. Set num_points above 0.")


class MujocoCameras:
    """The cameras of one scene that somebody looks through.

    Nothing is rendered that is not shown; what is rendered is fast: no shadows, no smooth edges. `film` has both.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, options: CameraOptions):
        options.check()
        self._model, self._data, self._options = model, data, options
        self.names = _chosen(options.cameras, [model.cam(index).name for index in range(model.ncam)])
        self._shown: frozenset[str] | None = None
        self._scene = mujoco.MjvOption()
        self._renderers: dict[tuple[int, bool], mujoco.Renderer] = {}

    def show_only(self, columns: Collection[str]) -> None:
        """As SimEnv says."""
        self._shown = frozenset(columns)

    def readings(self) -> dict[str, np.ndarray]:
        """The columns of SimEnv's readings that are shown of these cameras."""
        options = self._options
        reading: dict[str, np.ndarray] = {}
        cloud = [name for name in (CLOUD, COLORS)[: 1 + options.use_color] if options.num_points and self._shows(name)]
        depth = self._drawn("depths", every=bool(cloud))
        rgb = self._drawn("images", every=COLORS in cloud)
        if cloud:
            both = self._cloud(depth, rgb if COLORS in cloud else None)
            reading |= {name: both[name] for name in cloud}
        reading |= {f"obs/images/{name}": rgb[name] for name in self._pictured("images")}
        reading |= {f"obs/depths/{name}": depth[name][..., None] for name in self._pictured("depths")}
        return reading

    def calibration(self) -> dict[str, np.ndarray]:
        """<camera>/intrinsics (3, 3) in pixels and <camera>/extrinsics (4, 4) camera to world.

        Of the cameras that stay where they are: one pose would be wrong of those on the hand.
        """
        info = {}
        for name in filter(self._is_fixed, self.names):
            info[f"{name}/intrinsics"], info[f"{name}/extrinsics"] = self._intrinsics(name), self._pose(name)
        return info

    def film(self, camera: str, size: int) -> np.ndarray:
        """(size, size, 3) uint8 of any camera of the scene, with shadows and smooth edges: for people."""
        return self._render(self._renderer(size, fine=True), camera)

    def close(self) -> None:
        """Frees the renderers; the next reading makes new ones."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _shows(self, column: str) -> bool:
        return self._shown is None or column in self._shown

    def _pictured(self, kind: str) -> list[str]:
        given = self.names if kind in PICTURES[self._options.save_images] else []
        return [name for name in given if self._shows(f"obs/{kind}/{name}")]

    def _drawn(self, kind: str, *, every: bool) -> dict[str, np.ndarray]:
        """camera -> picture of a kind, of every camera or of those that give it."""
        renderer, pictures = None, {}
        for name in self.names if every else self._pictured(kind):
            renderer = renderer or self._renderer(self._options.image_size, fine=False)
            if kind == "depths":
                renderer.enable_depth_rendering()
            pictures[name] = self._render(renderer, name)
            renderer.disable_depth_rendering()
        return pictures

    def _cloud(self, depth: dict[str, np.ndarray], rgb: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        points = np.concatenate([
            depth_to_points(depth[name], self._intrinsics(name), self._pose(name)) for name in self.names
        ])  # fmt: skip
        inside = crop(points, self._options.crop_box)
        chosen = inside[farthest_points(points[inside], self._options.num_points)]
        cloud = {CLOUD: points[chosen]}
        if rgb is not None:
            cloud[COLORS] = np.concatenate([rgb[name].reshape(-1, 3) for name in self.names])[chosen]
        return cloud

    def _render(self, renderer: mujoco.Renderer, camera: str) -> np.ndarray:
        renderer.update_scene(self._data, camera=camera, scene_option=self._scene)
        return renderer.render().copy()

    def _renderer(self, size: int, *, fine: bool) -> mujoco.Renderer:
        if (size, fine) not in self._renderers:
            self._renderers[size, fine] = _new_renderer(self._model, size, fine=fine)
        return self._renderers[size, fine]

    def _intrinsics(self, camera: str) -> np.ndarray:
        size = self._options.image_size
        return intrinsics_from_fovy(float(self._model.cam(camera).fovy[0]), height=size, width=size)

    def _is_fixed(self, camera: str) -> bool:
        return bool(self._model.body_weldid[self._model.cam(camera).bodyid[0]] == 0)

    def _pose(self, camera: str) -> np.ndarray:
        pose, seen = np.eye(4), self._data.cam(camera)
        pose[:3, :3], pose[:3, 3] = seen.xmat.reshape(3, 3), seen.xpos
        return pose


def _new_renderer(model: mujoco.MjModel, size: int, *, fine: bool) -> mujoco.Renderer:
    # read when a renderer is made, and never again
    model.vis.quality.offsamples, model.vis.quality.shadowsize = (4, 2048) if fine else (0, 0)
    model.vis.global_.offwidth = model.vis.global_.offheight = max(size, 640)
    with rendering():
        renderer = _Renderer(model, size, size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = fine
    return renderer


def _chosen(cameras: str | Sequence[str], known: list[str]) -> list[str]:
    names = cameras.split(",") if isinstance(cameras, str) else cameras
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"camera={cameras!r}: takes a name, or several as a,b. There are {', '.join(known)}.")
    names = [name.strip() for name in names]
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        near = difflib.get_close_matches(strange, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"camera={strange}: there is no such camera; there are {', '.join(known)}.{hint}")
    if len(set(names)) < len(names):
        raise UserError(f"camera={','.join(names)}: names a camera twice. Name each once.")
    return names
