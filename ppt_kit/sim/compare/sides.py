"""The two sides of a comparison: rows that are there, or a policy that can be run; and whether they can be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.card import Card, entry_of
from ppt_kit.sim.compare.read import is_rows, rows_in
from ppt_kit.sim.episodes import EpisodePlan
from ppt_kit.sim.results import NO_CONTROL, control_of, zeroed
from ppt_kit.sim.rows import IDENTITY, RowFile
from ppt_kit.sim.runner.options import EvaluateOptions, PartOptions
from ppt_kit.sim.runner.plan import common_of, plan_of

# a policy from its run folder or file
Load = Callable[[Path], PPTPolicy]
# what two sides may differ in where that is what is compared
MAY_DIFFER = ("options", "max_steps", "simulator", "control")


@dataclass
class Side:
    """One of two that are compared.

    Attributes:
        key: what the user gave it as, a or b.
        common: what each of its rows says: checkpoint, and what makes rows those of one evaluation.
        rows: seed -> row of the episodes that were run.
        policy, plan, options: of one that can be run.
        file, card: of its rows, and what they stand on; None where nothing is to be written.
    """

    key: str
    common: dict[str, Any]
    rows: dict[int, dict] = field(default_factory=dict)
    policy: PPTPolicy | None = None
    plan: EpisodePlan | None = None
    options: PartOptions | None = None
    file: RowFile | None = None
    card: Card | None = None

    @property
    def name(self) -> str:
        """As results call it."""
        control = control_of(self.common)
        return f"{self.common['checkpoint']}{'' if control == NO_CONTROL else f', {control}'}"

    def add(self, row: Mapping[str, Any]) -> None:
        """One more episode that was run; on the disk, where it has a file."""
        whole = {**self.common, **row}
        if self.file is not None and self.card is not None:
            self.card.begin()
            self.file.add(whole)
        self.rows[whole["seed"]] = whole

    def entry_in(self, card: Card) -> dict[str, Any] | None:
        """What a card says of its episodes; None of rows whose policy is not here."""
        if self.policy is None or self.plan is None or self.options is None:
            return None
        rows = [self.rows[seed] for seed in sorted(self.rows)]
        options = replace(self.options, out_dir=card.path.parent)
        return entry_of(self.policy, options, rows, common=self.common, env=self.plan.env)


def side_of(given: Any, options: EvaluateOptions, *, key: str, load: Load) -> Side:
    """What was given as a or b, ready to be compared.

    Raises:
        UserError: it is nothing that can be, holds rows of several evaluations, or see `run_evaluation`.
    """
    if is_rows(given):
        return _stored(rows_in(given, key=key), options, key=key)
    if isinstance(given, (str, Path)):
        path = Path(given)
        folder = options.out_dir or (path if path.is_dir() else path.parent) / "eval"
        return _runnable(load(path), options, key=key, folder=folder)
    if isinstance(given, PPTPolicy):
        return _runnable(given, options, key=key, folder=options.out_dir)
    raise UserError(
        f"{key}={given!r:.80}: takes a policy, a run folder, a checkpoint (.pth), an evaluation, a table of rows or a "
        "rows file (.jsonl)."
    )


def check_alike(a: Side, b: Side, *, differ_in: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """(what, of a, of b) of everything beside the weights that the two do not share, where that is allowed.

    Raises:
        UserError: they are of two tasks, or the same twice, or do not share something that was not allowed to differ.
    """
    _check_differ_in(differ_in)
    if a.common["task"] != b.common["task"]:
        raise UserError(
            f"a was evaluated on {a.common['task']} and b on {b.common['task']}: their seeds are not the same goals. "
            "Compare on one task, e.g. task=NAME."
        )
    ways_a, ways_b = _ways(a.common), _ways(b.common)
    apart = tuple((name, ways_a[name], ways_b[name]) for name in MAY_DIFFER if ways_a[name] != ways_b[name])
    for name, of_a, of_b in apart:
        if name not in differ_in:
            raise UserError(
                f"a and b were not evaluated alike: {name} is {of_a} of a and {of_b} of b. Evaluate both in one way; "
                f"if this is what you compare, type differ_in=[{name}]."
            )
    if not apart and a.common.get("weights") is not None and a.common["weights"] == b.common.get("weights"):
        raise UserError(f"a and b are the same weights, evaluated in the same way: {a.name}. Give two different ones.")
    return apart


def write_cards(sides: Sequence[Side]) -> None:
    """Each side into the card beside its own rows; all of them into the first one's, where the result goes.

    Raises:
        UserError: see `Card.add`.
    """
    cards = [side.card for side in sides if side.card is not None]
    for side in sides:
        for card in {card.path: card for card in (*cards[:1], side.card) if card is not None}.values():
            entry = side.entry_in(card)
            if entry is not None:
                card.add(entry)


def common_seeds(sides: Sequence[Side], asked: Sequence[int]) -> list[int]:
    """Seeds that all have, or can run: rows that are there say which, where a side cannot be run.

    Raises:
        UserError: there is none.
    """
    there = [side for side in sides if side.policy is None]
    shared = sorted(set.intersection(*(set(side.rows) for side in there))) if there else list(asked)
    if not shared:
        has = ", ".join(f"{side.key} has {_range(side)}" for side in there)
        raise UserError(
            f"the evaluations share no seeds: {has}. A comparison needs the same goals for all of them: evaluate them "
            "with the same seed=…"
        )
    return shared


def _stored(rows: list[dict], options: EvaluateOptions, *, key: str) -> Side:
    wanted = {"task": options.task, "domain": options.domain}
    chosen = [
        row
        for row in rows
        if control_of(row) == zeroed(options.zero_keys)
        and all(value is None or row.get(name) == value for name, value in wanted.items())
    ]
    if not chosen and len({control_of(row) for row in rows}) == 1 and not options.zero_keys:
        # one that holds nothing but a control was meant
        chosen = [row for row in rows if all(value is None or row.get(n) == value for n, value in wanted.items())]
    kinds = _kinds(chosen)
    if len(kinds) != 1:
        there = "; ".join(f"{dict(kind)}" for kind in _kinds(rows)[:3])
        raise UserError(
            f"{key}: {'no rows' if not kinds else f'rows of {len(kinds)} evaluations'} are left, of {there:.600}. Say "
            "which with task, domain and zero_keys, or give a table of those rows alone, e.g. "
            "frame[frame['checkpoint'] == …]."
        )
    # rows that could not be run and then were: the last one says how it went
    common = {name: chosen[0].get(name) for name in ("checkpoint", *IDENTITY, "control")}
    return Side(key, common, {row["seed"]: row for row in chosen})


def _kinds(rows: Sequence[dict]) -> list[tuple]:
    """What rows of one evaluation share, of each evaluation there is."""
    kinds = {
        tuple((name, row.get(name)) for name in ("checkpoint", *IDENTITY) if name != "zero_keys")
        + (("control", control_of(row)),): None
        for row in rows
    }
    return list(kinds)


def _runnable(policy: PPTPolicy, options: EvaluateOptions, *, key: str, folder: str | Path | None) -> Side:
    part = PartOptions.of(options, out_dir=folder)
    plan = plan_of(policy, part)
    common = common_of(policy, plan)
    side = Side(key, common, policy=policy, plan=plan, options=part)
    if folder is not None:
        side.file, side.card = RowFile(Path(folder) / f"{options.log_name}.jsonl", common), Card(Path(folder))
        side.rows = side.file.take_up(options.seeds, film=frozenset())
    return side


def _ways(common: Mapping[str, Any]) -> dict[str, str]:
    """How an evaluation was run, part by part, from what its rows say."""
    words, _, simulator = str(common.get("options", "")).rpartition("simulator=")
    steps = re.search(r" max_steps=(\d+)", words)
    # an episode that went on after its success counts as the one that stopped there
    told = re.sub(r" (max_steps=\d+|stop_at_success=false)(?= |$)", "", words).strip()
    return {
        "options": told or "-", "max_steps": steps[1] if steps else "as recorded", "simulator": simulator or "-",
        "control": control_of(common),
    }  # fmt: skip


def _check_differ_in(differ_in: Sequence[str]) -> None:
    unknown = [name for name in ([differ_in] if isinstance(differ_in, str) else differ_in) if name not in MAY_DIFFER]
    if unknown or isinstance(differ_in, str):
        raise UserError(f"differ_in={differ_in!r}: takes a list of {', '.join(MAY_DIFFER)}.")


def _range(side: Side) -> str:
    seeds = sorted(side.rows)
    return f"{seeds[0]} to {seeds[-1]}" if seeds else "none"
