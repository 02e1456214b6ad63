"""What is known of Meta-World's 50 tasks: how hard each is, what tells its goal, how often its expert succeeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# the experts were counted over seeds 0, 1, … of this many episodes each
EXPERT_EPISODES = 50
EXPERT_STEPS = 200  # longest of those episodes (control steps)


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        level: easy, medium, hard or very hard, as the literature groups them.
        goal_shown_by: what tells where the goal is, over 40 seeds and along each axis. "scene": something that is drawn
            moves with it; "fixed": it is always in one place; "marker": nothing but its marker moves with it, so
            without the marker a policy that sees perfectly is still at chance.
        expert_wins: of EXPERT_EPISODES, measured.
        dp3, dp: success (%) of DP3 and Diffusion Policy on 10 demonstrations, as published.

    Source: level, dp3 and dp: Ze et al. 2024, 3D Diffusion Policy, which takes the levels from Seo et al. 2023, Masked
        World Models; it averages the best five evaluations of each run, with all markers drawn. The rest is measured.
    """

    level: str
    goal_shown_by: str
    expert_wins: int
    dp3: int
    dp: int

    @property
    def needs_marker(self) -> bool:
        """Whether nothing but the goal's marker tells where the goal is."""
        return self.goal_shown_by == "marker"


TASKS = {
    "button-press": Task("easy", "scene", 50, 100, 99),
    "button-press-topdown": Task("easy", "scene", 50, 100, 98),
    "button-press-topdown-wall": Task("easy", "scene", 50, 99, 96),
    "button-press-wall": Task("easy", "scene", 50, 99, 97),
    "coffee-button": Task("easy", "scene", 50, 100, 99),
    "dial-turn": Task("easy", "scene", 50, 66, 63),
    "door-close": Task("easy", "scene", 50, 100, 100),
    "door-lock": Task("easy", "scene", 50, 98, 86),
    "door-open": Task("easy", "scene", 48, 99, 98),
    "door-unlock": Task("easy", "scene", 50, 100, 98),
    "drawer-close": Task("easy", "scene", 50, 100, 100),
    "drawer-open": Task("easy", "scene", 50, 100, 93),
    "faucet-close": Task("easy", "scene", 50, 100, 100),
    "faucet-open": Task("easy", "scene", 50, 100, 100),
    "handle-press": Task("easy", "scene", 50, 100, 81),
    "handle-press-side": Task("easy", "scene", 50, 100, 100),
    "handle-pull": Task("easy", "scene", 50, 53, 27),
    "handle-pull-side": Task("easy", "scene", 50, 85, 23),
    "lever-pull": Task("easy", "scene", 50, 79, 49),
    "peg-unplug-side": Task("easy", "scene", 48, 75, 74),
    "plate-slide": Task("easy", "scene", 50, 100, 83),
    "plate-slide-back": Task("easy", "marker", 50, 99, 99),
    "plate-slide-back-side": Task("easy", "marker", 50, 100, 100),
    "plate-slide-side": Task("easy", "marker", 50, 100, 100),
    "reach": Task("easy", "marker", 50, 24, 18),
    "reach-wall": Task("easy", "marker", 50, 68, 59),
    "window-close": Task("easy", "scene", 50, 100, 100),
    "window-open": Task("easy", "scene", 50, 100, 100),
    "basketball": Task("medium", "scene", 49, 98, 85),
    "bin-picking": Task("medium", "fixed", 48, 34, 15),
    "box-close": Task("medium", "scene", 43, 42, 30),
    "coffee-pull": Task("medium", "marker", 50, 87, 34),
    "coffee-push": Task("medium", "scene", 50, 94, 67),
    "hammer": Task("medium", "fixed", 50, 76, 15),
    "peg-insert-side": Task("medium", "scene", 44, 69, 34),
    "push-wall": Task("medium", "marker", 50, 49, 20),
    "soccer": Task("medium", "scene", 44, 18, 14),
    "sweep": Task("medium", "scene", 50, 96, 18),
    "sweep-into": Task("medium", "fixed", 46, 15, 10),
    "assembly": Task("hard", "scene", 50, 99, 15),
    "hand-insert": Task("hard", "marker", 50, 14, 9),
    "pick-out-of-hole": Task("hard", "marker", 50, 14, 0),
    "pick-place": Task("hard", "marker", 50, 12, 0),
    "push": Task("hard", "marker", 50, 51, 30),
    "push-back": Task("hard", "marker", 32, 0, 0),
    "disassemble": Task("very hard", "scene", 43, 69, 43),
    "pick-place-wall": Task("very hard", "marker", 50, 35, 5),
    "shelf-place": Task("very hard", "scene", 48, 17, 11),
    "stick-pull": Task("very hard", "marker", 43, 27, 11),
    "stick-push": Task("very hard", "marker", 50, 97, 63),
}


def rows() -> list[dict[str, Any]]:
    """One a task: its name, level, goal_shown_by, marker (by default), expert_rate, expert_episodes, dp3, dp."""
    return [
        {
            "task": name, "level": task.level, "goal_shown_by": task.goal_shown_by,
            "marker": "drawn" if task.needs_marker else "hidden", "expert_rate": task.expert_wins / EXPERT_EPISODES,
            "expert_episodes": EXPERT_EPISODES, "dp3": task.dp3, "dp": task.dp,
        }
        for name, task in TASKS.items()
    ]  # fmt: skip
