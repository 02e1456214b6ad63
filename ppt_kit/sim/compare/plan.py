"""How many goals and training runs a comparison needs, before any of them is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import pandas as pd

from ppt_kit.errors import UserError
from ppt_kit.sim.compare.statistics.power import (
    MOST_GOALS,
    Course,
    Discordance,
    correlations,
    goals_for_mcnemar,
    mcnemar_power,
    sequential_course,
    smallest,
    t_power,
)
from ppt_kit.tables import shown

# correlations of success on one goal that a plan is shown for, beside the one it was asked for
SHOWN = (0.0, 0.2, 0.4, 0.6)
# training runs of each method that a plan is shown for
RUNS = (2, 3, 4, 5, 6, 8, 10, 15, 20)
# the test that is looked at after every pair is tried with up to so many times the goals of the fixed one
PATIENCE = (3, 10)


@dataclass(frozen=True)
class Question:
    """What is to be seen, and how it is looked at."""

    rate: float
    correlation: float
    training_sd: float
    power: float
    confidence: float

    def pairs(self, effect: float, correlation: float | None = None) -> Discordance:
        """How often pairs are won by one policy alone."""
        return Discordance.of(self.rate, self.rate + effect, self.correlation if correlation is None else correlation)


@dataclass(frozen=True)
class EvaluationPlan:
    """What a comparison needs. In a notebook it shows itself; `print(plan)` says the same.

    Attributes:
        table: without a training_sd one line a correlation of success on the same goal: correlation, goals (McNemar's
            exact test on a number fixed beforehand), mean_goals and most_goals (the test that is looked at after every
            pair, with the same chance to see the effect), episodes (of both policies, with the fixed number), minutes.
            With one, one line a number of training runs of each method: runs, goals, episodes, minutes. With minutes
            and no effect: the smallest effect that so much time shows.
        said: the same in words.
    """

    table: pd.DataFrame
    said: str

    def __str__(self) -> str:
        return f"{self.table.to_string(index=False, float_format=_number, na_rep='-')}\n{self.said}"

    def _repr_html_(self) -> str:
        return shown(self.table, below=[self.said])


def plan_evaluation(
    *,
    effect: float | None = None,
    rate: float = 0.7,
    minutes: float | None = None,
    seconds_per_episode: float | None = None,
    n_procs: int = 1,
    correlation: float = 0.0,
    training_sd: float = 0.0,
    power: float = 0.8,
    confidence: float = 0.95,
) -> EvaluationPlan:
    """How many goals, and training runs, show an effect of this size; or what can be seen in this time.

    Args:
        effect: the difference of success rates to be seen, e.g. 0.1; None = the smallest that `minutes` show.
        rate: success rate of the policy that the other one is compared with; the other's is rate + effect.
        minutes: for all episodes of both policies; training takes its own.
        seconds_per_episode: of one policy in one process, as `episode_s` of an evaluation's rows says.
        n_procs: processes that run episodes.
        correlation: of success of the two on the same goal (phi): above 0 where some goals are hard for both, which
            makes a comparison cheaper. Unknown beforehand, so 0; the table shows others.
        training_sd: standard deviation of the success rate between training runs of one method, e.g. 0.05, as
            `ppt.compare` of several runs estimates it; 0 = two policies are compared, and not the methods.
        power: chance that the effect is seen where it is there.
        confidence: of the test.
    Raises:
        UserError: a number is out of range, the rates leave 0 to 1, or neither effect nor minutes are given.
    """
    _check(rate=rate, effect=effect, power=power, confidence=confidence, training_sd=training_sd)
    _check_time(minutes, seconds_per_episode, n_procs, effect=effect)
    asked = Question(rate, correlation, training_sd, power, confidence)
    _check_correlation(asked, effect)
    # seconds that an episode takes of the time there is
    pace = None if seconds_per_episode is None else seconds_per_episode / n_procs
    episodes = None if minutes is None or pace is None else int(minutes * 60 / pace)
    if effect is None:
        return _smallest_effects(asked, episodes or 0, minutes or 0.0)
    plan = _with_runs if training_sd else _two_policies
    return plan(asked, effect, pace=pace, episodes=episodes)


def _two_policies(asked: Question, effect: float, *, pace: float | None, episodes: int | None) -> EvaluationPlan:
    lines = [_line(asked, effect, phi, pace=pace) for phi in _shown(asked, effect)]
    mine = next(line for line in lines if line["correlation"] == asked.correlation)
    said = _head(asked, effect)
    if mine["goals"] is None:
        said += f" takes more than {MOST_GOALS} goals."
        return EvaluationPlan(_table(lines, pace=pace), said)
    said += (
        f" takes {mine['goals']} goals in a number fixed beforehand ({2 * mine['goals']} episodes"
        f"{_time(mine['minutes'])}).{_looked_at(mine)} How strongly success on the same goal is correlated is not "
        "known beforehand: the table shows what it changes."
    )
    return EvaluationPlan(_table(lines, pace=pace), said + _in_time(asked, episodes))


def _looked_at(line: dict[str, Any]) -> str:
    if line["most_goals"] is None:
        return " Looked at after every pair it never is as powerful as that."
    return (
        f" Looked at after every pair it takes {line['mean_goals']:.0f} on average where the effect is as large, fewer "
        f"where it is larger, and {line['most_goals']} at most."
    )


def _table(lines: list[dict[str, Any]], *, pace: float | None) -> pd.DataFrame:
    frame = pd.DataFrame(lines).astype(float)
    return frame if pace is not None else frame.drop(columns="minutes")


def _line(asked: Question, effect: float, correlation: float, *, pace: float | None) -> dict[str, Any]:
    pairs = asked.pairs(effect, correlation)
    goals = goals_for_mcnemar(pairs, power=asked.power, confidence=asked.confidence)
    line: dict[str, Any] = {"correlation": correlation, "goals": goals}
    if goals is None:
        return line | {"mean_goals": None, "most_goals": None, "episodes": None, "minutes": None}
    course, most = _patient(asked, pairs, goals, is_b_better=effect > 0)
    return line | {
        "mean_goals": None if most is None else course.mean_pairs(most), "most_goals": most, "episodes": 2 * goals,
        "minutes": None if pace is None else 2 * goals * pace / 60,
    }  # fmt: skip


def _patient(asked: Question, pairs: Discordance, goals: int, *, is_b_better: bool) -> tuple[Course, int | None]:
    """The test that is looked at after every pair, and at most how many it takes to be as powerful as was asked for.

    None = it never is: it decides for the wrong one more often than the power leaves room for.
    """
    for patience in PATIENCE:
        course = sequential_course(pairs, patience * goals + 20, confidence=asked.confidence)
        enough = ((course.b_better if is_b_better else course.a_better) >= asked.power).nonzero()[0]
        if len(enough):
            return course, int(enough[0])
    return course, None


def _with_runs(asked: Question, effect: float, *, pace: float | None, episodes: int | None) -> EvaluationPlan:
    lines = []
    for runs in RUNS:
        goals = _fewest_goals(asked, effect, runs)
        total = None if goals is None else 2 * runs * goals
        spent = None if total is None or pace is None else total * pace / 60
        lines.append({"runs": runs, "goals": goals, "episodes": total, "minutes": spent})
    # also between those that are shown
    least = next((runs for runs in range(RUNS[0], RUNS[-1] + 1) if _fewest_goals(asked, effect, runs)), None)
    said = _head(asked, effect) + f", between methods whose training runs differ by {100 * asked.training_sd:g} points,"
    if least is None:
        said += f" takes more than {RUNS[-1]} training runs of each."
    else:
        said += (
            f" takes {least} training runs of each at least: with fewer no number of goals is enough, and with more "
            "each needs fewer goals."
        )
    return EvaluationPlan(_table(lines, pace=pace), said + _in_time(asked, episodes))


def _smallest_effects(asked: Question, episodes: int, minutes: float) -> EvaluationPlan:
    """What the time there is shows."""
    name, choices = ("runs", RUNS) if asked.training_sd else ("correlation", _shown(asked, 0.0))
    lines = []
    for choice in choices:
        goals = _goals(episodes, int(choice) if asked.training_sd else 1)
        seen = _smallest_effect(asked, goals, choice)
        lines.append({name: choice, "goals": goals, "effect": seen})
    said = f"{minutes:g} minutes are {episodes} episodes. {_in_time(asked, episodes).strip()}"
    return EvaluationPlan(pd.DataFrame(lines), said)


def _in_time(asked: Question, episodes: int | None) -> str:
    """What so many episodes show."""
    if episodes is None:
        return ""
    if asked.training_sd:
        seen = {runs: _smallest_effect(asked, _goals(episodes, runs), runs) for runs in RUNS}
        runs, best = min(((r, e) for r, e in seen.items() if e), key=lambda item: item[1], default=(0, None))
        how = f"{runs} training runs of each on {_goals(episodes, runs)} goals" if best else "them"
    else:
        best, how = _smallest_effect(asked, _goals(episodes, 1), asked.correlation), f"{_goals(episodes, 1)} goals"
    if best is None:
        return f" {episodes} episodes show no effect from a rate of {100 * asked.rate:g} %, however large."
    return (
        f" {episodes} episodes, as {how}, show {100 * best:.1f} points or more from a rate of {100 * asked.rate:g} %."
    )


def _smallest_effect(asked: Question, goals: int, choice: float) -> float | None:
    """The smallest difference, up or down, that is seen with the power asked for.

    Args:
        choice: the number of training runs where there is a training_sd, else the correlation.
    """
    if goals < 2:
        return None
    sizes = []
    for sign, room in ((1, 1 - asked.rate), (-1, asked.rate)):
        seen = _least(partial(_is_seen, asked, goals, choice, sign), room)
        sizes += [seen] if seen is not None else []
    return min(sizes, default=None)


def _is_seen(asked: Question, goals: int, choice: float, sign: int, size: float) -> bool:
    return _power(asked, sign * size, goals, choice) >= asked.power


def _power(asked: Question, effect: float, goals: int, choice: float) -> float:
    if asked.training_sd:
        return _runs_power(asked, effect, int(choice), goals)
    low, high = correlations(asked.rate, asked.rate + effect)
    pairs = asked.pairs(effect, min(max(choice, low), high))
    return mcnemar_power(pairs, goals, confidence=asked.confidence)


def _runs_power(asked: Question, effect: float, runs: int, goals: int) -> float:
    """Of the interval of `training.difference_interval`, with as many runs of each method."""
    ours, other = asked.rate, asked.rate + effect
    # of one episode's success; phi is taken to be as large between runs of one method
    spread = ours * (1 - ours) + other * (1 - other)
    between = math.sqrt(ours * (1 - ours) * other * (1 - other))
    shared = max(0.0, asked.correlation * (spread - 2 * between))
    rest = (1 - asked.correlation) * spread
    error = math.sqrt((2 * asked.training_sd**2 + rest / goals) / runs + shared / goals)
    return t_power(effect, error=error, freedom=2 * (runs - 1), confidence=asked.confidence)


def _fewest_goals(asked: Question, effect: float, runs: int) -> int | None:
    return smallest(lambda goals: _runs_power(asked, effect, runs, goals) >= asked.power)


def _least(holds: Callable[[float], bool], most: float) -> float | None:
    """The smallest size up to `most` that holds, where larger ones do, to a thousandth."""
    if most <= 0 or not holds(most):
        return None
    low, high = 0.0, most
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _goals(episodes: int, runs: int) -> int:
    """Of each run, where both methods have as many."""
    return episodes // (2 * runs)


def _shown(asked: Question, effect: float) -> list[float]:
    low, high = correlations(asked.rate, asked.rate + effect)
    return sorted({phi for phi in (*SHOWN, asked.correlation) if low <= phi <= high})


def _head(asked: Question, effect: float) -> str:
    return (
        f"To see {100 * effect:+g} points from a rate of {100 * asked.rate:g} % with a chance of "
        f"{100 * asked.power:g} % (confidence {100 * asked.confidence:g} %)"
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _time(minutes: float | None) -> str:
    return "" if minutes is None else f", {minutes:.0f} minutes" if minutes < 120 else f", {minutes / 60:.1f} hours"


def _check(**numbers: float | None) -> None:
    bounds = {
        "rate": (0.0, 1.0, True), "effect": (-1.0, 1.0, True), "power": (0.0, 1.0, False),
        "confidence": (0.5, 1.0, False), "training_sd": (0.0, 0.5, True),
    }  # fmt: skip
    for name, value in numbers.items():
        low, high, closed = bounds[name]
        if value is None and name == "effect":
            continue
        at_end = closed and value in (low, high)
        if not _is_number(value) or not (low < float(value or 0) < high or at_end):
            raise UserError(
                f"{name}={value!r}: takes a share {f'from {low:g} to' if closed else f'between {low:g} and'} {high:g}."
            )
    rate, effect = numbers["rate"], numbers["effect"]
    if effect == 0:
        raise UserError(
            "effect=0: no number of goals shows that nothing is between two policies. Type e.g. effect=0.1."
        )
    if rate is not None and effect is not None and not 0 <= rate + effect <= 1:
        raise UserError(
            f"effect={effect:g} from rate={rate:g} is a success rate of {rate + effect:g}. Type a smaller effect, or "
            f"effect={-effect:g}."
        )


def _check_time(minutes: Any, seconds: Any, n_procs: Any, *, effect: float | None) -> None:
    if effect is None and minutes is None:
        raise UserError("neither effect nor minutes are given. Type effect=0.1, or minutes=30 seconds_per_episode=4.")
    for name, value in (("minutes", minutes), ("seconds_per_episode", seconds)):
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise UserError(f"{name}={value!r}: takes a number above 0.")
    if minutes is not None and seconds is None:
        raise UserError(
            f"minutes={minutes:g}, but seconds_per_episode is empty: how many episodes are these? Type the mean of "
            "episode_s of an evaluation's rows."
        )
    if not isinstance(n_procs, int) or isinstance(n_procs, bool) or n_procs < 1:
        raise UserError(f"n_procs={n_procs!r}: takes a whole number, at least 1.")


def _check_correlation(asked: Question, effect: float | None) -> None:
    low, high = correlations(asked.rate, asked.rate + (effect or 0.0))
    if not _is_number(asked.correlation) or not low - 1e-9 <= asked.correlation <= high + 1e-9:
        raise UserError(
            f"correlation={asked.correlation!r}: two policies with these rates have one from {low:.2f} to {high:.2f}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == value
