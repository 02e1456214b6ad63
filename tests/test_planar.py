"""The planar task: two ways that are equally good, of which nothing that is seen tells one from the other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ROOT, run_script

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.sim.collect import expert_episode
from ppt_kit.sim.env import make_env

SPEC = {"simulator": "planar", "task": "detour"}


@pytest.fixture
def env():
    return make_env(SPEC, uses=["collecting", "evaluating", "filming"])


def driven(env, seed, act):
    """(whether it succeeded, (T, 2) where it was) under act(env)."""
    reading, success = env.reset(seed), False
    way = [reading["obs/position"]]
    while len(way) <= env.max_steps and not success:
        reading, _, success = env.step(act(env))
        way.append(reading["obs/position"])
    return success, np.stack(way)


def test_the_expert_succeeds_on_a_hundred_seeds_and_keeps_clear(env):
    for seed in range(1000, 1100):
        success, way = driven(env, seed, lambda env: env.expert_action())
        assert success
        assert np.linalg.norm(way - env.obstacle, axis=1).min() > 0.39


def test_an_episode_is_the_same_to_the_bit(env):
    first, again = (expert_episode(env, seed=11) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_one_scene_is_shown_on_both_sides_and_nothing_seen_tells_which(env):
    """Up to the choice the two demonstrations are the same to the bit, a pause among it; then they part."""
    for seed in range(0, 40, 2):
        left, right = (expert_episode(env, seed=each) for each in (seed, seed + 1))
        shared = next(i for i, (a, b) in enumerate(zip(left["actions"], right["actions"])) if not np.array_equal(a, b))
        assert shared >= 16
        for name in ("obs/position", "obs/goal", "obs/obstacle"):
            assert np.array_equal(left[name][: shared + 1], right[name][: shared + 1])
        sides = [
            np.sign(each["obs/position"][shared + 4, 0] - each["obs/position"][shared, 0]) for each in (left, right)
        ]
        assert sides == [-1, 1]
    one, other = (expert_episode(env, seed=each) for each in (0, 2))
    assert not np.array_equal(one["obs/goal"][0], other["obs/goal"][0])


def test_the_mean_of_both_ways_stays_before_the_obstacle_and_the_median_waits(env):
    def mean(env):
        actions = []
        for env.side in (-1.0, 1.0):
            actions.append(env.expert_action())
        return np.mean(actions, 0)

    for seed in range(0, 20, 2):
        success, way = driven(env, seed, mean)
        assert not success
        assert np.linalg.norm(way[-1] - env.obstacle) < 0.56
    # of the frames in which it waits, most are followed by eight more
    waits = [(~expert_episode(env, seed=seed)["actions"].any(1)).sum() for seed in range(0, 100, 2)]
    assert sum(max(0, wait - 8) for wait in waits) > 0.6 * sum(waits)


def test_the_goal_counts_only_untouched(env):
    env.reset(0)
    env.path.append(env.goal - [0, 0.05])
    assert env.step(np.zeros(2))[2]
    env.reset(0)
    env.path.append(env.obstacle - [0, 0.31])
    env.step(np.array([0.0, 1.0]))
    env.path.append(env.goal)
    assert not env.step(np.zeros(2))[2]


def test_no_action_goes_farther_than_one_step(env):
    env.reset(0)
    before = env.path[-1]
    env.step(np.array([30.0, 40.0]))
    np.testing.assert_allclose(env.path[-1] - before, [0.03, 0.04])


def test_the_picture_shows_obstacle_goal_and_point(env):
    env.reset(3)
    picture = env.render(128)
    assert (picture.shape, picture.dtype) == ((128, 128, 3), np.uint8)
    at = lambda place: picture[tuple(np.round((1.1 - np.array([place[1], -place[0]])) / 2.2 * 127).astype(int))]
    red, green, blue = (at(place).astype(int) for place in (env.obstacle, env.goal, env.path[-1]))
    assert np.ptp(red) < 20
    assert green.argmax() == 1
    assert blue.argmax() == 2
    assert (at((0.9, 0.0)) == 255).all()


def test_there_is_one_task_and_its_options_are_recorded(env, tmp_path):
    with pytest.raises(UserError, match="task=detour"):
        make_env({**SPEC, "task": "maze"})
    done = ppt.collect("detour", simulator="planar", episodes=4, dataset_path=str(tmp_path), options={"noise": 0.0})
    data = ppt.open_dataset(done.path)
    starts = [data.episode(i)["obs"]["state"][0] for i in range(4)]
    assert all(np.array_equal(starts[0], start) for start in starts)


# ------------------------------------------------------------------ benches of learning

TINY = "words=[policy.width=16,policy.num_heads=2,train.total_iters=2]"


def test_the_planar_bench_draws_its_figure_and_runs_no_trial_twice(tmp_path):
    words = ("heads=[regression,mlp]", "demos=4", "episodes=2", TINY, "figure=planar.png", "output_dir=runs")
    bench = str(ROOT / "scripts/bench.py")
    first = run_script(bench, "planar", *words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    table = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["head", "---", "mlp", "regression"]
    assert table[2].split("|")[2].strip() == "0 % [0, 66]"
    assert (tmp_path / "planar.png").stat().st_size > 20_000
    ledger = (tmp_path / "runs/planar.jsonl").read_bytes()
    again = run_script(bench, "planar", *words, cwd=tmp_path)
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == table
    assert (tmp_path / "runs/planar.jsonl").read_bytes() == ledger
    assert "training" not in again.stderr
    wrong = run_script(bench, "planar", "heads=[gan]", cwd=tmp_path)
    assert (wrong.returncode, "heads=gan: takes all, or some of" in wrong.stderr) == (2, True)


def test_the_success_bench_adds_rows_with_control_and_interval(tmp_path):
    fixed = ("tasks=[detour]", "simulator=planar", "config=planar", "demos=2", "episodes=2", TINY)
    bench = str(ROOT / "scripts/bench.py")
    done = run_script(bench, "success", "heads=[regression]", *fixed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    more = run_script(bench, "success", "heads=[mlp,regression]", *fixed, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    rows = [json.loads(line) for line in (tmp_path / "outputs/success/success.jsonl").read_text().splitlines()]
    assert [row["head"] for row in rows] == ["regression", "mlp"]
    assert all(row["zeroed"] == ["state"] and row["errors"] == 0 and row["minutes"] >= 0 for row in rows)
    table = (tmp_path / "outputs/success/success.md").read_text().splitlines()
    assert len(table) == 4
    assert "| detour | mlp        | default | 0 % [0, 66]    | 0 %     | 2 from 100000 |" in table[2]
    evaluated = ppt.read_metrics(tmp_path / rows[0]["run_dir"], "train")
    assert evaluated["step"].iloc[-1] == 2


def test_a_policy_can_be_told_something_else_than_the_simulator_says(tmp_path):
    """The same words are the same episode to the bit, other words another one; who hears none is told so."""
    folder, small = tmp_path / "data", ["policy.width=16", "policy.num_heads=2", "train.total_epochs=1"]
    ppt.collect("detour", simulator="planar", episodes=2, dataset_path=folder)
    hears = ["policy.stems.language.kind=sentence", "policy.encoders.language.kind=minilm"]
    policies = {}
    for name, words in (("hears", hears), ("deaf", [])):
        cfg = ppt.load_config(
            "planar", f"dataset_path={folder}", f"output_dir={tmp_path}", f"suffix={name}", *small, *words,
            "wandb.mode=disabled",
        )  # fmt: skip
        run = ppt.UnifiedTrainer(cfg, mode="single")
        run.run()
        policies[name] = ppt.load_policy(run.run_dir)
    acted = {
        told: ppt.evaluate(policies["hears"], episodes=1, max_steps=5, sentence=told).rows[0]["actions_sha256"]
        for told in (None, "go round the obstacle to the goal", "stay", "")
    }
    told = ppt.evaluate(policies["hears"], episodes=1, max_steps=5, controls=["sentence"]).rows
    turned = ppt.evaluate(policies["hears"], episodes=1, max_steps=5, sentence="round the obstacle to the goal go").rows
    assert [row["control"] for row in told] == [None, "sentence"]
    assert told[1]["actions_sha256"] == turned[0]["actions_sha256"] != acted[None]
    assert acted[None] == acted["go round the obstacle to the goal"]
    assert len(set(acted.values())) == 3
    both = [ppt.evaluate(policies["hears"], episodes=1, max_steps=5, sentence=told) for told in (None, "stay")]
    assert list(ppt.success_table(both)["control"]) == ["-", "told 'stay'"]
    with pytest.raises(UserError, match="sentence='stay': this policy hears none; it sees state"):
        ppt.evaluate(policies["deaf"], sentence="stay")
