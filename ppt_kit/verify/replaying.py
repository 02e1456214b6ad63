"""Replays a card: what it stands on is compared with what is here, and some of its episodes are run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.config import from_mapping, typed
from ppt_kit.data.formats import find_domain
from ppt_kit.errors import UserError
from ppt_kit.files import path_of
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.programs import to_type
from ppt_kit.sim.card import CARD, data_hashes, differing, made_with, read_card
from ppt_kit.sim.env import code_of
from ppt_kit.sim.evaluate import run_part
from ppt_kit.sim.results import NOBODY
from ppt_kit.sim.runner.controls import acting
from ppt_kit.sim.runner.options import PartOptions
from ppt_kit.targets import Target
from ppt_kit.verify.departs import departs, other_rows
from ppt_kit.verify.opened import Opened


@dataclass(frozen=True)
class Verification:
    """What came of a replay.

    Attributes:
        card: its path.
        episodes: one dict an episode that was replayed: log_name, checkpoint (- where no policy acts), domain, task,
            control, seed, same, step (the first that differs, from 1; None where none does, or it is not known), what
            (in words).
        differences: of the weights, the simulator or the data: what the card stands on is something else here.
        surroundings: versions and machine that are not those of the card; episodes may be the same all the same.
        not_compared: what could not be looked at here, and why.
    """

    card: Path
    episodes: list[dict]
    differences: list[str]
    surroundings: list[str]
    not_compared: list[str]

    @property
    def same(self) -> bool:
        """Whether weights, simulator and data are those of the card, and every replayed episode is the same."""
        return not self.differences and all(episode["same"] for episode in self.episodes)

    @property
    def frame(self) -> pd.DataFrame:
        """The episodes as a table."""
        return pd.DataFrame(self.episodes)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        alike = sum(episode["same"] for episode in self.episodes)
        lines = [f"{self.card}: {alike} of {len(self.episodes)} replayed episodes are the same to the bit"]
        for title, told in (
            ("differs", self.differences),
            ("other surroundings", self.surroundings),
            ("not compared", self.not_compared),
        ):
            lines += [f"{title}: {each}" for each in told]
        several = len({each["checkpoint"] for each in self.episodes} - {NOBODY}) > 1
        for each in self.episodes:
            if not each["same"]:
                where = f"from step {each['step']} on" if each["step"] else "somewhere"
                under = f", {each['control']}" if each["control"] else ""
                under += f", {each['checkpoint']}" if several else ""
                lines.append(f"{each['task']}{under}, seed {each['seed']}: {where}, {each['what']}")
        return "\n".join([*lines, "the same" if self.same else "not the same"])


def verify_card(
    place: str | Path,
    *,
    episodes: int = 3,
    eval_log_name: str | None = None,
    checkpoint: str | Path | None = None,
    dataset_path: str | Path | None = None,
) -> Verification:
    """Replays some of a card's episodes here, and compares what they stand on.

    Each is run with the options that it was run with, controls too. A demonstration can be replayed only where the data
    is; where it is not, that is said in `not_compared`.

    Args:
        place: a card.json, the folder that it is in, or a run folder.
        episodes: how many of each evaluation in it, spread over its seeds.
        eval_log_name: of the evaluations in it, those of this name; None = all.
        checkpoint: file of weights, for the evaluations that are of it, or for all where none is; None = those that the
            card names, from its own folder. One that is not there is said in `not_compared` while others are.
        dataset_path: folder of the data that the policies were trained on; None = as they were.
    Raises:
        UserError: there is no card, it is damaged or of another version, or no checkpoint is there, or one cannot be
            read.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise UserError(f"episodes={episodes!r}: takes a whole number, at least 1.")
    if dataset_path is not None and not Path(dataset_path).is_dir():
        raise UserError(f"dataset_path={dataset_path}: no such folder. Leave it out, or give that of the data.")
    path = _find(path_of(place, what="a run folder, its eval/ or a card.json"))
    card = read_card(path)
    opened = Opened(path, checkpoint=checkpoint, dataset_path=dataset_path)
    with _described(path):
        found = Verification(path, [], [], [], [])
        there, gone = opened.sorted(_chosen(card, path, log_name=eval_log_name))
        if not there:
            raise gone[0]
        _add(found.not_compared, [str(each) for each in gone])
        for entry, file in there:
            _verify(entry, file, opened, card, found, count=episodes)
    return found


def _verify(
    entry: Mapping[str, Any], file: Path, opened: Opened, card: Mapping[str, Any], found: Verification, *, count: int
) -> None:
    """Adds to what was found what comes of one evaluation."""
    policy, differences = opened.policy_of(entry, file)
    _add(found.differences, differences)
    spec = {name: value for name, value in entry["simulator"].items() if name != "code"}
    if code_of(spec) != entry["simulator"]["code"]:
        _add(found.differences, [f"simulator {spec['simulator']}: its file is another"])
    _add(found.differences, other_rows(entry, found.card))
    _compare_data(entry, policy, opened, found)
    _compare_surroundings(card, entry, found)
    options = _options(entry)
    absent = _absent(options, policy)
    if absent is None:
        found.episodes.extend(_replayed(entry, policy, options, count=count))
    else:
        _add(found.not_compared, [absent])


def _find(place: Path) -> Path:
    tried = [place] if place.is_file() else [place / CARD, Target(place, place).out_dir / CARD]
    path = next((each for each in tried if each.is_file()), None)
    if path is None:
        raise UserError(
            f"{place}: {'holds no card.json, nor eval/card.json' if place.is_dir() else 'no such file or folder'}. "
            f"An evaluation that is given a folder writes one: {to_type('eval_sim')} train.pretrained_dir=…"
        )
    return path


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Inside, what a card says is read.

    Raises:
        UserError: it does not describe an evaluation.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: does not describe an evaluation ({type(error).__name__}: {error}).") from None


def _chosen(card: Mapping[str, Any], path: Path, *, log_name: str | None) -> list[dict]:
    entries = card["evaluations"]
    names = list(dict.fromkeys(entry["log_name"] for entry in entries))
    if not entries:
        raise UserError(f"{path}: no evaluation in it came to its end. Type the same evaluation again: it goes on.")
    if log_name is not None and log_name not in names:
        raise UserError(f"eval_log_name={log_name}: {path} has {', '.join(names)}.")
    return [entry for entry in entries if log_name in (None, entry["log_name"])]


def _compare_data(entry: Mapping[str, Any], policy: PPTPolicy, opened: Opened, found: Verification) -> None:
    """The data that the weights were trained on, where it is here."""
    here = data_hashes(policy.card["normalizer"])
    told = [f"data of {name}: {each}" for name in entry["data"] for each in differing(entry["data"][name], here[name])]
    _add(found.differences, told)
    cfg = typed(from_mapping(policy.card["config"]))
    if cfg.normalizer.path is not None:
        _add(found.not_compared, ["data: the normaliser's statistics are another run's, so they say nothing of it"])
        return
    for name in entry["data"]:
        try:
            find_domain(cfg.dataset_path, name, format=cfg.dataset.format)
        except UserError:
            _add(found.not_compared, [f"data of {name}: not in {cfg.dataset_path} here"])
            return
    try:
        now = opened.data_of(policy)
    except UserError as error:
        _add(found.differences, [f"data: {error}"])
        return
    told = [f"data of {name}: {each}" for name in entry["data"] for each in differing(entry["data"][name], now[name])]
    _add(found.differences, told)


def _compare_surroundings(card: Mapping[str, Any], entry: Mapping[str, Any], found: Verification) -> None:
    here = made_with()
    for maker in dict.fromkeys(episode["made_with"] for episode in entry["episodes"] if episode["made_with"]):
        there = card["made_with"].get(maker)
        if there is None:
            _add(found.surroundings, [f"some episodes were run with {maker}, which the card does not describe"])
            continue
        told = differing(there["versions"], here["versions"]) + differing(there["machine"], here["machine"])
        if there["code"] != here["code"]:
            told.append(f"code of ppt_kit {there['code']} there, {here['code']} here")
        _add(found.surroundings, told)


def _options(entry: Mapping[str, Any]) -> PartOptions:
    """What an evaluation's episodes were run with, whatever changes them.

    Raises:
        UserError: an option of another ppt_kit.
    """
    known = {each.name for each in fields(PartOptions)}
    strange = next((name for name in entry["evaluate"] if name not in known), None)
    if strange is not None:
        raise UserError(f"{entry['log_name']}: was evaluated with {strange}, which this ppt_kit does not know.")
    return PartOptions(**entry["evaluate"])


def _absent(options: PartOptions, policy: PPTPolicy) -> str | None:
    """Why the demonstrations cannot be replayed that an evaluation consists of; None where they can, or it does not."""
    try:
        acting(options.control, policy, str(options.domain))
    except UserError as error:
        return f"the control {options.control}: {error}"
    return None


def _replayed(entry: Mapping[str, Any], policy: PPTPolicy, options: PartOptions, *, count: int) -> Iterator[dict]:
    for episode in _spread([each for each in entry["episodes"] if each["error"] is None], count):
        row = run_part(policy, replace(options, seed=episode["seed"], episodes=1)).rows[0]
        step, what = departs(episode, row)
        yield {
            **{name: entry[name] for name in ("log_name", "checkpoint", "domain", "task", "control")},
            "seed": episode["seed"],
            "same": what == "", "step": step, "what": what,
        }  # fmt: skip


def _spread(episodes: Sequence[dict], count: int) -> list[dict]:
    """`count` of them, the first and the last among them."""
    if len(episodes) <= count:
        return list(episodes)
    return [episodes[round(place * (len(episodes) - 1) / max(1, count - 1))] for place in range(count)]


def _add(told: list[str], more: Sequence[str]) -> None:
    """What is not said yet."""
    told.extend(each for each in more if each not in told)
