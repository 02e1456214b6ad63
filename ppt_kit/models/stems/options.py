"""What a stem's options may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.keys import show
from ppt_kit.models.options import check_switch, check_whole, is_number
from ppt_kit.models.part import Sizes


def whole(sizes: Sizes, name: str, value: Any, *, low: int = 1, high: int) -> int:
    """`value`, an option of the stem that `sizes` is of.

    Raises:
        UserError: it is no whole number from `low` to `high`.
    """
    return check_whole(option(sizes, name), value, low=low, high=high)


def switch(sizes: Sizes, name: str, value: Any) -> bool:
    """`value`, an option of the stem that `sizes` is of.

    Raises:
        UserError: it is neither true nor false.
    """
    return check_switch(option(sizes, name), value)


def wholes(sizes: Sizes, name: str, value: Any, *, low: int = 1, high: int) -> list[int]:
    """`value`, a list of one or more, an option of the stem that `sizes` is of.

    Raises:
        UserError: it is no list of whole numbers from `low` to `high`.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise UserError(f"{option(sizes, name)}={show(value)}: takes a list of whole numbers.")
    return [whole(sizes, name, each, low=low, high=high) for each in value]


def metres(sizes: Sizes, name: str, value: Any, *, low: float, high: float) -> float:
    """`value`, a distance in metres, an option of the stem that `sizes` is of.

    Raises:
        UserError: it is no number from `low` to `high`.
    """
    return number(sizes, name, value, low=low, high=high, of="metres,")


def number(sizes: Sizes, name: str, value: Any, *, low: float, high: float, of: str = "a number") -> float:
    """`value`, an option of the stem that `sizes` is of.

    Raises:
        UserError: it is no number from `low` to `high`.
    """
    if not is_number(value, low=low, high=high):
        raise UserError(f"{option(sizes, name)}={show(value)}: takes {of} from {low:g} to {high:g}.")
    return float(value)


def one_of(sizes: Sizes, name: str, value: Any, known: Sequence[str]) -> str:
    """`value`, one of several words, an option of the stem that `sizes` is of.

    Raises:
        UserError: it is none of them.
    """
    if value not in known:
        raise UserError(f"{option(sizes, name)}={show(value)}: takes {', '.join(known)}.")
    return value


def option(sizes: Sizes, name: str) -> str:
    """The key of an option of the stem that `sizes` is of."""
    return f"policy.stems.{sizes.modality}.options.{name}"
