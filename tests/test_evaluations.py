"""Evaluation beside training: what it says is true, whatever happens to it training is the same, and none is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import SMALL_WORDS, latest, write_store
from test_resume import TRAIN, processes_with, wait_for
from test_tracking import whole_file

import ppt_kit as ppt
from ppt_kit.checkpoint import load_model
from ppt_kit.errors import UserError
from ppt_kit.tracking import Tracker, read_metrics
from ppt_kit.train.evaluations import Evaluations
from ppt_kit.train_keys import TrainConfig

# success: whether the policy's first action is above what the seed draws; the file `mood` says what goes wrong
SIM = """
import os, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np

class Env:
    max_steps, description = 3, "lift"
    def __init__(self, task, max_steps=3): self.task, self.max_steps = task, max_steps
    def reset(self, seed):
        self.rng = np.random.default_rng(seed)
        self.bar, self.won = self.rng.normal(11, 3), False
        return self.reading()
    def reading(self):
        return {"obs/eef_pos": self.rng.normal(size=3).astype(np.float32),
                "obs/normalized_gripper_pos": np.zeros(1, np.float32),
                "obs/pointcloud/pos": self.rng.normal(size=(16, 3)).astype(np.float32)}
    def step(self, action):
        mood = Path("mood").read_text() if Path("mood").exists() else ""
        if mood == "slow": time.sleep(0.3)
        if mood == "raises": raise RuntimeError("the hand is stuck")
        if mood == "dies": os._exit(7)
        if mood == "hangs": time.sleep(1000)
        self.won = self.won or bool(action[0] > self.bar)
        return self.reading(), 0.0, self.won
    def spec(self): return {"simulator": "my_lab.sim:Env", "task": self.task}
"""
ATTRS = {"env": {"simulator": "my_lab.sim:Env", "task": "lift"}, "seeds": [0, 1, 2, 3]}
WORDS = [
    *SMALL_WORDS, "domains=a", "suffix=run", "train.total_epochs=3", "save_interval=1", "train.eval_interval=1",
    "train.eval_episodes=5", "optimizer.lr=0.003",
]  # fmt: skip


@pytest.fixture
def lab(lab_with):
    """A folder to work in that has the simulator, and the dataset `a` that was recorded in it."""
    folder = lab_with(SIM)
    write_store(folder / "data/a.zarr", attrs=ATTRS)
    return folder


def trainer(*words):
    return ppt.UnifiedTrainer(ppt.load_config("quickstart", *latest(*WORDS, "output_dir=runs", *words)))


def evaluated(run_dir):
    return read_metrics(run_dir, "eval").sort_values("epoch").reset_index(drop=True)


def same_training(one, two):
    for part in ("policy", "ema"):
        a, b = (load_model(run.run_dir)[part] for run in (one, two))
        assert all(torch.equal(a[name], b[name]) for name in a)
    columns = ["step", "epoch", "loss", "lr", "grad_norm"]
    rows = [read_metrics(run.run_dir, "train") for run in (one, two)]
    assert rows[0][columns].equals(rows[1][columns])


def test_training_is_the_same_to_the_bit_and_what_is_said_is_what_evaluate_gives(lab):
    """Every checkpoint is kept, so each can be measured again, in this process, and by the script's own way."""
    seen, blind = (
        trainer("train.last_k_checkpoints=0", f"suffix={name}", *words)
        for name, words in (("seen", []), ("blind", ["train.eval_interval=0"]))
    )
    assert [seen.run(), blind.run()] == [0, 0]
    same_training(seen, blind)
    rows = evaluated(seen.run_dir)
    assert list(rows["epoch"]) == [1, 2, 3]
    assert list(rows["step"]) == [4, 8, 12]
    for row in rows.to_dict("records"):
        again = ppt.evaluate(ppt.load_policy(row["checkpoint"]), episodes=5, seed=500_000)
        assert row["success"] == sum(each["success"] for each in again.rows) / 5
        assert (row["n"], row["errors"], row["task"]) == (5, 0, "lift")
        assert row["low_95"] <= row["success"] <= row["high_95"]
    assert rows["success"].nunique() > 1, "the test would not see two checkpoints mixed up"
    best = rows.sort_values(["success", "epoch"]).iloc[-1]["epoch"]
    assert load_model(seen.run_dir / "model_best.pth")["epoch"] == best
    assert "eval" not in set(read_metrics(blind.run_dir)["kind"])
    assert not (blind.run_dir / "model_best.pth").exists()


def test_training_goes_on_while_a_checkpoint_is_evaluated(lab):
    """An episode takes a second: all four epochs are over before the first evaluation is, and its file is not pruned."""
    (lab / "mood").write_text("slow")
    run = trainer(
        "train.total_epochs=4", "train.eval_interval=2", "train.last_k_checkpoints=1", "train.eval_episodes=2"
    )
    told = []
    run.listeners.append(lambda row: told.append((row["kind"], row.get("epoch"))))
    assert run.run() == 0
    first = next(place for place, (kind, _) in enumerate(told) if kind == "eval")
    assert ("train", 4) in told[:first]
    assert list(evaluated(run.run_dir)["epoch"]) == [2, 4]
    assert told[-1][0] == "end"
    best = load_model(run.run_dir / "model_best.pth")["epoch"]
    assert {path.name for path in run.run_dir.glob("model_*.pth")} == {
        f"model_{best}.pth",
        "model_4.pth",
        "model_best.pth",
    }


def test_two_domains_have_a_row_each_and_the_best_is_by_their_mean(lab):
    write_store(lab / "data/b.zarr", seed=1, attrs={**ATTRS, "env": {**ATTRS["env"], "task": "push"}})
    run = trainer("domains=a,b", "train.total_epochs=2", "train.last_k_checkpoints=0")
    assert run.run() == 0
    rows = evaluated(run.run_dir)
    assert sorted(zip(rows["epoch"], rows["domain"], rows["task"])) == [
        (1, "a", "lift"), (1, "b", "push"), (2, "a", "lift"), (2, "b", "push"),
    ]  # fmt: skip
    means = rows.groupby("epoch")["success"].mean()
    assert load_model(run.run_dir / "model_best.pth")["epoch"] == max(means.index, key=lambda e: (means[e], e))


# ------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("mood", "said"),
    [("raises", "RuntimeError: the hand is stuck"), ("dies", "exit code 7"), ("hangs", "it took longer than 1 s")],
    ids=["raises", "dies", "hangs"],
)
def test_an_evaluation_that_crashes_is_a_warning_and_is_tried_again_by_the_run_that_goes_on(lab, mood, said):
    (lab / "mood").write_text(mood)
    words = ["train.total_epochs=2", "train.eval_interval=2", "train.eval_episodes=2"]
    run = trainer(*words, "train.eval_timeout_s=1")
    assert run.run() == 0
    (row,) = evaluated(run.run_dir).to_dict("records")
    assert said in row["error"]
    assert "success" not in row, "all of them are null"
    assert said in (run.run_dir / "train.log").read_text()
    assert not (run.run_dir / "model_best.pth").exists()
    (lab / "mood").unlink()
    assert trainer(*words, "train.resume=auto").run() == 0
    (row,) = evaluated(run.run_dir).to_dict("records")
    assert (row["epoch"], row["n"], row["success"] >= 0) == (2, 2, True)
    assert load_model(run.run_dir / "model_best.pth")["epoch"] == 2


def test_a_killed_run_takes_its_evaluation_along_and_the_run_that_goes_on_loses_none(lab):
    """kill -9 while a checkpoint is evaluated and others wait: one row each in the end, and the same weights."""
    # each in a process of its own: what other tests left in this one changes last bits
    shared = ["output_dir=runs", "train.total_epochs=4", "train.eval_interval=2"]
    straight = SimpleNamespace(run_dir=lab / "runs/a/straight")
    assert subprocess.run([sys.executable, TRAIN, *latest(*WORDS, *shared, "suffix=straight")], cwd=lab).returncode == 0
    (lab / "mood").write_text("slow")
    words = latest(*WORDS, *shared, "suffix=broken", "train.resume=auto", "train.last_k_checkpoints=1")
    folder = lab / "runs/a/broken"
    process = subprocess.Popen(
        [sys.executable, TRAIN, *words], cwd=lab, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (folder / "eval/training/eval.jsonl").exists())
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("--evaluate" in child.cmdline() for child in children)
    process.kill()
    process.wait()
    wait_for(lambda: not any(child.is_running() for child in children), seconds=10)
    before = len(read_metrics(folder, "eval"))
    (lab / "mood").unlink()
    resumed = SimpleNamespace(run_dir=folder)
    assert subprocess.run([sys.executable, TRAIN, *words], cwd=lab).returncode == 0
    rows = evaluated(folder)
    assert before < 2
    assert list(rows["epoch"]) == [2, 4]
    assert rows[["epoch", "success", "n"]].equals(evaluated(straight.run_dir)[["epoch", "success", "n"]])
    same_training(straight, resumed)
    best = [load_model(run.run_dir / "model_best.pth")["epoch"] for run in (straight, resumed)]
    assert best[0] == best[1]


def test_a_stop_while_it_waits_for_evaluations_leaves_them_to_the_run_that_goes_on(lab):
    (lab / "mood").write_text("slow")
    words = ["train.total_epochs=2", "train.eval_episodes=20"]
    run = trainer(*words)
    run.listeners.append(
        lambda row: row["kind"] == "checkpoint" and row["epoch"] == 2 and signal.raise_signal(signal.SIGTERM)
    )
    assert run.run() == 128 + signal.SIGTERM
    assert "trained to the end, 2 checkpoint(s) not evaluated" in (run.run_dir / "train.log").read_text()
    assert not [child for child in psutil.Process().children() if "--evaluate" in child.cmdline()]
    (lab / "mood").unlink()
    again = trainer(*words, "train.resume=auto")
    assert again.run() == 0
    assert list(evaluated(run.run_dir)["epoch"]) == [1, 2]
    metrics = read_metrics(run.run_dir)
    assert list(metrics[metrics["kind"] == "end"]["reason"]) == ["finished"]
    assert list(metrics[metrics["kind"] == "train"]["step"]) == list(range(1, 9))


@pytest.mark.parametrize("stopped", [True, pytest.param(False, marks=pytest.mark.long)])
def test_two_ranks_have_one_evaluation_between_them(lab, stopped):
    """Rank 1 leaves when it is trained; a stop while rank 0 waits ends it at once, and leaves no process."""
    (lab / "mood").write_text("slow" if stopped else "")
    words = latest(*WORDS, f"output_dir={lab}/runs", "batch_size=4", "train.total_epochs=2", "train.eval_episodes=20", "train_mode=distributed", "world_size=2")  # fmt: skip
    process = subprocess.Popen([sys.executable, TRAIN, *words], cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    log_file = lab / "runs/a/run/train.log"
    if stopped:
        wait_for(lambda: log_file.exists() and "waiting for the evaluation" in log_file.read_text())
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
    output, _ = process.communicate(timeout=200)
    assert processes_with(str(lab)) == []
    if stopped:
        assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
        assert time.monotonic() - began < 15
        return
    assert process.returncode == 0, output[-3000:]
    rows = evaluated(lab / "runs/a/run")
    assert list(rows["epoch"]) == [1, 2]
    assert rows["success"].notna().all()


# ------------------------------------------------------------------ at the door


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        ([], {"env": None}, "the dataset of a does not say which simulator it comes from"),
        (["train.eval_seed=2"], {}, r"train.eval_seed=2: 2 of the 5 seeds from there on were demonstrated in a \(e.g. 2\)"),
        (["train.eval_execute_steps=9"], {}, "train.eval_execute_steps=9: a chunk holds 8 actions"),
        ([], {"env": {"simulator": "my_lab.sim:Arm", "task": "lift"}}, "has no Arm"),
        (["train.eval_max_steps=0"], {}, "train.eval_max_steps"),
        (["train.best_metric=success", "train.eval_interval=0"], {}, "nothing is evaluated"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_told_before_a_file_is_written(lab, words, change, said):
    write_store(lab / "other/a.zarr", attrs={**ATTRS, **change})
    with pytest.raises(UserError, match=said):
        trainer("dataset_path=other", *words).run()
    assert not (lab / "runs").exists()


def test_a_simulator_that_does_not_show_what_is_seen_is_told_at_the_door(lab):
    write_store(lab / "other/a.zarr", state_dim=5, attrs=ATTRS)
    with pytest.raises(UserError, match="train.eval_interval=1: the policy of a sees 5 numbers of obs/eef_pos"):
        trainer("dataset_path=other").run()
    assert not (lab / "runs").exists()


def test_a_domain_without_a_simulator_is_left_out_and_said_to_be(lab, caplog):
    write_store(lab / "data/b.zarr", seed=1)
    run = trainer("domains=a,b", "train.total_epochs=1")
    assert run.run() == 0
    assert list(evaluated(run.run_dir)["domain"]) == ["a"]
    assert "b does not say which simulator it comes from, so it is not evaluated" in caplog.text


# ------------------------------------------------------------------ what is best, and what is told


@pytest.mark.parametrize(
    ("rates", "best", "waiting", "kept"),
    [
        ({1: 0.2, 2: 0.6, 3: 0.4}, 2, 0, {2}),
        ({1: 0.6, 2: 0.6, 3: 0.4}, 2, 0, {2}),
        ({1: 0.6, 2: None, 3: 0.4}, 1, 0, {1}),
        ({1: 0.6}, 1, 2, {1, 2, 3}),
        ({}, None, 3, {1, 2, 3}),
    ],
    ids=["highest", "of equal ones the later", "what could not be run is none", "some wait", "all wait"],
)
def test_what_is_best_and_what_waits_is_what_metrics_says(tmp_path, rates, best, waiting, kept):
    for epoch in (1, 2, 3):
        (tmp_path / f"model_{epoch}.pth").write_text(str(epoch))
    rows = [{"kind": "checkpoint", "epoch": e, "step": 10 * e, "to_evaluate": True} for e in (1, 2, 3)]
    rows += [{"kind": "checkpoint", "epoch": 4, "step": 40}]
    rows += [{"kind": "eval", "epoch": e, "step": 10 * e, "domain": "a", "success": r} for e, r in rates.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracker = Tracker(tmp_path, active=False, job_name="train")
    found = Evaluations(tmp_path, tracker, TrainConfig(eval_interval=1), domains=["a"])
    assert (found.best and found.best.epoch, found.waiting, found.kept) == (best, waiting, kept)
    assert (tmp_path / "model_best.pth").exists() == (best is not None)
    if best is not None:
        assert (tmp_path / "model_best.pth").read_text() == str(best)


def test_success_is_in_wandb_at_the_step_that_it_is_of(lab):
    run = trainer("wandb.mode=offline", "train.total_epochs=2")
    assert run.run() == 0
    (file,) = (run.run_dir / "wandb").glob("offline-run-*/*.wandb")
    told = {}
    for record in whole_file(file):
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if "eval/a/success" in items:
            told[int(items["eval/step"])] = float(items["eval/a/success"])
    rows = evaluated(run.run_dir)
    assert told == dict(zip(rows["step"], rows["success"]))


def test_a_folder_in_place_of_a_policy_is_one_line():
    with pytest.raises(UserError, match=r"takes a policy, not a str. Give it ppt.load_policy\('runs/a'\)"):
        ppt.evaluate("runs/a", episodes=1)
