"""A configuration of ppt_learning where it lies: in today's keys as it is loaded, with a list of what is left out."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ppt_kit.migration.ancestor import Translated, is_ancestors, translated
from ppt_kit.migration.arithmetic import with_own_resolver
from ppt_kit.migration.reasons import reason_for

log = logging.getLogger(__name__)

# groups of `defaults` that say what a policy is made of
OF_A_POLICY = ("network", "stem", "head")


class Composed(NamedTuple):
    """A configuration as Hydra composed it."""

    # plain, with its interpolations
    tree: dict
    # what the file itself says, `defaults` and all
    own: Mapping
    # of its `defaults` those that are not there: (group, file)
    gone: Sequence[tuple[str, str]]
    origin: Path

    @property
    def is_old(self) -> bool:
        """Whether it is of ppt_learning."""
        return is_ancestors(self.own) or is_ancestors(self.tree)


def missing_files(values: Mapping, *, roots: Sequence[Path]) -> list[tuple[str, str]]:
    """(group, file) of the `defaults` of a configuration of ppt_learning whose file is not there; "" = no group.

    Of ours there is none: Hydra refuses what is missing.

    Args:
        values: the YAML file's plain values.
        roots: folders that groups are looked for in.
    """
    named = values.get("defaults")
    if not is_ancestors(values) or not isinstance(named, list):
        return []
    pairs = [(str(group), str(name)) for entry in named if isinstance(entry, Mapping) for group, name in entry.items()]
    # a file beside this one is of no group
    pairs += [("", entry) for entry in named if isinstance(entry, str) and entry != "_self_"]
    plain = [(group, name) for group, name in pairs if "@" not in group and " " not in group]
    return [(group, name) for group, name in plain if not any((root / _file(group, name)).exists() for root in roots)]


def _file(group: str, name: str) -> Path:
    return Path(group.strip("/")) / f"{name.removesuffix('.yaml')}.yaml"


def search_path(places: Sequence[Path]) -> list[str]:
    """The word that has Hydra look in further folders."""
    quoted = ["'file://" + str(place).replace("'", "\\'") + "'" for place in places]
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else []


@contextmanager
def empty_files(gone: Sequence[tuple[str, str]]) -> Iterator[list[Path]]:
    """Folders, at most one, in which the missing files are there and empty: Hydra composes what is left."""
    if not gone:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="ppt_kit_") as folder:
        for group, name in gone:
            stand_in = Path(folder) / _file(group, name)
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            stand_in.write_text("# @package _global_\n{}\n")
        yield [Path(folder)]


def _said_of_missing(group: str, name: str, folder: Path) -> str:
    said = f"there is no file {_file(group, name)} in {folder}"
    return f"{said}: of the policy what it said is today's default" if group in OF_A_POLICY else said


def read_old(read: Composed) -> Translated:
    """A configuration of ppt_learning in today's keys.

    Raises:
        UserError: an `${eval:…}` is more than arithmetic.
    """
    done = translated(read.tree, origin=str(read.origin))
    for group, name in read.gone:
        named = f"{group}: {name}" if group else name
        done.leave(f"defaults: {named}", None, _said_of_missing(group, name, read.origin.parent))
    if "hydra" in read.own:
        done.leave("hydra", None, reason_for("hydra", None))
    return done


def todays(read: Composed) -> tuple[dict, str]:
    """What was composed, `${eval:…}` as arithmetic; of ppt_learning, in today's keys, and what is to be told of it."""
    if not read.is_old:
        return with_own_resolver(read.tree), ""
    done = read_old(read)
    kept = f"{read.origin} is of ppt_learning: {len(done.moved)} of its values hold under today's names"
    return done.config, f"{kept}; without a counterpart:\n{done.told() or '  nothing'}"


def tell(text: str) -> None:
    """Says once, by one of several ranks, what of an old configuration is left out."""
    if text and os.environ.get("RANK", "0") == "0":
        log.warning("%s", text)
