"""Tables of the simulators' tasks; to read them starts no simulator."""

from __future__ import annotations

import difflib
from importlib import import_module

from ppt_kit.errors import UserError
from ppt_kit.tables import Table

# simulator -> the module whose rows() has one mapping a task
TABLES = {"metaworld": "ppt_kit.sim.simulators.metaworld_tasks"}


def tasks(simulator: str = "metaworld") -> Table:
    """One line a task: how hard it is, what tells its goal, whether the marker is drawn by default, the expert's rate.

    Of metaworld: task, level, goal_shown_by (scene, fixed or marker), marker (drawn or hidden, with goal_marker=auto),
    expert_rate (0 to 1) of expert_episodes, dp3 and dp (published success of two policies, %).

    Raises:
        UserError: there is no table of that simulator.
    """
    if not isinstance(simulator, str) or simulator not in TABLES:
        near = difflib.get_close_matches(str(simulator)[:80], TABLES, 1)
        raise UserError(
            f"simulator={simulator}: there is no table of its tasks; there is one of {', '.join(TABLES)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    return Table(import_module(TABLES[simulator]).rows())
