"""Two policies on the same goals: run pair by pair until it is decided, or from rows that are there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_script

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.sim.compare.result import Comparison, Pair
from ppt_kit.sim.compare.sides import MAY_DIFFER
from ppt_kit.sim.results import Evaluation

SIMULATOR = "test_compare_runs:Lottery"
FIRST = 100_000


class Lottery:
    """One step; who steps up wins on most goals, who steps down on some. Demonstrations are of either kind by seed."""

    description = "win"

    def __init__(self, task="lottery", *, up=0.95, down=0.35, max_steps=1):
        self.task, self.up, self.down, self.max_steps = task, up, down, max_steps

    def reset(self, seed):
        self.seed = seed
        return {"obs/ticket": np.random.default_rng(seed).normal(size=2).astype(np.float32)}

    def step(self, action):
        if self.seed == int(os.environ.get("BROKEN", -1)):
            raise RuntimeError("out of order")
        dies = Path(os.environ.get("DIES", "-"))
        if self.seed == FIRST + 1 and action[0] > 0 and dies.exists():
            dies.write_text(dies.read_text()[1:])
            os._exit(7) if dies.read_text() else dies.unlink()
        return self.reset(self.seed), 0.0, self.seed < 200 or wins(self.seed, self.up if action[0] > 0 else self.down)

    def expert_action(self):
        return np.full(2, 1.0 if self.seed < 100 else -1.0)

    def spec(self):
        options = {name: getattr(self, name) for name in ("task", "up", "down", "max_steps")}
        return {"simulator": SIMULATOR} | options


def wins(seed, rate):
    return bool(np.random.default_rng([1, seed]).random() < rate)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders by name: up and up2 step up, down steps down."""
    folder, made = tmp_path_factory.mktemp("lottery"), {}
    for name, seed in (("up", 0), ("down", 100)):
        ppt.collect("lottery", simulator=SIMULATOR, episodes=3, seed=seed, domain=name, dataset_path=str(folder))
    for name, domain, training_seed in (("up", "up", 0), ("down", "down", 0), ("up2", "up", 1)):
        cfg = ppt.load_config(
            "planar", f"domains={domain}", f"dataset_path={folder}", f"output_dir={folder}", f"suffix={name}",
            f"seed={training_seed}", "policy.width=16", "policy.num_heads=2", "train.total_epochs=2",
            "dataset.state_keys=null", "wandb.mode=disabled",
        )  # fmt: skip
        run = ppt.UnifiedTrainer(cfg, mode="single")
        run.run()
        made[name] = run.run_dir
    return made


@pytest.fixture
def policies(runs):
    return {name: ppt.load_policy(folder) for name, folder in runs.items()}


def expected(number):
    """(success of up, of down) on the first goals."""
    return [(wins(seed, 0.95), wins(seed, 0.35)) for seed in range(FIRST, FIRST + number)]


def rows(successes, *, checkpoint="m", seeds=None, **changes):
    seeds = range(FIRST, FIRST + len(successes)) if seeds is None else seeds
    common = {
        "checkpoint": checkpoint, "weights": checkpoint, "domain": "d", "task": "t",
        "options": "execute_steps=4 simulator=0a", "zero_keys": [], "steps": 5, "return": 0.0, "error": None,
        "subtasks": {}, "video": None,
    }  # fmt: skip
    return [common | {"seed": seed, "success": won} | changes for seed, won in zip(seeds, successes)]


# ------------------------------------------------------------------ policies, pair by pair


def test_policies_are_run_on_the_same_goals_until_it_is_decided(policies):
    result = ppt.compare(policies["up"], policies["down"], episodes=150)
    number = len(result.pairs)
    assert [(pair.a, pair.b) for pair in result.pairs] == expected(number)
    assert [pair.seed for pair in result.pairs] == list(range(FIRST, FIRST + number))
    assert result.decision == "a"
    assert result.stopped == "decided"
    assert result.decided_after == number < 60
    # at the pair before, it was not: 2^(w+l) / ((w+l+1) C(w+l, w)) by its counts
    before = Comparison("a", "b", "t", result.pairs[:-1])
    assert before.e_value < 20 <= result.e_value
    assert ppt.compare(policies["down"], policies["up"], episodes=150).decision == "b"


def test_processes_decide_as_one_does(policies):
    """Pairs are looked at in the order of their seeds, whichever ends first."""
    one, two = (ppt.compare(policies["up"], policies["down"], episodes=60, n_procs=n) for n in (1, 2))
    assert one == two


def test_a_batch_asks_each_policy_once_for_all_of_its_goals_and_gives_the_rows_of_an_evaluation(
    policies, monkeypatch, tmp_path
):
    calls, act = [], type(policies["up"]).act
    monkeypatch.setattr(
        type(policies["up"]), "act", lambda self, *args, **more: calls.append(1) or act(self, *args, **more)
    )
    options = {"episodes": 12, "batch_envs": 4}
    ppt.compare(policies["up"], policies["down"], until_decided=False, out_dir=tmp_path, **options)
    # episodes of one step
    assert len(calls) == 2 * 12 / 4
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    there = ppt.evaluate(policies["up"], **options).untimed
    ours = Evaluation([row for row in rows if row["checkpoint"] == there[0]["checkpoint"]]).untimed
    assert sorted(ours, key=lambda row: row["seed"]) == there
    two = ppt.compare(policies["up"], policies["down"], n_procs=2, **options)
    assert two == ppt.compare(policies["up"], policies["down"], **options)


def test_a_fixed_number_of_goals_is_run_to_its_end(policies):
    result = ppt.compare(policies["up"], policies["down"], episodes=40, until_decided=False)
    assert len(result.pairs) == 40
    assert result.decision == "a"
    assert result.decided_after < 40
    assert "hold if this number of goals was chosen before" in str(result)


def test_what_cannot_be_decided_any_more_is_not_run(policies):
    """Eight wins of one side decide; with seven goals nothing does, so none but the first is run."""
    result = ppt.compare(policies["up"], policies["down"], episodes=7)
    assert (len(result.pairs), result.decision, result.stopped) == (1, "undecided", "hopeless")
    assert "could have decided" in str(result)


def test_policies_that_do_the_same_are_the_same_within_a_margin(policies):
    result = ppt.compare(policies["up"], policies["up2"], episodes=200, margin=0.3)
    assert result.decision == "same"
    assert result.stopped == "decided"
    assert "the same within 30.0 points" in str(result)
    last = result.sequence.iloc[-1]
    assert -0.3 < last["low"] < last["high"] < 0.3


def test_rows_are_kept_as_they_come_and_the_same_call_goes_on(runs, tmp_path, monkeypatch):
    first = ppt.compare(runs["up"], runs["down"], episodes=100, out_dir=tmp_path)
    file = tmp_path / "eval.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * len(first.pairs)
    assert {json.loads(line)["checkpoint"] for line in lines} == {str(runs["up"]), str(runs["down"])}
    # stopped in the middle of its fourth pair
    file.write_bytes(b"".join(lines[:7]))
    again = ppt.compare(runs["up"], runs["down"], episodes=100, out_dir=tmp_path)
    assert again == first
    assert file.read_bytes().splitlines(keepends=True)[:7] == lines[:7]
    assert len(file.read_bytes().splitlines()) == len(lines)

    monkeypatch.setattr(Lottery, "step", None)
    assert ppt.compare(runs["up"], runs["down"], episodes=100, out_dir=tmp_path) == first


def test_a_run_folders_rows_are_those_of_its_evaluations(runs):
    """What was evaluated is not run again, and what a comparison ran is an evaluation's."""
    for name in ("up", "down"):
        ppt.evaluate(ppt.load_policy(runs[name]), episodes=4, out_dir=runs[name] / "eval")
    before = (runs["up"] / "eval/eval.jsonl").read_bytes()
    result = ppt.compare(runs["up"], runs["down"], episodes=30)
    after = (runs["up"] / "eval/eval.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(result.pairs) > 4


def test_a_policy_is_run_on_the_goals_of_an_evaluation_that_is_there(policies):
    """Its rows say on which goals; one that was not run alike is refused."""
    there = ppt.evaluate(policies["down"], episodes=12, seed=FIRST + 300)
    result = ppt.compare(policies["up"], there, until_decided=False)
    assert [pair.seed for pair in result.pairs] == list(range(FIRST + 300, FIRST + 312))
    assert [pair.b for pair in result.pairs] == [row["success"] for row in there.rows]
    # as the policy is run on those goals, a goal of its demonstrations is none
    shown = Evaluation([row | {"seed": row["seed"] - FIRST - 300} for row in there.rows])
    with pytest.raises(UserError, match="were demonstrated in up"):
        ppt.compare(policies["up"], shown)
    with pytest.raises(UserError, match="max_steps is 5 of a and 1 of b"):
        ppt.compare(policies["up"], there, max_steps=5)


def test_an_episode_that_cannot_be_run_is_left_out_and_said(policies, monkeypatch):
    monkeypatch.setenv("BROKEN", str(FIRST + 1))
    result = ppt.compare(policies["up"], policies["down"], episodes=60)
    assert result.errors == 1
    assert result.counts.goals == len(result.pairs) - 1
    assert "left out: 1, in which" in str(result)
    assert "a: RuntimeError: out of order" in result.frame["error"][1]
    monkeypatch.setenv("BROKEN", str(FIRST))
    with pytest.raises(UserError, match=f"none of 1 pairs could be run: seed {FIRST}, a: RuntimeError"):
        ppt.compare(policies["up"], policies["down"], episodes=1)


@pytest.mark.parametrize(("lives", "errors", "attempts"), [("xx", 0, 2), ("xxx", 1, 2)])
def test_an_episode_whose_process_died_is_run_again_as_often_as_is_asked(
    policies, monkeypatch, tmp_path, lives, errors, attempts
):
    (tmp_path / "lives").write_text(lives)
    monkeypatch.setenv("DIES", str(tmp_path / "lives"))
    result = ppt.compare(
        policies["up"],
        policies["down"],
        episodes=4,
        until_decided=False,
        n_procs=2,
        retries=1,
        out_dir=tmp_path / "eval",
    )
    assert result.errors == errors
    rows = [json.loads(line) for path in (tmp_path / "eval").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(row["attempts"] for row in rows if row["seed"] == FIRST + 1)[-1] == attempts


# ------------------------------------------------------------------ several training runs


def test_several_training_runs_are_run_on_every_goal(runs, tmp_path):
    result = ppt.compare([runs["up"], runs["up2"]], [runs["down"]], episodes=20, out_dir=tmp_path)
    ups, downs = zip(*expected(20))
    assert result.tables[0].tolist() == [list(map(float, ups))] * 2
    assert result.tables[1].tolist() == [list(map(float, downs))]
    assert result.difference == pytest.approx(np.mean(ups) - np.mean(downs))
    assert result.variance_a.training == 0
    low, high = result.interval
    assert low < result.difference < high
    assert "2 and 1 runs on 20 goals of lottery" in str(result)
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 60
    assert list(result.runs["rate"]) == pytest.approx([np.mean(ups)] * 2 + [np.mean(downs)])
    assert len(ppt.plot_comparison(result)._repr_png_()) > 5000


def test_a_training_run_that_is_given_twice_is_refused(runs):
    with pytest.raises(UserError, match=r"a\[1\] and a\[0\] are the same weights"):
        ppt.compare([runs["up"], runs["up"]], [runs["down"]])


# ------------------------------------------------------------------ rows that are there


def test_evaluations_are_compared_on_the_seeds_that_both_have():
    a = Evaluation(rows([True, True, False, True], checkpoint="a"))
    b = Evaluation(rows([False, True, True, False], checkpoint="b", seeds=range(FIRST + 1, FIRST + 5)))
    result = ppt.compare(a, b)
    assert [(pair.seed - FIRST, pair.a, pair.b) for pair in result.pairs] == [
        (1, True, False), (2, False, True), (3, True, True)
    ]  # fmt: skip
    counts = result.counts
    assert (counts.both, counts.only_a, counts.only_b, counts.none) == (1, 1, 1, 0)
    assert (result.p_value, result.difference, result.decision) == (1.0, 0.0, "undecided")


def test_a_table_and_a_file_of_rows_are_the_evaluation(tmp_path):
    a, b = rows([True] * 9 + [False], checkpoint="a"), rows([False] * 9 + [None], checkpoint="b")
    b[9]["error"] = "RuntimeError: out of order"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in b) + '{"half')
    results = [ppt.compare(Evaluation(a), Evaluation(b)), ppt.compare(pd.DataFrame(a), file)]
    assert results[0] == results[1]
    assert (results[0].counts.only_a, results[0].errors, results[0].decision) == (9, 1, "a")
    assert results[0].decided_after == 8
    assert results[0].p_value == pytest.approx(2 / 2**9)


def test_of_a_file_with_a_control_the_policy_is_compared_unless_asked_otherwise():
    mixed = rows([True] * 4, checkpoint="a") + rows([False] * 4, checkpoint="a", zero_keys=["pointcloud"])
    b = Evaluation(rows([False] * 4, checkpoint="b"))
    assert ppt.compare(Evaluation(mixed), b).counts.only_a == 4
    blind = ppt.compare(pd.DataFrame(mixed), pd.DataFrame(mixed[4:]), differ_in=["control"])
    assert blind.counts.only_a == 4
    assert "control: a -, b zeroed pointcloud" in str(blind)


MISTAKES = [
    ({"seeds": range(7, 11)}, {}, "share no seeds: a has 100000 to 100003, b has 7 to 10"),
    ({"task": "u"}, {}, "a was evaluated on t and b on u"),
    ({"options": "execute_steps=8 simulator=0a"}, {}, "options is execute_steps=4 of a and execute_steps=8 of b"),
    ({"options": "execute_steps=4 simulator=0b"}, {}, r"simulator is 0a of a and 0b of b.*differ_in=\[simulator\]"),
    ({"options": "execute_steps=4 max_steps=9 simulator=0a"}, {}, "max_steps is as recorded of a and 9 of b"),
    ({"checkpoint": "a", "weights": "a"}, {}, "the same weights"),
    ({"error": "RuntimeError: x", "success": None}, {}, "none of 4 pairs could be run: seed 100000, b: RuntimeError: x"),
    ({}, {"confidence": 1}, "confidence=1: takes a number from 0.5 to below 1"),
    ({}, {"margin": 5}, "margin=5: takes a difference of success rates"),
    ({}, {"differ_in": "options"}, "takes a list of options, max_steps"),
    ({}, {"differ_in": ["task"]}, "takes a list of options, max_steps"),
    ({}, {"episode": 5}, "an evaluation takes no episode. Did you mean episodes"),
    ({}, {"videos": 1}, "videos: a comparison has no use for it"),
    ({}, {"task": "u"}, "no rows are left"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "options", "says"), MISTAKES, ids=[each[2][:40] for each in MISTAKES])
def test_what_cannot_be_compared_is_told_in_a_line(changes, options, says):
    changes = {"checkpoint": "b", "weights": "b"} | changes
    a, b = Evaluation(rows([True] * 4, checkpoint="a")), Evaluation(rows([True] * 4, **changes))
    with pytest.raises(UserError, match=says):
        ppt.compare(a, b, **options)


def test_what_is_compared_may_differ_where_it_is_said():
    a = Evaluation(rows([True] * 4, checkpoint="a"))
    b = Evaluation(
        rows([True] * 4, checkpoint="a", zero_keys=["rgb"], options="execute_steps=8 max_steps=9 simulator=0b")
    )
    result = ppt.compare(a, b, differ_in=MAY_DIFFER)
    assert [name for name, _, _ in result.apart] == list(MAY_DIFFER)
    # an episode that goes on after its success counts as the one that stopped there
    b = Evaluation(rows([True] * 4, checkpoint="b", options="execute_steps=4 stop_at_success=false simulator=0a"))
    assert ppt.compare(a, b).apart == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "a=3: takes a policy, a run folder"),
        ("nowhere/eval.jsonl", "no such file or folder"),
        ("nowhere", "nowhere: no such file"),
        (pd.DataFrame({"seed": [1]}), "lack checkpoint, task, success, steps"),
        (Evaluation([]), "holds no episodes"),
        ([Evaluation([])], "a list of training runs of each"),
    ],
)
def test_what_holds_no_evaluation_is_told_in_a_line(given, says):
    with pytest.raises(UserError, match=says):
        ppt.compare(given, Evaluation(rows([True])))


def test_rows_of_several_evaluations_are_told_apart():
    several = rows([True] * 2, checkpoint="model_1.pth") + rows([True] * 2, checkpoint="model_2.pth")
    with pytest.raises(UserError, match=r"a: rows of 2 evaluations are left.*model_1\.pth.*frame\['checkpoint'\]"):
        ppt.compare(Evaluation(several), Evaluation(rows([True] * 2, checkpoint="b")))


# ------------------------------------------------------------------ as it is shown and typed


def test_a_result_says_all_its_numbers_and_draws_them():
    pairs = tuple(Pair(seed, seed % 3 > 0, seed % 5 == 0) for seed in range(30))
    result = Comparison("runs/a", "runs/<b>", "door-open", pairs)
    broken = Comparison("a", "b", "t", (Pair(3, True, None, error="crashed"), *pairs))
    assert (len(broken.only_a), broken.only_b) == (16, [0, 15])
    assert all(seed % 3 and seed % 5 for seed in broken.only_a)
    for said in (str(result), result._repr_html_()):
        assert "only a 16" in said
        assert "only b 2" in said
        assert "both 4, " in said
        assert "none 8" in said
        assert "+46.7 points" in said
        assert "a is better, decided after" in said
    assert "runs/&lt;b&gt;" in result._repr_html_()
    assert len(ppt.plot_comparison(result)._repr_png_()) > 5000
    assert list(result.sequence.columns) == ["seed", "a", "b", "difference", "low", "high", "e_value"]


def test_two_run_folders_are_compared_from_the_command_line(runs, tmp_path):
    words = (f"train.pretrained_dir={runs['up']}", f"compare={runs['down']}", "episodes=60", "eval_log_name=versus")
    done = run_script(str(ROOT / "scripts/eval_sim.py"), *words, cwd=tmp_path, env=with_tests())
    assert done.returncode == 0, done.stderr
    assert "a is better, decided after" in done.stdout
    assert (runs["down"] / "eval/versus.jsonl").is_file()
    figure = next((runs["up"] / "eval").glob("versus*.png"))
    assert str(figure) in done.stdout
    wrong = run_script(
        str(ROOT / "scripts/eval_sim.py"), words[0], f"compare={runs['up']}", cwd=tmp_path, env=with_tests()
    )
    assert wrong.returncode == 2
    assert "the same weights" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_a_comparison_with_nothing_on_its_other_side_is_told_so(run_here, tmp_path):
    done = run_here(str(ROOT / "scripts/eval_sim.py"), "compare=runs", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "train.pretrained_dir or compare is empty" in done.stderr


def with_tests():
    return {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', ROOT)}:{ROOT / 'tests'}"}


# ------------------------------------------------------------------ policies of a real simulator


@pytest.mark.long
def test_a_final_checkpoint_is_found_to_beat_an_early_one_and_processes_agree(tmp_path):
    """Of the quickstart, shorter than it is."""
    ppt.collect("button-press-topdown", episodes=10, dataset_path=str(tmp_path))
    cfg = ppt.load_config(
        "quickstart", f"dataset_path={tmp_path}", f"output_dir={tmp_path}/models", "suffix=exp1", "train.val_interval=0",
        "train.total_epochs=15", "policy.cloud_origin=null", "save_interval=1", "train.last_k_checkpoints=0",
    )  # fmt: skip
    run = ppt.UnifiedTrainer(cfg, mode="single")
    assert run.run() == 0
    early, final = (run.run_dir / f"model_{epoch}.pth" for epoch in (1, 15))
    options = {"episodes": 40, "max_steps": 90}
    one = ppt.compare(final, early, out_dir=run.run_dir / "one", **options)
    two = ppt.compare(final, early, out_dir=run.run_dir / "two", n_procs=2, **options)
    print(f"{one}\n")
    assert one == two
    assert (one.decision, one.stopped) == ("a", "decided")
    # eight wins and no loss are the fewest that decide
    assert 8 <= one.decided_after == len(one.pairs) < 40
    rows = [
        {json.loads(line)["seed"]: json.loads(line)["trace"] for line in file.read_text().splitlines()
         if json.loads(line)["checkpoint"] == str(final)}
        for file in (run.run_dir / name / "eval.jsonl" for name in ("one", "two"))
    ]  # fmt: skip
    assert all(rows[1][seed] == trace for seed, trace in rows[0].items())
    assert ppt.verify_card(run.run_dir / "two", episodes=1).same
