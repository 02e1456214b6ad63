"""PushT's expert: it tries pushes in a copy of the physics, and makes the one that brings the T nearest its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppt_kit.sim.simulators.gym.tee import BOARD, CORNERS, EDGES, RADIUS, Pose, way_round

WALK = 16.0  # a control step on the way round (px)
PUSH = 8.0  # a control step in contact (px)
STANDOFF = 4.0  # between pusher and T where a push begins (px)
LENGTHS = (6.0, 14.0, 28.0, 50.0, 80.0, 120.0)  # of pushes that are tried (px)
TILTS = (-0.45, 0.0, 0.45)  # of their direction to the normal (rad)
SPACING = 18.0  # of the points that are pushed (px)
TRIED, REFINED = 8, 25  # pushes that are tried with their way there, and changes to the best
# a control step's price, in px of the corners' mean distance: far from the place time counts, near it precision
FAR, HURRY, CARE = 12.0, 0.12, 0.02
# the pusher's controller lags: its target leads by so many control steps of the way (theory: k_v / k_p = 2)
LEAD = 1.6
SETTLE = 2  # control steps at the end of a way

# of the simulator: gains, physics steps of a control step, and their length (s)
K_P, K_V, SUBSTEPS, DT = 100.0, 20.0, 10, 0.01


@dataclass(frozen=True)
class Push:
    """Where the T is touched and pushed: all in its own frame, as it lies when the push begins."""

    contact: np.ndarray
    normal: np.ndarray
    tilt: float
    length: float

    def ends(self, pose: Pose) -> np.ndarray:
        """(2, 2) where the pusher's centre begins and ends."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        direction = np.array([[c, -s], [s, c]]) @ -self.normal
        begins = self.contact + self.normal * (RADIUS + STANDOFF)
        return pose.on_board(np.stack([begins, begins + direction * (STANDOFF + self.length)]))

    def changed(self, rng: np.random.Generator) -> Push:
        """One like it."""
        along = np.array([-self.normal[1], self.normal[0]])
        shift, tilt, stretch = rng.normal(size=3) * (4.0, 0.12, 0.15)
        return Push(
            self.contact + along * shift, self.normal, self.tilt + tilt, max(1.0, self.length * np.exp(stretch))
        )


@dataclass(frozen=True)
class State:
    """Of the board: the pusher's place and velocity, and the T's pose."""

    place: np.ndarray
    velocity: np.ndarray
    tee: Pose

    @classmethod
    def of(cls, env: Any) -> State:
        """What an environment is in now."""
        agent, block = env.agent, env.block
        pose = Pose(np.array(block.position), float(block.angle))
        return cls(np.array(agent.position), np.array(agent.velocity), pose)


class Twin:
    """A copy of a PushT environment's physics, put into any state.

    Args:
        env: a gym_pusht PushTEnv.
    """

    def __init__(self, env: Any):
        self._env = type(env)(block_cog=env.block_cog, damping=env.damping)
        self._env.reset(seed=0)
        place = env.goal_pose
        self._goal = Pose(place[:2], float(place[2])).on_board(CORNERS)

    def put(self, state: State) -> None:
        """Begins in a state, with the T at rest."""
        agent, block = self._env.agent, self._env.block
        agent.position, agent.velocity = tuple(state.place), tuple(state.velocity)
        # the angle first: it turns the T about its centre of mass, which moves its origin
        block.angle, block.position = state.tee.angle, tuple(state.tee.position)
        block.velocity, block.angular_velocity = (0, 0), 0
        for body in (agent, block):
            self._env.space.reindex_shapes_for_body(body)

    def run(self, actions: np.ndarray) -> State:
        """The state after (N, 2) actions; the environment's own step without what it counts and draws."""
        agent, space = self._env.agent, self._env.space
        (x, y), (vx, vy) = agent.position, agent.velocity
        for goal_x, goal_y in actions.tolist():
            for _ in range(SUBSTEPS):
                vx += (K_P * (goal_x - x) - K_V * vx) * DT
                vy += (K_P * (goal_y - y) - K_V * vy) * DT
                agent.velocity = vx, vy
                space.step(DT)
                x, y = agent.position
        return State.of(self._env)

    def error(self, tee: Pose) -> float:
        """Mean distance of the T's corners from where they belong (px)."""
        return float(np.linalg.norm(tee.on_board(CORNERS) - self._goal, axis=-1).mean())


class Pusher:
    """Called with the environment when an episode begins, then with each observation; gives (2,) actions.

    Args:
        env: a gym_pusht PushTEnv; its state is read, whatever its observations show.
    """

    def __init__(self, env: Any):
        self._env, self._twin = env, Twin(env)
        self._left: deque[np.ndarray] = deque()

    def __call__(self, observation: Any) -> np.ndarray:
        if not self._left:
            self._left.extend(self._plan(State.of(self._env)))
        return self._left.popleft()

    def _plan(self, state: State) -> np.ndarray:
        """(N, 2) actions of the next push and the way there."""
        error = self._twin.error(state.tee)
        price = HURRY if error > FAR else CARE
        best = None
        for push in self._ranked(state, price):
            best = self._better(best, push, state, price)
            if best is not None and best.tried == TRIED:
                break
        rng = np.random.default_rng(0)
        for _ in range(REFINED if best else 0):
            best = self._better(best, best.push.changed(rng), state, price)  # type: ignore[union-attr]
        # nothing can be reached: it waits, and the time limit says that it failed
        return best.actions if best else state.place[None]

    def _ranked(self, state: State, price: float) -> list[Push]:
        """Pushes by what they would give and cost, begun in place: the way there is only estimated."""
        rated: list[tuple[float, int, Push]] = []
        for contact, normal, tilt in _contacts():
            for push, after in self._lengths(state, Push(contact, normal, tilt, 0.0)):
                way = float(np.linalg.norm(push.ends(state.tee)[0] - state.place))
                steps = way / WALK + (STANDOFF + push.length) / PUSH
                rated.append((self._twin.error(after) + price * steps, len(rated), push))
        return [push for _, _, push in sorted(rated)]

    def _lengths(self, state: State, push: Push) -> Iterator[tuple[Push, Pose]]:
        """One contact pushed on and on: each of LENGTHS, and where the T is then."""
        at = push.ends(state.tee)[0]
        if not _on_board(at):
            return
        self._twin.put(State(at, np.zeros(2), state.tee))
        for length in LENGTHS:
            longer = Push(push.contact, push.normal, push.tilt, length)
            end = longer.ends(state.tee)[1]
            if not _on_board(end):
                return
            moving = self._twin.run(_followed(np.stack([at, end]), PUSH, settle=0))
            yield longer, self._twin.run(np.repeat(end[None], SETTLE, 0)).tee
            self._twin.put(moving)
            at = end

    def _better(self, best: _Tried | None, push: Push, state: State, price: float) -> _Tried | None:
        """The better of two, once the whole of `push` was tried: the way there, and the push."""
        ends = push.ends(state.tee)
        way = way_round(state.place, ends[0], state.tee) if all(map(_on_board, ends)) else None
        if way is None:
            return best
        actions = np.concatenate([_followed(way, WALK), _followed(ends, PUSH)])
        self._twin.put(state)
        cost = self._twin.error(self._twin.run(actions).tee) + price * len(actions)
        tried = best.tried + 1 if best else 1
        if best and best.cost <= cost:
            return _Tried(best.push, best.actions, best.cost, tried)
        return _Tried(push, actions, cost, tried)


@dataclass(frozen=True)
class _Tried:
    push: Push
    actions: np.ndarray
    cost: float
    tried: int


def _contacts() -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Points of the T's boundary, their normals, and the directions to push them in."""
    for begin, end, normal in EDGES:
        count = max(2, int(np.linalg.norm(end - begin) // SPACING))
        for share in (np.arange(count) + 0.5) / count:
            for tilt in TILTS:
                yield begin + (end - begin) * share, normal, tilt


def _on_board(place: np.ndarray) -> bool:
    return bool(((place > BOARD[0]) & (place < BOARD[1])).all())


def _followed(way: np.ndarray, speed: float, *, settle: int = SETTLE) -> np.ndarray:
    """(N, 2) float32 actions that lead the pusher along the corners of a way, `speed` px a control step."""
    places = [way[:1]]
    for begin, end in zip(way[:-1], way[1:]):
        count = max(1, int(np.ceil(np.linalg.norm(end - begin) / speed)))
        places.append(begin + (end - begin) * (np.arange(1, count + 1) / count)[:, None])
    steps = np.diff(np.concatenate(places), axis=0)
    ahead = np.concatenate([steps[1:], np.zeros((1, 2))])
    actions = np.concatenate([np.concatenate(places)[1:] + LEAD * ahead, np.repeat(way[-1:], settle, 0)])
    # as the environment takes them, so that the copy does the same
    return np.clip(actions, 0, 512).astype(np.float32)
