"""Meta-World's 50 tasks (Yu et al. 2019) with depth cameras, reproducible goals and the package's scripted experts."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ppt_kit.cameras import crop, farthest_points
from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.metaworld_tasks import TASKS as KNOWN
from ppt_kit.sim.simulators.rendering import choose_renderer

# before mujoco is imported, which reads the choice then
choose_renderer()

import mujoco  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

from ppt_kit.sim.simulators.scene import SceneCameras  # noqa: E402

TASKS = sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS)
CROP_BOX = np.array([[-0.55, 0.3, 0.005], [0.55, 1.1, 0.6]])  # m: the table, without its surface and the walls
MOST = 1_000_000  # points, pixels, steps: what a machine could hold
CORNER2_POSITION = (0.6, 0.295, 0.8)  # m: where DP3 moves the camera to; the stock place leaves 530 points in the box
MARKERS = ("auto", "all", "none")
# save_images -> kinds of pictures that are given
PICTURES: dict[Any, tuple[str, ...]] = {True: ("depths", "images"), False: (), "rgb": ("images",), "depth": ("depths",)}


@dataclass(eq=False, repr=False)
class MetaWorldEnv:
    """One task.

    Args:
        task: with or without the -v3.
        camera: one or several of the scene, as "corner2,corner3" or a list; corner2 is moved closer, as DP3 does.
        cloud_camera: those whose depth the cloud is made from, all points together; None = all of `camera`.
        image_size: height and width of their pictures (pixels).
        num_points: of a cloud; 0 = no cloud, and without pictures nothing is rendered.
        use_color: give the points' colours.
        save_images: give pictures of each `camera`: True = rgb and metric depth, or "rgb" or "depth" alone.
        goal_marker: whose goal's marker is drawn, into depth and cloud too: "auto" = of the tasks where nothing else
            tells the goal (`ppt_kit.tasks()`), "all", "none". Datasets of older versions say True = all, False = none.
        upright: turn the pictures of cameras that hang upside down, as corner2 does; what is seen in the cloud stays
            the same. None = True, but False where goal_marker is a boolean: those datasets were not turned.
        max_steps: longest episode (control steps).
    Raises:
        UserError: no such task or camera, an option of another kind, or colours without a cloud.
    """

    task: str
    camera: str | Sequence[str] = "corner2"
    cloud_camera: str | Sequence[str] | None = None
    image_size: int = 128
    num_points: int = 512
    use_color: bool = False
    save_images: bool | str = False
    goal_marker: str | bool = "auto"
    upright: bool | None = None
    max_steps: int = 200

    def __post_init__(self) -> None:
        self._check_options()
        self.task = self.task.removesuffix("-v3")
        self._env = _new_env(self.task, max_steps=self.max_steps)
        if self.upright is None:
            self.upright = not isinstance(self.goal_marker, bool)
        if isinstance(self.goal_marker, bool):
            self.goal_marker = "all" if self.goal_marker else "none"
        self.description = self.task.replace("-", " ")
        self._expert = _new_expert(self.task)
        self._scene = SceneCameras(
            self._env.model, self._env.data, size=self.image_size, upright=self.upright,
            draw_sites=draws_marker(self.task, self.goal_marker),
        )  # fmt: skip
        self._cameras = _camera_names(self.camera, self._scene, option="camera", task=self.task)
        self.camera = ",".join(self._cameras)
        self._cloud_cameras = self._cameras
        if self.cloud_camera is not None:
            self._cloud_cameras = _camera_names(self.cloud_camera, self._scene, option="cloud_camera", task=self.task)
            self.cloud_camera = ",".join(self._cloud_cameras)
        if "corner2" in (*self._cameras, *self._cloud_cameras):
            self._env.model.cam("corner2").pos = CORNER2_POSITION
        self._raw = np.zeros(39)
        self._shown: frozenset[str] | None = None

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._env.seed(seed)
        self._raw, _ = self._env.reset()
        # some experts remember the last episode
        self._expert = _new_expert(self.task)
        self._refresh_markers()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        self._raw, reward, _, _, info = self._env.step(np.clip(np.asarray(action, np.float32), -1, 1))
        return self._observe(), float(reward), bool(info["success"])

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings():
            # it warns that its actions leave [-1, 1]; they are clipped here
            warnings.simplefilter("ignore")
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def render(self, size: int = 256) -> np.ndarray:
        return self._scene.portrait(self._cameras[0], size)

    def spec(self) -> dict[str, Any]:
        return {"simulator": "metaworld", **{field.name: getattr(self, field.name) for field in fields(self)}}

    def camera_info(self) -> dict[str, np.ndarray]:
        """As SimEnv says, of the cameras that stay where they are: one pose would be wrong of those on the hand."""
        return {
            f"{name}/{what}": value
            for name in self._cameras
            if self._scene.is_fixed(name)
            for what, value in self._scene.calibration(name).items()
        }

    def show_only(self, columns: Collection[str]) -> None:
        self._shown = frozenset(columns)

    def close(self) -> None:
        self._scene.close()
        self._env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        reading = {
            "obs/eef_pos": self._raw[:3].astype(np.float32),
            "obs/normalized_gripper_pos": self._raw[3:4].astype(np.float32),
        }
        cloud = self._cloud_columns()
        of_cloud = {"depths": bool(cloud), "images": "obs/pointcloud/colors" in cloud}
        # each picture that anybody wants is drawn once
        depth, rgb = (
            {name: draw(name) for name in self._seen_by(kind, of_cloud=of_cloud[kind])}
            for kind, draw in (("depths", self._depth), ("images", self._rgb))
        )
        reading |= self._cloud(cloud, depth, rgb) if cloud else {}
        for name in self._pictured("images"):
            reading[f"obs/images/{name}"] = self._scene.stored(name, rgb[name])
        for name in self._pictured("depths"):
            reading[f"obs/depths/{name}"] = self._scene.stored(name, depth[name])[..., None]
        return reading

    def _cloud_columns(self) -> list[str]:
        columns = ["obs/pointcloud/pos", *(["obs/pointcloud/colors"] if self.use_color else [])]
        return [name for name in columns if self.num_points and self._shows(name)]

    def _seen_by(self, kind: str, *, of_cloud: bool) -> list[str]:
        """The cameras of which a kind of picture is drawn."""
        return list(dict.fromkeys([*self._pictured(kind), *(self._cloud_cameras if of_cloud else [])]))

    def _pictured(self, kind: str) -> list[str]:
        """The cameras whose pictures of a kind are given."""
        given = self._cameras if kind in PICTURES[self.save_images] else []
        return [name for name in given if self._shows(f"obs/{kind}/{name}")]

    def _shows(self, column: str) -> bool:
        return self._shown is None or column in self._shown

    def _depth(self, camera: str) -> np.ndarray:
        return self._scene.depth(camera)

    def _rgb(self, camera: str) -> np.ndarray:
        return self._scene.rgb(camera)

    def _cloud(
        self, columns: list[str], depth: dict[str, np.ndarray], rgb: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        points = {name: self._scene.points(name, depth[name]) for name in self._cloud_cameras}
        inside = {name: crop(points[name], CROP_BOX) for name in self._cloud_cameras}
        position = np.concatenate([points[name][inside[name]] for name in self._cloud_cameras])
        chosen = farthest_points(position, self.num_points)
        cloud = {"obs/pointcloud/pos": position[chosen]}
        if "obs/pointcloud/colors" in columns:
            color = np.concatenate([rgb[name].reshape(-1, 3)[inside[name]] for name in self._cloud_cameras])
            cloud["obs/pointcloud/colors"] = color[chosen]
        return cloud

    def _refresh_markers(self) -> None:
        """After a reset the markers stand where the last episode had them, and cameras where the model's pose was."""
        mujoco.mj_forward(self._env.model, self._env.data)
        for name, position in self._env._target_site_config:
            self._env._set_pos_site(name, np.asarray(position))

    def _check_options(self) -> None:
        if not isinstance(self.task, str):
            raise UserError(f"task={self.task!r}: takes a name.")
        for name, least in (("image_size", 16), ("num_points", 0), ("max_steps", 1)):
            _check_number(name, getattr(self, name), least)
        for name, flag in (("use_color", self.use_color), ("upright", self.upright)):
            if not isinstance(flag, bool) and (name, flag) != ("upright", None):
                raise UserError(f"{name}={flag!r}: takes true or false.")
        _check_word("save_images", self.save_images, ("rgb", "depth"))
        _check_word("goal_marker", self.goal_marker, MARKERS)
        for name in ("use_color", "cloud_camera"):
            if getattr(self, name) and not self.num_points:
                raise UserError(f"{name}={_typed(getattr(self, name))}, but num_points=0: there is no cloud. "
                                "Set num_points above 0.")  # fmt: skip


def draws_marker(task: str, goal_marker: str) -> bool:
    """Whether the goal's marker is drawn in a task.

    Args:
        goal_marker: auto, all or none.
    """
    return goal_marker == "all" or (goal_marker == "auto" and KNOWN[task].needs_marker)


def _camera_names(given: Any, scene: SceneCameras, *, option: str, task: str) -> list[str]:
    """Of "corner2,corner3", or of a list."""
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{option}={given!r}: takes a name, or several, e.g. {option}=corner2,corner3.")
    names = [name.strip() for name in names]
    for name in names:
        if name not in scene.names:
            near = difflib.get_close_matches(name, scene.names, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"{option}={name}: {task} has {', '.join(scene.names)}.{hint}")
    if len(set(names)) < len(names):
        raise UserError(f"{option}={','.join(names)}: names a camera twice. Name each once.")
    return names


def _check_word(name: str, value: Any, words: tuple[str, ...]) -> None:
    """True and false are taken too."""
    if not isinstance(value, bool) and value not in words:
        near = difflib.get_close_matches(str(value), words, 1)
        raise UserError(
            f"{name}={value!r}: takes {', '.join(words)}{', true, false' if name == 'save_images' else ''}."
            + (f" Did you mean {near[0]}?" if near else "")
        )


def _check_number(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise UserError(f"{name}={value!r}: takes a whole number from {least} to {MOST}.")


def _typed(value: Any) -> str:
    """As a user types it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _new_env(task: str, *, max_steps: int) -> Any:
    """Meta-World's own environment of the task, its goals drawn from the seed and shown to the expert."""
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, 3)
        raise UserError(
            f"task={task}: Meta-World has no such task."
            + (f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(TASKS)}.")
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
