"""Two rates on the same goals: the exact test, the intervals, and the test that may be looked at after every pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from ppt_kit.sim.compare.statistics.betting import (
    can_still_decide,
    confidence_sequence,
    decided_after,
    is_decided,
    stakes,
)
from ppt_kit.sim.compare.statistics.paired import PairCounts, mcnemar_exact, tango_interval
from ppt_kit.sim.compare.statistics.power import (
    Discordance,
    correlations,
    goals_for_mcnemar,
    mcnemar_power,
    sequential_course,
    t_power,
)
from ppt_kit.sim.compare.statistics.quantiles import student_cdf, student_quantile
from ppt_kit.sim.compare.statistics.training import Variance, difference_interval, mean_interval


def draws(rng, pairs, size):
    """Differences of pairs, 1 where a alone succeeds."""
    return rng.choice([1.0, -1.0, 0.0], p=[pairs.only_a, pairs.only_b, 1 - pairs.share], size=size)


# ------------------------------------------------------------------ a number of goals that was fixed beforehand


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 7), (5, 5), (12, 3), (0, 6), (400, 470)])
def test_mcnemars_p_is_the_binomial_tests(only_a, only_b):
    flips = only_a + only_b
    expected = stats.binomtest(only_a, flips).pvalue if flips else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Fagerland, Lydersen and Laake 2014, BMC Medical Research Methodology 14: airway hyper-responsiveness
        (PairCounts(both=1, only_a=1, only_b=7, none=12), -0.517, -0.026),
        # the same: complete response before and after consolidation therapy
        (PairCounts(both=59, only_a=6, only_b=16, none=80), -0.124, -0.0054),
        # by hand: without discordant pairs the score is sqrt(n D / (1 - D)), so D = z^2 / (n + z^2)
        (PairCounts(both=12, only_a=0, only_b=0, none=8), -0.16113, 0.16113),
    ],
)
def test_the_interval_is_tangos(counts, low, high):
    assert np.allclose(tango_interval(counts), (low, high), atol=6e-4)


def test_the_interval_is_where_the_score_is_the_quantile():
    """The score test with the nuisance rate maximised numerically, on a grid, instead of by the formula."""
    counts, z = PairCounts(both=20, only_a=11, only_b=4, none=15), stats.norm.ppf(0.975)
    for bound in tango_interval(counts):
        only_b = np.linspace(max(0, -bound), (1 - bound) / 2, 2_000_001)[1:-1]
        likelihood = 11 * np.log(only_b + bound) + 4 * np.log(only_b) + 35 * np.log(1 - 2 * only_b - bound)
        best = only_b[likelihood.argmax()]
        score = (7 - 50 * bound) / math.sqrt(50 * (2 * best + bound - bound**2))
        assert abs(score) == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [(PairCounts(0, 8, 0, 0), None, 1.0), (PairCounts(0, 0, 8, 0), -1.0, None), (PairCounts(0, 0, 0, 0), -1.0, 1.0)],
)
def test_the_interval_ends_where_differences_do(counts, low, high):
    found = tango_interval(counts)
    assert low is None or found[0] == low
    assert high is None or found[1] == high
    assert found[0] < found[1]


@pytest.mark.parametrize("goals", [20, 40])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(goals):
    """By the exact probabilities of all outcomes: it may fall short by little, and does by no more than that."""
    outcomes = np.array([(a, b) for a in range(goals + 1) for b in range(goals + 1 - a)])
    bounds = np.array([tango_interval(PairCounts(0, int(a), int(b), int(goals - a - b))) for a, b in outcomes])
    covered = []
    for rate_a, rate_b, phi in itertools.product((0.3, 0.6, 0.9), (0.3, 0.6, 0.9), (0.0, 0.3)):
        pairs = Discordance.of(rate_a, rate_b, min(phi, correlations(rate_a, rate_b)[1]))
        chances = stats.multinomial.pmf(
            np.column_stack([outcomes, goals - outcomes.sum(1)]), goals, [pairs.only_a, pairs.only_b, 1 - pairs.share]
        )
        inside = (bounds[:, 0] - 1e-9 <= rate_a - rate_b) & (rate_a - rate_b <= bounds[:, 1] + 1e-9)
        covered.append(chances @ inside)
    assert min(covered) > 0.93
    assert 0.945 < np.mean(covered) < 0.975


# ------------------------------------------------------------------ looked at after every pair


def test_the_stake_is_the_closed_form_and_the_integral():
    """Against the beta function, and against one bet after the other with the bettor's mean wins (Laplace's rule)."""
    differences = [1, 1, 0, -1, 1, 0, 1, 1, -1, 1, 1, 1]
    wins = losses = 0
    by_rule, expected, betted = 1.0, [], []
    for difference in differences:
        by_rule *= 1 + difference * (wins - losses) / (wins + losses + 2)
        wins, losses = wins + (difference == 1), losses + (difference == -1)
        expected.append(2.0 ** (wins + losses) * special.beta(wins + 1, losses + 1))
        betted.append(by_rule)
    assert np.allclose(stakes(differences), expected)
    assert np.allclose(betted, expected)


def test_eight_wins_of_one_side_decide_and_seven_do_not():
    """2^7 / 8 = 16 and 2^8 / 9 = 28.4, on either side of 20; goals that both or none solve change nothing."""
    assert decided_after([1.0] * 7) is None
    assert decided_after([0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1]) == 12
    assert decided_after([-1.0] * 9) == 8


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.15])
def test_the_stake_is_fair_at_every_mean(mean):
    """Its mean over all sequences of five pairs is 1: by their exact probabilities, with scores between 0 and 1 too."""
    values, chances = np.array([-1.0, -0.25, 0.5, 1.0]), np.array([0.2, 0.3, 0.3, 0.2])
    chances = chances * np.exp(tilt(values, chances, mean) * values)
    chances /= chances.sum()
    assert chances @ values == pytest.approx(mean)
    total = sum(
        np.prod(chances[list(path)]) * stakes(values[list(path)], mean)[-1]
        for path in itertools.product(range(4), repeat=5)
    )
    assert total == pytest.approx(1, abs=1e-9)


def tilt(values, chances, mean):
    """The exponent that gives values with these chances this mean."""
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        weights = chances * np.exp(middle * values)
        low, high = (middle, high) if weights @ values / weights.sum() < mean else (low, middle)
    return middle


NOTHING_BETWEEN = [
    Discordance.of(0.5, 0.5), Discordance.of(0.5, 0.5, 0.6), Discordance.of(0.9, 0.9), Discordance.of(0.1, 0.1, 0.3),
    Discordance.of(0.97, 0.97),
]  # fmt: skip


@pytest.mark.parametrize("pairs", NOTHING_BETWEEN, ids=lambda pairs: f"{pairs.share:.2f} discordant")
def test_false_alarms_of_2000_comparisons_with_nothing_between_them_stay_below_the_level(pairs):
    """Looked at after each of 300 pairs; the same looks with the exact p alarm far too often."""
    rng = np.random.default_rng(7)
    apart = draws(rng, pairs, (2000, 300))
    wins, losses = np.cumsum(apart == 1, axis=1), np.cumsum(apart == -1, axis=1)
    stake = np.exp((wins + losses) * np.log(2) + special.betaln(wins + 1, losses + 1))
    alarms = float((stake >= 20).any(axis=1).mean())
    # the closed form is what is used: on some of them
    assert all(np.allclose(stakes(apart[place]), stake[place]) for place in range(0, 2000, 400))
    assert alarms <= 0.05
    if pairs.share > 0.4:
        fixed = stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5) * 2 <= 0.05
        assert fixed.any(axis=1).mean() > 0.15


@pytest.mark.parametrize(("rate_a", "rate_b", "phi"), [(0.9, 0.6, 0.0), (0.5, 0.5, 0.5), (0.3, 0.7, -0.2)])
def test_the_confidence_sequence_covers_at_all_times_together(rate_a, rate_b, phi):
    rng, pairs, missed = np.random.default_rng(3), Discordance.of(rate_a, rate_b, phi), 0
    for _ in range(400):
        apart = draws(rng, pairs, 60)
        # the true difference is left out at some time where the stake against it reached 20
        missed += bool((stakes(apart, rate_a - rate_b) >= 20).any())
    # 20 are expected at most; 36 come with a chance of one in two thousand
    assert missed <= 36


def test_a_bound_of_the_sequence_is_where_the_stake_reaches_the_limit():
    apart = draws(np.random.default_rng(0), Discordance.of(0.8, 0.5), 40)
    for number, (low, high) in enumerate(confidence_sequence(apart), 1):
        assert low < apart[:number].mean() < high or number < 3
        for bound, step in ((low, 1e-4), (high, -1e-4)):
            if abs(bound) < 0.999:
                assert stakes(apart[:number], bound - step)[-1] > 20
                assert stakes(apart[:number], bound + step)[-1] < 20


def test_the_sequence_leaves_0_out_exactly_where_the_stake_has_decided():
    for seed in range(8):
        apart = draws(np.random.default_rng(seed), Discordance.of(0.8, 0.5), 60)
        low, high = confidence_sequence(apart).T
        assert (((low > 0) | (high < 0)) == (stakes(apart) >= 20)).all()
        assert np.array_equal(confidence_sequence(apart, only_last=True)[0], confidence_sequence(apart)[-1])


def test_it_is_decided_too_when_the_difference_is_within_the_margin():
    apart = [0.0] * 400
    first = next(number for number in range(1, 400) if is_decided(apart[:number], margin=0.05))
    low, high = confidence_sequence(apart[:first], only_last=True)[0]
    assert -0.05 < low < high < 0.05
    assert not is_decided(apart[: first - 1], margin=0.05)
    assert not is_decided(apart[:first])


def test_what_can_still_decide_is_told_from_what_cannot():
    """Every way that is left is tried; at this level five wins of one side decide, 2^5 / 6 > 5."""
    for before in ([], [1.0, -1.0, 0.0], [1.0] * 3, [-1.0, -1.0, 1.0]):
        for left in (2, 4, 5):
            ways = itertools.product((1.0, -1.0, 0.0), repeat=left)
            expected = any(decided_after([*before, *way], confidence=0.8) for way in ways)
            assert can_still_decide(before, left=left, confidence=0.8) == expected, (before, left)


# ------------------------------------------------------------------ what a comparison of given length sees


def test_the_power_of_mcnemars_test_is_that_of_10000_simulated_comparisons():
    rng, pairs = np.random.default_rng(1), Discordance.of(0.7, 0.5, 0.2)
    wins, losses, _ = rng.multinomial(90, [pairs.only_a, pairs.only_b, 1 - pairs.share], size=10_000).T
    found = np.mean([stats.binomtest(int(w), int(w + n)).pvalue <= 0.05 for w, n in zip(wins[:2000], losses[:2000])])
    assert mcnemar_power(pairs, 90) == pytest.approx(found, abs=0.03)
    goals = goals_for_mcnemar(pairs)
    assert mcnemar_power(pairs, goals) >= 0.8 > mcnemar_power(pairs, goals - 1)


def test_the_course_of_the_sequential_test_is_that_of_simulated_ones():
    rng, pairs, at_most = np.random.default_rng(2), Discordance.of(0.85, 0.6), 90
    course = sequential_course(pairs, at_most)
    took, right = [], 0
    for _ in range(800):
        apart = draws(rng, pairs, at_most)
        after = decided_after(apart)
        took.append(at_most if after is None else after)
        right += after is not None and apart[:after].sum() > 0
    assert course.a_better[-1] == pytest.approx(right / 800, abs=0.05)
    assert course.mean_pairs(at_most) == pytest.approx(np.mean(took), abs=3)


def test_the_rates_of_correlated_policies_are_what_was_asked_for():
    pairs = Discordance.of(0.8, 0.6, 0.25)
    both = 0.8 - pairs.only_a
    assert both == pytest.approx(0.6 - pairs.only_b)
    assert (both - 0.48) / math.sqrt(0.8 * 0.2 * 0.6 * 0.4) == pytest.approx(0.25)
    assert correlations(0.8, 0.6)[1] == pytest.approx((0.6 - 0.48) / math.sqrt(0.8 * 0.2 * 0.6 * 0.4))
    with pytest.raises(ValueError, match="have correlations from"):
        Discordance.of(0.8, 0.6, 0.9)


@pytest.mark.parametrize("freedom", [1, 1.6, 4, 37.5, 900])
def test_students_distribution_is_scipys(freedom):
    assert student_cdf(-1.3, freedom) == pytest.approx(stats.t.cdf(-1.3, freedom), abs=1e-10)
    assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-8)
    assert student_quantile(0.2, freedom) == pytest.approx(stats.t.ppf(0.2, freedom), rel=1e-8)
    critical = stats.t.ppf(0.975, freedom)
    expected = stats.nct.sf(critical, freedom, 2.5) + stats.nct.cdf(-critical, freedom, 2.5)
    assert t_power(0.5, error=0.2, freedom=freedom) == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------ training runs and goals


def test_the_variance_of_training_is_apart_from_that_of_goals():
    """By hand: runs at 3/4, 1/4; goals at 1, 1/2, 1/2, 0. Mean squares 1/2, 1/3, 1/6."""
    found = Variance.of(np.array([[1, 1, 1, 0], [1, 0, 0, 0]]))
    assert found.rate == 0.5
    assert found.rest == pytest.approx(1 / 6)
    assert found.training == pytest.approx((1 / 2 - 1 / 6) / 4)
    assert found.goal == pytest.approx((1 / 3 - 1 / 6) / 2)
    assert found.between_runs == pytest.approx(1 / 8)
    assert found.error(runs=2, goals=4) ** 2 == pytest.approx(1 / 24 + 1 / 48 + 1 / 48)


def test_runs_that_agree_on_every_goal_differ_in_goals_alone():
    found = Variance.of(np.array([[1, 0, 1, 1, 0]] * 3))
    assert (found.training, found.rest) == (0, pytest.approx(0))
    assert found.goal == pytest.approx(np.var([1, 0, 1, 1, 0], ddof=1))


def test_runs_that_each_do_everything_or_nothing_differ_in_training_alone():
    found = Variance.of(np.array([[1] * 6, [0] * 6, [1] * 6]))
    assert (found.goal, found.rest) == (0, pytest.approx(0))
    assert found.training == pytest.approx(np.var([1, 0, 1], ddof=1))


def test_components_are_those_that_tables_were_made_with():
    """Numbers instead of successes: their variances are known, 0.04 of training, 0.09 of goals, 0.25 of the rest."""
    rng = np.random.default_rng(0)
    found = [
        Variance.of(0.2 * rng.normal(size=(4, 1)) + 0.3 * rng.normal(size=(1, 30)) + 0.5 * rng.normal(size=(4, 30)))
        for _ in range(400)
    ]
    assert np.mean([each.rest for each in found]) == pytest.approx(0.25, rel=0.05)
    assert np.mean([each.goal for each in found]) == pytest.approx(0.09, rel=0.1)
    # estimates below 0 are 0, which lifts their mean a little
    assert np.mean([each.training for each in found]) == pytest.approx(0.04, rel=0.2)


@pytest.mark.parametrize(("runs", "training", "goal"), [(3, 0.0, 1.5), (3, 0.8, 1.5), (6, 0.8, 0.0)])
def test_intervals_over_runs_and_goals_cover_what_other_runs_and_goals_would_give(runs, training, goal):
    """Successes by log odds with normal effects of run and goal; the truth from a million of them."""
    rng, goals, times = np.random.default_rng(5), 40, 400
    truth = {
        centre: special.expit(centre + math.hypot(training, goal) * rng.normal(size=1_000_000)).mean()
        for centre in (0.8, 0.0)
    }
    covered = np.zeros(2)
    for _ in range(times):
        hard = goal * rng.normal(size=(1, goals))
        a, b = (
            (rng.random((runs, goals)) < special.expit(centre + training * rng.normal(size=(runs, 1)) + hard)) * 1.0
            for centre in (0.8, 0.0)
        )
        bounds = (mean_interval(a), truth[0.8]), (difference_interval(a, b), truth[0.8] - truth[0.0])
        covered += [low <= true <= high for (low, high), true in bounds]
    assert (covered / times > 0.925).all(), covered / times


def test_what_never_varies_is_no_certainty():
    """Three runs that solve all of ten goals: the interval is one run's, by Wilson and Tango."""
    all_solved = np.ones((3, 10))
    assert mean_interval(all_solved)[0] == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="wilson").low)
    assert difference_interval(all_solved, all_solved) == pytest.approx(tango_interval(PairCounts(10, 0, 0, 0)))
    assert difference_interval(all_solved, 0 * all_solved) == pytest.approx(tango_interval(PairCounts(0, 10, 0, 0)))


def test_one_run_of_each_is_the_interval_of_pairs():
    a, b = np.array([[1, 1, 1, 0, 1, 0]]), np.array([[1, 0, 0, 0, 1, 1]])
    assert difference_interval(a, b) == tango_interval(PairCounts(both=2, only_a=2, only_b=1, none=1))
    assert Variance.of(a).training is None
