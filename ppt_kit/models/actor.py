"""A policy at work: frames of one environment or many in, one action each out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppt_kit.errors import UserError
from ppt_kit.models.chunks import ChunkExecutor, Execution
from ppt_kit.models.conditioning import INPAINTING
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.randomness import sample_seeds

Frame = Mapping[str, Any]


class Actor:
    """Acts in N environments of one domain, each with its own clock: those that need a new chunk are asked together.

    What an environment is told depends on its frames, its seed and its step alone. Alone or among others its actions
    agree to rounding, 1e-5 of the normalised range: matrices of other heights are summed in another order.

    Args:
        policy: as `load_policy` gives it.
        domain: name, or position in `policy.domains`.
        num_envs: N.
        execution: how chunks are executed; None = 4 actions of each, open loop.
        padded: ask for all N whenever one needs a chunk, what is not needed is dropped: an environment's actions then
            depend on N and its place among them alone, to the bit, and not on who else needs one.
    Attributes:
        horizon: frames and actions of a chunk.
        calls, latency_s: (N,) how often the policy was asked in this episode, and how long that took (s).
        share_s: (N,) the same time, that of each call shared among those that it was for (s).
        listener: is told of each new chunk (Ta, Da), and whose it is.
    Raises:
        UserError: a chunk does not hold so many actions, or the head cannot do what is asked.
    """

    def __init__(
        self,
        policy: PPTPolicy,
        *,
        domain: str | int = 0,
        num_envs: int = 1,
        execution: Execution | None = None,
        padded: bool = False,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: at least one environment is needed")
        self.policy, self.horizon = policy, policy.horizon
        if domain not in (policy.domains if isinstance(domain, str) else range(len(policy.domains))):
            raise ValueError(f"domain {domain!r}: this policy knows {', '.join(policy.domains)}")
        self.domain = policy.domains[domain] if isinstance(domain, int) else domain
        self.execution = execution or Execution()
        check_execution(policy, self.execution)
        history = policy.conditioning.history
        self._executors = [ChunkExecutor(self.horizon, self.execution, history=history) for _ in range(num_envs)]
        self._frames: list[deque[Frame]] = [deque(maxlen=self.horizon.observation) for _ in range(num_envs)]
        self._seeds = list(range(num_envs))
        self.padded, self.calls = padded, np.zeros(num_envs, np.int64)
        self.latency_s, self.share_s = np.zeros(num_envs), np.zeros(num_envs)
        self.listener: Callable[[int, np.ndarray], None] | None = None

    @property
    def num_envs(self) -> int:
        """N."""
        return len(self._executors)

    def reset(self, env: int | None = None, *, seed: int | Sequence[int] | None = None) -> None:
        """An episode begins: in one environment, or in all.

        Args:
            env: which; None = all.
            seed: of the noise of heads that draw some, one number an environment; one alone is that of the first of
                them, and the next ones have the following. None = as before, at first 0, 1, …
        Raises:
            ValueError: there is no such environment, or not one seed for each.
        """
        if env is not None and not 0 <= env < self.num_envs:
            raise ValueError(f"env={env}: there are {self.num_envs}, counted from 0")
        which = range(self.num_envs) if env is None else [env]
        if seed is not None:
            seeds = [int(seed) + i for i in range(len(which))] if isinstance(seed, int | np.integer) else list(seed)
            if len(seeds) != len(which):
                raise ValueError(f"seed has {len(seeds)} numbers for {len(which)} environments")
            for i, each in zip(which, seeds):
                self._seeds[i] = each
        for i in which:
            self._executors[i].reset()
            self._frames[i].clear()
            self.calls[i], self.latency_s[i], self.share_s[i] = 0, 0, 0

    @torch.no_grad()
    def act(self, frames: Frame | Sequence[Frame | None]) -> np.ndarray:
        """(N, Da) float64 the actions of this control step, in the dataset's own units.

        Args:
            frames: what each environment shows now, as one frame of `obs`: {"state": (Ds,), "rgb": {camera: (H, W, 3)},
                "language": "…", …}; or all in one, with a leading N and N sentences. None in the place of an
                environment that is at rest: its clock stands, its action is NaN.
        Raises:
            ValueError: not one frame for each environment, or a frame that the policy refuses.
            KeyError: a frame lacks what those before it had.
        """
        each = [None if frame is None else dict(frame) for frame in self._apart(frames)]
        if len(each) != self.num_envs:
            raise ValueError(f"{len(each)} frames for {self.num_envs} environments: give one for each, None at rest")
        awake = [i for i, frame in enumerate(each) if frame is not None]
        for i in awake:
            self._frames[i].append(each[i])  # type: ignore[arg-type]
        due = [i for i in awake if self._executors[i].is_due]
        if due:
            for i, chunk in zip(due, self._timed_ask(due)):
                self._executors[i].add(chunk)
                if self.listener is not None:
                    self.listener(i, chunk)
        actions = np.full((self.num_envs, self._action_dim), np.nan)
        for i in awake:
            actions[i] = self._executors[i].pop()
        return actions

    @property
    def _action_dim(self) -> int:
        return self.policy.specs[self.domain].action_dim

    def _apart(self, frames: Frame | Sequence[Frame | None]) -> Sequence[Frame | None]:
        return [_row(frames, i) for i in range(_height(frames))] if isinstance(frames, Mapping) else frames

    def _timed_ask(self, due: Sequence[int]) -> np.ndarray:
        """(len(due), Ta, Da) the next chunks of these environments."""
        began = time.perf_counter()
        # in the place of one that needs none stands one that does
        rows = [i if i in due else due[0] for i in range(self.num_envs)] if self.padded else due
        chunks = self._ask(rows)
        seconds, places = time.perf_counter() - began, list(due)
        self.calls[places] += 1
        self.latency_s[places] += seconds
        self.share_s[places] += seconds / len(due)
        return chunks[places] if self.padded else chunks

    def _ask(self, due: Sequence[int]) -> np.ndarray:
        moments = [
            Moment(
                window_of(self._frames[i], self.horizon.observation), self._seeds[i], self._executors[i].step,
                self._executors[i].known(self._action_dim),
            )
            for i in due
        ]  # fmt: skip
        return next_chunks(self.policy, self.domain, moments, num_steps=self.execution.num_steps)


@dataclass(frozen=True)
class Moment:
    """What the next chunk of one environment is made of.

    Attributes:
        window: the last To frames.
        seed, step: of its episode, and the control step: they count the noise.
        known: (Ta, Da) float32 actions that the chunk must hold, NaN where it is free; None = all is free.
    """

    window: Sequence[Frame]
    seed: int
    step: int
    known: np.ndarray | None = None


def window_of(frames: Iterable[Frame], length: int) -> list[Frame]:
    """The last `length` frames; the first is repeated where there are fewer, as in the data."""
    last = list(frames)[-length:]
    return [last[0]] * (length - len(last)) + last


@torch.no_grad()
def next_chunks(
    policy: PPTPolicy, domain: str, moments: Sequence[Moment], *, num_steps: int | None = None
) -> np.ndarray:
    """(B, Ta, Da) float32 the chunks that a policy makes of B moments, in the dataset's own units.

    Args:
        num_steps: sampling steps of the head; None = as it was made.
    """
    device, first = next(policy.parameters()).device, moments[0]
    seeds = np.array([sample_seeds(each.seed, each.step, np.zeros(1, np.int64))[0] for each in moments])
    # a policy of another make, which takes neither, is asked for neither
    asked: dict[str, Any] = {} if num_steps is None else {"num_steps": num_steps}
    if first.known is not None:
        known = np.stack([each.known for each in moments])  # type: ignore[misc]
        asked["known"] = torch.from_numpy(known).to(device)
    seen = [name for name in policy.modalities if name in first.window[0]]
    obs = {name: _stacked([[frame[name] for frame in each.window] for each in moments], device) for name in seen}
    return policy.act(obs, domain, seeds=torch.from_numpy(seeds).to(device), **asked).cpu().numpy()


def check_execution(policy: PPTPolicy, execution: Execution) -> None:
    """Whether a policy can act so.

    Raises:
        UserError: a chunk does not hold so many actions, or the head cannot do what is asked.
    """
    try:
        execution.check(policy.horizon)
    except ValueError as error:
        raise UserError(str(error)) from None
    has = policy.conditioning
    if execution.delay and execution.real_time_chunking and not has.inpaints:
        raise UserError(
            f"delay={execution.delay}: {has.head} cannot make a chunk that begins with given actions (heads that can: "
            f"{INPAINTING}). Set real_time_chunking=false: chunks are then made without knowing what is executed "
            "meanwhile."
        )
    if execution.num_steps is not None and not has.samples:
        raise UserError(f"num_steps={execution.num_steps}: {has.head} has no sampling steps. Leave it out.")


def _height(tree: Mapping[str, Any]) -> int:
    value = next(iter(tree.values()))
    return _height(value) if isinstance(value, Mapping) else len(value)


def _row(tree: Any, row: int) -> Any:
    return {name: _row(value, row) for name, value in tree.items()} if isinstance(tree, Mapping) else tree[row]


def _stacked(windows: Sequence[Sequence[Any]], device: torch.device) -> Any:
    """One modality of B windows of To frames: (B, To, …), per camera; of sentences the last of each."""
    first = windows[0][0]
    if isinstance(first, Mapping):
        return {
            name: _stacked([[frame[name] for frame in window] for window in windows], device) for name in first
        }  # fmt: skip
    if isinstance(first, str):
        return [window[-1] for window in windows]
    return torch.from_numpy(np.stack([np.stack(window) for window in windows])).to(device)
