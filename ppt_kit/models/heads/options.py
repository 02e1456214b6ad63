"""What a head's options may be."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from ppt_kit.errors import UserError
from ppt_kit.models.options import check_switch, check_whole, is_number

Options = TypeVar("Options")


def read_options(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """The dataclass `kind` of the options that were given.

    Raises:
        UserError: it has none of that name.
    """
    names = [each.name for each in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"policy.head.options.{name}: this head has no such option; it takes {', '.join(names)}.{hint}"
            )
    return kind(**given)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises UserError unless `value` of policy.head.options.`name` is one of `choices`."""
    if value not in choices:
        raise UserError(f"policy.head.options.{name}={value}: takes {', '.join(choices)}.")


def whole(name: str, value: Any, *, low: int = 1) -> None:
    """Raises UserError unless `value` is a whole number, `low` or more."""
    check_whole(f"policy.head.options.{name}", value, low=low)


def number(name: str, value: Any, *, low: float, high: float = float("inf")) -> None:
    """Raises UserError unless `value` is a number within [low, high]."""
    if not is_number(value, low=low, high=high):
        within = f"{low} or more" if high == float("inf") else f"within {low} and {high}"
        raise UserError(f"policy.head.options.{name}={value}: takes a number {within}.")


def switch(name: str, value: Any) -> None:
    """Raises UserError unless `value` is true or false."""
    check_switch(f"policy.head.options.{name}", value)
