"""The picture of the house in README and CONTRIBUTING.md: python scripts/draw_structure.py [FILE]

Rooms and storeys are those of the map at the top of ppt_kit/__init__.py, arrows the imports that the files hold.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from PIL import Image

import ppt_kit

PACKAGE = Path(ppt_kit.__file__).parent
PICTURE = PACKAGE.parent / "notebooks/images/structure.png"

# what each room is for; a room of the map that has no line here stops the script
PURPOSE = {
    "errors": "told in one line", "files": "all or nothing", "parts": "yours, by name",
    "lfs": "notes of Git LFS", "horizon": "seen and decided", "keys": "and their ranges",
    "randomness": "noise by seed", "cameras": "depth to points", "upgrade": "of older files",
    "signals": "stop and save", "tables": "that fit a cell", "programs": "what to type",
    "torch_file": "tensors, no code", "model_keys": "what a policy is", "train_keys": "how to train",
    "spec": "a domain in sizes", "schema": "all keys", "checks": "what fits together", "words": "one grammar",
    "yaml_files": "read as meant", "config": "one tree, typed", "migration": "old to new", "help": "all keys, told",
    "data": "any format on disk to batches", "models": "stems, encoders, one trunk, heads",
    "augment": "noise and moves, on the device", "engine": "one step inside DeepSpeed",
    "tracking": "rows and logs, W&B as a mirror",
    "checkpoint": "weights on disk and back", "jobs": "ranks started, watched, stopped",
    "sim": "demonstrations and success rates", "memory": "what a run takes of it",
    "zero": "DeepSpeed's folders, read as data",
    "train": "one run, first to last step", "targets": "checkpoints and tasks", "verify": "a card, replayed",
    "comparing": "two policies on the same goals", "runs": "sweeps, runs as tables",
    "installation": "can this machine do it", "adopt": "policies of ppt_learning",
    "notebook": "curves, figures, videos", "__main__": "one rank of a launched run",
    "commands": "what a shell types", "__init__": "the names that a notebook types",
}  # fmt: skip
# the path of a batch: (title, words, the room it happens in, inches)
BATCH = (
    ("disk", "zarr, HDF5, LeRobot, RLDS, yours", "data", 0.78),
    ("EpisodeStore", "named columns of episodes", "data", 1.0),
    ("View", "a Domain's columns become obs", "data", 0.86),
    ("Windows", "To frames seen, Ta actions", "data", 0.74),
    ("Loader", "batches, fetched ahead", "data", 0.78),
    ("Augmenter", "noise, on the device", "augment", 0.84),
    ("Engine", "precision, ranks, ZeRO", "engine", 0.8),
    ("PPTPolicy", "stems, trunk, heads: chunks of actions", "models", 0.92),
    ("loss", "padding left out", "models", 0.64),
)
VIEW, POLICY = 2, 7
SIMULATOR = ("simulator", "readings by the names of stored columns", "sim")

COLORS = {
    "data": "#d6e6f4", "models": "#f8e3cd", "augment": "#dcedd9", "engine": "#e4dff2", "tracking": "#f1e9c9",
    "sim": "#d3ebe8", "checkpoint": "#f6dcd9", "jobs": "#e6e6e0",
}  # fmt: skip
PLAIN, INK, SOFT, LINE, PAPER = "#efeee9", "#2b2f36", "#646a73", "#8b929c", "#fcfcfa"
# inches; README shows a picture about nine of them wide
WIDTH, TALL, LEFT, RIGHT = 9.0, 7.4, 0.72, 8.85
HEIGHT, GAP = 0.56, 0.12
NOTE = (
    "an arrow: imports from a storey below (those that follow from others are left out); "
    "all may import from the last two"
)
# the storeys under this one carry all others: an arrow to them would say nothing
FIRST_DRAWN = 2

Node = str | tuple[str, str]  # a room, or the gap in a storey that the arrow of a pair of rooms passes through
Edge = tuple[Node, Node]


@dataclass(frozen=True)
class Box:
    """A place in the picture (inches)."""

    left: float
    bottom: float
    width: float
    height: float = HEIGHT

    @property
    def middle(self) -> float:
        return self.left + self.width / 2

    @property
    def top(self) -> float:
        return self.bottom + self.height

    @property
    def right(self) -> float:
        return self.left + self.width


def main(target: Path) -> None:
    """Draws the picture; a name that ends in .svg keeps its words as words."""
    storeys = storeys_of_the_map()
    figure = Figure(figsize=(WIDTH, TALL), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, TALL))
    axes.axis("off")
    draw_house(axes, storeys, needed_arrows(storeys), top=TALL - 0.15)
    draw_batch(axes, top=1.78)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(target, dpi=200, facecolor=PAPER)
    if target.suffix == ".png":
        # a third of the size, and the eye sees no difference
        Image.open(target).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


# -------------------------------------------------------------------- what the code says


def storeys_of_the_map() -> list[tuple[str, list[str]]]:
    """(name, rooms) of each line of the map, the ground first."""
    lines = re.findall(r"^    (\w+) {2,}(\S.*?)(?: {2,}.*)?$", ppt_kit.__doc__ or "", re.MULTILINE)
    return [(name, rooms.replace("|", " ").split()) for name, rooms in lines]


def needed_arrows(storeys: Sequence[tuple[str, list[str]]]) -> set[tuple[str, str]]:
    """Imports from storey to storey above the carrying ones, without those that follow from others."""
    drawn = {room: name for name, rooms in storeys[FIRST_DRAWN:] for room in rooms}
    both = {(room, other) for room, other in _imports() if {room, other} <= set(drawn)}
    direct = {(room, other) for room, other in both if drawn[room] != drawn[other]}
    below: dict[str, set[str]] = {}
    for _, rooms in storeys[FIRST_DRAWN:]:
        for room in rooms:
            beside = {other for each, other in direct if each == room}
            below[room] = beside.union(*(below.get(other, set()) for other in beside))
    return {
        (room, other)
        for room, other in direct
        if not any(other in below[between] for each, between in direct if each == room)
    }


def _imports() -> Iterator[tuple[str, str]]:
    """(room, room that it imports from) of each import in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "ppt_kit" else [f"ppt_kit.{each.name}" for each in node.names]
            yield from ((room, name.split(".")[1]) for name in names if name.startswith("ppt_kit."))


# -------------------------------------------------------------------- where things stand


def arrange(storeys: Sequence[list[str]], arrows: set[tuple[str, str]]) -> tuple[list[list[Node]], list[Edge]]:
    """The rooms of each storey, from the lowest on, with gaps for arrows that pass, so that few arrows cross."""
    level = {room: number for number, rooms in enumerate(storeys) for room in rooms}
    rows: list[list[Node]] = [list(rooms) for rooms in storeys]
    edges: list[Edge] = []
    for room, other in sorted(arrows):
        path: list[Node] = [room, *[(room, other)] * (level[room] - level[other] - 1), other]
        edges += zip(path, path[1:])
        for number in range(level[other] + 1, level[room]):
            rows[number].append((room, other))
    # the two lowest rows by turns, then each by the one below
    for _ in range(3):
        rows[1] = _best(rows[1], lambda order: _crossings(order, rows[0], edges))
        rows[0] = _best(rows[0], lambda order: _crossings(rows[1], order, edges))
    for number in range(1, len(rows)):
        rows[number] = _best(rows[number], functools.partial(_crossings, below=rows[number - 1], edges=edges))
    return rows, edges


def _best(row: list[Node], cost: Callable[[list[Node]], tuple[int, float]]) -> list[Node]:
    """An order that no exchange of two makes better: with a dozen in a row, trying every order takes hours."""
    found, least = row, cost(row)
    while True:
        tried = [_exchanged(found, *pair) for pair in itertools.combinations(range(len(row)), 2)]
        better = min(tried, key=cost, default=found)
        if cost(better) >= least:
            return found
        found, least = better, cost(better)


def _exchanged(row: list[Node], one: int, other: int) -> list[Node]:
    order = list(row)
    order[one], order[other] = order[other], order[one]
    return order


def _crossings(row: list[Node], below: list[Node], edges: list[Edge]) -> tuple[int, float]:
    """How many arrows cross between two rows, and how far to the side they go."""
    ends = [(row.index(a), below.index(b)) for a, b in edges if a in row and b in below]
    crossed = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))
    return crossed, sum(abs((a + 0.5) / len(row) - (b + 0.5) / len(below)) for a, b in ends)


def place(row: Sequence[Node], *, bottom: float) -> dict[Node, Box]:
    """The boxes of one storey: they fill it, as bricks do."""
    bricks = sum(isinstance(node, str) for node in row)
    gaps = len(row) - bricks
    width = (RIGHT - LEFT - GAP * (len(row) - 1) - GAP * gaps) / bricks
    boxes, left = {}, LEFT
    for node in row:
        boxes[node] = Box(left, bottom, width if isinstance(node, str) else GAP)
        left = boxes[node].right + GAP
    return boxes


def ports(edges: Sequence[Edge], boxes: dict[Node, Box]) -> dict[Edge, tuple[float, float]]:
    """(where it leaves, where it ends) of every arrow, side by side at a box."""
    enters: dict[Edge, float] = {}
    leaves: dict[Edge, float] = {}
    for node, box in boxes.items():
        coming = sorted((edge for edge in edges if edge[1] == node), key=lambda edge: boxes[edge[0]].middle)
        for number, edge in enumerate(coming):
            enters[edge] = box.middle + 0.2 * (number - (len(coming) - 1) / 2)
    for node, box in boxes.items():
        going = sorted((edge for edge in edges if edge[0] == node), key=lambda edge: enters[edge])
        margin = min(0.15, box.width / 2)
        for number, edge in enumerate(going):
            low, high = box.left + margin + 0.2 * number, box.right - margin - 0.2 * (len(going) - 1 - number)
            leaves[edge] = min(max(enters[edge], low), high)
    return {edge: (leaves[edge], enters[edge]) for edge in edges}


# -------------------------------------------------------------------- what is drawn


def draw_house(
    axes: Any, storeys: Sequence[tuple[str, list[str]]], arrows: set[tuple[str, str]], *, top: float
) -> None:
    """Storeys from the face down to the ground."""
    rows, edges = arrange([rooms for _, rooms in storeys[FIRST_DRAWN:]], arrows)
    carrying: list[list[Node]] = [list(rooms) for _, rooms in storeys[:FIRST_DRAWN]]
    rows = carrying + rows
    boxes: dict[Node, Box] = {}
    for number, (name, _) in reversed(list(enumerate(storeys))):
        bottom = top - HEIGHT
        boxes |= place(rows[number], bottom=bottom)
        axes.text(LEFT - 0.1, bottom + HEIGHT / 2, name, ha="right", va="center", fontsize=8.5, color=SOFT)
        top = bottom - (0.4 if number > FIRST_DRAWN else 0.34 if number == FIRST_DRAWN else GAP)
        if number == FIRST_DRAWN:
            _note(axes, (LEFT + RIGHT) / 2, bottom - 0.18, NOTE)
    for edge, (start, end) in ports(edges, boxes).items():
        points = [(start, boxes[edge[0]].bottom), (end, boxes[edge[1]].top)]
        draw_arrow(axes, points, is_curved=True, ends=isinstance(edge[1], str))
    for node, box in boxes.items():
        if isinstance(node, str):
            draw_box(axes, box, node, PURPOSE[node], color=COLORS.get(node, PLAIN), is_code=True)
        else:
            axes.plot([box.middle] * 2, [box.bottom, box.top], color=LINE, linewidth=1.1, solid_capstyle="butt")


def draw_batch(axes: Any, *, top: float) -> None:
    """The path of a batch, and of a simulator's readings, which enter the same view."""
    _note(axes, RIGHT / 2, top + 0.15, "the path of a batch, and of a rollout below it")
    left, tall = WIDTH - RIGHT, 0.72
    gap = (RIGHT - left - sum(width for *_, width in BATCH)) / (len(BATCH) - 1)
    boxes = []
    for title, words, room, width in BATCH:
        boxes.append(Box(left, top - tall, width, tall))
        draw_box(axes, boxes[-1], title, words, color=COLORS[room])
        left += width + gap
    middle = top - tall / 2
    for box, after in itertools.pairwise(boxes):
        draw_arrow(axes, [(box.right, middle), (after.left, middle)])
    view, policy = boxes[VIEW], boxes[POLICY]
    title, words, room = SIMULATOR
    live = Box(view.middle - 0.8, 0.15, 1.6, HEIGHT)
    draw_box(axes, live, title, words, color=COLORS[room])
    draw_arrow(axes, [(view.middle, live.top), (view.middle, view.bottom)])
    level = live.bottom + HEIGHT / 2
    draw_arrow(axes, [(policy.middle, policy.bottom), (policy.middle, level), (live.right, level)])
    _note(axes, (live.right + policy.middle) / 2, level + 0.11, "actions, one after the other")


def draw_box(axes: Any, box: Box, title: str, words: str, *, color: str, is_code: bool = False) -> None:
    """A box with a name and, below it, what it is for, in as many lines as its width asks for."""
    axes.add_patch(FancyBboxPatch(
        (box.left, box.bottom), box.width, box.height, boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=color, edgecolor="#00000026", linewidth=0.8,
    ))  # fmt: skip
    lines = _wrapped(words, int(box.width / 0.066))
    # a line of the name, then those of the words, in the middle of the box (inches)
    first = box.bottom + box.height / 2 + (len(lines) * 0.13 - 0.1) / 2
    # a letter of code is 0.6 as wide as its size (points), and some room stays beside the name
    widest = 0.94 * 72 * box.width / (0.6 * len(title))
    font = {"family": "monospace", "fontsize": min(9, widest)} if is_code else {"fontsize": 8}
    axes.text(box.middle, first, title, ha="center", va="baseline", color=INK, weight="bold", **font)
    for number, line in enumerate(lines, start=1):
        axes.text(box.middle, first - 0.02 - 0.13 * number, line, ha="center", va="baseline", fontsize=7.5, color=INK)


def _wrapped(words: str, width: int) -> list[str]:
    """As few lines as the width allows, of much the same length."""
    fewest = len(textwrap.wrap(words, width))
    longest = max(map(len, words.split()))
    tries = (textwrap.wrap(words, each) for each in range(longest, width + 1))
    return next((lines for lines in tries if len(lines) == fewest), textwrap.wrap(words, width))


def _note(axes: Any, x: float, y: float, words: str) -> None:
    axes.text(x, y, words, ha="center", va="center", fontsize=7.5, color=SOFT)


def draw_arrow(axes: Any, points: Sequence[tuple[float, float]], *, is_curved: bool = False, ends: bool = True) -> None:
    """A thin line through the points, with a head where it ends; a curved one leaves and ends upright."""
    curve = Curve(list(points))
    if is_curved:
        (x, y), (to_x, to_y) = points
        bend = (y + to_y) / 2
        curve = Curve([(x, y), (x, bend), (to_x, bend), (to_x, to_y)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
    style = "-|>,head_length=3.2,head_width=1.7" if ends else "-"
    axes.add_patch(FancyArrowPatch(
        path=curve, arrowstyle=style, facecolor=LINE, edgecolor=LINE, fill=ends, linewidth=1.1, capstyle="butt",
    ))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
