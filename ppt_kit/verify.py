"""Whether a card's episodes go here as they went there, to the bit; and where and why they do not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.checkpoint import load_policy
from ppt_kit.config import from_mapping, typed
from ppt_kit.data.dataset import load_dataset
from ppt_kit.data.formats import find_domain
from ppt_kit.data.normalizer import fit_normalizer
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.programs import to_type
from ppt_kit.sim.card import (
    CARD,
    REPLAYED,
    data_hashes,
    differing,
    file_hash,
    made_with,
    part_hashes,
    read_card,
    weights_file,
)
from ppt_kit.sim.env import code_of
from ppt_kit.sim.evaluate import run_part
from ppt_kit.sim.results import NOBODY
from ppt_kit.sim.runner.controls import acting
from ppt_kit.sim.runner.options import PartOptions
from ppt_kit.targets import Target

# hex digits that a trace has of what was seen, and of what was done, in one step
SEEN = DONE = 4
# what rows said before there were traces
BEFORE_TRACES = ("success", "steps", "return", "actions_sha256")


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

    def __str__(self) -> str:
        alike = sum(episode["same"] for episode in self.episodes)
        lines = [f"{self.card}: {alike} of {len(self.episodes)} replayed episodes are the same to the bit"]
        for title, told in (
            ("differs", self.differences),
            ("other surroundings", self.surroundings),
            ("not compared", self.not_compared),
        ):
            lines += [f"{title}: {each}" for each in told]
        for each in self.episodes:
            if not each["same"]:
                where = f"from step {each['step']} on" if each["step"] else "somewhere"
                under = f", {each['control']}" if each["control"] else ""
                lines.append(f"{each['task']}{under}, seed {each['seed']}: {where}, {each['what']}")
        return "\n".join([*lines, "the same" if self.same else "not the same"])


def verify_card(
    place: str | Path, *, episodes: int = 3, eval_log_name: str | None = None, checkpoint: str | Path | None = None
) -> Verification:
    """Replays some of a card's episodes here, and compares what they stand on.

    Each is run with the options that it was run with, controls too. A demonstration can be replayed only where the data
    is; where it is not, that is said in `not_compared`.

    Args:
        place: a card.json, the folder that it is in, or a run folder.
        episodes: how many of each evaluation in it, spread over its seeds.
        eval_log_name: of the evaluations in it, those of this name; None = all.
        checkpoint: file of weights; None = the one that the card names, from its own folder.
    Raises:
        UserError: there is no card, it is damaged or of another version, or a checkpoint is not there or cannot be
            read.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise UserError(f"episodes={episodes!r}: takes a whole number, at least 1.")
    path = _find(Path(place))
    card = read_card(path)
    with _described(path):
        chosen = _chosen(card, path, log_name=eval_log_name)
        found = Verification(path, [], [], [], [])
        for entry in chosen:
            policy, differences = _load(entry, path, checkpoint)
            _add(found.differences, differences)
            spec = {name: value for name, value in entry["simulator"].items() if name != "code"}
            if code_of(spec) != entry["simulator"]["code"]:
                _add(found.differences, [f"simulator {spec['simulator']}: its file is another"])
            _compare_data(entry, policy, found)
            _compare_surroundings(card, entry, found)
            options = _options(entry)
            absent = _absent(options, policy)
            if absent is None:
                found.episodes.extend(_replayed(entry, policy, options, count=episodes))
            else:
                _add(found.not_compared, [absent])
    return found


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


def _load(entry: Mapping[str, Any], card: Path, checkpoint: str | Path | None) -> tuple[PPTPolicy, list[str]]:
    """The policy that acted, or the nearest to it, and in what it differs."""
    file = _file_of(entry, card, checkpoint)
    if entry["weights"] == NOBODY:
        return load_policy(file), []
    for use_ema in (True, False):
        policy = load_policy(file, use_ema=use_ema)
        parts = part_hashes(policy)
        # the card does not say whether raw or averaged weights acted: it says which
        if parts == entry["parts"]:
            return policy, []
    averaged = load_policy(file)
    other = [name for name, value in part_hashes(averaged).items() if entry["parts"].get(name) != value]
    gone = [name for name in entry["parts"] if name not in part_hashes(averaged)]
    changed = "changed since" if file_hash(file) != entry["file_sha256"] else "the file that was evaluated"
    return averaged, [f"weights of {file} ({changed}): other in {', '.join(other + gone)}"]


def _file_of(entry: Mapping[str, Any], card: Path, checkpoint: str | Path | None) -> Path:
    file = weights_file(checkpoint) if checkpoint is not None else Path(os.path.normpath(card.parent / entry["file"]))
    # the card may have been copied alone
    if checkpoint is None and not file.is_file() and weights_file(entry["path"]).is_file():
        file = weights_file(entry["path"])
    if not file.is_file():
        raise UserError(
            f"{file}: is gone, and {entry['log_name']} in {card} is of it (SHA-256 {entry['file_sha256']}). "
            "Type checkpoint=<where it is>, or eval_log_name=<another evaluation of the card>."
        )
    return file


def _compare_data(entry: Mapping[str, Any], policy: PPTPolicy, found: Verification) -> None:
    """The data that the weights were trained on, where it is here."""
    here = data_hashes(policy.card["normalizer"])
    told = [f"data of {name}: {each}" for name in entry["data"] for each in differing(entry["data"][name], here[name])]
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
        dataset = load_dataset(cfg, modalities=policy.modalities)
        now = data_hashes(fit_normalizer(dataset, cfg.normalizer))
    except UserError as error:
        _add(found.differences, [f"data: {error}"])
        return
    told += [f"data of {name}: {each}" for name in entry["data"] for each in differing(entry["data"][name], now[name])]
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


def departs(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[int | None, str]:
    """The first step in which two rows of one episode differ, from 1, and in what; (None, "") of the same.

    A trace has SEEN + DONE digits a step: of everything that was seen until then, and of everything that was done.
    """
    if here["error"] is not None:
        return None, f"it could not be run here: {here['error']}"
    one, other = _steps(there["trace"]), _steps(here["trace"])
    for step, (a, b) in enumerate(zip(one, other), 1):
        if a[:SEEN] != b[:SEEN]:
            begun = "its first observation" if step == 1 else "after the same actions another observation"
            return step, f"{begun}: the simulator or its rendering differs"
        if a != b:
            why = "who acts does otherwise" if here.get("checkpoint") == NOBODY else "the policy's arithmetic differs"
            return step, f"after the same observations another action: {why}"
    if len(one) != len(other) and one and other:
        return min(len(one), len(other)) + 1, f"it ends after {len(other)} steps here, after {len(one)} there"
    names = REPLAYED if there["trace"] is not None else BEFORE_TRACES
    # as the card has them: a number that is none is the same as itself there
    wrong = [name for name in names if json.dumps(there[name]) != json.dumps(here[name])]
    if not wrong:
        return None, ""
    return None, ", ".join(f"{name} {str(there[name])[:40]} there, {str(here[name])[:40]} here" for name in wrong)


def _steps(trace: str | None) -> list[str]:
    width = SEEN + DONE
    return [trace[at : at + width] for at in range(0, len(trace), width)] if trace else []


def _spread(episodes: Sequence[dict], count: int) -> list[dict]:
    """`count` of them, the first and the last among them."""
    if len(episodes) <= count:
        return list(episodes)
    return [episodes[round(place * (len(episodes) - 1) / max(1, count - 1))] for place in range(count)]


def _add(told: list[str], more: Sequence[str]) -> None:
    """What is not said yet."""
    told.extend(each for each in more if each not in told)
