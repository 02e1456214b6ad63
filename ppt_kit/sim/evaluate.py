"""A policy's success rate in simulation: fresh seeds, one row an episode."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ppt_kit.checks import LONGEST, check_name, check_value
from ppt_kit.errors import UserError
from ppt_kit.files import check_place
from ppt_kit.keys import leaves_of
from ppt_kit.models.actor import check_execution
from ppt_kit.models.chunks import Execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.schema import EvaluateConfig
from ppt_kit.signals import Stopped, held_back, stops_raise
from ppt_kit.sim.card import Card, check_card, entry_of, made_with_id
from ppt_kit.sim.env import close_env, code_of
from ppt_kit.sim.episodes import EpisodePlan, open_checked, run_here, run_in_processes
from ppt_kit.sim.recorded import recorded, tasks_of
from ppt_kit.sim.results import Evaluation, check_summary, write_summary
from ppt_kit.sim.rows import RowFile, short_id, weights_id
from ppt_kit.tracking import bar_pace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateOptions:
    """What to run; `evaluate` says what each is."""

    task: str | None = None
    domain: str | None = None
    episodes: int = 20
    seed: int = 100_000
    max_steps: int | None = None
    execute_steps: int = 4
    temporal_ensembling: bool = False
    delay: int = 0
    real_time_chunking: bool = True
    num_steps: int | None = None
    zero_keys: Sequence[str] = ()
    videos: int = 0
    n_procs: int = 1
    log_name: str = "eval"
    out_dir: str | Path | None = None

    @property
    def seeds(self) -> list[int]:
        """One an episode."""
        return list(range(self.seed, self.seed + self.episodes))

    @property
    def execution(self) -> Execution:
        """How chunks are executed."""
        return Execution(
            execute_steps=self.execute_steps, temporal_ensembling=self.temporal_ensembling, delay=self.delay,
            real_time_chunking=self.real_time_chunking, num_steps=self.num_steps,
        )  # fmt: skip


def evaluate(
    policy: PPTPolicy,
    task: str | None = None,
    *,
    domain: str | None = None,
    episodes: int = EvaluateOptions.episodes,
    seed: int = EvaluateOptions.seed,
    max_steps: int | None = None,
    execute_steps: int = EvaluateOptions.execute_steps,
    temporal_ensembling: bool = False,
    delay: int = 0,
    real_time_chunking: bool = True,
    num_steps: int | None = None,
    zero_keys: Sequence[str] = (),
    videos: int = 0,
    n_procs: int = 1,
    log_name: str = EvaluateOptions.log_name,
    out_dir: str | Path | None = None,
) -> Evaluation:
    """Runs the policy on seeds that no demonstration had.

    With `out_dir` each row is on the disk as its episode ends, the same call runs the rest, and `verify_card` replays.

    Args:
        policy: from `load_policy`; its card names the simulator, camera and demonstration seeds of its domains.
        task: another task than the domain was recorded in; None = the same.
        domain: whose stems and heads to use; None = the policy's only one, or the one recorded in `task`.
        episodes: how many; episode i has seed `seed` + i.
        max_steps: longest episode; None = as recorded.
        execute_steps: actions taken of each chunk; with `temporal_ensembling`, overlapping chunks are averaged instead.
        delay, real_time_chunking, num_steps: see ppt_kit.Execution.
        zero_keys: parts of obs replaced by zeros, e.g. ("pointcloud",).
        videos: episodes to film, from the first on.
        n_procs: processes; episodes, seeds and actions are the same for any number.
        log_name: name of the files in `out_dir`, where rows and videos go; None = nothing is written, nothing filmed.
    Returns:
        Its rows, in order of seeds.
    Raises:
        UserError, Stopped: see `run_evaluation`.
    """
    return run_evaluation(policy, EvaluateOptions(
        task=task, domain=domain, episodes=episodes, seed=seed, max_steps=max_steps, execute_steps=execute_steps,
        temporal_ensembling=temporal_ensembling, delay=delay, real_time_chunking=real_time_chunking,
        num_steps=num_steps, zero_keys=zero_keys, videos=videos, n_procs=n_procs, log_name=log_name, out_dir=out_dir,
    ))  # fmt: skip


def run_evaluation(policy: PPTPolicy, options: EvaluateOptions) -> Evaluation:
    """As `evaluate`.

    Raises:
        UserError: the policy has no such domain or no simulator recorded, its demonstrations had one of the seeds, the
            simulator has no such task or option, or `out_dir` cannot be written to.
        Stopped: a stop signal, or a notebook's interrupt, came; the rows of the episodes that ended are in the file.
    """
    plan = _plan(policy, options)
    common = _common(policy, plan)
    file = RowFile(Path(options.out_dir) / f"{options.log_name}.jsonl", common) if options.out_dir is not None else None
    done = file.take_up(options.seeds, film=plan.film) if file else {}
    left = [seed for seed in options.seeds if seed not in done]
    card = Card(file.path.parent) if file else None
    if card and left:
        card.begin()
    if file and done:
        log.warning("%s", _said_of(file, done, left))
    with stops_raise():
        try:
            with closing(_run(policy, plan, left, options, ran=done)) as rows:
                for row in rows:
                    row = {**common, **row}
                    # what is said to be kept is what is in the file
                    with held_back():
                        if file:
                            file.add(row)
                        done[row["seed"]] = row
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            raise Stopped(number, _kept(file, done, options)) from None
    result = Evaluation([done[seed] for seed in options.seeds])
    if file:
        write_summary(result, file.path, name_domain=len(policy.domains) > 1, ran=bool(left))
    if card:
        card.add(entry_of(policy, options, result.rows, common=common, env=plan.env))
    return result


def check_evaluation(policy: PPTPolicy, options: EvaluateOptions) -> None:
    """Tells what `run_evaluation` would refuse, and runs nothing.

    Raises:
        UserError: see `run_evaluation`.
    """
    close_env(open_checked(policy, _plan(policy, options), seed=options.seed))


def _run(
    policy: PPTPolicy, plan: EpisodePlan, left: list[int], options: EvaluateOptions, *, ran: Mapping[int, dict]
) -> Generator[dict, None, None]:
    """The rows of the episodes that are left, beside a bar over all of them."""
    if not left:
        return
    env, n_procs = open_checked(policy, plan, seed=left[0]), min(options.n_procs, len(left))
    if n_procs > 1:
        # a worker builds its own, and may need the room
        close_env(env)
    try:
        several = n_procs > 1
        rows = run_in_processes(policy, plan, left, n_procs=n_procs) if several else run_here(policy, env, plan, left)
        title, total = f"evaluating {plan.stem}", options.episodes
        with closing(rows), tqdm(total=total, initial=len(ran), desc=title, unit="episode", **bar_pace()) as bar:
            for row in rows:
                trouble = row.pop("video_error", None)
                if trouble:
                    log.warning("seed %d: its video could not be written (%s); its row is kept", row["seed"], trouble)
                yield row
                bar.update()
                wins = sum(each["success"] is True for each in ran.values())
                bar.set_postfix(success=f"{wins}/{len(ran)}", refresh=False)
    finally:
        if n_procs == 1:
            close_env(env)


def _plan(policy: PPTPolicy, options: EvaluateOptions) -> EpisodePlan:
    """What the episodes need; a wrong option is refused here, before anything runs."""
    _check_kinds(options)
    domain = _choose_domain(policy, options)
    source = recorded(policy, domain)
    changes = {"task": options.task, "max_steps": options.max_steps}
    spec = {**source.env, **{name: value for name, value in changes.items() if value is not None}}
    _check_seeds(options.seeds, source.seeds, domain=domain)
    _check_zero_keys(options.zero_keys, policy.modalities)
    if options.videos and options.out_dir is None:
        raise UserError("videos need a folder: give out_dir, e.g. out_dir=run.run_dir / 'eval'.")
    check_name(options.log_name, key="log_name")
    if options.out_dir is not None:
        check_place(Path(options.out_dir), key="out_dir")
        check_summary(Path(options.out_dir) / f"{options.log_name}.json")
        check_card(Path(options.out_dir))
    stem = f"{options.log_name}_{spec['task']}" + "".join(f"_no-{name}" for name in options.zero_keys)
    plan = EpisodePlan(
        env=spec, domain=domain, execution=options.execution, zero_keys=tuple(options.zero_keys),
        film=frozenset(options.seeds[: options.videos]),
        video_dir=Path(options.out_dir) if options.out_dir is not None else None,
        # a task is called as its simulator likes, a file is not
        stem=re.sub(r"[^\w.+-]", "-", stem)[:LONGEST],
    )  # fmt: skip
    check_execution(policy, plan.execution)
    if options.real_time_chunking and not policy.conditioning.prepares(options.delay):
        log.warning("delay=%d: chunks are in-painted without training for it: policy.max_delay is less", options.delay)
    return plan


def _common(policy: PPTPolicy, plan: EpisodePlan) -> dict[str, Any]:
    """What every row of an evaluation says of it: rows that say the same are of the same evaluation."""
    described = {**plan.env, "code": code_of(plan.env)}
    steps = f" max_steps={plan.env['max_steps']}" if "max_steps" in plan.env else ""
    return {
        "checkpoint": str(policy.card["path"]), "weights": weights_id(policy, plan.domain), "domain": plan.domain,
        "task": plan.env["task"], "options": f"{plan.execution}{steps} simulator={short_id(described)}",
        "zero_keys": list(plan.zero_keys), "made_with": made_with_id(),
    }  # fmt: skip


def _said_of(file: RowFile, done: Mapping[int, dict], left: Sequence[int]) -> str:
    if left:
        return f"{file.path} has {len(done)} of {len(done) + len(left)} episodes: going on with the others"
    return (
        f"{file.path} has all {len(done)} episodes of this checkpoint with these options: none is run again "
        "(another log name runs them anew)"
    )


def _kept(file: RowFile | None, done: Mapping[int, dict], options: EvaluateOptions) -> str:
    count = f"{len(done)} of {options.episodes} episodes"
    if file is None:
        return f"{count} were run and are gone; with out_dir=… their rows are kept, and the same call goes on"
    return f"{count} are in {file.path}; the same again goes on with the others"


def _choose_domain(policy: PPTPolicy, options: EvaluateOptions) -> str:
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


def _check_kinds(options: EvaluateOptions) -> None:
    """What the schema checks of words, of a notebook's arguments."""
    for name in ("episodes", "seed", "max_steps", "execute_steps", "delay", "num_steps", "videos", "n_procs"):
        value, takes = getattr(options, name), leaves_of(EvaluateConfig)[name][1].metadata
        if name in ("max_steps", "num_steps") and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < takes["low"]:
            raise UserError(f"{name}={value!r}: takes a whole number, at least {takes['low']}.")
        check_value(name, int(value), takes)
    for name in ("temporal_ensembling", "real_time_chunking"):
        if not isinstance(getattr(options, name), bool):
            raise UserError(f"{name}={getattr(options, name)!r}: takes True or False.")
    for name in ("task", "domain"):
        value = getattr(options, name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{name}={value!r}: takes a name.")
    if isinstance(options.zero_keys, str) or not all(isinstance(name, str) for name in options.zero_keys):
        raise UserError(f"zero_keys={options.zero_keys!r}: takes a list of names, e.g. ['pointcloud'].")


def _check_seeds(seeds: Sequence[int], demonstrated: Sequence[int], *, domain: str) -> None:
    met = sorted(set(seeds) & set(demonstrated))
    if met:
        raise UserError(
            f"seed={seeds[0]}: {len(met)} of the evaluation's seeds were demonstrated in {domain} (e.g. {met[0]}): "
            f"the rate would count goals seen in training. Set seed above {max(demonstrated)}."
        )


def _check_zero_keys(zero_keys: Sequence[str], modalities: Sequence[str]) -> None:
    for name in zero_keys:
        if name not in modalities:
            raise UserError(f"zero_keys={name}: takes {', '.join(modalities)}.")
