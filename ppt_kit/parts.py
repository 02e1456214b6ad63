"""Parts by name: one of ours, or `module:Name` (a whole `module`) of a file that lies beside the user's notebook."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ppt_kit.errors import UserError


class NoModule(UserError):
    """There is no module of that name."""


def find_part(word: str, known: Mapping[str, Any], *, option: str, modules: bool = False) -> Any:
    """What `word` names.

    Args:
        word: a name in `known`, or `module:Name`, as my_lab.heads:MyHead.
        known: name -> the part itself, or `module:Name` (or `module`) of one that is imported when it is first used.
        option: what the user sets it with, e.g. policy.head.kind.
        modules: whether a whole module of the user's can be a part too, as my_lab.csv_episodes.
    Raises:
        UserError: there is none; the line says where it was looked for.
    """
    part = known.get(word, word)
    if not isinstance(part, str):
        return part
    if ":" in part:
        return _attribute(part, option=option)
    if word in known:
        return import_beside(part, option=f"{option}={word}")
    near = difflib.get_close_matches(word, known, 1)
    did_you_mean = f" Did you mean {near[0]}?" if near else ""
    if not modules:
        raise UserError(f"{option}={word}: takes {', '.join(known)}, or module:Name of a file of yours.{did_you_mean}")
    try:
        return import_beside(word, option=f"{option}={word}")
    except NoModule as error:
        raise UserError(f"{error} Ours are {', '.join(known)}.{did_you_mean}") from None


def import_beside(name: str, *, option: str) -> ModuleType:
    """The module `name`, also when its file lies in the current folder.

    Raises:
        UserError: it is not there, or it fails; the line says which file and line.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        # behind everything else, and for good: worker processes inherit it and unpickle the user's classes with it
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise NoModule(
                f"{option}: no module {name}. Looked in the current folder {here}, {_named_folders()}and among what is "
                "installed. "
                "Start from the folder that holds it, or add that folder to PYTHONPATH."
            ) from None
        raise UserError(f"{option}: {name} cannot be imported: {error}.") from None
    # says what is wrong already, e.g. that there is nothing to render with
    except UserError:
        raise
    # a user's file raises whatever it likes
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename}, line {where.lineno}"
        raise UserError(f"{option}: {name} cannot be imported: {type(error).__name__}: {error} ({place}).") from None


def _named_folders() -> str:
    """Of Python's path, those that the user named."""
    named = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return f"in PYTHONPATH ({', '.join(named)}) " if named else ""


def place_of(part: Any) -> str:
    """The file that a class or module comes from."""
    module = part if isinstance(part, ModuleType) else sys.modules.get(getattr(part, "__module__", ""))
    return str(getattr(module, "__file__", None) or "?")


def _attribute(word: str, *, option: str) -> Any:
    name, _, attribute = word.partition(":")
    module = import_beside(name, option=f"{option}={word}")
    if not hasattr(module, attribute):
        names = [each for each in vars(module) if not each.startswith("_")]
        near = difflib.get_close_matches(attribute, names, 1)
        raise UserError(
            f"{option}={word}: {place_of(module)} has no {attribute}."
            + (f" Did you mean {near[0]}?" if near else f" It has {', '.join(names)}.")
        )
    return getattr(module, attribute)
