"""Which checkpoints, domains and tasks one command evaluates, and all of them, one after the other."""

from __future__ import annotations

import difflib
import filecmp
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ppt_kit.checkpoint import LATEST, load_policy, numbered_models
from ppt_kit.checks import domain_names
from ppt_kit.errors import UserError
from ppt_kit.files import check_place
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.schema import EvaluateConfig
from ppt_kit.sim.evaluate import check_evaluation, run_evaluation
from ppt_kit.sim.results import Evaluation
from ppt_kit.sim.runner.options import EvaluateOptions, num_processes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """One checkpoint, and where its rows go.

    Attributes:
        path: a run folder, which stands for its model.pth, or a file of weights.
        run_dir: the folder that it is in.
    """

    path: Path
    run_dir: Path

    @property
    def out_dir(self) -> Path:
        """Of rows, summaries, videos and figures."""
        return self.run_dir / "eval"


def evaluate_all(cfg: EvaluateConfig) -> list[Evaluation]:
    """What a command asks for: every checkpoint in each of its domains and tasks.

    Raises:
        UserError: told before the first episode: a checkpoint that is not there or does not load, or see
            `run_evaluation`.
        Stopped: see `run_evaluation`; the same again goes on where it was.
    """
    targets = targets_of(cfg.train.pretrained_dir, cfg.train.model_names)
    n_procs, said = num_processes(cfg.eval_mode, cfg.n_procs, episodes=cfg.episodes)
    if cfg.eval_mode == "auto":
        log.warning("%s", said)
    _check_all(cfg, targets, n_procs)
    results = []
    for target in targets:
        policy = load_policy(target.path, use_ema=cfg.use_ema)
        results += [run_evaluation(policy, each) for each in _evaluations(cfg, policy, target, n_procs)]
    return results


def targets_of(places: str | None, names: Sequence[str] = ()) -> list[Target]:
    """The checkpoints of `a,b`: run folders or files of weights.

    Args:
        names: of checkpoints in each of the run folders; ["all"] = every one; [] = its model.pth.
    Raises:
        UserError: nothing is given, or something is not there.
    """
    if not places_in(places):
        raise UserError(
            "train.pretrained_dir is empty. Type train.pretrained_dir=<run folder>, "
            "e.g. outputs/models/button-press-topdown/exp1."
        )
    found = [target for place in places_in(places) for target in _targets_at(Path(place), names)]
    twice = next((each.path for i, each in enumerate(found) if each in found[:i]), None)
    if twice is not None:
        raise UserError(f"train.pretrained_dir={places}: names {twice} twice. Name each once.")
    return found


def places_in(text: str | None) -> list[str]:
    """Run folders and files in `a,b`; a folder may have a comma in its name."""
    if text and Path(text).exists():
        return [text]
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _targets_at(place: Path, names: Sequence[str]) -> list[Target]:
    if not place.is_dir():
        if names:
            raise UserError(
                f"train.model_names={','.join(names)}: are looked for in a run folder, and {place} is none. "
                "Leave train.model_names out, or give the folder."
            )
        return [Target(place, place.parent)]
    if not names:
        return [Target(place, place)]
    if list(names) == ["all"]:
        return [Target(path, place) for path in _every_one(place)]
    return [Target(_named(place, name), place) for name in names]


def _every_one(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; model.pth where it is not the newest of them."""
    numbered, latest = numbered_models(run_dir), run_dir / LATEST
    if latest.is_file() and not (numbered and filecmp.cmp(numbered[-1], latest, shallow=False)):
        numbered.append(latest)
    if not numbered:
        raise UserError(f"{run_dir}: holds no model*.pth. Give a run folder, <output_dir>/<domain>/<suffix>.")
    return numbered


def _named(run_dir: Path, name: str) -> Path:
    path = run_dir / f"{name.removesuffix('.pth')}.pth"
    if path.parent == run_dir and path.is_file():
        return path
    there = sorted(each.stem for each in run_dir.glob("model*.pth"))
    near = difflib.get_close_matches(name, there, 1)
    hint = f"Did you mean {near[0]}?" if near else f"It holds {', '.join(there) or 'none'}."
    raise UserError(f"train.model_names={name}: {run_dir} has no such checkpoint. {hint}")


def _check_all(cfg: EvaluateConfig, targets: Sequence[Target], n_procs: int) -> None:
    """What would be refused hours later is refused now: of every checkpoint, and of the tasks of every run."""
    checked: set[Path] = set()
    for target in targets:
        check_place(target.out_dir, key="train.pretrained_dir")
        policy = load_policy(target.path, use_ema=cfg.use_ema)
        evaluations = list(_evaluations(cfg, policy, target, n_procs))
        if target.run_dir not in checked:
            # the first of all is checked as it begins
            for options in evaluations if checked else evaluations[1:]:
                check_evaluation(policy, options)
        checked.add(target.run_dir)


def _evaluations(cfg: EvaluateConfig, policy: PPTPolicy, target: Target, n_procs: int) -> Iterator[EvaluateOptions]:
    """One of each domain and task."""
    same = {each.name for each in fields(EvaluateOptions)} & {each.name for each in fields(EvaluateConfig)}
    shared = {name: getattr(cfg, name) for name in same}
    shared |= {"n_procs": n_procs, "log_name": cfg.eval_log_name, "out_dir": target.out_dir}
    domains = domain_names(cfg.domains) if cfg.domains else None
    tasks: list[str | None] = [*cfg.env_names] or [cfg.task]
    for task in tasks:
        # of several domains that are not named, a task is run with the one that was recorded in it
        chosen = domains or (_recorded_in(policy, task) if cfg.env_names else policy.domains)
        for domain in chosen:
            yield EvaluateOptions(**{**shared, "task": task, "domain": domain})


def _recorded_in(policy: PPTPolicy, task: str | None) -> list[str]:
    from ppt_kit.sim.recorded import tasks_of

    found = [name for name, recorded in tasks_of(policy).items() if recorded == task]
    return found or policy.domains
