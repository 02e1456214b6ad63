"""A UR5e, a bowl and a microwave (MuJoCo): joint-position actions at 20 Hz, subtasks, an expert."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.rendering import choose_renderer

# before mujoco is imported, which reads the choice then
choose_renderer()

import mujoco  # noqa: E402

from ppt_kit.sim.simulators.mujoco_camera import (  # noqa: E402
    PICTURES,
    CameraOptions,
    MujocoCameras,
    camera_names,
    check_number,
)
from ppt_kit.sim.simulators.scene import SceneCameras  # noqa: E402
from ppt_kit.sim.simulators.ur5.arm import NUM_JOINTS  # noqa: E402
from ppt_kit.sim.simulators.ur5.expert import Expert  # noqa: E402
from ppt_kit.sim.simulators.ur5.kitchen import Kitchen  # noqa: E402
from ppt_kit.sim.simulators.ur5.scene import VARIATIONS  # noqa: E402
from ppt_kit.sim.simulators.ur5.tasks import TASKS, reached, succeeds  # noqa: E402

CROP_BOX = np.array([[-0.25, -0.65, 0.005], [1.05, 0.75, 0.8]])  # m: what stands on the table, without its surface
ACTIONS = ("absolute", "delta")
REST_QUATERNION = (0.0, 0.93, 0.0, 0.36)  # x y z w: the tool ahead and down; it never turns over from there


@dataclass(eq=False, repr=False)
class UR5Env:
    """One task in one kitchen.

    Actions (7,): six joint targets (rad), then the gripper's, 0 open to 1 closed. A target is at most 0.3 rad ahead of
    its joint, which makes the arm's own top speed. Readings: obs/joint_pos (6,) rad, obs/eef_pos (3,) m,
    obs/eef_quat (4,) xyzw, obs/normalized_gripper_pos (1,) as the action's, and those of the cameras.

    Args:
        task: ur5_put_bowl_in_microwave_and_close, or ur5_close_microwave, in which the bowl stands inside.
        variation: 1 or 2: which kitchen; measures, colours and the place of the cameras differ.
        actions: "absolute" = joint targets; "delta" = from where the joints are.
        camera: front, left or wrist, or several as a,b.
        image_size: height and width of their pictures (pixels).
        num_points: of a cloud; 0 = no cloud, and without pictures nothing is rendered.
        use_color: give the points' colours.
        save_images: give pictures of each camera: True = rgb and metric depth, or "rgb" or "depth" alone.
        max_steps: longest episode (control steps); None = 400, or 200 where only the door is to be closed.
    Raises:
        UserError: no such task, variation or camera, an option of another kind, or colours without a cloud.
    """

    task: str
    variation: int = 1
    actions: str = "absolute"
    camera: str | Sequence[str] = "front"
    image_size: int = 128
    num_points: int = 512
    use_color: bool = False
    save_images: bool | str = False
    max_steps: int | None = None

    def __post_init__(self) -> None:
        self._check_options()
        self._task = TASKS[self.task]
        if self.max_steps is None:
            self.max_steps = self._task.max_steps
        self.description = self._task.description
        self._kitchen = Kitchen(VARIATIONS[self.variation])
        self._scene = SceneCameras(self._kitchen.model, self._kitchen.data, size=self.image_size)
        names = camera_names(self.camera, self._scene.names, option="camera", task=self.task)
        self.camera = ",".join(names)
        self._cameras = MujocoCameras(self._scene, CameraOptions(
            names, names, self.num_points, self.use_color, self.save_images, CROP_BOX
        ))  # fmt: skip
        self._begin(0)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self._begin(seed)
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        """As SimEnv says; the reward is the share of the subtasks that hold now."""
        action = np.asarray(action, np.float64)
        if action.shape != (NUM_JOINTS + 1,) or not np.isfinite(action).all():
            raise ValueError(f"action {action}: takes {NUM_JOINTS + 1} finite numbers")
        targets = action[:NUM_JOINTS] + (self._kitchen.joints if self.actions == "delta" else 0.0)
        self._closed = float(action[NUM_JOINTS])
        self._kitchen.advance(targets, closed=self._closed)
        now = reached(self._kitchen, self._task)
        self._reached |= {name: self._reached[name] or holds for name, holds in now.items()}
        return self._observe(), sum(now.values()) / len(now), succeeds(self._kitchen)

    def hold_action(self) -> np.ndarray:
        """(7,) the joints where they are, and the gripper as it was last told."""
        joints = np.zeros(NUM_JOINTS) if self.actions == "delta" else self._kitchen.joints
        return np.array([*joints, self._closed], np.float32)

    def subtasks(self) -> dict[str, bool]:
        """Which of the task's parts have been reached in this episode, in their order."""
        return dict(self._reached)

    def expert_action(self) -> np.ndarray:
        targets, closed = self._expert.act()
        if self.actions == "delta":
            targets = targets - self._kitchen.joints
        return np.array([*targets, closed], np.float32)

    def spec(self) -> dict[str, Any]:
        return {"simulator": "ur5", **{field.name: getattr(self, field.name) for field in fields(self)}}

    def render(self, size: int = 256) -> np.ndarray:
        return self._scene.film("film", size)

    def camera_info(self) -> dict[str, np.ndarray]:
        return self._cameras.calibration()

    def show_only(self, columns: Collection[str]) -> None:
        self._cameras.show_only(columns)

    def close(self) -> None:
        self._scene.close()

    @property
    def door(self) -> float:
        """How far the microwave's door is open (rad)."""
        return self._kitchen.door

    def _begin(self, seed: int) -> None:
        self._kitchen.begin(seed, bowl_inside=self._task.bowl_inside)
        self._expert = Expert(self._kitchen, self._task)
        self._reached, self._closed = dict.fromkeys(self._task.parts, False), 0.0

    def _observe(self) -> dict[str, np.ndarray]:
        place, axes = self._kitchen.tool
        numbers = {
            "obs/joint_pos": self._kitchen.joints, "obs/eef_pos": place, "obs/eef_quat": _quaternion(axes),
            "obs/normalized_gripper_pos": np.array([self._kitchen.closed]),
        }  # fmt: skip
        return {name: value.astype(np.float32) for name, value in numbers.items()} | self._cameras.readings()

    def _check_options(self) -> None:
        if not isinstance(self.task, str) or self.task not in TASKS:
            near = difflib.get_close_matches(str(self.task), TASKS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"task={self.task}: the ur5 simulator has {', '.join(TASKS)}.{hint}")
        if isinstance(self.variation, bool) or self.variation not in VARIATIONS:
            raise UserError(f"variation={self.variation!r}: there are {', '.join(map(str, VARIATIONS))}.")
        if self.actions not in ACTIONS:
            raise UserError(f"actions={self.actions!r}: takes {', '.join(ACTIONS)}.")
        if self.max_steps is not None:
            check_number("max_steps", self.max_steps, 1)
        check_number("image_size", self.image_size, 16)
        check_number("num_points", self.num_points, 0)
        if not isinstance(self.use_color, bool):
            raise UserError(f"use_color={self.use_color!r}: takes true or false.")
        if not isinstance(self.save_images, (bool, str)) or self.save_images not in PICTURES:
            raise UserError(f"save_images={self.save_images!r}: takes true, false, rgb or depth.")
        if self.use_color and not self.num_points:
            raise UserError("use_color=true, but num_points=0: there is no cloud to colour. Set num_points above 0.")


def _quaternion(axes: np.ndarray) -> np.ndarray:
    """(4,) x y z w of axes (3, 3): of the two that mean the same turn, the one on the side of the tool at rest."""
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, axes.ravel())
    quat = np.roll(quat, -1)
    return quat if quat @ REST_QUATERNION >= 0 else -quat
