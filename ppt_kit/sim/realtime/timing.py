"""What a run in real time was like: each control step with its times, and what of them to look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from ppt_kit.tables import shown

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Tick:
    """One control step. Times in seconds since the first began.

    Attributes:
        step: its number; a missing one was skipped, because the one before took too long.
        deadline_s: when it should have begun; began_s: when it did.
        sent_s: when the environment was given the action; ended_s: when it gave its readings.
        asked: the control step that the executed chunk was asked for at.
        late: a newer chunk should have been executed, and was not there.
        held: no chunk said anything of this step.
        reward, success: as the environment said; None = it does not know.
    """

    step: int
    deadline_s: float
    began_s: float
    sent_s: float
    ended_s: float
    asked: int
    late: bool
    held: bool
    reward: float | None
    success: bool | None


@dataclass
class Ran:
    """A run of a policy in real time.

    Attributes:
        hz: control steps a second that were asked for.
        ticks: the control steps that were executed, in order.
        latencies_s: of each chunk, from when it was asked for until it was there; the first was waited for.
        ended: why: "success", "max_steps", "the environment", or the name of what was raised.
    """

    hz: float
    ticks: list[Tick] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    ended: str = ""

    @property
    def steps(self) -> int:
        """Actions that the environment was given."""
        return len(self.ticks)

    @property
    def success(self) -> bool | None:
        """Whether the task was done at some step; None = the environment never said."""
        said = [tick.success for tick in self.ticks if tick.success is not None]
        return any(said) if said else None

    @property
    def total_reward(self) -> float | None:
        """Of all steps; None = the environment never said."""
        said = [tick.reward for tick in self.ticks if tick.reward is not None]
        return sum(said) if said else None

    @property
    def late(self) -> int:
        """Actions whose chunk was not there in time: an older one went on, or the last action was held."""
        return sum(tick.late for tick in self.ticks)

    @property
    def held(self) -> int:
        """Of the late actions those that no chunk said anything of."""
        return sum(tick.held for tick in self.ticks)

    @property
    def skipped(self) -> int:
        """Control steps that passed before the one before had ended."""
        return self.ticks[-1].step + 1 - len(self.ticks) if self.ticks else 0

    @property
    def frame(self) -> pd.DataFrame:
        """The control steps as a table."""
        return pd.DataFrame([asdict(tick) for tick in self.ticks], columns=list(Tick.__dataclass_fields__))

    @property
    def timing(self) -> pd.DataFrame:
        """In milliseconds: period, lateness of each beginning, the environment's own time, latency of the chunks."""
        began = np.array([tick.began_s for tick in self.ticks])
        rows = {
            # over a step that was skipped the period is no period
            "period": [b - a for a, b in _neighbours(self.ticks)],
            "lateness": list(began - [tick.deadline_s for tick in self.ticks]),
            "environment": [tick.ended_s - tick.sent_s for tick in self.ticks],
            "latency": self.latencies_s,
        }
        return pd.DataFrame([{"what": name, **_summary(seconds)} for name, seconds in rows.items()]).set_index("what")

    def __str__(self) -> str:
        """In one line: 120 steps at 10 Hz, 3 late (1 of them held), 0 skipped, ended by max_steps."""
        return (
            f"{self.steps} steps at {self.hz:g} Hz, {self.late} late ({self.held} of them held), "
            f"{self.skipped} skipped, ended by {self.ended or 'nothing yet'}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + shown(self.timing)


def _neighbours(ticks: Sequence[Tick]) -> list[tuple[float, float]]:
    return [(a.began_s, b.began_s) for a, b in zip(ticks, ticks[1:]) if b.step == a.step + 1]


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    ms = np.array(seconds, np.float64) * 1000
    if not len(ms):
        return {"count": 0, **dict.fromkeys(["mean_ms", *(f"p{p}_ms" for p in PERCENTILES), "max_ms"], np.nan)}
    percentiles = {f"p{p}_ms": float(np.percentile(ms, p)) for p in PERCENTILES}
    return {"count": len(ms), "mean_ms": float(ms.mean()), **percentiles, "max_ms": float(ms.max())}
