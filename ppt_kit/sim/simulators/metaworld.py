"""Meta-World's 50 tasks (Yu et al. 2019) with a depth camera, reproducible goals and the package's scripted experts."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np

from ppt_kit.cameras import crop, depth_to_points, farthest_points, intrinsics_from_fovy
from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.rendering import need_renderer, rendering

# before mujoco is imported, which reads the choice then
need_renderer()

import mujoco  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

TASKS = sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS)
CROP_BOX = np.array([[-0.55, 0.3, 0.005], [0.55, 1.1, 0.6]])  # m: the table, without its surface and the walls
MOST = 1_000_000  # points, pixels, steps: what a machine could hold
CORNER2_POSITION = (0.6, 0.295, 0.8)  # m: where DP3 moves the camera to; the stock place leaves 530 points in the box


class _Renderer(mujoco.Renderer):
    """Of one that could not be made mujoco's own clean-up would fail in turn, and print that beside the error."""

    _gl_context = _mjr_context = None


class MetaWorldEnv:
    """One task.

    Args:
        task: with or without the -v3.
        camera: of the scene; corner2 is moved closer, as DP3 does.
        image_size: height and width of its image (pixels).
        num_points: of a cloud; 0 = no cloud, and without images nothing is rendered.
        use_color: give the points' colours.
        save_images: give rgb and metric depth of the camera.
        goal_marker: draw the goal's sphere; it is drawn into depth too, so into the cloud.
        max_steps: longest episode (control steps).
    Raises:
        UserError: no such task or camera, an option of another kind, or colours without a cloud.
    """

    def __init__(
        self,
        task: str,
        *,
        camera: str = "corner2",
        image_size: int = 128,
        num_points: int = 512,
        use_color: bool = False,
        save_images: bool = False,
        goal_marker: bool = False,
        max_steps: int = 200,
    ):
        _check_kinds(task=task, camera=camera)
        _check_numbers(image_size=(image_size, 16), num_points=(num_points, 0), max_steps=(max_steps, 1))
        _check_flags(use_color=use_color, save_images=save_images, goal_marker=goal_marker)
        if use_color and not num_points:
            raise UserError("use_color=true, but num_points=0: there is no cloud to colour. Set num_points above 0.")
        self.task, self.max_steps = task.removesuffix("-v3"), max_steps
        self._options: dict[str, Any] = {
            "camera": camera, "image_size": image_size, "num_points": num_points, "use_color": use_color,
            "save_images": save_images, "goal_marker": goal_marker,
        }  # fmt: skip
        self.description = self.task.replace("-", " ")
        self._env = _new_env(self.task, max_steps=max_steps)
        self._expert = _new_expert(self.task)
        self._set_camera(camera)
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._scene = mujoco.MjvOption()
        if not goal_marker:
            # markers are sites, and sites are drawn into depth
            self._scene.sitegroup[:] = 0
        self._raw = np.zeros(39)
        self._success = False
        self._shown: frozenset[str] | None = None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._env.seed(seed)
        self._raw, _ = self._env.reset()
        # some experts remember the last episode
        self._expert = _new_expert(self.task)
        self._success = False
        self._refresh_markers()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        self._raw, reward, _, _, info = self._env.step(np.clip(np.asarray(action, np.float32), -1, 1))
        self._success = self._success or bool(info["success"])
        return self._observe(), float(reward), self._success

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings():
            # it warns that its actions leave [-1, 1]; they are clipped here
            warnings.simplefilter("ignore")
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def render(self, size: int = 256) -> np.ndarray:
        renderer = self._renderer(size)
        renderer.update_scene(self._env.data, camera=self._camera, scene_option=self._scene)
        picture = renderer.render()
        # corner2 is mounted upside down
        hangs = self._env.data.cam_xmat[self._camera].reshape(3, 3)[2, 1] < 0
        return np.ascontiguousarray(picture[::-1, ::-1] if hangs else picture)

    def spec(self) -> dict[str, Any]:
        return {"simulator": "metaworld", "task": self.task, "max_steps": self.max_steps, **self._options}

    def camera_info(self) -> dict[str, np.ndarray]:
        name = self._options["camera"]
        return {f"{name}/intrinsics": self._intrinsics, f"{name}/extrinsics": self._extrinsics()}

    def show_only(self, columns: Collection[str]) -> None:
        self._shown = frozenset(columns)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        reading = {
            "obs/eef_pos": self._raw[:3].astype(np.float32),
            "obs/normalized_gripper_pos": self._raw[3:4].astype(np.float32),
        }
        camera, points = self._options["camera"], self._options["num_points"]
        image, depth = (f"obs/{kind}/{camera}" for kind in ("images", "depths"))
        pictures = [name for name in (image, depth) if self._options["save_images"] and self._shows(name)]
        cloud = [name for name in ("obs/pointcloud/pos", "obs/pointcloud/colors") if points and self._shows(name)]
        if not self._options["use_color"]:
            cloud = cloud[:1] if "obs/pointcloud/pos" in cloud else []
        metres = self._depth() if depth in pictures or cloud else None
        rgb = self._rgb() if image in pictures or "obs/pointcloud/colors" in cloud else None
        if metres is not None and cloud:
            reading |= self._cloud(metres, rgb)
        if rgb is not None and image in pictures:
            reading[image] = rgb
        if metres is not None and depth in pictures:
            reading[depth] = metres[..., None]
        return reading

    def _shows(self, column: str) -> bool:
        return self._shown is None or column in self._shown

    def _depth(self) -> np.ndarray:
        """(H, W) in metres."""
        renderer = self._renderer(self._options["image_size"])
        renderer.enable_depth_rendering()
        renderer.update_scene(self._env.data, camera=self._camera, scene_option=self._scene)
        depth = renderer.render().copy()
        renderer.disable_depth_rendering()
        return depth

    def _rgb(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        renderer = self._renderer(self._options["image_size"])
        renderer.update_scene(self._env.data, camera=self._camera, scene_option=self._scene)
        return renderer.render().copy()

    def _cloud(self, depth: np.ndarray, rgb: np.ndarray | None) -> dict[str, np.ndarray]:
        points = depth_to_points(depth, self._intrinsics, self._extrinsics())
        inside = crop(points, CROP_BOX)
        chosen = inside[farthest_points(points[inside], self._options["num_points"])]
        cloud = {"obs/pointcloud/pos": points[chosen]}
        if self._options["use_color"] and rgb is not None:
            cloud["obs/pointcloud/colors"] = rgb.reshape(-1, 3)[chosen]
        return cloud

    def _set_camera(self, name: str) -> None:
        model = self._env.model
        cameras = [model.cam(index).name for index in range(model.ncam)]
        if name not in cameras:
            raise UserError(f"camera={name}: {self.task} has {', '.join(cameras)}.")
        self._camera = cameras.index(name)
        if name == "corner2":
            model.cam_pos[self._camera] = CORNER2_POSITION
        size = self._options["image_size"]
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = max(size, 640)
        self._intrinsics = intrinsics_from_fovy(float(model.cam_fovy[self._camera]), height=size, width=size)

    def _extrinsics(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, :3] = self._env.data.cam_xmat[self._camera].reshape(3, 3)
        pose[:3, 3] = self._env.data.cam_xpos[self._camera]
        return pose

    def _renderer(self, size: int) -> mujoco.Renderer:
        if size not in self._renderers:
            with rendering():
                renderer = _Renderer(self._env.model, size, size)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.scene.flags[flag] = 0
            self._renderers[size] = renderer
        return self._renderers[size]

    def _refresh_markers(self) -> None:
        """After a reset the markers stand where the last episode had them, and cameras where the model's pose was."""
        mujoco.mj_forward(self._env.model, self._env.data)
        for name, position in self._env._target_site_config:
            self._env._set_pos_site(name, np.asarray(position))


def _check_kinds(**words: Any) -> None:
    for name, value in words.items():
        if not isinstance(value, str):
            raise UserError(f"{name}={value!r}: takes a name.")


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r}: takes true or false.")


def _check_numbers(**numbers: tuple[Any, int]) -> None:
    """Of each its value and the least that it may be."""
    for name, (value, least) in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise UserError(f"{name}={value!r}: takes a whole number from {least} to {MOST}.")


def _new_env(task: str, *, max_steps: int) -> Any:
    """Meta-World's own environment of the task, its goals drawn from the seed and shown to the expert."""
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 1)
        raise UserError(
            f"task={task}: Meta-World has no such task."
            + (f" Did you mean {near[0]}?" if near else f" It has {', '.join(TASKS)}.")
        )
    env: Any = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    # goals come from env.seed(k), not from one frozen vector
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env._set_task_called, env._partially_observable = True, False
    # made while goals were hidden, it clips the goal to 0, 0, 0: dropped, it is made again
    env.__dict__.pop("sawyer_observation_space", None)
    # beyond it the simulator raises, and a failure would count as an error
    env.max_path_length = max_steps + 1
    return env


def _new_expert(task: str) -> Any:
    made: Any = ENV_POLICY_MAP[f"{task}-v3"]
    return made()
