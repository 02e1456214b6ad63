"""The T of PushT: its shape, where a round pusher can touch it, and the way round it. Lengths in its pixels."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

RADIUS = 15.0  # of the pusher
CLEAR = 2.5  # kept between pusher and T on the way round
BOARD = (4.0, 508.0)  # where the pusher's centre may be, along both axes

# in the T's own frame: bar and stem as boxes, centre and half sizes
BOXES = np.array([(0.0, 15.0, 60.0, 15.0), (0.0, 75.0, 15.0, 45.0)])
CORNERS = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], np.float64)
# from, to, and the normal outwards; short of the corners, and of where the pusher would touch both boxes
EDGES = np.array([
    [(-58, 0), (58, 0), (0, -1)], [(-60, 2), (-60, 28), (-1, 0)], [(60, 2), (60, 28), (1, 0)],
    [(-58, 30), (-33, 30), (0, 1)], [(33, 30), (58, 30), (0, 1)],
    [(-15, 48), (-15, 118), (-1, 0)], [(15, 48), (15, 118), (1, 0)], [(-13, 120), (13, 120), (0, 1)],
], np.float64)  # fmt: skip
# where a way round it turns
TURNS = np.array([(-80, -20), (80, -20), (-80, 50), (80, 50), (-35, 50), (35, 50), (-35, 140), (35, 140)], np.float64)


@dataclass(frozen=True)
class Pose:
    """Where the T lies: (2,) of its frame's origin, and its angle (rad)."""

    position: np.ndarray
    angle: float

    @property
    def axes(self) -> np.ndarray:
        """(2, 2), its own to the board's directions."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return np.array([[c, -s], [s, c]])

    def on_board(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) points of its frame as the board's."""
        return points @ self.axes.T + self.position

    def in_frame(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) points of the board as its frame's."""
        return (points - self.position) @ self.axes


def gap(points: np.ndarray) -> np.ndarray:
    """(...) distance of points (..., 2) of its frame from the T's boundary, negative inside."""
    beyond = np.abs(points[..., None, :] - BOXES[:, :2]) - BOXES[:, 2:]
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=-1)
    return (outside + np.minimum(beyond.max(-1), 0)).min(-1)


def way_round(start: np.ndarray, end: np.ndarray, pose: Pose) -> np.ndarray | None:
    """(N, 2) corners of the shortest way on the board that keeps clear of the T; None = there is none.

    A pusher that touches it leaves it first.
    """
    here, goal = pose.in_frame(np.stack([start, end]))
    first = _left(here)
    nodes = np.stack([first, goal, *TURNS])
    board = pose.on_board(nodes)
    usable = np.all((board > BOARD[0]) & (board < BOARD[1]), axis=1)
    usable[:2] = True
    order = _shortest(nodes, usable)
    if order is None:
        return None
    leaving = [] if first is here else [here]
    return pose.on_board(np.stack([*leaving, *(nodes[node] for node in order)]))


def _left(point: np.ndarray) -> np.ndarray:
    """The nearest point in which the pusher is clear of the T; the same where it is."""
    if gap(point) >= RADIUS + CLEAR:
        return point
    turns = np.arange(16) * np.pi / 8
    rings = point + np.arange(1.0, 80.0)[:, None, None] * np.stack([np.cos(turns), np.sin(turns)], -1)
    gaps = gap(rings)
    ring = int(np.argmax((gaps >= RADIUS + CLEAR).any(1)))
    return rings[ring, int(np.argmax(gaps[ring]))]


def _shortest(nodes: np.ndarray, usable: np.ndarray) -> list[int] | None:
    """The nodes from the first to the second, over straight ways that are clear."""
    along = np.linspace(0, 1, 24)[:, None]
    ways = nodes[:, None, None] * (1 - along) + nodes[None, :, None] * along
    clear = (gap(ways) >= RADIUS + CLEAR - 0.1).all(-1) & usable & usable[:, None]
    lengths = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
    reached, open_ways = set[int](), [(0.0, [0])]
    while open_ways:
        length, path = heapq.heappop(open_ways)
        if path[-1] == 1:
            return path
        if path[-1] in reached:
            continue
        reached.add(path[-1])
        for node in np.flatnonzero(clear[path[-1]]):
            if node not in reached:
                heapq.heappush(open_ways, (length + lengths[path[-1], node], [*path, int(node)]))
    return None
