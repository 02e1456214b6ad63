"""From the options of an evaluation to what its episodes need; what cannot be run is refused here."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppt_kit.checks import LONGEST, check_name
from ppt_kit.errors import UserError
from ppt_kit.files import check_place
from ppt_kit.models.actor import check_execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.card import check_card, made_with_id
from ppt_kit.sim.env import close_env, code_of
from ppt_kit.sim.episodes import EpisodePlan
from ppt_kit.sim.recorded import recorded, tasks_of
from ppt_kit.sim.results import NOBODY, check_summary
from ppt_kit.sim.rows import run_of, short_id, weights_id
from ppt_kit.sim.runner.controls import ACTING, SCENE, acting, chosen, other_sentence, zeroed_by
from ppt_kit.sim.runner.options import EvaluateOptions, PartOptions, check_kinds

log = logging.getLogger(__name__)


def plan_of(policy: PPTPolicy, options: PartOptions) -> EpisodePlan:
    """What the episodes need; a wrong option is refused here, before anything runs.

    Raises:
        UserError: see `ppt_kit.sim.evaluate.run_evaluation`.
    """
    check_kinds(options)
    domain = choose_domain(policy, options)
    source = recorded(policy, domain)
    changes = {"task": options.task, "max_steps": options.max_steps}
    spec = {**source.env, **{name: value for name, value in changes.items() if value is not None}}
    _check_seeds(options.seeds, source.seeds, domain=domain)
    _check_zero_keys(options.zero_keys, policy.modalities)
    _check_sentence(options.sentence, policy.modalities)
    _check_obs_mode(options.obs_mode, policy.modalities)
    _check_warmup(options, spec)
    if options.videos and options.out_dir is None:
        raise UserError("videos need a folder: give out_dir, e.g. out_dir=run.run_dir / 'eval'.")
    check_name(options.log_name, key="log_name")
    if options.out_dir is not None:
        check_place(Path(options.out_dir), key="out_dir")
        check_summary(Path(options.out_dir) / f"{options.log_name}.json")
        check_card(Path(options.out_dir))
    checkpoint = Path(str(policy.card["path"]))
    plan = EpisodePlan(
        env=spec, domain=domain, execution=options.execution, zero_keys=tuple(options.zero_keys),
        sentence=options.sentence, stop_at_success=options.stop_at_success,
        warmup_steps=options.warmup_steps, control=acting(options.control, policy, domain),
        batch_envs=options.batch_envs, film=frozenset(options.filmed),
        video_dir=Path(options.out_dir) if options.out_dir is not None else None,
        stem=_stem(options, spec["task"], checkpoint),
        caption=_caption(options, spec["task"], checkpoint),
    )  # fmt: skip
    check_execution(policy, plan.execution)
    if options.control is None and options.real_time_chunking and not policy.conditioning.prepares(options.delay):
        log.warning("delay=%d: chunks are in-painted without training for it: policy.max_delay is less", options.delay)
    return plan


def common_of(policy: PPTPolicy, plan: EpisodePlan, *, control: str | None = None) -> dict[str, Any]:
    """What every row of an evaluation says of it: rows that say the same are of the same evaluation."""
    described = {**plan.env, "code": code_of(plan.env)}
    steps = f" max_steps={plan.env['max_steps']}" if "max_steps" in plan.env else ""
    told = "" if plan.sentence is None else f" sentence={plan.sentence!r}"
    told += "" if plan.stop_at_success else " stop_at_success=false"
    told += f" warmup_steps={plan.warmup_steps}" if plan.warmup_steps else ""
    told += f" batch_envs={plan.batch_envs}" if plan.batch_envs > 1 and plan.control is None else ""
    # of who acts without the policy, rows are the same for every checkpoint
    who = plan.execution if plan.control is None else plan.control
    acts = plan.control is None
    if control is None and plan.sentence is not None:
        # who is told something else does not do as the policy does by itself
        control = f"told {plan.sentence!r}"
    return {
        "checkpoint": str(policy.card["path"]) if acts else NOBODY,
        "weights": weights_id(policy, plan.domain) if acts else NOBODY, "domain": plan.domain,
        "task": plan.env["task"], "options": f"{who}{steps}{told} simulator={short_id(described)}",
        "zero_keys": list(plan.zero_keys), "control": control, "epoch": policy.card.get("epoch") if acts else None,
        "made_with": made_with_id(),
    }  # fmt: skip


def where_of(policy: PPTPolicy, plan: EpisodePlan) -> str:
    """What a summary's name says behind the checkpoint's: the domain of several, a task that was not recorded."""
    tasks = tasks_of(policy)
    domain = f" on {plan.domain}" if len(policy.domains) > 1 else ""
    return domain + ("" if tasks[plan.domain] == plan.env["task"] else f" in {plan.env['task']}")


def parts_of(policy: PPTPolicy, options: EvaluateOptions) -> list[PartOptions]:
    """The evaluation of the policy, and one of each control that is asked for.

    Raises:
        UserError: a control that this policy, or its simulator, does not admit.
    """
    check_kinds(options)
    found = [PartOptions.of(options)]
    every = options.controls == "all" or list(options.controls) == ["all"]
    for name in chosen(options.controls, policy) if options.controls else ():
        try:
            found.append(_under(name, policy, options))
        except UserError as error:
            if not every:
                raise
            log.warning("controls=all, but not %s: %s", name, error)
    return found


def _under(name: str, policy: PPTPolicy, options: EvaluateOptions) -> PartOptions:
    """The options of a control; it is found out that it can be run."""
    domain = choose_domain(policy, options)
    zeroed = tuple(dict.fromkeys([*options.zero_keys, *zeroed_by(name, policy)])) if name not in ACTING else ()
    told = other_sentence(policy, domain) if name == "sentence" else options.sentence
    under = PartOptions.of(options, control=name, zero_keys=zeroed, videos=0, sentence=told)
    if name in ACTING:
        under = replace(under, sentence=None, obs_mode=None)
        close_env(plan_of(policy, under).open_env(policy))
    return under


def _stem(options: EvaluateOptions, task: str, checkpoint: Path) -> str:
    """How the names of videos begin."""
    parts = [options.log_name, task, *([checkpoint.stem] if checkpoint != run_of(checkpoint) else [])]
    stem = "_".join(parts) + "".join(f"_no-{name}" for name in options.zero_keys)
    # a task is called as its simulator likes, a file is not
    return re.sub(r"[^\w.+-]", "-", stem)[:LONGEST]


def _caption(options: EvaluateOptions, task: str, checkpoint: Path) -> str:
    """Two lines that say what is filmed."""
    zeroed = "".join(f" without {name}" for name in options.zero_keys)
    run = run_of(checkpoint)
    name = run.name if checkpoint == run else f"{run.name}/{checkpoint.stem}"
    return f"{task}{zeroed}\n{name}"


def choose_domain(policy: PPTPolicy, options: EvaluateOptions) -> str:
    """Whose stems and heads act."""
    tasks, known = tasks_of(policy), ", ".join(policy.domains)
    if options.domain is not None:
        if options.domain not in policy.domains:
            raise UserError(f"domains={options.domain}: this policy knows {known}.")
        return options.domain
    found = [name for name, task in tasks.items() if task == options.task]
    if found:
        return found[0]
    if len(policy.domains) > 1:
        raise UserError(f"this policy knows {known}. Say which with domains=….")
    return policy.domains[0]


def _check_seeds(seeds: Sequence[int], demonstrated: Sequence[int], *, domain: str) -> None:
    met = sorted(set(seeds) & set(demonstrated))
    if met:
        raise UserError(
            f"seed={seeds[0]}: {len(met)} of the evaluation's seeds were demonstrated in {domain} (e.g. {met[0]}): "
            f"the rate would count goals seen in training. Set seed above {max(demonstrated)}."
        )


def _check_sentence(sentence: str | None, modalities: Sequence[str]) -> None:
    if sentence is not None and "language" not in modalities:
        raise UserError(f"sentence={sentence!r}: this policy hears none; it sees {', '.join(modalities)}.")


def _check_zero_keys(zero_keys: Sequence[str], modalities: Sequence[str]) -> None:
    for name in zero_keys:
        if name not in modalities:
            raise UserError(f"zero_keys={name}: takes {', '.join(modalities)}.")


def _check_obs_mode(obs_mode: str | None, modalities: Sequence[str]) -> None:
    """What a user takes the policy to see is what it sees; state and sentences need not be named."""
    if obs_mode is None:
        return
    words = {"rgbd": ["rgb", "depth"], "image": ["rgb"], "cloud": ["pointcloud"]}
    named = [each for word in re.split(r"[+,]", obs_mode) for each in words.get(word.strip(), [word.strip()])]
    scene = {name for name in modalities if name in SCENE}
    if {name for name in named if name in SCENE} != scene or not set(named) <= set(modalities):
        raise UserError(
            f"obs_mode={obs_mode}: this policy sees {', '.join(modalities)}. "
            f"Type obs_mode={'+'.join(name for name in modalities if name in SCENE) or 'state'}, or leave it out."
        )


def _check_warmup(options: EvaluateOptions, spec: Mapping[str, Any]) -> None:
    longest = spec.get("max_steps")
    if isinstance(longest, int) and options.warmup_steps >= longest:
        raise UserError(
            f"warmup_steps={options.warmup_steps}: an episode has {longest} control steps, and none is left for the "
            "policy. Set warmup_steps lower, or max_steps higher."
        )
