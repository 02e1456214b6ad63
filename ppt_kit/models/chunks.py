"""Chunks -> single actions: run part of each chunk open loop, or ask at every step and average what overlaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from ppt_kit.horizon import Horizon

# weight exp(-0.01 i), i = 0 for the oldest chunk: ACT, Zhao et al. 2023
ENSEMBLING_RATE = 0.01


class ChunkExecutor:
    """The next action, one control step at a time.

    Args:
        horizon: of the policy; the action executed for a step is the one that was supervised for it.
        execute_steps: actions taken of each chunk before the next is asked for.
        temporal_ensembling: ask at every step; execute_steps is then 1.
    Raises:
        ValueError: a chunk does not hold so many actions.
    """

    def __init__(self, horizon: Horizon, *, execute_steps: int = 4, temporal_ensembling: bool = False):
        held = horizon.action - horizon.now
        if not temporal_ensembling and execute_steps > held:
            raise ValueError(
                f"execute_steps={execute_steps}: a chunk holds {held} actions from the current step on. "
                "Set execute_steps to at most that."
            )
        self.horizon = horizon
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
        while self._step - self._chunks[0][0] + self.horizon.now >= self.horizon.action:
            self._chunks.popleft()
        actions = np.stack([chunk[self._step - asked + self.horizon.now] for asked, chunk in self._chunks])
        weights = np.exp(-ENSEMBLING_RATE * np.arange(len(actions)))
        self._step += 1
        return (weights[:, None] * actions).sum(0) / weights.sum()
