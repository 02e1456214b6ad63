"""The scene as it stands: begins an episode, moves the arm for one control step, and says what is where."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from ppt_kit.sim.simulators.ur5.arm import FINGERS, JOINTS, MOST_JOINT, MOST_LEAD, NUM_JOINTS, OPENING, REST, SQUEEZE
from ppt_kit.sim.simulators.ur5.scene import STEPS_A_CONTROL, Variation, scene_xml

# what an episode draws from its seed, uniform between these
OVEN_PLACE = ((0.72, -0.05), (0.80, 0.06))  # m: where its front is
OVEN_YAW = (-0.25, 0.25)  # rad
DOOR_OPEN = (1.35, 1.75)  # rad
BOWL_PLACE = ((-0.25, -0.24), (-0.16, -0.03))  # m: on the table, in the microwave's frame
BOWL_INSIDE = ((0.13, -0.03), (0.19, 0.03))  # m: behind the front, and from the middle of the room inside
START_NOISE = 0.08  # rad, to both sides, of each joint
SETTLING = 40  # physics steps before the first reading
MOST_TRIES = 100  # of a start at which nothing touches


class Kitchen:
    """MuJoCo's model and data of one variation, by the names of what stands in it.

    Attributes:
        model, data: MuJoCo's.
        variation: measures of bowl and microwave.
    """

    def __init__(self, variation: Variation):
        self.variation = variation
        self.model = mujoco.MjModel.from_xml_string(scene_xml(variation))
        self.data: Any = mujoco.MjData(self.model)
        self._joints = np.array([self.model.joint(name).qposadr[0] for name in JOINTS])
        self._fingers = np.array([self.model.joint(name).qposadr[0] for name in FINGERS])
        self._door, self._bowl = (self.model.joint(name).qposadr[0] for name in ("door", "bowl"))
        self._bodies = {name: self.model.body(name).id for name in ("bowl", "microwave", "door", *FINGERS)}

    def begin(self, seed: int, *, bowl_inside: bool) -> None:
        """Everything where the seed puts it, the door open, the arm touching nothing."""
        rng = np.random.default_rng(seed)
        self._place(rng, bowl_inside=bowl_inside)
        for _ in range(MOST_TRIES):
            start = REST + rng.uniform(-START_NOISE, START_NOISE, NUM_JOINTS)
            self.data.qpos[self._joints], self.data.ctrl[:NUM_JOINTS] = start, start
            mujoco.mj_forward(self.model, self.data)
            if not self.arm_touches():
                break
        else:
            raise RuntimeError(f"seed {seed}: no start in {MOST_TRIES} at which the arm touches nothing")
        mujoco.mj_step(self.model, self.data, SETTLING)
        mujoco.mj_forward(self.model, self.data)

    def advance(self, joints: np.ndarray, *, closed: float) -> None:
        """One control step towards joint targets (6,) rad, the gripper's drive at `closed`, 0 open to 1 closed."""
        now = self.joints
        target = now + np.clip(joints - now, -MOST_LEAD, MOST_LEAD)
        self.data.ctrl[:NUM_JOINTS] = np.clip(target, np.negative(MOST_JOINT), MOST_JOINT)
        self.data.ctrl[NUM_JOINTS] = OPENING - (OPENING + SQUEEZE) * np.clip(closed, 0, 1)
        mujoco.mj_step(self.model, self.data, STEPS_A_CONTROL)
        # a step leaves places and contacts as they were before its last move
        mujoco.mj_forward(self.model, self.data)

    @property
    def joints(self) -> np.ndarray:
        """(6,) rad."""
        return self.data.qpos[self._joints].copy()

    @property
    def closed(self) -> float:
        """Of the gripper: 0 open to 1 closed."""
        return float(1 - self.data.qpos[self._fingers].mean() / OPENING)

    @property
    def tool(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) m and (3, 3) axes of the tool."""
        site = self.data.site("tool")
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    @property
    def door(self) -> float:
        """How far it is open (rad)."""
        return float(self.data.qpos[self._door])

    @property
    def bowl(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) m and (3, 3) axes of its foot."""
        return self._pose("bowl")

    @property
    def oven(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) m and (3, 3) axes of the microwave: in the middle below its front, x into it."""
        return self._pose("microwave")

    @property
    def bowl_in_oven(self) -> np.ndarray:
        """(3,) m of the bowl's foot in the microwave's frame."""
        origin, axes = self.oven
        return axes.T @ (self.bowl[0] - origin)

    def fingers_on_bowl(self) -> int:
        """How many of the two touch it."""
        return sum(self._touch(finger, "bowl") for finger in FINGERS)

    def arm_touches(self) -> bool:
        """Whether any part of the arm or of the gripper touches anything."""
        kinds = self.model.geom_contype
        return any({1, 2} == {int(kinds[contact.geom1]), int(kinds[contact.geom2])} for contact in self._contacts())

    def _place(self, rng: np.random.Generator, *, bowl_inside: bool) -> None:
        mujoco.mj_resetData(self.model, self.data)
        oven, yaw = rng.uniform(*OVEN_PLACE), rng.uniform(*OVEN_YAW)
        body = self._bodies["microwave"]
        self.model.body_pos[body, :2] = oven
        self.model.body_quat[body] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self.data.qpos[self._door] = rng.uniform(*DOOR_OPEN)
        self.data.qpos[self._fingers] = OPENING
        self.data.ctrl[NUM_JOINTS] = OPENING
        height, before, inside = 0.001, rng.uniform(*BOWL_PLACE), rng.uniform(*BOWL_INSIDE)
        if bowl_inside:
            low, high = self.variation.oven.cavity
            before = inside + [0, (low[1] + high[1]) / 2]
            height += low[2]
        place = oven + np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]) @ before
        turn = rng.uniform(-np.pi, np.pi)
        self.data.qpos[self._bowl : self._bowl + 7] = [*place, height, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]

    def _pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        body = self._bodies[name]
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def _touch(self, one: str, other: str) -> bool:
        bodies, pair = self.model.geom_bodyid, {self._bodies[one], self._bodies[other]}
        return any({int(bodies[each.geom1]), int(bodies[each.geom2])} == pair for each in self._contacts())

    def _contacts(self) -> Any:
        return self.data.contact[: self.data.ncon]
