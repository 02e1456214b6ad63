"""What a format is, and whether one of the user's own is all of that."""

from __future__ import annotations

import difflib
import hashlib
import inspect
from pathlib import Path
from typing import Any, Protocol

from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError
from ppt_kit.parts import place_of


class Format(Protocol):
    """A module, or an object, with these names; ENDINGS may be left out.

    Attributes:
        NAME: for people.
        LOOKED_FOR: what `recognises` looks for on disk, in words.
        ENDINGS: how a dataset called <domain> may be called on disk, as (".csv",); "" = a folder of that name.
    """

    NAME: str
    LOOKED_FOR: str

    def recognises(self, path: Path) -> bool:
        """Whether the path holds this format; looks at names and a few bytes only."""

    def open_store(self, path: Path, *, filter_key: str | None) -> EpisodeStore:
        """What is there, read in place.

        Args:
            filter_key: the part to read, where the format names parts; None = all.
        Raises:
            UserError: it is damaged, or has no such part.
        """


# what to write where one is missing
EXAMPLES = {
    "NAME": 'NAME = "CSV of my lab"',
    "LOOKED_FOR": 'LOOKED_FOR = "a file that ends in .csv"',
    "recognises": "def recognises(path): …",
    "open_store": "def open_store(path, *, filter_key=None): …",
}


def as_format(part: Any, *, option: str) -> Format:
    """A user's module, object or class as a format.

    Args:
        option: what the user set it with, and to what: dataset.format=my_lab.csv_episodes.
    Raises:
        UserError: the first thing that it lacks, or has in another form.
    """
    whose = f"{option}: {place_of(part)}"
    if isinstance(part, type):
        try:
            part = part()
        except TypeError as error:
            raise UserError(f"{whose}: {part.__name__}() is called without arguments: {error}.") from None
    for name, example in EXAMPLES.items():
        if not hasattr(part, name):
            raise UserError(f"{whose} has no {name}. Write {example}{_did_you_mean(part, name)}")
    for name in ("NAME", "LOOKED_FOR"):
        if not isinstance(getattr(part, name), str):
            raise UserError(f"{whose}: {name} is {getattr(part, name)!r}, not a text. Write {EXAMPLES[name]}.")
    _check_call(part.recognises, Path(), whose=whose, name="recognises")
    _check_call(part.open_store, Path(), whose=whose, name="open_store", filter_key=None)
    endings = getattr(part, "ENDINGS", ())
    if not isinstance(endings, (tuple, list)) or not all(_is_ending(ending) for ending in endings):
        raise UserError(f'{whose}: ENDINGS is {endings!r}. Write them with their dots, as ENDINGS = (".csv",).')
    return part


def check_store(store: Any, found: Format) -> None:
    """Whether a user's format gave a store of columns.

    Raises:
        UserError: it gave something else.
    """
    whose = f"{place_of(found)}: open_store of {found.NAME}"
    if not isinstance(store, EpisodeStore):
        raise UserError(f"{whose} gave {type(store).__name__}, not an EpisodeStore (ppt_kit.data.store).")
    for key, column in store.columns.items():
        if not hasattr(column, "read"):
            raise UserError(
                f"{whose} gave {type(column).__name__} as the column {key}. "
                f"Wrap it: ArrayColumn(values, stored_as={key!r}), of ppt_kit.data.store."
            )


def state_of_format(found: Format) -> str:
    """Twelve hex digits of a format's file: rows that it decoded before it was edited are not its rows."""
    file = Path(place_of(found))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else ""


def _did_you_mean(part: Any, name: str) -> str:
    names = {each.casefold(): each for each in dir(part) if not each.startswith("_")}
    near = difflib.get_close_matches(name.casefold(), names, 1)
    return f"; it has {names[near[0]]}." if near else "."


def _check_call(function: Any, *args: Any, whose: str, name: str, **keywords: Any) -> None:
    if not callable(function):
        raise UserError(f"{whose}: {name} is {function!r}, not a function. Write {EXAMPLES[name]}.")
    try:
        inspect.signature(function).bind(*args, **keywords)
    except TypeError as error:
        taken = inspect.signature(function)
        raise UserError(f"{whose}: {name}{taken} cannot be called: {error}. Write {EXAMPLES[name]}.") from None


def _is_ending(ending: Any) -> bool:
    return isinstance(ending, str) and (not ending or ending.startswith("."))
