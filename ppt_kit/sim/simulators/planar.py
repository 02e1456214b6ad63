"""A point in the plane, and two equally good ways: the smallest task on which demonstrations disagree."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppt_kit.errors import UserError

SPEED = 0.05  # longest way of one control step (m)
RADIUS = 0.3  # of the obstacle (m)
CLEARANCE = (0.4, 0.55)  # that the expert keeps from its centre, drawn from this range (m)
PAUSE = (16, 41)  # before it goes, drawn from this range (control steps)
REACHED = 0.15  # distance to the goal (m)


class PlanarEnv:
    """A point that stands before a round obstacle, and its goal behind it; it may pass on the left or on the right.

    Seeds 2k and 2k+1 are one scene, which the expert passes on the left and on the right: nothing that is seen tells
    which. It hesitates for a while and goes, each time as near to the obstacle as it draws. So the mean of what it does
    leads to the obstacle and no farther, and the median is to wait for ever. Who touches the obstacle stays there.

    Readings: obs/position, obs/goal and obs/obstacle (2,) float32 m. Actions (2,): share of SPEED along x and y, at
    most 1 long together.

    Args:
        task: "detour".
        noise: of start, goal and obstacle, uniform to both sides along each axis (m).
        max_steps: longest episode (control steps).
    """

    def __init__(self, task: str, *, noise: float = 0.05, max_steps: int = 120):
        if task != "detour":
            raise UserError(f"task={task}: the planar simulator has one task: task=detour.")
        self.task, self.noise, self.max_steps = task, noise, max_steps
        self.description = "go round the obstacle to the goal"
        self.reset(0)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        scene, side = divmod(seed, 2)
        rng = np.random.default_rng(scene)
        places = np.array([(0.0, -0.65), (0.0, 0.9), (0.0, 0.0)])
        start, self.goal, self.obstacle = places + rng.uniform(-self.noise, self.noise, places.shape)
        self.clearance = float(rng.uniform(*CLEARANCE))
        self.pause = int(rng.integers(*PAUSE))
        self.side, self.touched, self.path = 2.0 * side - 1.0, False, [start]
        return self._reading()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        way = np.asarray(action, np.float64) * SPEED / max(1.0, float(np.linalg.norm(action)))
        self.path.append(self.path[-1] + way * (not self.touched))
        self.touched |= bool(np.linalg.norm(self.path[-1] - self.obstacle) < RADIUS)
        gap = float(np.linalg.norm(self.goal - self.path[-1]))
        return self._reading(), -gap, gap < REACHED and not self.touched

    def expert_action(self) -> np.ndarray:
        """Along the tangent of a circle round the obstacle until the goal is in sight."""
        if len(self.path) <= self.pause:
            return np.zeros(2)
        at = self.path[-1]
        to_goal, to_centre = self.goal - at, self.obstacle - at
        distance = max(float(np.linalg.norm(to_centre)), self.clearance)
        angle = self.side * np.arcsin(self.clearance / distance)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        tangent = turn @ to_centre
        hidden = to_goal @ to_centre > 0 and self.side * (tangent[0] * to_goal[1] - tangent[1] * to_goal[0]) > 0
        way = tangent if hidden else to_goal
        return way / max(float(np.linalg.norm(way)), SPEED)

    def spec(self) -> dict[str, Any]:
        return {"simulator": "planar", "task": self.task, "noise": self.noise, "max_steps": self.max_steps}

    def render(self, size: int = 256) -> np.ndarray:
        """(size, size, 3) uint8: obstacle grey, goal green, the way blue, or red where it ended at the obstacle."""
        rows, columns = np.mgrid[:size, :size]
        pixels = np.stack([columns, size - 1 - rows], -1) * (2.2 / (size - 1)) - 1.1
        picture, soft = np.full((size, size, 3), 255.0), 2.2 / size
        blue, red, green, grey = (38, 84, 196), (200, 40, 40), (46, 160, 90), (150, 154, 162)
        discs = [(self.goal, REACHED, green), (self.obstacle, RADIUS, grey)]
        discs += [(at, 0.008, red if self.touched else blue) for at in self.path]
        discs.append((self.path[-1], 0.03, red if self.touched else blue))
        for centre, radius, colour in discs:
            # only where it is: a long way has many discs
            reach, middle = radius / soft + 2, (np.asarray(centre) + 1.1) / (2.2 / (size - 1))
            (left, right), (low, high) = ((int(max(m - reach, 0)), int(max(m + reach + 2, 0))) for m in middle)
            part = np.s_[max(size - 1 - high, 0) : max(size - low, 0), left:right]
            cover = np.clip((radius - np.linalg.norm(pixels[part] - centre, axis=-1)) / soft + 0.5, 0, 1)[..., None]
            picture[part] += cover * (np.array(colour) - picture[part])
        return picture.round().astype(np.uint8)

    def _reading(self) -> dict[str, np.ndarray]:
        seen = {"obs/position": self.path[-1], "obs/goal": self.goal, "obs/obstacle": self.obstacle}
        return {name: value.astype(np.float32) for name, value in seen.items()}
