"""The learning rate of every optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to zero that can be stretched over another number of steps without a jump."""

    peak: float
    warmup: int  # optimizer steps
    total_steps: int
    since: int = -1  # the cosine goes on evenly from this step to the last one; -1: from the end of the warm-up
    done: float = 0.0  # share of the cosine that lies before `since`

    def __post_init__(self) -> None:
        if self.since < 0:
            object.__setattr__(self, "since", self.warmup)

    def rate(self, step: int) -> float:
        """Of the optimizer step that follows `step` others."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, self._share_done(step))))

    def stretched(self, step: int, total_steps: int) -> Schedule:
        """Another number of steps for what is left after `step`: the rate goes on from where it is."""
        if step <= self.since:
            return replace(self, total_steps=total_steps)
        return replace(self, total_steps=total_steps, since=step, done=self._share_done(step))

    def state(self) -> list:
        """[since, done]: what a resume file keeps; the other numbers are the configuration's."""
        return [self.since, self.done]

    def resumed(self, state: Sequence) -> Schedule:
        """This schedule where a resumed run left it; `state` is what `state()` gave."""
        since, done = state
        return replace(self, since=since, done=done)

    def _share_done(self, step: int) -> float:
        return self.done + (1 - self.done) * (step - self.since) / max(1, self.total_steps - self.since)
