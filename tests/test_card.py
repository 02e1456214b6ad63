"""A card is true, is replayed to the bit, and says in words what is not as it was and from which step on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_WORDS, forget_my_lab, latest, run_script, write_store
from test_evaluations import ATTRS

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.torch_file import read_tensors, save_tensors
from ppt_kit.verify import departs

VERIFY = str(ROOT / "scripts/verify_card.py")
# every episode has three steps; that of the task `early` may end with its second
SIM = """
import numpy as np

class Env:
    description = "lift"
    def __init__(self, task, max_steps=3): self.task, self.max_steps = task, max_steps
    def reset(self, seed):
        self.rng, self.count = np.random.default_rng(seed), 0
        return self.reading()
    def reading(self):
        eef = self.rng.normal(size=3)
        return {"obs/eef_pos": eef.astype(np.float32), "obs/normalized_gripper_pos": np.zeros(1, np.float32),
                "obs/pointcloud/pos": self.rng.normal(size=(16, 3)).astype(np.float32)}
    def step(self, action):
        self.count += 1
        early = self.task == "early" and self.count == 2
        return self.reading(), float(action[1]), early or self.count == 3 and bool(action[0] > 15)
    def expert_action(self): return np.full(4, self.count)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the simulator, the data, a run and its evaluation of six episodes."""
    folder = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.path", list(sys.path))
        (folder / "my_lab").mkdir()
        (folder / "my_lab/sim.py").write_text(SIM)
        write_store(folder / "data/a.zarr", attrs=ATTRS)
        words = latest(*SMALL_WORDS, "domains=a", "output_dir=runs", "suffix=run", "train.total_epochs=2")
        run = ppt.UnifiedTrainer(ppt.load_config("quickstart", *words))
        assert run.run() == 0
        ppt.evaluate(ppt.load_policy(run.run_dir), episodes=6, out_dir=run.run_dir / "eval")
    forget_my_lab()
    return folder


@pytest.fixture
def lab(made, lab_with):
    """A copy of it to work in."""
    folder = lab_with(SIM)
    for name in ("data", "runs"):
        shutil.copytree(made / name, folder / name)
    return folder


def card_of(lab, run="run"):
    return json.loads((lab / "runs/a" / run / "eval/card.json").read_text())


def change_weights(file):
    content = read_tensors(file, needs={}, remedy="")
    for weights in (content["policy"], content["ema"]):
        weights["heads.a.queries"][..., 0] += 0.5
    save_tensors(content, file)


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_a_card_says_is_so(lab):
    run_dir, (entry,) = lab / "runs/a/run", card_of(lab)["evaluations"]
    assert entry["file_sha256"] == hashlib.sha256((run_dir / "model.pth").read_bytes()).hexdigest()
    assert [episode["seed"] for episode in entry["episodes"]] == list(range(100_000, 100_006))
    rows = [json.loads(line) for line in (run_dir / "eval/eval.jsonl").read_text().splitlines()]
    for episode, row in zip(entry["episodes"], rows, strict=True):
        assert all(episode[name] == row[name] for name in ("seed", "success", "steps", "return", "actions_sha256"))
        assert len(episode["trace"]) == 8 * row["steps"] == 24
        assert episode["trace"][-4:] == row["actions_sha256"][:4]
    (there,) = card_of(lab)["made_with"].values()
    assert there["versions"]["torch"] == torch.__version__
    assert there["versions"]["numpy"] == np.__version__
    assert entry["data"]["a"]["dataset"] == ppt.load_policy(run_dir).card["normalizer"]["a"]["fingerprint"]["dataset"]


def test_first_and_last_are_among_those_replayed_and_all_where_there_are_no_more(lab):
    assert list(ppt.verify_card("runs/a/run", episodes=3).frame["seed"]) == [100_000, 100_002, 100_005]
    assert len(ppt.verify_card("runs/a/run", episodes=50).episodes) == 6


def test_raw_weights_are_told_from_averaged_ones(lab):
    raw = ppt.load_policy("runs/a/run", use_ema=False)
    ppt.evaluate(raw, episodes=2, out_dir="runs/a/run/eval", log_name="raw")
    found = ppt.verify_card("runs/a/run", episodes=1)
    assert (found.same, sorted(found.frame["log_name"])) == (True, ["eval", "raw"])
    assert list(ppt.verify_card("runs/a/run", episodes=1, eval_log_name="raw").frame["log_name"]) == ["raw"]


@pytest.mark.parametrize(
    ("options", "otherwise"),
    [
        ({"warmup_steps": 1}, {"warmup_steps": 0}),
        ({"max_steps": 2}, {"max_steps": 3}),
        ({"execute_steps": 1}, {"execute_steps": 3}),
        ({"temporal_ensembling": True}, {"temporal_ensembling": False}),
        ({"zero_keys": ["pointcloud"]}, {"zero_keys": []}),
        ({"task": "early", "stop_at_success": False}, {"stop_at_success": True}),
        ({"task": "early"}, {"task": "lift"}),
        ({"delay": 1, "real_time_chunking": False, "execute_steps": 1}, {"delay": 0}),
    ],
    ids=str,
)
def test_an_episode_is_replayed_with_what_it_was_run_with_and_with_anything_else_it_is_another(lab, options, otherwise):
    ppt.evaluate(ppt.load_policy("runs/a/run"), episodes=2, out_dir="runs/a/run/eval", log_name="own", **options)
    assert ppt.verify_card("runs/a/run", episodes=1, eval_log_name="own").same
    card = card_of(lab)
    card["evaluations"][-1]["evaluate"] |= otherwise
    (lab / "runs/a/run/eval/card.json").write_text(json.dumps(sealed(card)))
    assert not ppt.verify_card("runs/a/run", episodes=1, eval_log_name="own").same


def test_episodes_that_were_stepped_together_each_have_their_own_trace_and_are_replayed_one_by_one(lab):
    policy = ppt.load_policy("runs/a/run")
    rows = ppt.evaluate(policy, episodes=5, batch_envs=3, out_dir="runs/a/run/eval", log_name="beside").rows
    assert len({row["trace"] for row in rows}) == 5
    assert all(row["trace"][-4:] == row["actions_sha256"][:4] for row in rows)
    found = ppt.verify_card("runs/a/run", episodes=5, eval_log_name="beside")
    assert (found.same, len(found.episodes)) == (True, 5)


def test_controls_are_replayed_too_once_each_whatever_the_checkpoint(lab):
    shutil.copy(lab / "runs/a/run/model.pth", lab / "runs/a/run/other.pth")
    for name in ("runs/a/run", "runs/a/run/other.pth"):
        ppt.evaluate(
            ppt.load_policy(name), episodes=2, out_dir="runs/a/run/eval", log_name="floor",
            controls=["hold", "blind", "replay", "expert"],
        )  # fmt: skip
    there = [
        (entry["control"], entry["checkpoint"]) for entry in card_of(lab)["evaluations"] if entry["log_name"] == "floor"
    ]
    assert sorted(control for control, checkpoint in there if checkpoint == "-") == ["expert", "hold", "replay"]
    assert len([control for control, _ in there if control == "blind"]) == 2
    found = ppt.verify_card("runs/a/run", episodes=1, eval_log_name="floor")
    assert found.same
    assert sorted(set(found.frame["control"].dropna())) == ["blind", "expert", "hold", "replay"]


def test_a_demonstration_is_not_replayed_where_the_data_is_not_and_that_is_said(lab):
    policy = ppt.load_policy("runs/a/run")
    ppt.evaluate(policy, episodes=1, out_dir="runs/a/run/eval", log_name="floor", controls=["replay"])
    shutil.rmtree(lab / "data")
    found = ppt.verify_card("runs/a/run", episodes=1, eval_log_name="floor")
    assert list(found.frame["control"]) == [None]
    assert any(each.startswith("the control replay: ") for each in found.not_compared)


def test_rows_that_have_no_trace_yet_are_replayed_by_what_they_say(lab):
    rows_file = lab / "runs/a/run/eval/eval.jsonl"
    new = ("trace", "made_with", "success_last", "success_step", "scores")
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    rows_file.write_text("".join(json.dumps({k: v for k, v in row.items() if k not in new}) + "\n" for row in rows))
    (lab / "runs/a/run/eval/card.json").unlink()
    ppt.evaluate(ppt.load_policy("runs/a/run"), episodes=6, out_dir="runs/a/run/eval")
    assert [each["trace"] for each in card_of(lab)["evaluations"][0]["episodes"]] == [None] * 6
    assert ppt.verify_card("runs/a/run", episodes=2).same


# ------------------------------------------------------------------ comparisons


@pytest.fixture
def versus(lab, run_here):
    """The run compared with another one, on four goals, whose rows are beside each."""
    shutil.copytree(lab / "runs/a/run", lab / "runs/a/other", ignore=shutil.ignore_patterns("eval"))
    change_weights(lab / "runs/a/other/model.pth")
    words = ("train.pretrained_dir=runs/a/run", "compare=runs/a/other", "episodes=4", "until_decided=false")
    done = run_here(str(ROOT / "scripts/eval_sim.py"), *words, "eval_log_name=versus", cwd=lab)
    assert done.returncode == 0, done.stderr
    return lab


def entries_of(lab, run, log_name="versus"):
    return [each for each in card_of(lab, run)["evaluations"] if each["log_name"] == log_name]


def test_a_comparison_is_in_the_cards_of_both_and_both_are_replayed_from_the_first(versus):
    files = {run: sha256(versus / "runs/a" / run / "model.pth") for run in ("run", "other")}
    assert {each["file_sha256"] for each in entries_of(versus, "run")} == set(files.values())
    (own,) = entries_of(versus, "other")
    assert (own["file"], own["file_sha256"]) == ("../model.pth", files["other"])
    for entry in (*entries_of(versus, "run"), own):
        assert [each["seed"] for each in entry["episodes"]] == list(range(100_000, 100_004))
    found = ppt.verify_card("runs/a/run", episodes=2, eval_log_name="versus")
    assert (found.same, len(found.episodes)) == (True, 4)
    assert found.frame["checkpoint"].nunique() == 2


def test_of_a_comparison_the_side_that_changed_is_named_and_one_that_is_gone_is_not_compared(versus):
    change_weights(versus / "runs/a/other/model.pth")
    found = ppt.verify_card("runs/a/run", episodes=1, eval_log_name="versus")
    (told,) = found.differences
    assert "runs/a/other/model.pth (changed since): other in heads.a" in told
    assert dict(zip(found.frame["checkpoint"], found.frame["same"])) == {"runs/a/run": True, "runs/a/other": False}
    assert "lift, runs/a/other, seed 100000: from step 1 on" in str(found)
    shutil.rmtree(versus / "runs/a/other")
    found = ppt.verify_card("runs/a/run", episodes=1, eval_log_name="versus")
    assert (found.same, len(found.episodes)) == (True, 1)
    (told,) = found.not_compared
    assert "other/model.pth: is gone" in told


def test_every_run_of_two_methods_is_in_the_card(versus):
    shutil.copytree(versus / "runs/a/other", versus / "runs/a/third", ignore=shutil.ignore_patterns("eval"))
    change_weights(versus / "runs/a/third/model.pth")
    runs = [f"runs/a/{name}" for name in ("run", "other", "third")]
    ppt.compare(runs[:2], runs[2:], episodes=2, log_name="methods", out_dir="both")
    entries = json.loads((versus / "both/card.json").read_text())["evaluations"]
    assert [each["checkpoint"] for each in entries] == runs
    assert ppt.verify_card("both", episodes=1).same


def test_each_checkpoint_and_dataset_is_opened_once_however_many_evaluations_are_of_it(versus, monkeypatch):
    from ppt_kit.verify import opened

    policy = ppt.load_policy("runs/a/run")
    ppt.evaluate(policy, episodes=1, out_dir="runs/a/run/eval", controls=["hold", "replay", "blind"], log_name="more")
    asked = []
    for name in ("load_policy", "load_dataset"):
        real = getattr(opened, name)
        spy = lambda *given, real=real, name=name, **options: (
            asked.append((name, str(given[0])[-30:])) or real(*given, **options)
        )
        monkeypatch.setattr(opened, name, spy)
    assert ppt.verify_card("runs/a/run", episodes=1).same
    names = [name for name, _ in asked]
    # seven evaluations of two files whose runs were configured alike
    assert len(card_of(versus)["evaluations"]) == 7
    assert (names.count("load_policy"), names.count("load_dataset")) == (2, 1)


# ------------------------------------------------------------------ elsewhere


def test_a_run_folder_in_another_place_with_another_home_threads_and_data_is_the_same(lab, tmp_path_factory):
    """Where nothing is as it was but the bits: what this machine can show of another one."""
    policy = ppt.load_policy("runs/a/run")
    ppt.evaluate(policy, episodes=3, out_dir="runs/a/run/eval", controls=["hold", "replay"], log_name="floor")
    away = tmp_path_factory.mktemp("another machine")
    shutil.copytree(lab / "my_lab", away / "my_lab")
    shutil.move(lab / "runs/a/run", away / "results/their run")
    shutil.move(lab / "data", away / "their data")
    env = {"HOME": str(away), "OMP_NUM_THREADS": "2", "LANG": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    words = ("results/their run", "episodes=2")
    done = run_script(VERIFY, *words, cwd=away, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not compared: data of a: not in data here" in done.stdout
    assert "not compared: the control replay: " in done.stdout
    done = run_script(VERIFY, *words, "dataset_path=their data", cwd=away, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 replayed episodes are the same to the bit\nthe same\n" in done.stdout


# ------------------------------------------------------------------ what is not as it was


def test_changed_weights_are_named_by_their_part(lab, run_here):
    change_weights(lab / "runs/a/run/model.pth")
    done = run_here(VERIFY, "card=runs/a/run/eval", "episodes=1", cwd=lab)
    assert done.returncode == 1, done.stderr
    assert "model.pth (changed since): other in heads.a\n" in done.stdout
    assert "seed 100000: from step 1 on, after the same observations another action" in done.stdout
    assert done.stdout.splitlines()[-1] == "not the same"


def test_changed_data_is_not_the_same_though_the_episodes_are_and_absent_data_is_said_to_be(lab):
    shutil.rmtree(lab / "data")
    found = ppt.verify_card("runs/a/run", episodes=1)
    assert (found.same, found.not_compared) == (True, ["data of a: not in data here"])
    write_store(lab / "data/a.zarr", seed=3, attrs=ATTRS)
    found = ppt.verify_card("runs/a/run", episodes=1)
    assert all(found.frame["same"])
    assert not found.same
    (told,) = found.differences
    assert told.startswith(f"data of a: dataset {card_of(lab)['evaluations'][0]['data']['a']['dataset']} there, ")


def test_a_simulator_that_goes_otherwise_is_told_with_the_step(lab):
    policy = ppt.load_policy("runs/a/run")
    ppt.evaluate(policy, episodes=1, out_dir="runs/a/run/eval", log_name="floor", controls=["hold"])
    drifts = "eef = self.rng.normal(size=3) + 1e-6 * (self.count == 2)"
    (lab / "my_lab/sim.py").write_text(SIM.replace("eef = self.rng.normal(size=3)", drifts))
    done = run_script(VERIFY, "runs/a/run", "episodes=1", cwd=lab)
    assert done.returncode == 1, done.stderr
    for who in ("lift", "lift, hold"):
        assert f"{who}, seed 100000: from step 3 on, after the same actions another observation" in done.stdout
    assert "simulator my_lab.sim:Env: its file is another" in done.stdout


def test_a_seed_that_was_changed_is_named_with_the_one_that_the_rows_have(lab, run_here):
    path, card = lab / "runs/a/run/eval/card.json", card_of(lab)
    card["evaluations"][0]["episodes"][5]["seed"] = 100_017
    path.write_text(json.dumps(sealed(card)))
    done = run_here(VERIFY, "runs/a/run", "episodes=2", cwd=lab)
    assert done.returncode == 1, done.stderr
    assert "differs: seed 100017 of eval: the rows beside it have its episode as seed 100005\n" in done.stdout
    assert "seed 100017: from step 1 on, its first observation: the simulator or its rendering differs" in done.stdout


def test_other_versions_are_said_and_do_not_make_equal_episodes_unequal(lab):
    path = lab / "runs/a/run/eval/card.json"
    card = card_of(lab)
    (there,) = card["made_with"].values()
    there["machine"]["processor"] = "Abacus"
    there["versions"] |= dict.fromkeys(("torch", "mujoco", "metaworld", "gymnasium", "gym-pusht"), "1.0.0")
    path.write_text(json.dumps(sealed(card)))
    found = ppt.verify_card(path, episodes=1)
    assert found.same
    for name in ("torch", "mujoco", "metaworld", "gymnasium", "gym-pusht"):
        assert f"{name} 1.0.0 there, {metadata.version(name)} here" in found.surroundings
    assert any(each.startswith("processor Abacus there") for each in found.surroundings)


def sealed(card):
    """As the package seals it, written from its description: SHA-256 of the sorted JSON of the rest."""
    rest = {name: value for name, value in card.items() if name != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


ROW = {
    "seed": 1, "error": None, "success": True, "success_last": True, "success_step": 2, "steps": 2, "return": 1.0,
    "subtasks": {}, "scores": {"lowest": float("nan")}, "actions_sha256": "ab", "trace": "1111222233334444",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "step", "what"),
    [
        ({}, None, ""),
        ({"trace": "9111222233334444"}, 1, "its first observation"),
        ({"trace": "1111222293334444"}, 2, "after the same actions another observation"),
        ({"trace": "1111222233334449"}, 2, "after the same observations another action"),
        ({"trace": "11112222", "steps": 1}, 2, "it ends after 1 steps here, after 2 there"),
        ({"return": 1.0000000000000002}, None, "return 1.0 there, 1.0000000000000002 here"),
        ({"trace": None, "actions_sha256": "cd"}, None, "actions_sha256 ab there, cd here"),
        ({"scores": {"lowest": float("nan")}}, None, ""),
        ({"success_step": 1}, None, "success_step 2 there, 1 here"),
        ({"error": "no screen"}, None, "it could not be run here: no screen"),
    ],
)
def test_where_two_rows_part(change, step, what):
    found = departs(ROW, ROW | change)
    assert found[0] == step
    assert found[1] == what if not what else what in found[1]


def test_who_acts_in_the_place_of_a_policy_is_not_called_its_arithmetic():
    here = ROW | {"checkpoint": "-", "trace": "1111222233334449"}
    assert departs(ROW, here) == (2, "after the same observations another action: who acts does otherwise")


# ------------------------------------------------------------------ what cannot be replayed


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[1, 2]", "is no card of an evaluation"),
        (lambda text: text.replace('"steps": 3', '"steps": 2', 1), "damaged or edited"),
        (lambda text: text.replace('"card": 1', '"card": 7', 1), "a card of version 7, and this ppt_kit reads version 1"),
    ],
    ids=["cut off", "empty", "something else", "edited", "of another version"],
)  # fmt: skip
def test_a_damaged_card_is_one_clear_line_and_nothing_is_added_to_it(lab, run_here, damage, said):
    path = lab / "runs/a/run/eval/card.json"
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    done = run_here(VERIFY, "runs/a/run", cwd=lab)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert said in done.stderr
    with pytest.raises(UserError, match=said):
        ppt.evaluate(ppt.load_policy("runs/a/run"), episodes=1, seed=900_000, out_dir="runs/a/run/eval")
    assert path.read_text() == damaged


def test_what_is_not_there_is_one_clear_line(lab, run_here):
    copied = shutil.copy(lab / "runs/a/run/model.pth", lab / "kept.pth")
    (lab / "runs/a/run/model.pth").unlink()
    for words, said in [
        (["runs/a/run"], "model.pth: is gone"), (["nowhere"], "no such file or folder"), (["data"], "holds no card.json"),
        ([__file__], "is no card of an evaluation. Give a card.json"), ([], "card is empty"),
        (["runs/a/run", "eval_log_name=best"], "has eval"), (["runs/a/run", "episodes=0"], "episodes"),
        (["runs/a/run", "dataset_path=nowhere"], "dataset_path=nowhere: no such folder"),
    ]:  # fmt: skip
        done = run_here(VERIFY, *words, cwd=lab)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
    assert ppt.verify_card("runs/a/run", episodes=1, checkpoint=copied).same


def test_an_evaluation_that_goes_on_keeps_what_its_first_episodes_were_run_with(lab):
    """The rows of an earlier part were run elsewhere: the card says so of them, and not of the others."""
    rows_file = lab / "runs/a/run/eval/eval.jsonl"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    rows_file.write_text("".join(json.dumps(row | {"made_with": "0123abcd"}) + "\n" for row in rows[:2]))
    ppt.evaluate(ppt.load_policy("runs/a/run"), episodes=3, out_dir="runs/a/run/eval")
    entry = card_of(lab)["evaluations"][-1]
    assert [each["made_with"] == "0123abcd" for each in entry["episodes"]] == [True, True, False, False, False, False]
    assert any("run with 0123abcd" in each for each in ppt.verify_card("runs/a/run", episodes=1).surroundings)
