"""A key of a schema: its default, its line in --help, what it takes; and every key of a schema by its dotted name."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any

# the next ones, of later episodes, still fit into the 32 bits that numpy's and simulators' generators take
MAX_SEED = 2**31 - 1


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple = (),
    low: float | None = None,
    high: float | None = None,
    is_name: bool = False,
) -> Any:
    """One key of a schema: its default, its line in --help (with the unit), and what values it takes.

    Args:
        low, high: of numbers; None = what `checks.LARGEST` says.
        is_name: a file or a folder of ours is called by it.
    """
    metadata = {"doc": doc, "choices": choices, "low": low, "high": high, "is_name": is_name}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@functools.cache
def leaves_of(schema: type, prefix: str = "") -> dict[str, tuple[Any, dataclasses.Field]]:
    """Every dotted key of a schema with its type and field, in the order they are written; to be read only."""
    hints = typing.get_type_hints(schema)
    found: dict[str, tuple[Any, dataclasses.Field]] = {}
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            found |= leaves_of(typing.cast(type, kind), f"{prefix}{item.name}.")
        else:
            found[f"{prefix}{item.name}"] = (kind, item)
    return found


def default_of(leaf: dataclasses.Field) -> Any:
    """A list or dictionary is a new one at each call."""
    return leaf.default if leaf.default_factory is dataclasses.MISSING else leaf.default_factory()


def unwrap(kind: Any) -> tuple[bool, Any]:
    """(whether None is allowed, the type beside it): (True, int) of `int | None`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return len(inner) < len(typing.get_args(kind)), inner[0]
    return False, kind


def type_name(kind: Any) -> str:
    """A type as --help and errors name it: "whole number or null"."""
    optional, inner = unwrap(kind)
    if typing.get_origin(inner) is list:
        name = "list of " + {str: "text", float: "numbers", int: "whole numbers"}[typing.get_args(inner)[0]]
    else:
        name = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "names"}[inner]
    return f"{name} or null" if optional else name


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of python, or of a file, is of a schema's type: 3.0, "3" and True are no whole numbers."""
    optional, inner = unwrap(kind)
    if inner is Any or (optional and value is None):
        return True
    if typing.get_origin(inner) is list:
        (each,) = typing.get_args(inner)
        return isinstance(value, (list, tuple)) and all(fits(item, each) for item in value)
    if isinstance(value, bool) or inner is bool:
        return isinstance(value, bool) and inner is bool
    # a text may be written as a plain number
    takes: dict[Any, Any] = {int: int, float: (int, float), str: (str, int, Path)}
    return isinstance(value, takes[inner])


def show(value: Any) -> str:
    """A value as a user types it: true, null, [1,2]."""
    # a script is stopped in one line only once it runs: what takes time to import comes after
    from omegaconf import OmegaConf

    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else str(value)
