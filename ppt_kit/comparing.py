"""Two policies, or two methods with several training runs each, compared on the same goals; and as a command asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ppt_kit.checkpoint import load_policy
from ppt_kit.checks import domain_names
from ppt_kit.errors import UserError
from ppt_kit.schema import EvaluateConfig
from ppt_kit.sim.compare.read import is_rows
from ppt_kit.sim.compare.result import Comparison, Pair
from ppt_kit.sim.compare.running import run_seeds
from ppt_kit.sim.compare.several import MethodComparison
from ppt_kit.sim.compare.sides import Load, Side, check_alike, common_seeds, side_of, write_cards
from ppt_kit.sim.compare.statistics.betting import can_still_decide, is_decided
from ppt_kit.sim.compare.statistics.quantiles import check_confidence
from ppt_kit.sim.runner.options import EvaluateOptions, num_processes
from ppt_kit.sim.runner.options import asked as of_options
from ppt_kit.targets import places_in

# pairs at most, unless asked otherwise: with them a difference of 20 points is found in four of five comparisons
AT_MOST = 200
# of the options of `evaluate`
NO_USE = {
    "videos": "Film the same seeds with evaluate.",
    "controls": "Evaluate them, and compare tables of their rows with differ_in=['control'].",
}
# of the keys of a command, those that are handed on by another way, or not at all
HANDED_ON = {*NO_USE, "task", "domain", "n_procs", "log_name", "out_dir"}


def compare(
    a: Any,
    b: Any,
    *,
    confidence: float = 0.95,
    margin: float | None = None,
    until_decided: bool = True,
    differ_in: Sequence[str] = (),
    use_ema: bool = True,
    **options: Any,
) -> Comparison | MethodComparison:
    """Whether a or b succeeds more often on the same goals.

    Policies are run pair by pair, both on a seed, until it is decided by a test that may be looked at after every pair,
    or until `episodes` are over. Rows and cards are on the disk as an evaluation's are, and the same call goes on; the
    card beside the first's rows has all sides. What was evaluated before is compared on the seeds that both have. Lists
    are training runs of one method each: every run meets every goal, and the interval is over other runs too.

    Args:
        a, b: a policy, a run folder, a checkpoint (.pth), an evaluation, a table of its rows or a rows file (.jsonl);
            or a list of them.
        confidence: of intervals and decisions: where nothing is between them, one is called better with a chance of
            1 - confidence at most, however often and whenever one looks.
        margin: a difference that would not matter, e.g. 0.05: the two may be found to be the same within it.
        until_decided: end as soon as it is decided, or cannot be any more; False = run all episodes, whose number was
            fixed beforehand: then the exact p holds.
        differ_in: what beside the weights may differ, because it is what is compared: options, max_steps, simulator,
            control.
        use_ema: of folders and files, averaged weights where the run kept them.
        options: of `evaluate`: episodes (at most so many pairs, 200 by default), seed, task, n_procs, out_dir, … A run
            folder's rows go into its eval/ unless out_dir is given, a policy's nowhere.
    Raises:
        UserError: they share no seeds, task, simulator or options, or none of the pairs could be run; or see
            `evaluate`.
        Stopped: see `evaluate`.
    """
    asked, load = _asked({"episodes": AT_MOST, **options}), partial(load_policy, use_ema=use_ema)
    _check(confidence, margin)
    if _is_several(a) or _is_several(b):
        _check_several(a, b, margin)
        return _methods(list(a), list(b), asked, confidence=confidence, differ_in=differ_in, load=load)
    first, second = _sides({"a": a, "b": b}, asked, load=load)
    apart = check_alike(first, second, differ_in=differ_in)
    result = Comparison(first.name, second.name, first.common["task"], (), confidence, margin, apart=apart)
    return compared(result, (first, second), asked, until_decided=until_decided)


def comparisons(cfg: EvaluateConfig) -> Iterator[tuple[str, Comparison | MethodComparison]]:
    """(name of its files, what it found) of each domain that is asked for, as soon as it is there.

    Raises:
        UserError, Stopped: see `compare`.
    """
    _check_words(cfg)
    a, b = places_in(cfg.train.pretrained_dir), places_in(cfg.compare)
    several = len(a) > 1 or len(b) > 1
    same = {each.name for each in fields(EvaluateOptions)} & {each.name for each in fields(EvaluateConfig)}
    options = {name: getattr(cfg, name) for name in same - HANDED_ON}
    n_procs, _ = num_processes(cfg.eval_mode, cfg.n_procs, episodes=cfg.episodes)
    for domain in domain_names(cfg.domains) if cfg.domains else [None]:
        result = compare(
            a if several else a[0], b if several else b[0], confidence=cfg.confidence, margin=cfg.margin,
            until_decided=cfg.until_decided, differ_in=cfg.differ_in, use_ema=cfg.use_ema, task=cfg.task, domain=domain,
            n_procs=n_procs, log_name=cfg.eval_log_name, **options,
        )  # fmt: skip
        yield "_".join(part for part in (cfg.eval_log_name, "compare", domain) if part), result


def place_of_results(cfg: EvaluateConfig) -> Path:
    """Where what is found goes: beside the rows of the first that is compared.

    Raises:
        UserError: nothing is given to be compared.
    """
    _check_words(cfg)
    first = Path(places_in(cfg.train.pretrained_dir)[0])
    if first.suffix == ".jsonl":
        return first.parent
    return (first if first.is_dir() else first.parent) / "eval"


def compared(
    result: Comparison, sides: tuple[Side, Side], options: EvaluateOptions, *, until_decided: bool
) -> Comparison:
    """The result with its pairs, after what is not there was run."""
    seeds, pairs, stopped = common_seeds(sides, options.seeds), list[Pair](), list[str]()

    def enough(rows: list[dict]) -> bool:
        pairs.append(_pair(*rows))
        apart = [float(pair.a is True) - float(pair.b is True) for pair in pairs if pair.error is None]
        if not until_decided or all(side.policy is None for side in sides):
            return False
        left = len(seeds) - len(pairs)
        if is_decided(apart, confidence=result.confidence, margin=result.margin):
            stopped.append("decided")
        elif left and result.margin is None and not can_still_decide(apart, left=left, confidence=result.confidence):
            stopped.append("hopeless")
        return bool(stopped)

    run_seeds(sides, seeds, options, enough=enough)
    write_cards(sides)
    _check_ran(pairs)
    # a look after every pair is what was done, also where it decided nothing
    looked = until_decided and any(side.policy is not None for side in sides)
    return replace(result, pairs=tuple(pairs), stopped=(stopped or ["at_most"])[0] if looked else None)


def _methods(
    a: list, b: list, options: EvaluateOptions, *, confidence: float, differ_in: Sequence[str], load: Load
) -> MethodComparison:
    """Every run of both methods on every goal."""
    given = {f"{key}[{place}]": each for key, runs in (("a", a), ("b", b)) for place, each in enumerate(runs)}
    everyone = _sides(given, options, load=load)
    sides = everyone[: len(a)], everyone[len(a) :]
    apart: tuple[tuple[str, str, str], ...] = ()
    for first in sides[0]:
        for second in sides[1]:
            apart = check_alike(first, second, differ_in=differ_in)
    _check_each_once(everyone)
    seeds = common_seeds(everyone, options.seeds)
    for side in everyone:
        run_seeds([side], seeds, options, enough=lambda _: False)
    write_cards(everyone)
    return MethodComparison.of(*sides, seeds, confidence=confidence, apart=apart)


def _sides(given: dict[str, Any], options: EvaluateOptions, *, load: Load) -> list[Side]:
    """What was given by its key; what is to be run meets the goals of the rows that are there."""
    there = {key: side_of(each, options, key=key, load=load) for key, each in given.items() if is_rows(each)}
    seeds = common_seeds(list(there.values()), options.seeds)
    if there:
        options = replace(options, seed=seeds[0], episodes=seeds[-1] - seeds[0] + 1)
    return [there[key] if key in there else side_of(each, options, key=key, load=load) for key, each in given.items()]


def _pair(of_a: dict, of_b: dict) -> Pair:
    errors = [f"{key}: {row['error']}" for key, row in (("a", of_a), ("b", of_b)) if row.get("error") is not None]
    return Pair(of_a["seed"], of_a["success"], of_b["success"], "; ".join(errors) or None)


def _check_ran(pairs: Sequence[Pair]) -> None:
    if all(pair.error is not None for pair in pairs):
        first = f": seed {pairs[0].seed}, {pairs[0].error}" if pairs else ""
        raise UserError(f"none of {len(pairs)} pairs could be run{first}.")


def _check_each_once(sides: Sequence[Side]) -> None:
    seen: dict[Any, Side] = {}
    for side in sides:
        weights = side.common.get("weights")
        if weights is not None and weights in seen:
            raise UserError(
                f"{side.key} and {seen[weights].key} are the same weights ({side.name}): a training run given twice "
                "says nothing of other training runs. Give each once."
            )
        seen[weights] = side


def _check(confidence: float, margin: float | None) -> None:
    check_confidence(confidence)
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 < margin < 1):
        raise UserError(f"margin={margin!r}: takes a difference of success rates between 0 and 1, e.g. 0.05, or None.")


def _check_several(a: Any, b: Any, margin: float | None) -> None:
    if not (_is_several(a) and _is_several(b)) or not a or not b:
        raise UserError("a and b: give one of each, or a list of training runs of each, one at least.")
    if margin is not None:
        raise UserError(f"margin={margin}: is for two policies, not for lists of training runs. Leave it out.")


def _asked(given: dict[str, Any]) -> EvaluateOptions:
    """The options of `evaluate` that were given.

    Raises:
        UserError: there is no such one, or one that a comparison has no use for.
    """
    useless = next((name for name in given if name in NO_USE), None)
    if useless is not None:
        raise UserError(f"{useless}: a comparison has no use for it. {NO_USE[useless]}")
    return of_options(EvaluateOptions, **given)


def _is_several(given: Any) -> bool:
    return isinstance(given, (list, tuple))


def _check_words(cfg: EvaluateConfig) -> None:
    if not places_in(cfg.train.pretrained_dir) or not places_in(cfg.compare):
        raise UserError(
            "train.pretrained_dir or compare is empty. Type train.pretrained_dir=<run folder> compare=<another one>."
        )
    for name in ("controls", "env_names"):
        if getattr(cfg, name):
            raise UserError(
                f"{name}={','.join(getattr(cfg, name))}: a comparison is of two policies on one task, task=NAME. Leave "
                f"{name} out, or compare."
            )
    if cfg.train.model_names:
        raise UserError(
            f"train.model_names={','.join(cfg.train.model_names)}: a comparison is of one checkpoint of each. Type "
            "train.pretrained_dir=<run folder>/model_10.pth."
        )
