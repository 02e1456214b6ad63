"""The learning rate: against a formula of its own, and without a jump where the number of steps changes."""

from __future__ import annotations

import math

import pytest

from ppt_kit.train.schedule import Schedule


def test_warm_up_and_cosine_are_the_textbook_ones():
    schedule = Schedule(2e-3, 10, 110)
    assert schedule.rate(0) == 2e-4
    assert schedule.rate(9) == schedule.rate(10) == 2e-3
    assert schedule.rate(60) == pytest.approx(1e-3)
    assert schedule.rate(85) == pytest.approx(2e-3 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert schedule.rate(110) == schedule.rate(200) == 0.0


@pytest.mark.parametrize("warmup", [0, 4])
def test_a_stretched_schedule_goes_on_from_where_it_is_and_ends_at_zero(warmup):
    before = Schedule(1e-3, warmup, 100)
    after = before.stretched(40, 160).stretched(70, 90)
    assert before.stretched(40, 160).rate(40) == before.rate(40)
    assert after.rate(70) == before.stretched(40, 160).rate(70)
    rates = [after.rate(step) for step in range(70, 91)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-18)


def test_stretched_during_the_warm_up_it_is_the_schedule_of_that_many_steps():
    assert Schedule(1e-3, 10, 100).stretched(5, 200) == Schedule(1e-3, 10, 200)


def test_a_resume_file_holds_what_the_configuration_does_not_say():
    schedule = Schedule(1e-3, 4, 100).stretched(40, 160)
    assert Schedule(1e-3, 4, 160).resumed(schedule.state()) == schedule
