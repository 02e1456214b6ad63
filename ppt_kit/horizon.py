"""Which steps around the current one a policy sees and decides; windows, rollouts and chunks all ask here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Horizon:
    """The steps of one window, counted from the current step t.

    Attributes:
        observation: To, frames the policy sees: t-To+1 … t.
        action: Ta, actions in a chunk: t … t+Ta-1, or from t-To+1 on with `hist`.
        hist: the chunk starts with the actions of the frames before (dataset.hist_action_cond).
    """

    observation: int = 2
    action: int = 8
    hist: bool = False

    @classmethod
    def of(cls, dataset: Any) -> Horizon:
        """The horizon that `dataset` of a configuration asks for."""
        return cls(dataset.observation_horizon, dataset.action_horizon, dataset.hist_action_cond)

    @property
    def now(self) -> int:
        """Index in a chunk of the action of step t: what is executed is what was supervised for that step."""
        return self.observation - 1 if self.hist else 0

    @property
    def seen(self) -> np.ndarray:
        """(To,) offsets of the frames."""
        return np.arange(1 - self.observation, 1)

    @property
    def acted(self) -> np.ndarray:
        """(Ta,) offsets of the actions."""
        return np.arange(self.action) - self.now
