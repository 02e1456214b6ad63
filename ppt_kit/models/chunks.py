"""Chunks -> single actions: run a part of each open loop, average what overlaps, or sample the next one meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppt_kit.horizon import Horizon

# weight exp(-0.01 i), i = 0 for the oldest chunk: ACT, Zhao et al. 2023
ENSEMBLING_RATE = 0.01


@dataclass(frozen=True)
class Execution:
    """How chunks are executed.

    Attributes:
        execute_steps: actions taken of each chunk; the next is asked for so many control steps after it.
        temporal_ensembling: ask at every step and average the overlapping chunks; execute_steps is then 1.
        delay: control steps that inference takes: a chunk is executed from so many steps on after it was asked for, and
            the one before goes on until then. The first of an episode is waited for.
        real_time_chunking: a chunk is made to begin with the actions that are executed during its delay (real-time
            chunking: Black et al. 2025, arXiv 2506.07339); else it is made without knowing them, and jumps.
        num_steps: sampling steps of the head; None = as it was made.
    """

    execute_steps: int = 4
    temporal_ensembling: bool = False
    delay: int = 0
    real_time_chunking: bool = True
    num_steps: int | None = None

    def __str__(self) -> str:
        """What is not as it is by default, and how many steps: execute_steps=8 delay=2."""
        said = ["temporal_ensembling" if self.temporal_ensembling else f"execute_steps={self.execute_steps}"]
        if self.delay:
            said.append(f"delay={self.delay}" + ("" if self.real_time_chunking else " real_time_chunking=false"))
        return " ".join(said + ([f"num_steps={self.num_steps}"] if self.num_steps is not None else []))

    def check(self, horizon: Horizon) -> None:
        """Whether a chunk holds what is to be executed.

        Raises:
            ValueError: it does not, or two of these cannot be had together.
        """
        held = horizon.action - horizon.now
        if self.temporal_ensembling:
            if self.delay:
                raise ValueError(
                    f"delay={self.delay} with temporal_ensembling=true: it asks for a chunk at every step, and each "
                    f"takes {self.delay}. Set temporal_ensembling=false, or delay=0."
                )
            return
        if self.execute_steps > held:
            raise ValueError(
                f"execute_steps={self.execute_steps}: a chunk holds {held} actions from the current step on. "
                "Set execute_steps to at most that."
            )
        if self.execute_steps + self.delay > held:
            raise ValueError(
                f"execute_steps={self.execute_steps} and delay={self.delay}: a chunk holds {held} actions from the "
                f"current step on, and the first {self.delay} pass while it is made. Set execute_steps to at most "
                f"{max(held - self.delay, 0)}, or delay lower."
            )
        if self.delay > self.execute_steps:
            raise ValueError(
                f"delay={self.delay} and execute_steps={self.execute_steps}: the next chunk would be asked for before "
                "the last one is made. Set execute_steps to at least delay."
            )


# step it was asked at, step it is executed from, its actions (Ta, Da)
Chunk = tuple[int, int, np.ndarray]


class ChunkExecutor:
    """The next action of one environment, one control step at a time: `add` a chunk where one `is_due`, then `pop`.

    Args:
        horizon: of the policy; the action executed for a step is the one that was supervised for it.
        execution: how.
        history: what was executed in the frames before is known of the next chunk (policy.history=inpaint).
    Raises:
        ValueError: see `Execution.check`.
    """

    def __init__(self, horizon: Horizon, execution: Execution, *, history: bool = False):
        execution.check(horizon)
        self.horizon, self.execution, self.history = horizon, execution, history
        self.reset()

    def reset(self) -> None:
        """Forgets the chunks: a new episode starts."""
        self.step = 0
        self._executed: deque[np.ndarray] = deque(maxlen=self.horizon.now)
        # the oldest first
        self._chunks: deque[Chunk] = deque()

    @property
    def is_due(self) -> bool:
        """Whether this step needs a new chunk."""
        return self.execution.temporal_ensembling or self.step % self.execution.execute_steps == 0

    def known(self, action_dim: int) -> np.ndarray | None:
        """(Ta, Da) float32 what the chunk that is due must hold, NaN where it is free; None = all is free."""
        return known_of(
            self._chunks[-1] if self._chunks else None, self._executed if self.history else None, step=self.step,
            action_dim=action_dim, horizon=self.horizon, execution=self.execution,
        )  # fmt: skip

    def add(self, chunk: np.ndarray) -> None:
        """Takes the (Ta, Da) chunk that was due."""
        usable = self.step + (self.execution.delay if self._chunks else 0)
        self._chunks.append((self.step, usable, chunk))

    def pop(self) -> np.ndarray:
        """(Da,) float64, the action of this step."""
        current = self._current()
        action = _average(current) if self.execution.temporal_ensembling else current[-1].astype(np.float64)
        self._executed.append(action)
        self.step += 1
        return action

    def _current(self) -> Sequence[np.ndarray]:
        """What the chunks say of this step, the oldest first; those that say nothing more are dropped."""
        now, chunks = self.horizon.now, self._chunks
        while self.step - chunks[0][0] + now >= self.horizon.action:
            chunks.popleft()
        return [chunk[self.step - asked + now] for asked, usable, chunk in chunks if usable <= self.step]


def known_of(
    latest: Chunk | None,
    executed: Sequence[np.ndarray] | None,
    *,
    step: int,
    action_dim: int,
    horizon: Horizon,
    execution: Execution,
) -> np.ndarray | None:
    """(Ta, Da) float32 what the chunk that is asked for at `step` must hold, NaN where it is free; None = all is free.

    Args:
        latest: the chunk before; None = there is none.
        executed: actions (Da,) of the frames before; None = they are not told.
    """
    now, ahead = horizon.now, execution.delay if execution.real_time_chunking else 0
    if executed is None and not ahead:
        return None
    known = np.full((horizon.action, action_dim), np.nan, np.float32)
    if executed:
        known[now - len(executed) : now] = executed
    if latest is not None:
        asked, _, chunk = latest
        following = chunk[step - asked + now :][:ahead]
        known[now : now + len(following)] = following
    return known


def _average(actions: Sequence[np.ndarray]) -> np.ndarray:
    weights = np.exp(-ENSEMBLING_RATE * np.arange(len(actions)))
    return (weights[:, None] * np.stack(actions)).sum(0) / weights.sum()
