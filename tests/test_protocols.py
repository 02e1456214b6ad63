"""One record of evaluations, read as each protocol counts."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.sim.compare.protocol import succeeded
from ppt_kit.sim.results import Evaluation, wilson_interval

# successes on four goals, by run and epoch
RUNS = {
    "r0": {10: [1, 0, 0, 0], 20: [1, 1, 1, 1], 30: [1, 1, 1, 0], 40: [1, 1, 0, 0]},
    "r1": {10: [0, 0, 0, 0], 20: [1, 1, 0, 0], 30: [1, 0, 0, 0], 40: [1, 1, 1, 0]},
}


def row(checkpoint, seed, won, **changes):
    return {
        "checkpoint": checkpoint, "weights": checkpoint, "domain": "d", "task": "t", "seed": seed, "zero_keys": [],
        "options": "execute_steps=4 simulator=0a", "success": bool(won), "success_last": bool(won),
        "success_step": 30 if won else None, "steps": 30 if won else 200, "error": None,
    } | changes  # fmt: skip


@pytest.fixture
def record():
    return [
        row(f"{run}/model_{epoch}.pth", seed, success)
        for run, epochs in RUNS.items()
        for epoch, successes in epochs.items()
        for seed, success in enumerate(successes)
    ]


@pytest.mark.parametrize(
    ("checkpoints", "rate"),
    [("final", (2 + 3) / 8), ("last-2", (5 + 4) / 16), ("best-2", (7 + 5) / 16), ("best-4", (10 + 6) / 32)],
)
def test_each_protocol_counts_its_checkpoints_of_one_record(record, checkpoints, rate):
    for shuffled in (record, list(reversed(record))):
        line = ppt.protocol(Evaluation(shuffled), checkpoints=checkpoints).iloc[0]
        assert line["rate"] == pytest.approx(rate)
        assert (line["runs"], line["goals"], line["errors"]) == (2, 4, 0)
        assert line["checkpoints"] == int(checkpoints[-1]) if "-" in checkpoints else 1


def test_the_best_have_no_interval_and_the_final_one_has(record):
    """Chosen on the goals they are counted on."""
    best, final = (ppt.protocol(pd.DataFrame(record), checkpoints=c).iloc[0] for c in ("best-2", "final"))
    assert math.isnan(best["low"])
    assert 0 <= final["low"] < final["rate"] < final["high"] <= 1
    assert final["run_sd"] == pytest.approx(np.std([0.5, 0.75], ddof=1))
    one = ppt.protocol(Evaluation([each for each in record if each["checkpoint"] == "r0/model_40.pth"])).iloc[0]
    assert (one["low"], one["high"]) == pytest.approx(wilson_interval(2, 4))
    assert math.isnan(one["run_sd"])


def test_the_last_file_of_a_run_is_counted_once(record):
    """model.pth has the weights of model_40.pth; without that it is the final one."""
    twice = [row("r0", seed, success, weights="r0/model_40.pth") for seed, success in enumerate([1, 1, 0, 0])]
    assert ppt.protocol(Evaluation(record + twice), checkpoints="last-2")["rate"][0] == pytest.approx(9 / 16)
    later = [row("r0", seed, 0, weights="other") for seed in range(4)]
    assert ppt.protocol(Evaluation(record + later))["rate"][0] == pytest.approx((0 + 3) / 8)


def test_tasks_and_controls_have_lines_of_their_own(record, tmp_path):
    """From the rows files of run folders as well."""
    blind = [
        each | {"zero_keys": ["pointcloud"], "success": False, "success_step": None, "steps": 200} for each in record
    ]
    (tmp_path / "r/eval").mkdir(parents=True)
    (tmp_path / "r/eval/a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in record))
    (tmp_path / "r/eval/b.jsonl").write_text("".join(json.dumps(each) + "\n" for each in blind))
    table = ppt.protocol([tmp_path / "r"])
    assert table["control"].tolist() == ["-", "zeroed pointcloud"]
    assert table["rate"].tolist() == [5 / 8, 0]


def test_errors_are_left_out_and_counted(record):
    record[15] |= {"error": "RuntimeError: x", "success": None, "success_last": None}
    line = ppt.protocol(Evaluation(record)).iloc[0]
    # the fourth goal of r0's final checkpoint, a failure
    assert (line["errors"], line["rate"]) == (1, pytest.approx((2 / 3 + 3 / 4) / 2))


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({"success_step": 150, "steps": 150}, {}, True),
        ({"success_step": 150, "steps": 150}, {"max_steps": 200}, True),
        ({"success_step": 150, "steps": 150}, {"max_steps": 100}, False),
        ({"success_step": 150, "steps": 150}, {"max_steps": 150, "success": "last"}, True),
        ({"success_step": 150, "steps": 150}, {"max_steps": 149, "success": "last"}, False),
        ({"success": False, "success_step": None, "steps": 500}, {"max_steps": 400}, False),
        ({"success_step": 150, "steps": 500, "success_last": False, "options": "stop_at_success=false"}, {}, True),
        ({"success_step": 150, "steps": 500, "success_last": False, "options": "stop_at_success=false"}, {"success": "last"}, False),
        ({"success_step": 150, "steps": 500, "success_last": True, "options": "stop_at_success=false"}, {"success": "last", "max_steps": 500}, True),
    ],
)  # fmt: skip
def test_an_episode_counts_by_its_first_success_its_last_step_and_the_length_asked_for(changes, options, expected):
    assert succeeded(row("m", 0, True, **changes), **options) is expected


def test_rows_of_before_stopped_at_their_success():
    old = row("m", 0, True)
    del old["success_step"], old["success_last"]
    assert succeeded(old, max_steps=30)
    assert not succeeded(old, max_steps=29)


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"success": "last"}, "ended with its success, after 30 steps. Evaluate with stop_at_success=false"),
        ({"success": False, "success_step": None, "steps": 200}, {"max_steps": 400}, "ended after 200 steps. Evaluate with max_steps=400"),
        ({"steps": 500, "options": "stop_at_success=false"}, {"success": "last", "max_steps": 200}, "does not say what held at step 200"),
        ({"steps": 300, "options": "stop_at_success=false"}, {"success": "last", "max_steps": 400}, "ended after 300 steps"),
        ({}, {"checkpoints": "best-3"}, "m has 1 evaluated"),
        ({}, {"checkpoints": "best"}, "takes final, last-5 or best-5"),
        ({}, {"success": "first"}, "takes any or last"),
        ({}, {"max_steps": 0}, "max_steps=0: takes a whole number"),
        ({}, {"confidence": 2}, "confidence=2: takes a number from 0.5 to below 1"),
        ({"error": "x"}, {}, "t: none of its 1 episodes could be run"),
    ],
)  # fmt: skip
def test_what_a_record_does_not_answer_is_told_in_a_line(changes, options, says):
    with pytest.raises(UserError, match=says):
        ppt.protocol(Evaluation([row("m", 0, True, **changes)]), **options)


def test_rows_that_were_run_in_two_ways_are_not_mixed(record):
    record[3] |= {"options": "execute_steps=8 simulator=0a"}
    with pytest.raises(UserError, match="2 ways of evaluating.*execute_steps=4.*execute_steps=8"):
        ppt.protocol(Evaluation(record))
