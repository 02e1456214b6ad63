"""What the cameras of a MuJoCo scene see: pictures that stand upright, metric depth, points, and their calibration."""

from __future__ import annotations

import mujoco
import numpy as np

from ppt_kit.cameras import depth_to_points, intrinsics_from_fovy
from ppt_kit.sim.simulators.rendering import rendering

# a camera that has the world's up below its own horizon by more than this (cosine) hangs upside down
HANGS = -0.01
# of a picture that is turned by half a turn, in the camera's own axes
HALF_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


class _Renderer(mujoco.Renderer):
    """Of one that could not be made mujoco's own clean-up would fail in turn, and print that beside the error."""

    _gl_context = _mjr_context = None


class SceneCameras:
    """The cameras of one scene, each by its name.

    What `rgb` and `depth` give is as the camera hangs, and the points are its pixels row by row; what `stored` gives of
    them, and `calibration` describes, is turned where the camera hangs upside down. All that is fast: without shadows
    and smooth edges, which `film` has.

    Args:
        size: height and width of a picture (pixels).
        upright: turn the pictures of cameras that hang upside down.
        draw_sites: sites are drawn into pictures and depth.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, *, size: int, upright: bool = False, draw_sites: bool = True
    ):
        self.size, self.upright = size, upright
        self._model, self._data = model, data
        self._index = {model.cam(index).name: index for index in range(model.ncam)}
        # a camera on the hand may roll later: how its pictures stand is settled once
        self._hangs = {name: data.cam_xmat[index].reshape(3, 3)[2, 1] < HANGS for name, index in self._index.items()}
        self._scene = mujoco.MjvOption()
        if not draw_sites:
            self._scene.sitegroup[:] = 0
        self._renderers: dict[tuple[int, bool], mujoco.Renderer] = {}

    @property
    def names(self) -> list[str]:
        """All of the scene's."""
        return list(self._index)

    def is_fixed(self, name: str) -> bool:
        """Whether it stays where it is; those on the hand do not."""
        body = self._model.cam_bodyid[self._index[name]]
        return bool(self._model.body_weldid[body] == 0)

    def rgb(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self._drawn(name, self.size)

    def depth(self, name: str) -> np.ndarray:
        """(H, W) float32 m along the viewing axis; the sky is at some hundred."""
        renderer = self._renderer(self.size)
        renderer.enable_depth_rendering()
        try:
            return self._drawn(name, self.size)
        finally:
            renderer.disable_depth_rendering()

    def points(self, name: str, depth: np.ndarray) -> np.ndarray:
        """(H*W, 3) float32 m in the world, of what `depth` gave just now."""
        return depth_to_points(depth, self._intrinsics(name), self._pose(name))

    def stored(self, name: str, picture: np.ndarray) -> np.ndarray:
        """A picture (H, W, …) of this camera as it is stored: upright where that is asked for."""
        return _half_turned(picture) if self._is_turned(name) else picture

    def calibration(self, name: str) -> dict[str, np.ndarray]:
        """Of its stored pictures: intrinsics (3, 3) in pixels, extrinsics (4, 4) camera to world."""
        pose = self._pose(name)
        # a square picture's centre stays, so its intrinsics do
        return {"intrinsics": self._intrinsics(name), "extrinsics": pose @ HALF_TURN if self._is_turned(name) else pose}

    def portrait(self, name: str, size: int) -> np.ndarray:
        """(size, size, 3) uint8 for people: upright in any case."""
        picture = self._drawn(name, size)
        return _half_turned(picture) if self._hangs[name] else picture

    def film(self, name: str, size: int) -> np.ndarray:
        """(size, size, 3) uint8 for people, with shadows and smooth edges."""
        return self._drawn(name, size, fine=True)

    def close(self) -> None:
        """Frees the renderers; what is drawn next makes new ones."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _is_turned(self, name: str) -> bool:
        return self.upright and bool(self._hangs[name])

    def _drawn(self, name: str, size: int, *, fine: bool = False) -> np.ndarray:
        renderer = self._renderer(size, fine=fine)
        renderer.update_scene(self._data, camera=self._index[name], scene_option=self._scene)
        return renderer.render()

    def _renderer(self, size: int, *, fine: bool = False) -> mujoco.Renderer:
        if (size, fine) not in self._renderers:
            self._renderers[size, fine] = _new_renderer(self._model, size, fine=fine)
        return self._renderers[size, fine]

    def _intrinsics(self, name: str) -> np.ndarray:
        fovy = float(self._model.cam_fovy[self._index[name]])
        return intrinsics_from_fovy(fovy, height=self.size, width=self.size)

    def _pose(self, name: str) -> np.ndarray:
        """(4, 4) camera to world, as it hangs."""
        pose = np.eye(4)
        pose[:3, :3] = self._data.cam_xmat[self._index[name]].reshape(3, 3)
        pose[:3, 3] = self._data.cam_xpos[self._index[name]]
        return pose


def _half_turned(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[::-1, ::-1])


def _new_renderer(model: mujoco.MjModel, size: int, *, fine: bool) -> mujoco.Renderer:
    # read when a renderer is made, and never again
    model.vis.quality.offsamples, model.vis.quality.shadowsize = (4, 2048) if fine else (0, 0)
    model.vis.global_.offwidth = model.vis.global_.offheight = max(size, 640)
    with rendering():
        renderer = _Renderer(model, size, size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = fine
    return renderer
