"""A policy's success rate in simulation: fresh seeds, one row an episode."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.signals import Stopped, held_back, stops_raise
from ppt_kit.sim.card import Card, entry_of
from ppt_kit.sim.env import SimEnv, close_env
from ppt_kit.sim.episodes import EpisodePlan, open_checked
from ppt_kit.sim.results import Evaluation, write_summary
from ppt_kit.sim.rows import RowFile
from ppt_kit.sim.runner.options import EvaluateOptions, PartOptions, asked, signature_of
from ppt_kit.sim.runner.plan import common_of, parts_of, plan_of, where_of
from ppt_kit.sim.runner.together import run_here, run_in_processes
from ppt_kit.tracking import bar_pace

log = logging.getLogger(__name__)

# of an episode in a process of several, where nobody says (s)
LONGEST_S = 3600.0


def evaluate(policy: PPTPolicy, task: str | None = None, **options: Any) -> Evaluation:
    """Runs the policy on seeds that no demonstration had.

    With `out_dir` each row is on the disk as its episode ends, the same call runs the rest, and `verify_card` replays.

    Args:
        policy: from `load_policy`; its card names the simulator, camera and demonstration seeds of its domains.
        task: another task than the domain was recorded in; None = the same.
        options: as `EvaluateOptions` says, e.g. episodes=50, videos=2, n_procs=4.
    Returns:
        Its rows, in order of seeds.
    Raises:
        UserError, Stopped: see `run_evaluation`; or there is no such option, or `policy` is none.
    """
    if not hasattr(policy, "card"):
        said = f"ppt.load_policy({str(policy)!r})" if isinstance(policy, (str, Path)) else "what ppt.load_policy gives"
        raise UserError(f"evaluate takes a policy, not a {type(policy).__name__}. Give it {said}.")
    return run_evaluation(policy, asked(EvaluateOptions, task=task, **options))


evaluate.__signature__ = signature_of(EvaluateOptions, evaluate)  # type: ignore[attr-defined]


def run_evaluation(policy: PPTPolicy, options: EvaluateOptions) -> Evaluation:
    """As `evaluate`.

    Raises:
        UserError: the policy has no such domain or no simulator recorded, its demonstrations had one of the seeds, the
            simulator has no such task or option, a control cannot be run, or `out_dir` cannot be written to.
        Stopped: a stop signal, or a notebook's interrupt, came; the rows of the episodes that ended are in the file.
    """
    planned = [(part, plan_of(policy, part)) for part in parts_of(policy, options)]
    results = [run_part(policy, part, plan) for part, plan in planned]
    return Evaluation([row for each in results for row in each.rows], [by for each in results for by in each.made_by])


def check_evaluation(policy: PPTPolicy, options: EvaluateOptions) -> None:
    """Tells what `run_evaluation` would refuse, and runs nothing.

    Raises:
        UserError: see `run_evaluation`.
    """
    for part in parts_of(policy, options):
        close_env(open_checked(policy, plan_of(policy, part), seed=part.seed))


def run_part(policy: PPTPolicy, options: PartOptions, plan: EpisodePlan | None = None) -> Evaluation:
    """The policy's own episodes, or those of one control.

    With `out_dir` they have an entry of their own in its card.json, also those in which no policy acts.

    Args:
        plan: `plan_of` the options; None = it is made here.
    Raises:
        UserError, Stopped: see `run_evaluation`.
    """
    plan = plan_of(policy, options) if plan is None else plan
    common = common_of(policy, plan, control=options.control)
    file = RowFile(Path(options.out_dir) / f"{options.log_name}.jsonl", common) if options.out_dir is not None else None
    done = file.take_up(options.seeds, film=plan.film) if file else {}
    left = [seed for seed in options.seeds if seed not in done]
    card = Card(file.path.parent) if file else None
    if file and done:
        log.warning("%s", _said_of(file, done, left, control=options.control))
    with stops_raise():
        try:
            with closing(_run(policy, plan, left, options, ran=done)) as rows:
                for row in rows:
                    row = {**common, **row}
                    # what is said to be kept is what is in the file
                    with held_back():
                        if file and card:
                            card.begin()
                            file.add(row)
                        done[row["seed"]] = row
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            raise Stopped(number, _kept(file, done, options)) from None
    result = Evaluation([done[seed] for seed in options.seeds], [(policy, options)])
    if file:
        write_summary(result, file.path, where=where_of(policy, plan), ran=bool(left))
    if card:
        card.add(entry_of(policy, options, result.rows, common=common, env=plan.env))
    return result


def _run(
    policy: PPTPolicy, plan: EpisodePlan, left: list[int], options: PartOptions, *, ran: Mapping[int, dict]
) -> Generator[dict, None, None]:
    """The rows of the episodes that are left, beside a bar over all of them."""
    if not left:
        return
    # half a cell has room for few words
    title = f"evaluating {plan.stem.removeprefix(f'{options.log_name}_').partition('_no-')[0]}"
    title += f", {options.control}" if options.control else "".join(f", no {name}" for name in options.zero_keys)
    # what is refused is refused before a bar is drawn
    env = open_checked(policy, plan, seed=left[0])
    with (
        closing(_tried(policy, plan, left, options, env=env)) as rows,
        tqdm(total=options.episodes, initial=len(ran), desc=title, unit="episode", **bar_pace()) as bar,
    ):
        for row in rows:
            trouble = row.pop("video_error", None)
            if trouble:
                log.warning("seed %d: its video could not be written (%s); its row is kept", row["seed"], trouble)
            yield row
            bar.update()
            wins = sum(each["success"] is True for each in ran.values())
            bar.set_postfix(success=f"{wins}/{len(ran)}", refresh=False)


def _tried(
    policy: PPTPolicy, plan: EpisodePlan, left: list[int], options: PartOptions, *, env: SimEnv
) -> Generator[dict, None, None]:
    """One row a seed; those that ended in an error are run again as often as is asked."""
    for attempt in range(options.retries + 1):
        broken = []
        with closing(_once(policy, plan, left, options, env=None if attempt else env)) as rows:
            for row in rows:
                if row["error"] is None or attempt == options.retries:
                    yield row | {"attempts": attempt + 1}
                else:
                    log.warning("seed %d: %s; it is run again", row["seed"], row["error"])
                    broken.append(row["seed"])
        left = broken
        if not left:
            return


def _once(
    policy: PPTPolicy, plan: EpisodePlan, left: list[int], options: PartOptions, *, env: SimEnv | None
) -> Generator[dict, None, None]:
    # one that was checked, the first time: an episode that ended in an error may do so as it begins
    env = plan.open_env(policy) if env is None else env
    n_procs = min(options.n_procs, len(left))
    if n_procs == 1 and options.episode_timeout_s is None:
        yield from run_here(policy, env, plan, left)
        return
    # a worker builds its own, and may need the room; what takes too long can only be ended in a process of its own
    close_env(env)
    limit = LONGEST_S if options.episode_timeout_s is None else options.episode_timeout_s
    yield from run_in_processes(policy, plan, left, n_procs=n_procs, timeout_s=limit)


def _said_of(file: RowFile, done: Mapping[int, dict], left: Sequence[int], *, control: str | None) -> str:
    whose = "this checkpoint" if control is None else f"the control {control}"
    if left:
        return f"{file.path} has {len(done)} of {len(done) + len(left)} episodes: going on with the others"
    return (
        f"{file.path} has all {len(done)} episodes of {whose} with these options: none is run again "
        "(another log name runs them anew)"
    )


def _kept(file: RowFile | None, done: Mapping[int, dict], options: PartOptions) -> str:
    count = f"{len(done)} of {options.episodes} episodes"
    if file is None:
        return f"{count} were run and are gone; with out_dir=… their rows are kept, and the same call goes on"
    return f"{count} are in {file.path}; the same again goes on with the others"
