"""The test that may be looked at after every pair: its false alarms, and its episodes against a fixed test's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from benches.trial import markdown
from ppt_kit.files import write_whole
from ppt_kit.keys import key

# (rate of both, correlation of their successes on a goal): nothing is between them
NOTHING = ((0.5, 0.0), (0.5, 0.6), (0.8, 0.0), (0.8, 0.5), (0.95, 0.0), (0.1, 0.3))
# (rate of a, rate of b, correlation)
SOMETHING = (
    (0.5, 0.9, 0.0), (0.6, 0.8, 0.0), (0.6, 0.8, 0.4), (0.7, 0.8, 0.0), (0.7, 0.8, 0.4), (0.8, 0.95, 0.0),
    (0.1, 0.3, 0.0), (0.9, 0.98, 0.0),
)  # fmt: skip
# a test of fixed length is planned for an effect that matters, before anybody knows the true one
PLANNED = 0.1


@dataclass
class CompareBench:
    """False alarms of the anytime-valid test, and its episodes against McNemar's exact test on a fixed number."""

    comparisons: int = key(2000, "simulated comparisons a line", low=1)
    goals: int = key(300, "goals of each, looked at after every one", low=10)
    confidence: float = key(0.95, "of the tests", low=0.5, high=0.999)
    seed: int = key(0, "of the simulation", low=0)
    output_dir: str = key("outputs/compare", "folder of false_alarms.csv and episodes.csv")


def compare(cfg: DictConfig) -> int:
    """Prints and writes both tables; 1 where a false alarm rate is above the level."""
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    alarms = false_alarms(cfg)
    _tell(alarms, folder / "false_alarms.csv", f"{cfg.comparisons} comparisons of equals, {cfg.goals} goals each:")
    _tell(episodes(cfg), folder / "episodes.csv", "pairs until it is seen (both tests see it in 80 % of comparisons):")
    return int((alarms["any_time"] > 1 - cfg.confidence).any())


def false_alarms(cfg: DictConfig) -> pd.DataFrame:
    """One line a way of being equal: shares of comparisons in which each test says that one is better.

    any_time: ours, looked at after every goal; fixed: McNemar's exact test once, at the end; misused: the same looked
    at after every goal.
    """
    from ppt_kit.sim.compare.statistics.power import Discordance

    rng, lines = np.random.default_rng(cfg.seed), []
    for rate, correlation in NOTHING:
        pairs = Discordance.of(rate, rate, correlation)
        kinds = rng.choice(3, p=[pairs.only_a, pairs.only_b, 1 - pairs.share], size=(cfg.comparisons, cfg.goals))
        ours, fixed = _alarms(kinds, cfg.confidence)
        lines.append(
            {
                "rate": rate, "correlation": correlation, "discordant": pairs.share,
                "any_time": ours.any(axis=1).mean(), "fixed": fixed[:, -1].mean(), "misused": fixed.any(axis=1).mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def episodes(cfg: DictConfig) -> pd.DataFrame:
    """One line a pair of rates: goals that both tests take to see which is better with a chance of 80 %.

    fixed: McNemar's, planned for exactly this difference; mean and most: ours, on average and at most; planned: of the
    fixed test where it was planned for a difference of 10 points, which is all one knew; mean_planned: ours on average,
    stopped at as many as it takes to see those 10 points.
    """
    from ppt_kit.sim.compare.statistics.power import Discordance, goals_for_mcnemar, sequential_course

    lines = []
    for rate_a, rate_b, correlation in SOMETHING:
        pairs = Discordance.of(rate_a, rate_b, correlation)
        fixed = goals_for_mcnemar(pairs, confidence=cfg.confidence) or 0
        step = PLANNED if rate_a + PLANNED <= 1 else -PLANNED
        assumed = Discordance.of(rate_a, rate_a + step)
        planned = goals_for_mcnemar(assumed, confidence=cfg.confidence) or 0
        patience = _most(assumed, 3 * planned, cfg.confidence)
        course = sequential_course(pairs, max(patience, 3 * fixed + 20), confidence=cfg.confidence)
        most = int((course.b_better >= 0.8).argmax())
        lines.append(
            {
                "rate_a": rate_a, "rate_b": rate_b, "correlation": correlation, "fixed": fixed,
                "mean": course.mean_pairs(most), "most": most, "planned": planned,
                "mean_planned": course.mean_pairs(patience), "seen_planned": course.b_better[patience],
            }
        )  # fmt: skip
    return pd.DataFrame(lines)


def _most(pairs, at_most: int, confidence: float) -> int:
    from ppt_kit.sim.compare.statistics.power import sequential_course

    course = sequential_course(pairs, at_most, confidence=confidence)
    return int(((course.a_better >= 0.8) | (course.b_better >= 0.8)).argmax())


def _alarms(kinds: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """(comparisons, goals) whether ours, and McNemar's exact test, say after each goal that one is better."""
    from ppt_kit.sim.compare.statistics.betting import stake_now
    from ppt_kit.sim.compare.statistics.paired import mcnemar_exact

    wins, losses = np.cumsum(kinds == 0, axis=1), np.cumsum(kinds == 1, axis=1)
    # both depend on the counts alone: each is computed once
    most = int(wins.max() + losses.max()) + 1
    stake, p_value = np.zeros((most, most)), np.ones((most, most))
    for a, b in _seen(wins, losses):
        stake[a, b] = stake_now([1.0] * a + [-1.0] * b)
        p_value[a, b] = mcnemar_exact(a, b)
    return stake[wins, losses] >= 1 / (1 - confidence), p_value[wins, losses] <= 1 - confidence


def _seen(wins: np.ndarray, losses: np.ndarray) -> Sequence[tuple[int, int]]:
    pairs = np.unique(np.stack([wins.ravel(), losses.ravel()], axis=1), axis=0)
    return [(int(a), int(b)) for a, b in pairs]


def _tell(table: pd.DataFrame, path: Path, title: str) -> None:
    write_whole(path, lambda beside: table.to_csv(beside, index=False, float_format="%.4f"))
    cells = [[f"{value:.3g}" if value < 10 else f"{value:.0f}" for value in line] for line in table.to_numpy(float)]
    print(f"\n{title}\n{markdown(list(table.columns), cells)}\n{path}", flush=True)
