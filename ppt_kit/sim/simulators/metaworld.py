"""Meta-World's 50 tasks (Yu et al. 2019) with depth cameras, reproducible goals and the package's scripted experts."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.metaworld_tasks import TASKS as KNOWN
from ppt_kit.sim.simulators.rendering import choose_renderer

# before mujoco is imported, which reads the choice then
choose_renderer()

import mujoco  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

from ppt_kit.sim.simulators.mujoco_camera import (  # noqa: E402
    CameraOptions,
    MujocoCameras,
    camera_names,
    check_number,
)
from ppt_kit.sim.simulators.scene import SceneCameras  # noqa: E402

TASKS = sorted(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS)
CROP_BOX = np.array([[-0.55, 0.3, 0.005], [0.55, 1.1, 0.6]])  # m: the table, without its surface and the walls
CORNER2_POSITION = (0.6, 0.295, 0.8)  # m: where DP3 moves the camera to; the stock place leaves 530 points in the box
MARKERS = ("auto", "all", "none")
# tasks whose marker Meta-World draws where the object begins, and not where it is to go
MISPLACED = ("pick-out-of-hole",)
MARGIN = 0.004  # m: depth is not exact
# corner2, where it is moved to, does not have the goals of these in its picture
CAMERAS = {"stick-pull": "corner4", "stick-push": "corner4"}


@dataclass(eq=False, repr=False)
class MetaWorldEnv:
    """One task.

    Args:
        task: with or without the -v3.
        camera: one or several of the scene, as "corner2,corner3" or a list; corner2 is moved closer, as DP3 does.
            "auto" = corner2, but corner4 in stick-pull and stick-push, whose goals corner2 does not see.
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
    camera: str | Sequence[str] = "auto"
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
        self._has_marker = draws_marker(self.task, self.goal_marker)
        self._scene = SceneCameras(
            self._env.model, self._env.data, size=self.image_size, upright=self.upright,
            draw_sites=self._has_marker,
        )  # fmt: skip
        known = self._scene.names
        if self.camera == "auto":
            self.camera = CAMERAS.get(self.task, "corner2")
        names = cloud_names = camera_names(self.camera, known, option="camera", task=self.task)
        self.camera = ",".join(names)
        if self.cloud_camera is not None:
            cloud_names = camera_names(self.cloud_camera, known, option="cloud_camera", task=self.task)
            self.cloud_camera = ",".join(cloud_names)
        self._cameras = MujocoCameras(self._scene, CameraOptions(
            names, cloud_names, self.num_points, self.use_color, self.save_images, CROP_BOX
        ))  # fmt: skip
        self._first_camera = names[0]
        if "corner2" in (*names, *cloud_names):
            self._env.model.cam("corner2").pos = CORNER2_POSITION
        self._raw = np.zeros(39)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._env.seed(seed)
        self._raw, _ = self._env.reset()
        # some experts remember the last episode
        self._expert = _new_expert(self.task)
        self._refresh_markers()
        if self._has_marker:
            # one that stands in the table's hole is under the floor of what is cut out
            self._cameras.keep([(at, self._env.model.site(name).size[0] + MARGIN) for name, at in self._markers()])
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        self._raw, reward, _, _, info = self._env.step(np.clip(np.asarray(action, np.float32), -1, 1))
        if self.task in MISPLACED:
            self._place_markers()
        return self._observe(), float(reward), bool(info["success"])

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings():
            # it warns that its actions leave [-1, 1]; they are clipped here
            warnings.simplefilter("ignore")
            return np.clip(self._expert.get_action(self._raw), -1, 1).astype(np.float32)

    def render(self, size: int = 256) -> np.ndarray:
        return self._scene.portrait(self._first_camera, size)

    def spec(self) -> dict[str, Any]:
        return {"simulator": "metaworld", **{field.name: getattr(self, field.name) for field in fields(self)}}

    def camera_info(self) -> dict[str, np.ndarray]:
        """As SimEnv says, of the cameras that stay where they are: one pose would be wrong of those on the hand."""
        return self._cameras.calibration()

    def show_only(self, columns: Collection[str]) -> None:
        self._cameras.show_only(columns)

    def close(self) -> None:
        self._scene.close()
        self._env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        numbers = {
            "obs/eef_pos": self._raw[:3].astype(np.float32),
            "obs/normalized_gripper_pos": self._raw[3:4].astype(np.float32),
        }
        return numbers | self._cameras.readings()

    def _refresh_markers(self) -> None:
        """After a reset the markers stand where the last episode had them, and cameras where the model's pose was."""
        mujoco.mj_forward(self._env.model, self._env.data)
        self._place_markers()

    def _place_markers(self) -> None:
        for name, position in self._markers():
            self._env._set_pos_site(name, position)

    def _markers(self) -> list[tuple[str, np.ndarray]]:
        """(name of its site, where it belongs) of each."""
        if self.task in MISPLACED:
            return [("goal", np.asarray(self._env._target_pos))]
        return [(name, np.asarray(position)) for name, position in self._env._target_site_config]

    def _check_options(self) -> None:
        if not isinstance(self.task, str):
            raise UserError(f"task={self.task!r}: takes a name.")
        for name, least in (("image_size", 16), ("num_points", 0), ("max_steps", 1)):
            check_number(name, getattr(self, name), least)
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


def _check_word(name: str, value: Any, words: tuple[str, ...]) -> None:
    """True and false are taken too."""
    if not isinstance(value, bool) and value not in words:
        near = difflib.get_close_matches(str(value), words, 1)
        raise UserError(
            f"{name}={value!r}: takes {', '.join(words)}{', true, false' if name == 'save_images' else ''}."
            + (f" Did you mean {near[0]}?" if near else "")
        )


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
