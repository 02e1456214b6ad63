"""A scripted expert: places that the tool goes to one after the other, by inverse kinematics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ppt_kit.sim.simulators.ur5.kinematics import Kinematics, turn_between, turned
from ppt_kit.sim.simulators.ur5.kitchen import Kitchen
from ppt_kit.sim.simulators.ur5.tasks import Task

AHEAD = 0.035  # m: the target is at most so far ahead of the tool, which the servos' lag of 0.1 s makes 0.35 m/s
TURN_AHEAD = 0.25  # rad, in the same way
NEAR, NEAR_TURN = 0.012, 0.12  # m and rad: a place that is passed through
AT, AT_TURN = 0.004, 0.05  # m and rad: a place where something is done
GRIP_STEPS = 8  # control steps that the fingers take
PITCH = 0.85  # rad: the tool points so far below the horizontal
DOOR_RADIUS = 0.27  # m from the hinge: where the door is pushed
DOOR_HEIGHT = 0.17  # m over the table
OVER_DOOR = 0.43  # m over the table: nothing of the tool touches the door there
DOOR_CLEAR = 0.1  # m before the door's face
DOOR_TURN = 0.35  # of the door's angle: the tool points so far to where the door is pushed
DOOR_LEAD = 0.12  # rad: the place that is pushed to is so far ahead of the door


@dataclass(frozen=True)
class Move:
    """Where the tool goes next, as the scene stands now.

    Attributes:
        pose: gives place (3,) m and axes (3, 3) of the tool.
        closed: gripper, 0 open to 1 closed.
        done: of place and turn that are left (m, rad) and the steps since the move began, whether the next one begins.
    """

    pose: Callable[[], tuple[np.ndarray, np.ndarray]]
    closed: float
    done: Callable[[float, float, int], bool]


class Expert:
    """Acts out of what the scene is, not of what a camera sees.

    Its targets start from where the joints are, so that the same scene in the same move gives the same action.
    """

    def __init__(self, kitchen: Kitchen, task: Task):
        self._kitchen, self._arm = kitchen, Kinematics(kitchen.model)
        self._moves = iter(self._plan(task))
        self._move, self._steps = next(self._moves), 0

    def act(self) -> tuple[np.ndarray, float]:
        """(6,) joint targets (rad), and how far the gripper is to be closed."""
        at, axes = self._kitchen.tool
        place, wanted = self._move.pose()
        turn = turn_between(axes, wanted)
        self._steps += 1
        if self._move.done(float(np.linalg.norm(place - at)), float(np.linalg.norm(turn)), self._steps):
            self._move, self._steps = next(self._moves, self._move), 0
            place, wanted = self._move.pose()
            turn = turn_between(axes, wanted)
        towards = at + _shortened(place - at, AHEAD)
        joints = self._arm.solve(self._kitchen.joints, towards, turned(axes, _shortened(turn, TURN_AHEAD)))
        return joints, self._move.closed

    def _plan(self, task: Task) -> Iterator[Move]:
        if not task.bowl_inside:
            yield from self._fetch()
            yield from self._put()
        yield from self._close()

    def _fetch(self) -> Iterator[Move]:
        yield Move(lambda: self._at_bowl(back=0.07), 0.0, _near)
        yield Move(lambda: self._at_bowl(), 0.0, _there)
        gripped = self._kitchen.tool
        yield Move(lambda: gripped, 1.0, lambda way, turn, steps: steps > GRIP_STEPS)

    def _put(self) -> Iterator[Move]:
        place, _ = self._kitchen.tool
        height = self._grip_height()
        up = place + [0, 0, 0.085]
        yield Move(lambda: (up, self._axes(0.0)), 1.0, _near)
        floor = self._kitchen.variation.oven.cavity[0, 2]
        for depth, over in ((-0.16, 0.06), (0.155, 0.05), (0.155, 0.004)):
            pose = partial(self._in_oven, depth, floor + over + height)
            yield Move(pose, 1.0, _near if over > 0.01 else _there)
        let_go = self._in_oven(0.155, floor + 0.004 + height)
        yield Move(lambda: let_go, 0.0, lambda way, turn, steps: steps > GRIP_STEPS)
        back = let_go[0] - 0.05 * let_go[1][:, 2]
        yield Move(lambda: (back, let_go[1]), 0.0, _near)
        yield Move(lambda: self._in_oven(-0.2, float(back[2]) + 0.05), 0.0, _near)

    def _close(self) -> Iterator[Move]:
        yield Move(lambda: self._in_oven(-0.2, OVER_DOOR), 1.0, _near)
        yield Move(lambda: self._at_door(DOOR_CLEAR + 0.02, rise=OVER_DOOR - DOOR_HEIGHT), 1.0, _near)
        yield Move(lambda: self._at_door(DOOR_CLEAR), 1.0, _near)
        yield Move(lambda: self._at_door(0.0, lead=DOOR_LEAD), 1.0, lambda way, turn, steps: False)

    def _axes(self, yaw: float, pitch: float = PITCH) -> np.ndarray:
        """(3, 3) of a tool that points along the microwave's x turned by `yaw`, and down, one finger over the other."""
        ahead = self._kitchen.oven[1] @ [np.cos(yaw), np.sin(yaw), 0.0]
        along = np.cos(pitch) * ahead - [0, 0, np.sin(pitch)]
        over = -np.sin(pitch) * ahead - [0, 0, np.cos(pitch)]
        return np.stack([over, np.cross(along, over), along], axis=1)

    def _grip_radius(self) -> float:
        return self._kitchen.variation.bowl.rim - 0.004 * np.cos(self._slope)

    def _grip_height(self) -> float:
        """Of the tool over the bowl's foot (m)."""
        return self._kitchen.variation.bowl.height - 0.004 * np.sin(self._slope)

    @property
    def _slope(self) -> float:
        return self._kitchen.variation.bowl.slope

    def _at_bowl(self, back: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """At the near side of the rim, the fingers along the wall; or `back` from there (m)."""
        axes = self._axes(0.0, self._slope)
        ahead = self._kitchen.oven[1][:, 0]
        place = self._kitchen.bowl[0] - self._grip_radius() * ahead + [0, 0, self._grip_height()]
        return place - back * axes[:, 2], axes

    def _in_oven(self, depth: float, height: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the tool is when the bowl that it holds is `depth` behind the front; `height` is the tool's (m)."""
        origin, axes = self._kitchen.oven
        low, high = self._kitchen.variation.oven.cavity
        inside = np.array([depth - self._grip_radius(), (low[1] + high[1]) / 2, height])
        return origin + axes @ inside, self._axes(0.0, self._slope)

    def _at_door(self, before: float, *, rise: float = 0.0, lead: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """`before` the door's outer face, or where that will be when it is closed by `lead` more (m, rad)."""
        angle = self._kitchen.door - lead
        origin, axes = self._kitchen.oven
        along, out = np.array([-np.sin(angle), -np.cos(angle), 0]), np.array([-np.cos(angle), np.sin(angle), 0])
        oven = self._kitchen.variation.oven
        place = oven.hinge + DOOR_RADIUS * along + (before + 0.03) * out
        place[2] = DOOR_HEIGHT + rise
        return origin + axes @ place, self._axes(-DOOR_TURN * self._kitchen.door)


def _near(way: float, turn: float, steps: int) -> bool:
    return way < NEAR and turn < NEAR_TURN


def _there(way: float, turn: float, steps: int) -> bool:
    return way < AT and turn < AT_TURN


def _shortened(vector: np.ndarray, longest: float) -> np.ndarray:
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-9))
