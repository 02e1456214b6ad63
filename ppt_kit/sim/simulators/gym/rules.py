"""What counts as reached in an episode: a word of the user's, held against what a step gave."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppt_kit.errors import UserError

# what environments call it in their info
SUCCESS_KEYS = ("is_success", "success")


@dataclass(frozen=True)
class Rule:
    """`key` of a step's info, `terminated`, or one of reward, return, or a number of info that is at least a bound.

    The return is known when the episode is over: before that no bound is reached.
    """

    name: str
    bound: float | None = None

    @classmethod
    def of(cls, word: Any, *, option: str) -> Rule:
        """The rule that a word says.

        Raises:
            UserError: it says none.
        """
        said = re.fullmatch(r"\s*([\w./-]+)\s*(?:>=\s*([-+.\deE]+)\s*)?", word) if isinstance(word, str) else None
        try:
            rule = said and cls(said[1], None if said[2] is None else float(said[2]))
        except ValueError:
            rule = None
        if not rule or (rule.bound is None and rule.name in ("reward", "return")):
            raise UserError(
                f"{option}={word}: takes a key of the environment's info (is_success), terminated, or a number that "
                "is reached: reward>=0.9, return>=-200, coverage>=0.5."
            )
        return rule

    def holds(self, step: Step) -> bool:
        """Whether a step fulfils it; a key that it does not have is none."""
        value = step.number(self.name)
        return bool(value) and not math.isnan(value) if self.bound is None else value >= self.bound


@dataclass(frozen=True)
class Step:
    """What one step gave."""

    reward: float = 0.0
    total_reward: float = 0.0
    terminated: bool = False
    over: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """The number of that name; NaN where there is none."""
        total = self.total_reward if self.over else math.nan
        own = {"reward": self.reward, "return": total, "terminated": self.terminated}
        value = own.get(name, self.info.get(name, math.nan))
        return float(np.asarray(value).reshape(())) if np.size(value) == 1 else math.nan


def success_rule(word: str | None, info: Mapping[str, Any], *, task: str) -> Rule:
    """How an environment says that the task is done.

    Args:
        word: the user's; None = what `info` has.
        info: of one step.
    Raises:
        UserError: the environment does not say, and the user does not either.
    """
    if word is not None:
        return Rule.of(word, option="options.success")
    key = next((key for key in SUCCESS_KEYS if key in info), None)
    if key is None:
        raise UserError(
            f"task={task}: its steps do not say whether the task is done; info has {', '.join(info) or 'nothing'}. "
            "Say what counts: options.success=terminated, a key of info, or a bound as options.success='return>=-200'."
        )
    return Rule(key)
