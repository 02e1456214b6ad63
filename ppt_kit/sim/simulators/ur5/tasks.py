"""The two tasks: what they are called, which parts they have, and when a part is reached."""

from __future__ import annotations

from dataclasses import dataclass

from ppt_kit.sim.simulators.ur5.kitchen import Kitchen

SHUT = 0.03  # rad: a door that is open by less is closed
LIFTED = 0.03  # m: of the bowl's foot over the table
SLACK = 0.005  # m: of a rim that touches a wall
STANDS = 0.015  # m: of the foot from the floor inside; its collision shape sinks and stands by less
UPRIGHT = 0.9  # cosine between the bowl's axis and the vertical


@dataclass(frozen=True)
class Task:
    """Attributes:
    description: in words.
    parts: its subtasks, in order.
    bowl_inside: the bowl stands in the microwave from the start.
    max_steps: longest episode where nothing else is said (control steps).
    """

    description: str
    parts: tuple[str, ...]
    bowl_inside: bool
    max_steps: int


TASKS = {
    "ur5_put_bowl_in_microwave_and_close": Task(
        "put the bowl in the microwave and close the door", ("grasp", "lift", "place", "close"), False, 400
    ),
    "ur5_close_microwave": Task("close the door of the microwave", ("close",), True, 200),
}


def reached(kitchen: Kitchen, task: Task) -> dict[str, bool]:
    """Which of the task's parts hold now.

    grasp: both fingers are on the bowl. lift: and its foot is 3 cm over the table. place: it stands in the microwave
    and no finger is on it. close: the door is closed.
    """
    held = kitchen.fingers_on_bowl() == 2
    now = {
        "grasp": held, "lift": held and bool(kitchen.bowl[0][2] > LIFTED), "place": stands_inside(kitchen),
        "close": kitchen.door < SHUT,
    }  # fmt: skip
    return {name: now[name] for name in task.parts}


def succeeds(kitchen: Kitchen) -> bool:
    """Whether the bowl stands in the microwave and the door is closed, now: the goal of both tasks."""
    return kitchen.door < SHUT and stands_inside(kitchen)


def stands_inside(kitchen: Kitchen) -> bool:
    """The bowl is in the microwave as a whole, upright on its floor, and no finger is on it."""
    oven, bowl = kitchen.variation.oven, kitchen.variation.bowl
    (_, right, floor), (back, left, _) = oven.cavity
    x, y, z = kitchen.bowl_in_oven
    within = bowl.rim < x + SLACK and x + bowl.rim < back + SLACK
    between = right < y - bowl.rim + SLACK and y + bowl.rim < left + SLACK
    upright = kitchen.bowl[1][2, 2] > UPRIGHT
    return bool(within and between and upright and abs(z - floor) < STANDS and not kitchen.fingers_on_bowl())
