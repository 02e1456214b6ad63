"""A policy's success rate in simulation, with its interval: fresh seeds, one row an episode, an exception is not a failure."""

from __future__ import annotations

import json
import math
import multiprocessing
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from ppt_kit.errors import UserError
from ppt_kit.files import write_text
from ppt_kit.models.act import ChunkExecutor
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, make_env
from ppt_kit.sim.rollout import Episode, rollout, write_video
from ppt_kit.tracking import bar_pace

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass
class Evaluation:
    """The episodes of one evaluation.

    Attributes:
        rows: one dict an episode: checkpoint, domain, task, seed, success (null when it could not be run), steps,
            return, error, subtasks, zero_keys, video.
    """

    rows: list[dict]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)

    @property
    def videos(self) -> list[Path]:
        """Files of the filmed episodes."""
        return [Path(row["video"]) for row in self.rows if row["video"]]

    @property
    def num_successes(self) -> int:
        """Episodes that succeeded."""
        return sum(row["success"] is True for row in self.rows)

    def _repr_html_(self) -> str:
        return success_table(self)._repr_html_()  # type: ignore[operator]


@dataclass(frozen=True)
class _Plan:
    """What a worker needs beside the policy."""

    env: dict
    domain: str
    zero_keys: tuple[str, ...]
    execute_steps: int
    temporal_ensembling: bool
    film: frozenset[int]
    video_dir: Path | None
    stem: str


def evaluate(
    policy: PPTPolicy,
    task: str | None = None,
    *,
    episodes: int = 20,
    seed: int = 100_000,
    domain: str | None = None,
    max_steps: int | None = None,
    execute_steps: int = 4,
    temporal_ensembling: bool = False,
    zero_keys: Sequence[str] = (),
    videos: int = 0,
    n_procs: int = 1,
    log_name: str = "eval",
    out_dir: str | Path | None = None,
) -> Evaluation:
    """Runs the policy on seeds that no demonstration had.

    Args:
        policy: from `load_policy`; its card names the simulator, camera and demonstration seeds of its domains.
        task: another task than the domain was recorded in; None = the same.
        episodes: how many; episode i has seed `seed` + i.
        domain: whose stems and heads to use; None = the policy's only one, or the one recorded in `task`.
        max_steps: longest episode; None = as recorded.
        execute_steps: actions taken of each chunk.
        temporal_ensembling: average overlapping chunks instead.
        zero_keys: parts of obs replaced by zeros, e.g. ("pointcloud",).
        videos: episodes to film, from the first on.
        n_procs: processes; episodes and seeds are the same for any number.
        log_name: name of the files in `out_dir`.
        out_dir: where rows and videos go; None = nothing is written, and nothing filmed.
    Returns:
        Its rows, in order of seeds.
    Raises:
        UserError: the policy has no such domain or no simulator recorded, or its demonstrations had one of the seeds.
    """
    domain = _choose_domain(policy, task, domain)
    source = policy.card["sources"][domain]
    spec = dict(source["env"] or {})
    if not spec:
        raise UserError(
            f"domain {domain}: its dataset does not say which simulator it comes from, so it cannot be evaluated in one."
        )
    spec |= {name: value for name, value in (("task", task), ("max_steps", max_steps)) if value is not None}
    seeds = list(range(seed, seed + episodes))
    _check_seeds(seeds, source["seeds"], domain=domain)
    _check_zero_keys(zero_keys)
    _executor(
        policy, execute_steps=execute_steps, temporal_ensembling=temporal_ensembling
    )  # refuses before anything runs
    checkpoint = str(policy.card["path"])
    stem = f"{log_name}_{spec['task']}" + "".join(f"_no-{name}" for name in zero_keys)
    plan = _Plan(
        env=spec, domain=domain, zero_keys=tuple(zero_keys), execute_steps=execute_steps, temporal_ensembling=temporal_ensembling,
        film=frozenset(seeds[:videos]) if out_dir else frozenset(), video_dir=Path(out_dir) if out_dir else None, stem=stem,
    )  # fmt: skip
    if not plan.film and videos:
        raise UserError("videos need a folder: give out_dir, e.g. out_dir=run.run_dir / 'eval'.")
    rows = []
    with tqdm(total=episodes, desc=f"evaluating {stem}", unit="episode", **bar_pace()) as bar:
        for row in _run_all(policy, plan, seeds, n_procs=min(n_procs, episodes)):
            rows.append(
                {"checkpoint": checkpoint, "domain": domain, "task": spec["task"], **row, "zero_keys": list(zero_keys)}
            )
            bar.update()
            bar.set_postfix(success=f"{sum(row['success'] is True for row in rows)}/{len(rows)}", refresh=False)
    rows.sort(key=lambda row: row["seed"])
    result = Evaluation(rows)
    if out_dir is not None:
        write_results(result, Path(out_dir), log_name, name_domain=len(policy.domains) > 1)
    return result


def success_table(results: Evaluation | pd.DataFrame | Iterable[Evaluation]) -> pd.DataFrame:
    """One line per checkpoint, task and control: episodes, errors, successes, rate and its 95 % Wilson interval.

    Episodes that could not be run count as errors, not as failures: the rate is over the others.
    """
    if isinstance(results, pd.DataFrame):
        frame = results
    else:
        several = [results] if isinstance(results, Evaluation) else list(results)
        frame = pd.DataFrame([row for result in several for row in result.rows])
    lines = []
    frame = frame.assign(zeroed=[", ".join(keys) or "-" for keys in frame["zero_keys"]])
    for (checkpoint, task, zeroed), group in frame.groupby(["checkpoint", "task", "zeroed"], sort=False):
        ran = group["success"].notna()
        wins = int((group["success"] == True).sum())  # noqa: E712 - null must not count
        low, high = wilson_interval(wins, int(ran.sum()))
        lines.append(
            {
                "checkpoint": checkpoint, "task": task, "zeroed": zeroed, "episodes": int(ran.sum()), "errors": int((~ran).sum()),
                "successes": wins, "rate": wins / ran.sum() if ran.any() else math.nan, "low_95": low, "high_95": high,
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def wilson_interval(successes: int, trials: int, *, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a proportion, 95 % by default; (0, 1) without trials.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def write_results(result: Evaluation, out_dir: Path, log_name: str, *, name_domain: bool = False) -> None:
    """Appends the rows to <log_name>.jsonl, and tells .txt and .json the rates in ppt_learning's form."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / f"{log_name}.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in result.rows)
    summary_file = out_dir / f"{log_name}.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    with open(out_dir / f"{log_name}.txt", "a", encoding="utf-8") as text:
        for line in success_table(result).to_dict("records"):
            path = Path(line["checkpoint"])
            name = (f"{path.parent.name}/{path.name}" if path.suffix else path.name) + (
                "" if line["zeroed"] == "-" else f" without {line['zeroed']}"
            )
            name += f" on {result.rows[0]['domain']}" if name_domain else ""
            summary[name] = {"total": line["rate"], "subtask_sr": _subtask_rates(result.rows)}
            text.write(f"success rate of {name} is: {line['rate']}\n")
    write_text(summary_file, json.dumps(summary, indent=2))


def _run_all(policy: PPTPolicy, plan: _Plan, seeds: list[int], *, n_procs: int) -> Iterator[dict]:
    if n_procs <= 1:
        env = make_env(plan.env)
        try:
            for seed in seeds:
                yield _run_one(policy, env, plan, seed)
        finally:
            env.close()
        return
    make_env(plan.env).close()  # what cannot be built is told here, once, and not as a crash of every worker
    threads = max(1, torch.get_num_threads() // n_procs)
    with ProcessPoolExecutor(
        n_procs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(policy, plan, threads),
    ) as pool:
        futures = {pool.submit(_run_in_worker, seed): seed for seed in seeds}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:  # a worker died: its episodes, and those not yet begun, have not been run
                yield _row(futures[future], error="the worker process died")


_worker: dict[str, Any] = {}


def _start_worker(policy: PPTPolicy, plan: _Plan, threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.update(policy=policy, plan=plan, env=make_env(plan.env))


def _run_in_worker(seed: int) -> dict:
    return _run_one(_worker["policy"], _worker["env"], _worker["plan"], seed)


def _run_one(policy: PPTPolicy, env: SimEnv, plan: _Plan, seed: int) -> dict:
    try:
        executor = _executor(policy, execute_steps=plan.execute_steps, temporal_ensembling=plan.temporal_ensembling)
        episode = rollout(
            policy,
            env,
            domain=plan.domain,
            seed=seed,
            executor=executor,
            zero_keys=plan.zero_keys,
            film=seed in plan.film,
        )
        return _row(seed, episode=episode, video=_film(plan, episode))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _row(seed, error=f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")


def _row(seed: int, *, episode: Episode | None = None, error: str | None = None, video: Path | None = None) -> dict:
    return {
        "seed": seed, "success": episode.success if episode else None, "steps": episode.steps if episode else 0,
        "return": episode.total_reward if episode else None, "error": error, "subtasks": episode.subtasks if episode else {},
        "video": str(video) if video else None,
    }  # fmt: skip


def _film(plan: _Plan, episode: Episode) -> Path | None:
    if not episode.frames or plan.video_dir is None:
        return None
    return write_video(plan.video_dir / f"{plan.stem}_{episode.seed}.mp4", episode.frames)


def _executor(policy: PPTPolicy, *, execute_steps: int, temporal_ensembling: bool) -> ChunkExecutor:
    hist = policy.card["config"]["dataset"]["hist_action_cond"]
    try:
        return ChunkExecutor(
            action_horizon=policy.action_horizon,
            first=policy.observation_horizon - 1 if hist else 0,
            execute_steps=execute_steps,
            temporal_ensembling=temporal_ensembling,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _choose_domain(policy: PPTPolicy, task: str | None, domain: str | None) -> str:
    if "sources" not in policy.card:
        raise UserError("this policy was not loaded from a run folder: use ppt_kit.load_policy(run_dir).")
    if domain is not None:
        if domain not in policy.domains:
            raise UserError(f"domains={domain}: this policy knows {', '.join(policy.domains)}.")
        return domain
    recorded = [name for name in policy.domains if (policy.card["sources"][name]["env"] or {}).get("task") == task]
    if recorded:
        return recorded[0]
    if len(policy.domains) > 1:
        raise UserError(f"this policy knows {', '.join(policy.domains)}. Say which with domains=….")
    return policy.domains[0]


def _check_seeds(seeds: list[int], demonstrated: Sequence[int], *, domain: str) -> None:
    met = sorted(set(seeds) & set(demonstrated))
    if met:
        raise UserError(
            f"seed={seeds[0]}: {len(met)} of the evaluation's seeds were demonstrated in {domain} (e.g. {met[0]}): the rate would count goals "
            f"seen in training. Set seed above {max(demonstrated)}."
        )


def _check_zero_keys(zero_keys: Sequence[str]) -> None:
    for name in zero_keys:
        if name not in ("state", "pointcloud"):
            raise UserError(f"zero_keys={name}: takes state, pointcloud.")


def _subtask_rates(rows: list[dict]) -> dict[str, float]:
    ran = [row for row in rows if row["error"] is None]
    names = sorted({name for row in ran for name in row["subtasks"]})
    return {name: sum(bool(row["subtasks"].get(name)) for row in ran) / len(ran) for name in names}
