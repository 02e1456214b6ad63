"""Where the tool is for given joints, and which joints bring it to a pose: damped least squares."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from ppt_kit.sim.simulators.ur5.arm import JOINTS, MOST_JOINT, NUM_JOINTS

DAMPING = 0.05  # of the least squares: near a singular pose joints move slowly instead of far
ROUNDS = 12
LONGEST = 0.2  # rad: of one round


class Kinematics:
    """Of the arm in `model`; it computes in numbers of its own and moves nothing.

    Source: Buss 2004, Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped least
    squares methods.
    """

    def __init__(self, model: mujoco.MjModel):
        self._model, self._data = model, mujoco.MjData(model)
        self._site = model.site("tool").id
        self._places = np.array([model.joint(name).qposadr[0] for name in JOINTS])
        self._columns = np.array([model.joint(name).dofadr[0] for name in JOINTS])

    def tool(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(3,) where the tool is (m) and (3, 3) its axes as columns, in the world."""
        self._set(joints)
        data: Any = self._data
        return data.site_xpos[self._site].copy(), data.site_xmat[self._site].reshape(3, 3).copy()

    def solve(self, joints: np.ndarray, place: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """(6,) joints (rad) near `joints` that bring the tool to `place` (3,) and `axes` (3, 3), or near to it."""
        joints = np.array(joints, np.float64)
        for _ in range(ROUNDS):
            error = self._error(joints, place, axes)
            if np.linalg.norm(error) < 1e-5:
                break
            jacobian = self._jacobian()
            square = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
            change = jacobian.T @ np.linalg.solve(square, error)
            joints += change * min(1.0, LONGEST / max(float(np.abs(change).max()), 1e-9))
            joints = np.clip(joints, np.negative(MOST_JOINT), MOST_JOINT)
        return joints

    def _error(self, joints: np.ndarray, place: np.ndarray, axes: np.ndarray) -> np.ndarray:
        """(6,) way (m) and turn (rad) that are left, in the world."""
        at, now = self.tool(joints)
        return np.concatenate([place - at, turn_between(now, axes)])

    def _jacobian(self) -> np.ndarray:
        """(6, 6) at the joints that were set last."""
        moved, turned = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jacSite(self._model, self._data, moved, turned, self._site)
        return np.concatenate([moved, turned])[:, self._columns]

    def _set(self, joints: np.ndarray) -> None:
        if np.shape(joints) != (NUM_JOINTS,):
            raise ValueError(f"joints {np.shape(joints)}: the arm has {NUM_JOINTS}")
        self._data.qpos[self._places] = joints
        mujoco.mj_kinematics(self._model, self._data)


def turn_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(3,) rotation vector (rad) in the world that turns axes `start` (3, 3) into `end` (3, 3)."""
    quat, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quat, (end @ start.T).ravel())
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


def turned(axes: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(3, 3) `axes` turned by the rotation vector (3,) (rad) in the world."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return axes
    quat, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quat, vector / angle, angle)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3) @ axes
