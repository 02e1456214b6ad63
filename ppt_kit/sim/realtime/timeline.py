"""Chunks laid over control steps: which action is for a step, whether its chunk is late, and what holds meanwhile."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ppt_kit.horizon import Horizon
from ppt_kit.models.chunks import Chunk, Execution, known_of


@dataclass(frozen=True)
class Due:
    """What one control step executes.

    Attributes:
        action: (Da,) float64.
        asked: the control step that its chunk was asked for at.
        late: a newer chunk should be executed by now, and is not there.
        held: no chunk says anything of this step.
    """

    action: np.ndarray
    asked: int
    late: bool
    held: bool


class Timeline:
    """One environment's chunks. The first is there before the first step; at most one more is asked for at a time.

    Args:
        horizon: of the policy; the action executed for a step is the one that was supervised for it.
        execution: how; its delay is how long a chunk may take (control steps).
        rest: (Da,) what is executed where no chunk says anything; None = the last action again.
        history: what was executed in the frames before is known of the next chunk.
    """

    def __init__(
        self, horizon: Horizon, execution: Execution, *, rest: np.ndarray | None = None, history: bool = False
    ):
        self.horizon, self.execution, self.rest, self.history = horizon, execution, rest, history
        # the oldest first
        self._chunks: deque[Chunk] = deque()
        self._executed: deque[np.ndarray] = deque(maxlen=horizon.now)
        self._last: np.ndarray | None = None
        self._pending: int | None = None
        self._latest = 0

    @property
    def is_waiting(self) -> bool:
        """Whether a chunk is being made."""
        return self._pending is not None

    def is_due(self, step: int) -> bool:
        """Whether a chunk is to be asked for now; not while another is being made."""
        return self._pending is None and step >= self._latest + self.execution.execute_steps

    def ask(self, step: int) -> None:
        """A chunk is asked for at this step."""
        self._pending = self._latest = step

    def add(self, chunk: np.ndarray, *, step: int) -> None:
        """The (Ta, Da) chunk that was asked for is there at this step; the first one at once, for it is waited for."""
        asked = 0 if self._pending is None else self._pending
        usable = asked + self.execution.delay if self._chunks else asked
        self._chunks.append((asked, max(usable, step), chunk))
        self._pending = None

    def known(self, step: int, action_dim: int) -> np.ndarray | None:
        """(Ta, Da) float32 what the chunk that is asked for at this step must hold, NaN where free; None = all is."""
        return known_of(
            self._chunks[-1] if self._chunks else None, self._executed if self.history else None, step=step,
            action_dim=action_dim, horizon=self.horizon, execution=self.execution,
        )  # fmt: skip

    def pop(self, step: int) -> Due:
        """What is executed at this step; steps are asked in order, some may be left out."""
        now, chunks = self.horizon.now, self._chunks
        # a newer one takes the place of those before
        while len(chunks) > 1 and chunks[1][1] <= step:
            chunks.popleft()
        asked, _, chunk = chunks[0]
        index = step - asked + now
        held = index >= self.horizon.action
        if held:
            action = self._last if self.rest is None else self.rest
            # the first step has a chunk: there is a last action
            assert action is not None
        else:
            action = chunk[index].astype(np.float64)
        late = self._pending is not None and step >= self._pending + self.execution.delay
        self._last = action
        self._executed.append(action)
        return Due(action, asked, late or held, held)

    def skip(self, steps: int) -> None:
        """So many steps had no time to be executed: the robot went on with the last action."""
        if self._last is not None:
            self._executed.extend([self._last] * min(steps, self.horizon.now))
