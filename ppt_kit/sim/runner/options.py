"""What an evaluation is asked for: its options, and which values they take."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ppt_kit.checks import check_value
from ppt_kit.errors import UserError
from ppt_kit.files import path_of
from ppt_kit.keys import leaves_of
from ppt_kit.models.chunks import Execution
from ppt_kit.schema import EvaluateConfig

WHOLE = (
    "episodes", "seed", "max_steps", "execute_steps", "delay", "num_steps", "warmup_steps", "videos", "n_procs",
    "batch_envs", "retries",
)  # fmt: skip
# (option, of python, in words)
NUMBERS: list[tuple[str, type, str]] = [(name, Integral, "a whole number") for name in WHOLE]
NUMBERS.append(("episode_timeout_s", Real, "seconds"))
# a process takes seconds to begin: with fewer it costs more than it gives
EPISODES_A_PROCESS = 4


@dataclass(frozen=True)
class EvaluateOptions:
    """What to run.

    Attributes:
        task: another task than the domain was recorded in; None = the same.
        domain: whose stems and heads to use; None = the policy's only one, or the one recorded in `task`.
        episodes: how many; episode i has seed `seed` + i.
        max_steps: longest episode; None = as recorded.
        execute_steps: actions taken of each chunk; with `temporal_ensembling`, overlapping chunks are averaged instead.
        delay, real_time_chunking, num_steps: see ppt_kit.Execution.
        zero_keys: parts of obs replaced by zeros, e.g. ("pointcloud",).
        sentence: what the policy is told; None = what the environment says of its task.
        stop_at_success: an episode ends with its first success; False = it goes on, and rows say how it ends.
        warmup_steps: control steps, of those of an episode, in which the robot is held still before the policy acts.
        obs_mode: what the policy is taken to see, e.g. "pointcloud" or "rgb+depth"; refused where it is something else.
        controls: floor and ceiling beside the policy's own rows: "all", or some of hold, blind, no_<modality>,
            sentence, replay, expert (ppt_kit/sim/runner/controls.py says what each is).
        videos: episodes to film, from the first on; -1 = all.
        n_procs: processes; episodes, seeds and actions are the same for any number.
        batch_envs: environments that a process steps together, the policy asked once for all of them; the last bits
            of its answers depend on this number, and on nothing else that runs.
        retries: how often an episode that ended in an error is run again.
        episode_timeout_s: longest time of an episode, with that of those that are stepped beside it, beyond which it is
            an error; None = an hour in several processes, no limit in this one. With a limit even one process is one
            of its own.
        log_name: name of the files in `out_dir`, where rows and videos go; None = nothing is written, nothing filmed.
    """

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
    sentence: str | None = None
    stop_at_success: bool = True
    warmup_steps: int = 0
    obs_mode: str | None = None
    controls: Sequence[str] | str = ()
    videos: int = 0
    n_procs: int = 1
    batch_envs: int = 1
    retries: int = 0
    episode_timeout_s: float | None = None
    log_name: str = "eval"
    out_dir: str | Path | None = None

    @property
    def seeds(self) -> list[int]:
        """One an episode."""
        return list(range(self.seed, self.seed + self.episodes))

    @property
    def filmed(self) -> list[int]:
        """The seeds whose episodes are filmed."""
        return self.seeds if self.videos < 0 else self.seeds[: self.videos]

    @property
    def execution(self) -> Execution:
        """How chunks are executed."""
        return Execution(
            execute_steps=self.execute_steps, temporal_ensembling=self.temporal_ensembling, delay=self.delay,
            real_time_chunking=self.real_time_chunking, num_steps=self.num_steps,
        )  # fmt: skip


@dataclass(frozen=True)
class PartOptions(EvaluateOptions):
    """The options of one part of an evaluation.

    Attributes:
        control: which; None = the policy's own.
    """

    control: str | None = None

    @classmethod
    def of(cls, options: EvaluateOptions, **changes: Any) -> PartOptions:
        """These options without further controls, and with these changes."""
        return cls(**{**vars(options), "controls": (), **changes})


def asked(options: type, **given: Any) -> Any:
    """An object of options out of keyword arguments.

    Raises:
        UserError: it has no such option; the nearest is named.
    """
    names = [field.name for field in fields(options)]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(names)}."
            raise UserError(f"{name}={given[name]!r}: an evaluation takes no {name}. {hint}")
    return options(**given)


def signature_of(options: type, function: Callable) -> inspect.Signature:
    """A function's signature with each of the options that its **options takes: what a notebook completes."""
    plain = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    there = {each.name for each in plain}
    keywords = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(options)
        if field.name not in there
    ]
    return inspect.signature(function).replace(parameters=[*plain, *keywords])


def check_kinds(options: EvaluateOptions) -> None:
    """What the schema checks of words, of a notebook's arguments.

    Raises:
        UserError: the first that is of another kind, or out of range.
    """
    for name, kind, said in NUMBERS:
        value, takes = getattr(options, name), leaves_of(EvaluateConfig)[name][1].metadata
        if name in ("max_steps", "num_steps", "episode_timeout_s") and value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or value < takes["low"]:
            raise UserError(f"{name}={value!r}: takes {said}, at least {takes['low']}.")
        check_value(name, value if kind is Real else int(value), takes)  # type: ignore[call-overload]
    if options.out_dir is not None:
        path_of(options.out_dir, what="out_dir as a folder, e.g. outputs/models/door-open/exp1/eval")
    for name in ("temporal_ensembling", "real_time_chunking", "stop_at_success"):
        if not isinstance(getattr(options, name), bool):
            raise UserError(f"{name}={getattr(options, name)!r}: takes True or False.")
    for name, said in (("task", "a name"), ("domain", "a name"), ("sentence", "words"), ("obs_mode", "names")):
        value = getattr(options, name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{name}={value!r}: takes {said}.")
    for name, example in (("zero_keys", "['pointcloud']"), ("controls", "['hold', 'expert'], or 'all'")):
        value = getattr(options, name)
        plain = isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
        if not plain and (name, value) != ("controls", "all"):
            raise UserError(f"{name}={value!r}: takes a list of names, e.g. {example}.")


def num_processes(mode: str, n_procs: int | None, *, episodes: int) -> tuple[int, str]:
    """(processes of an evaluation, why so many).

    Args:
        mode: sequential, parallel, or auto: as many as cores, and none for less than EPISODES_A_PROCESS episodes.
        n_procs: at most; None = one a core.
        episodes: of one task.
    """
    if mode == "sequential":
        return 1, "one process"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = cores if n_procs is None else n_procs
    if mode == "parallel":
        number = min(most, episodes)
        return number, f"{number} processes"
    number = max(1, min(most, cores, episodes // EPISODES_A_PROCESS))
    said = "one process" if number == 1 else f"{number} processes"
    limit = f", at most n_procs={n_procs}" if n_procs is not None else ""
    return number, f"eval_mode=auto: {said}, for {cores} cores and {episodes} episodes a task{limit}"
