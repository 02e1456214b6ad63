"""What an option of a part may be: checked when the part is made, in one line that says what to type."""

from __future__ import annotations

import math
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.keys import show


def check_whole(key: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """`value`, if it is a whole number from `low` to `high`; None = no bound.

    Raises:
        UserError: it is none; names `key`, e.g. policy.head.options.num_layers.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        takes = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
        raise UserError(f"{key}={show(value)}: takes {takes}.")
    return value


def is_number(value: Any, *, low: float, high: float) -> bool:
    """Whether `value` is a finite number within [low, high]."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def check_switch(key: str, value: Any) -> bool:
    """`value`, if it is true or false.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(value, bool):
        raise UserError(f"{key}={show(value)}: takes true or false.")
    return value
