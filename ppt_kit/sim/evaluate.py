"""A policy's success rate in simulation: fresh seeds, one row an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.episodes import EpisodePlan, run_episodes
from ppt_kit.sim.results import Evaluation, write_results
from ppt_kit.tracking import bar_pace


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
    zero_keys: Sequence[str] = ()
    videos: int = 0
    n_procs: int = 1
    log_name: str = "eval"
    out_dir: str | Path | None = None

    @property
    def seeds(self) -> list[int]:
        """One an episode."""
        return list(range(self.seed, self.seed + self.episodes))


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
    zero_keys: Sequence[str] = (),
    videos: int = 0,
    n_procs: int = 1,
    log_name: str = EvaluateOptions.log_name,
    out_dir: str | Path | None = None,
) -> Evaluation:
    """Runs the policy on seeds that no demonstration had.

    Args:
        policy: from `load_policy`; its card names the simulator, camera and demonstration seeds of its domains.
        task: another task than the domain was recorded in; None = the same.
        domain: whose stems and heads to use; None = the policy's only one, or the one recorded in `task`.
        episodes: how many; episode i has seed `seed` + i.
        max_steps: longest episode; None = as recorded.
        execute_steps: actions taken of each chunk; with `temporal_ensembling`, overlapping chunks are averaged instead.
        zero_keys: parts of obs replaced by zeros, e.g. ("pointcloud",).
        videos: episodes to film, from the first on.
        n_procs: processes; episodes, seeds and actions are the same for any number.
        log_name: name of the files in `out_dir`, where rows and videos go; None = nothing is written, nothing filmed.
    Returns:
        Its rows, in order of seeds.
    Raises:
        UserError: see `run_evaluation`.
    """
    return run_evaluation(policy, EvaluateOptions(
        task=task, domain=domain, episodes=episodes, seed=seed, max_steps=max_steps, execute_steps=execute_steps,
        temporal_ensembling=temporal_ensembling, zero_keys=zero_keys, videos=videos, n_procs=n_procs,
        log_name=log_name, out_dir=out_dir,
    ))  # fmt: skip


def run_evaluation(policy: PPTPolicy, options: EvaluateOptions) -> Evaluation:
    """As `evaluate`.

    Raises:
        UserError: the policy has no such domain or no simulator recorded, its demonstrations had one of the seeds, or
            the simulator has no such task or option.
    """
    plan = _plan(policy, options)
    whole = {"checkpoint": str(policy.card["path"]), "domain": plan.domain, "task": plan.env["task"]}
    rows = []
    with tqdm(total=options.episodes, desc=f"evaluating {plan.stem}", unit="episode", **bar_pace()) as bar:
        for row in run_episodes(policy, plan, options.seeds, n_procs=min(options.n_procs, options.episodes)):
            rows.append({**whole, **row, "zero_keys": list(plan.zero_keys)})
            bar.update()
            bar.set_postfix(success=f"{sum(row['success'] is True for row in rows)}/{len(rows)}", refresh=False)
    rows.sort(key=lambda row: row["seed"])
    result = Evaluation(rows)
    if options.out_dir is not None:
        write_results(result, Path(options.out_dir), options.log_name, name_domain=len(policy.domains) > 1)
    return result


def _plan(policy: PPTPolicy, options: EvaluateOptions) -> EpisodePlan:
    """What the episodes need; a wrong option is refused here, before anything runs."""
    domain = _choose_domain(policy, options)
    source = policy.card["sources"][domain]
    if not source["env"]:
        raise UserError(
            f"domain {domain}: its dataset does not say which simulator it comes from, "
            "so it cannot be evaluated in one."
        )
    changes = {"task": options.task, "max_steps": options.max_steps}
    spec = {**source["env"], **{name: value for name, value in changes.items() if value is not None}}
    _check_seeds(options.seeds, source["seeds"], domain=domain)
    _check_zero_keys(options.zero_keys, policy.modalities)
    if options.videos and options.out_dir is None:
        raise UserError("videos need a folder: give out_dir, e.g. out_dir=run.run_dir / 'eval'.")
    plan = EpisodePlan(
        env=spec, domain=domain, execute_steps=options.execute_steps, temporal_ensembling=options.temporal_ensembling,
        zero_keys=tuple(options.zero_keys), film=frozenset(options.seeds[: options.videos]),
        video_dir=Path(options.out_dir) if options.out_dir is not None else None,
        stem=f"{options.log_name}_{spec['task']}" + "".join(f"_no-{name}" for name in options.zero_keys),
    )  # fmt: skip
    plan.executor(policy)
    return plan


def _choose_domain(policy: PPTPolicy, options: EvaluateOptions) -> str:
    if "sources" not in policy.card:
        raise UserError("this policy was not loaded from a run folder: use ppt_kit.load_policy(run_dir).")
    known = ", ".join(policy.domains)
    if options.domain is not None:
        if options.domain not in policy.domains:
            raise UserError(f"domains={options.domain}: this policy knows {known}.")
        return options.domain
    tasks = {name: (policy.card["sources"][name]["env"] or {}).get("task") for name in policy.domains}
    recorded = [name for name, task in tasks.items() if task == options.task]
    if recorded:
        return recorded[0]
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


def _check_zero_keys(zero_keys: Sequence[str], modalities: Sequence[str]) -> None:
    for name in zero_keys:
        if name not in modalities:
            raise UserError(f"zero_keys={name}: takes {', '.join(modalities)}.")
