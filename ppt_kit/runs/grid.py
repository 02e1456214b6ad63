"""What is swept over -> one checked configuration a run, and the name that its folder has."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppt_kit.checks import check_fits, check_values, domain_names
from ppt_kit.config import PACKAGE_CONFIGS, from_mapping, load_config
from ppt_kit.errors import UserError
from ppt_kit.keys import leaves_of, show
from ppt_kit.schema import Config
from ppt_kit.words import unknown

SEED = "seed"
# what a sweep gives its runs itself
OWN = ("suffix", "output_dir", "train.resume")
# of a name made of values, in letters: a longer one is cut, and told apart by a hash
LONGEST_NAME = 90
FOLDER = "sweeps"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of its folder: what differs, e.g. lr-0.001_seed-0.
        values: dotted key -> its value in this run.
        cfg: the whole configuration.
    """

    name: str
    values: dict[str, Any]
    cfg: DictConfig

    @property
    def run_dir(self) -> Path:
        """Where UnifiedTrainer puts this configuration's run."""
        return Path(self.cfg.output_dir) / "+".join(domain_names(self.cfg.domains)) / self.cfg.suffix


def plan_runs(cfg: Any, over: Mapping[str, Any]) -> tuple[Path, list[PlannedRun]]:
    """The folder of a sweep, and its runs: keys by letter, the last changing fastest, which is the seed if it is one.

    The folder is <output_dir>/sweeps/<suffix>; without a suffix its name says what is swept, with a hash of all that
    decides the runs: the same words find it again.

    Args:
        cfg: what all runs share.
        over: {dotted key: list of values}, or nested as a configuration is; a group of files takes their names,
            e.g. {"policy.head": ["flow", "mlp"]}.
    Raises:
        UserError: an unknown key, no list, an empty one, a value twice, or a configuration that is not valid.
    """
    base = from_mapping(cfg)
    # whichever words came first; seeds are repetitions, and change fastest
    given = sorted(_flat(over).items(), key=lambda item: (item[0] == SEED, item[0]))
    lists = {key: _listed(base, key, values) for key, values in given}
    if not lists:
        raise UserError(
            "nothing is swept over. Give lists by their keys, e.g. sweep.optimizer.lr=[1e-3,3e-4], in a cell "
            '{"optimizer.lr": [1e-3, 3e-4]}.'
        )
    short = _short_keys(list(lists))
    combinations = [dict(zip(lists, values)) for values in itertools.product(*lists.values())]
    folder = Path(base.output_dir) / FOLDER / (base.suffix or _sweep_name(base, lists, short))
    own = {"output_dir": str(folder), "train.resume": "auto"}
    planned = []
    for name, values in zip(_names(combinations, short), combinations):
        run_cfg = configured(base, {**values, **own, "suffix": name})
        # together: one value may need another
        check_values(run_cfg)
        check_fits(run_cfg)
        planned.append(PlannedRun(name, values, run_cfg))
    return folder, planned


def configured(base: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """`base` with other values by their dotted keys.

    Raises:
        UserError: a value that its key does not take.
    """
    cfg = base.copy()
    for key, value in values.items():
        for part, given in (_file_of_group(key, value) if _is_group(key) else {key: value}).items():
            _set(cfg, part, given)
    return cfg


def short_name(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, or all of it where another ends in the same."""
    last = key.rsplit(".")[-1]
    return key if sum(other.rsplit(".")[-1] == last for other in keys) > 1 else last


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    return {key: short_name(key, keys) for key in keys}


def _flat(over: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: what was given for it}.

    Raises:
        UserError: no mapping, or a key that no run has.
    """
    if not isinstance(over, Mapping) and not OmegaConf.is_dict(over):
        raise UserError(f"sweep={show(over)[:80]}: takes lists by their keys, e.g. {{'optimizer.lr': [1e-3, 3e-4]}}.")
    leaves, found = leaves_of(Config), dict[str, Any]()
    for name, given in over.items():
        key = f"{prefix}{name}".replace("/", ".")
        inside = any(leaf.startswith(f"{key}.") for leaf in leaves)
        if isinstance(given, Mapping) and (inside or _owner(key) is not None):
            found |= _flat(given, f"{key}.")
        elif key in leaves or _owner(key) is not None or _is_group(key):
            found[key] = given
        else:
            raise UserError(unknown(key, leaves))
    taken = next((key for key in found if key in OWN), None)
    if taken is not None:
        raise UserError(f"{taken}: a sweep gives each run its own. Give {taken} once, for the sweep, and sweep others.")
    return found


def _owner(key: str) -> str | None:
    """The key of a run that takes a mapping, of which `key` is a part."""
    leaves = leaves_of(Config)
    return next((leaf for leaf in leaves if key.startswith(f"{leaf}.") and leaves[leaf][0] is Any), None)


def _is_group(key: str) -> bool:
    """Whether files of the shipped configurations can be chosen by it, as policy/head=flow does."""
    folder = PACKAGE_CONFIGS / key.replace(".", "/")
    return key not in leaves_of(Config) and folder.is_dir() and any(folder.glob("*.yaml"))


@functools.cache
def _file_of_group(key: str, name: Any) -> dict[str, Any]:
    """{dotted key: value} of what the file `name` of a group says, with the defaults of what it does not."""
    composed = load_config("", f"{key}={name}")
    return {leaf: _plain(OmegaConf.select(composed, leaf)) for leaf in leaves_of(Config) if leaf.startswith(f"{key}.")}


def _listed(base: DictConfig, key: str, given: Any) -> list[Any]:
    """The values of one key, as the schema types them.

    Raises:
        UserError: no list, an empty one, a value twice, or one that the key does not take.
    """
    if not (isinstance(given, (list, tuple, range, np.ndarray)) or OmegaConf.is_list(given)):
        raise UserError(f"{key}={show(given)[:80]}: a sweep takes a list of values, e.g. {key}=[{show(given)[:40]}].")
    values = [_plain(value) for value in given]
    if not values:
        raise UserError(f"{key}=[]: nothing to sweep over. Give one value at least.")
    seen: list[Any] = []
    for value in values:
        typed = _file_name(key, value) if _is_group(key) else _typed(base, key, value)
        if typed in seen:
            raise UserError(f"{key}: {show(typed)[:60]} is given twice. Give each value once.")
        seen.append(typed)
    return seen


def _typed(base: DictConfig, key: str, value: Any) -> Any:
    """A value as the schema has it: 1 is 1.0 where numbers are taken, and "many" is refused."""
    tree = OmegaConf.create(cast(dict, OmegaConf.to_container(base)))
    _set(tree, key, value)
    return _plain(OmegaConf.select(from_mapping(tree), key))


def _file_name(key: str, name: Any) -> str:
    """A file of a group, which is there."""
    if not isinstance(name, str):
        raise UserError(f"{key}={show(name)[:80]}: takes names of files of that group, e.g. {key}=[NAME,OTHER].")
    _file_of_group(key, name)
    return name


def _set(tree: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(tree, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{key}={show(value)[:80]}: {str(error).splitlines()[0]}") from None


def _plain(value: Any) -> Any:
    """A value as a file of YAML has it."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, range, np.ndarray)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _names(combinations: list[dict[str, Any]], short: Mapping[str, str]) -> list[str]:
    """A plain name for each run; those that would be too long, or the same, end in a hash."""
    plain = ["_".join(f"{short[key]}-{_slug(value)}" for key, value in values.items()) for values in combinations]
    return [
        name if len(name) <= LONGEST_NAME and plain.count(name) == 1 else f"{name[:LONGEST_NAME]}-{_digest(values)}"
        for name, values in zip(plain, combinations)
    ]


def _slug(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    # without the dots of a text: a name must not end as a file does
    return re.sub(r"[^A-Za-z0-9+-]+", "-", show(value)).strip("-") or _digest(value)


def _sweep_name(base: DictConfig, lists: Mapping[str, list], short: Mapping[str, str]) -> str:
    plain = cast(dict, OmegaConf.to_container(base, resolve=True))
    decides = {**plain, "suffix": None, "output_dir": None, "train": {**plain["train"], "resume": None}}
    swept = {
        key: sorted(json.dumps(value, sort_keys=True, default=str) for value in values) for key, values in lists.items()
    }
    return f"{'_'.join(short.values())[:LONGEST_NAME]}-{_digest([decides, swept])}"


def _digest(value: Any) -> str:
    """Eight hex digits of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
