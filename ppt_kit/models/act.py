"""Chunks -> single actions: run part of each chunk open loop, or ask at every step and average what overlaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

ENSEMBLING_RATE = 0.01  # weight exp(-0.01 i), i = 0 for the oldest chunk: ACT, Zhao et al. 2023


class ChunkExecutor:
    """The next action, one control step at a time.

    Args:
        first: index in a chunk that belongs to the current step t: 0, or To-1 with hist_action_cond. What is executed
            is what was supervised for that step.
        execute_steps: actions taken of each chunk before the next is asked for.
        temporal_ensembling: ask at every step; execute_steps is then 1.
    Raises:
        ValueError: a chunk does not hold so many actions.
    """

    def __init__(
        self, *, action_horizon: int, first: int = 0, execute_steps: int = 4, temporal_ensembling: bool = False
    ):
        if not temporal_ensembling and execute_steps > action_horizon - first:
            raise ValueError(
                f"execute_steps={execute_steps}: a chunk holds {action_horizon - first} actions from the current step on. Set execute_steps to at most that."
            )
        self.first, self.horizon = first, action_horizon
        self.execute_steps, self.temporal_ensembling = execute_steps, temporal_ensembling
        self.reset()

    def reset(self) -> None:
        """Forgets the chunks: a new episode starts."""
        self._step = 0
        self._chunks: deque[tuple[int, np.ndarray]] = deque()

    def next_action(self, ask: Callable[[], np.ndarray]) -> np.ndarray:
        """(Da,) the action of this step; `ask` gives a new (Ta, Da) chunk and is called only when one is due."""
        if self.temporal_ensembling or self._step % self.execute_steps == 0:
            if not self.temporal_ensembling:
                self._chunks.clear()
            self._chunks.append((self._step, ask()))
        while self._step - self._chunks[0][0] + self.first >= self.horizon:
            self._chunks.popleft()
        actions = np.stack([chunk[self._step - asked + self.first] for asked, chunk in self._chunks])
        weights = np.exp(-ENSEMBLING_RATE * np.arange(len(actions)))
        self._step += 1
        return (weights[:, None] * actions).sum(0) / weights.sum()
