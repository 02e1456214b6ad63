"""The keys of a schema as --help tells them: what can be typed, and beside it what it means, in the width there is."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from ppt_kit.keys import default_of, leaves_of, show, type_name
from ppt_kit.schema import Config

# of a line (characters); of what can be typed, beyond which its meaning begins on the next line
NARROWEST, WIDEST, TYPED = 72, 110, 38


def describe_keys(schema: type = Config, *, defaults: DictConfig | None = None, width: int | None = None) -> str:
    """Every key with its default, as it is typed, its meaning, and in brackets its choices or what kind it takes.

    Args:
        defaults: instead of the schema's own.
        width: of a line (characters); None = the terminal's.
    """
    width = width or shutil.get_terminal_size().columns
    width = min(max(width, NARROWEST), WIDEST)
    return "\n".join(
        line
        for each in told_keys(schema, defaults=defaults)
        for line in _lines(f"{each.name}={each.default}", f"{each.meaning} [{each.takes}]", width=width)
    )


@dataclass(frozen=True)
class ToldKey:
    """One key as it is told: all of it text, as a user types it."""

    name: str
    default: str
    meaning: str
    takes: str


def told_keys(schema: type = Config, *, defaults: DictConfig | None = None) -> list[ToldKey]:
    """Every key of a schema in the order they are written.

    Args:
        defaults: instead of the schema's own.
    """
    return [
        ToldKey(
            name=dotted,
            default=show(OmegaConf.select(defaults, dotted) if defaults is not None else default_of(leaf)),
            meaning=leaf.metadata["doc"],
            takes=" | ".join(map(show, leaf.metadata["choices"])) or type_name(kind),
        )
        for dotted, (kind, leaf) in leaves_of(schema).items()
    ]


def _lines(typed: str, meaning: str, *, width: int) -> list[str]:
    said = textwrap.wrap(meaning, width - TYPED - 4, break_long_words=False, break_on_hyphens=False)
    if len(typed) > TYPED:
        return [f"  {typed}", *(f"  {'':<{TYPED}}  {line}" for line in said)]
    return [f"  {first:<{TYPED}}  {line}" for first, line in zip([typed, *[""] * len(said)], said)]
