"""Sweeps: real runs as child processes, killed and gone on with; mistakes are refused before anything starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT, SMALL_WORDS, latest, run_script

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import Share
from ppt_kit.jobs.failures import note_failure
from ppt_kit.jobs.record import FOLDER, LOGS, Record
from ppt_kit.runs.best import best_configuration
from ppt_kit.runs.devices import ranks_of, slots_for
from ppt_kit.runs.grid import plan_runs
from ppt_kit.runs.queue import progress_of
from ppt_kit.runs.state import error_of, last_row, living_job, reached, state_of
from ppt_kit.tracking import read_metrics, read_rows

MISTAKES = [
    ({"optimizer.lrr": [1e-3]}, {}, "Did you mean optimizer.lr"),
    ({"optimizer": [1e-3]}, {}, "is a group of keys"),
    ({"optimizer.lr": 1e-3}, {}, "takes a list of values"),
    ({"policy.head.kind": "mlp"}, {}, "takes a list of values"),
    ({"optimizer.lr": []}, {}, "nothing to sweep over"),
    ({}, {}, "nothing is swept over"),
    ({"optimizer.lr": [1e-3, 0.001]}, {}, "is given twice"),
    ({"batch_size": [8, "many"]}, {}, "batch_size"),
    ({"optimizer.lr": [1e-3, -1.0]}, {}, "must be at least 0"),
    ({"policy.head": ["mlp", "mpl"]}, {}, "Did you mean mlp"),
    ({"suffix": ["a", "b"]}, {}, "gives each run its own"),
    ({"seed": [0, 1]}, {"metric": "accuracy"}, "takes loss, val_loss, success"),
    ({"seed": [0, 1]}, {"metric": "success"}, "train.eval_interval"),
    ({"seed": [0, 1]}, {"jobs": 0}, "jobs=0"),
    ({"domains": ["a", "nowhere"]}, {}, "nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("over", "options", "says"), MISTAKES, ids=[f"{o} {k}" for o, k, _ in MISTAKES])
def test_a_mistake_is_refused_before_anything_starts(over, options, says, small_cfg, tmp_path):
    with pytest.raises(UserError, match=says):
        ppt.sweep(small_cfg(), over, **options)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "sweep.optimizer.lr=[1e-3,3e-4]"),
        (["sweep.optimizer.lrr=[1e-3]"], "Did you mean optimizer.lr"),
        (["--sweep.seed=3"], "takes a list of values"),
        (["sweep.seed=[]"], "nothing to sweep over"),
        (["sweep.seed=[0,0]"], "is given twice"),
        (["sweep.seed=[0,1]", "metric=sucess"], "Did you mean success"),
        (["sweep.seed=[0,1]", "domains=nowhere"], "collect_demos.py task=nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_shell_is_one_line(words, says, tmp_path, run_here):
    done = run_here(str(ROOT / "scripts/sweep.py"), *words, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_words_of_the_shell_are_those_of_a_cell(small_cfg, tmp_path):
    from ppt_kit.runs.keys import SweepConfig

    cfg = ppt.load_config("", "sweep.optimizer.betas=[[0.9,0.95],[0.9,0.99]]", "sweep.policy.head=[mlp,flow]", "--sweep.seed=[0,1]", schema=SweepConfig)  # fmt: skip
    in_a_cell = {"optimizer.betas": [[0.9, 0.95], [0.9, 0.99]], "policy/head": ["mlp", "flow"], "seed": range(2)}
    shell, cell = (plan_runs(small_cfg(), over)[1] for over in (cfg.sweep, in_a_cell))
    assert sorted((run.name, str(run.cfg)) for run in shell) == sorted((run.name, str(run.cfg)) for run in cell)


def test_runs_are_all_combinations_seeds_fastest_and_named_by_what_differs(small_cfg, tmp_path):
    cfg = small_cfg("suffix=null")
    folder, planned = plan_runs(cfg, {"seed": range(2), "optimizer.lr": np.array([1e-3, 3e-4])})
    assert [run.name for run in planned] == [
        "lr-0.001_seed-0", "lr-0.001_seed-1", "lr-0.0003_seed-0", "lr-0.0003_seed-1",
    ]  # fmt: skip
    assert [(run.cfg.optimizer.lr, run.cfg.seed) for run in planned] == [(1e-3, 0), (1e-3, 1), (3e-4, 0), (3e-4, 1)]
    assert folder.parent == tmp_path / "models/sweeps"
    assert planned[0].run_dir == folder / "a/lr-0.001_seed-0"
    # nested words are the same words, in whichever order; others are another sweep
    assert plan_runs(cfg, {"optimizer": {"lr": [3e-4, 1e-3]}, "seed": [1, 0]})[0] == folder
    assert plan_runs(cfg, {"optimizer.lr": [1e-3], "seed": [0, 1]})[0] != folder
    assert (
        plan_runs(small_cfg("suffix=null", "batch_size=4"), {"seed": [0, 1], "optimizer.lr": [1e-3, 3e-4]})[0] != folder
    )


def test_lists_groups_and_options_are_swept_over(small_cfg):
    _, planned = plan_runs(small_cfg(), {"optimizer.betas": [[0.9, 0.95], [0.9, 0.99]], "policy/head": ["flow", "mlp"]})
    assert [list(run.cfg.optimizer.betas)[1] for run in planned] == [0.95, 0.95, 0.99, 0.99]
    assert planned[0].cfg.policy.head == ppt.load_config("", "policy/head=flow").policy.head
    assert len({run.name for run in planned}) == 4
    _, planned = plan_runs(small_cfg("policy/head=flow"), {"policy.head.options.num_steps": [1, 10]})
    assert [run.cfg.policy.head.options.num_steps for run in planned] == [1, 10]
    assert planned[0].cfg.policy.head.options.network == "transformer"


def test_names_that_would_be_alike_or_too_long_are_told_apart(small_cfg):
    _, planned = plan_runs(small_cfg(), {"job_name": ["a b", "a_b", "x" * 140]})
    names = [run.name for run in planned]
    assert len(set(names)) == 3
    assert max(map(len, names)) < 110


def test_gpus_are_dealt_out_and_cores_divided():
    def deal(**given):
        fixed = {"jobs": None, "ranks": 1, "num_runs": 9, "num_devices": 0, "num_cores": 8, "env": {}}
        return slots_for(**{**fixed, **given})

    assert [slot.env["OMP_NUM_THREADS"] for slot in deal(jobs=2)] == ["4", "4"]
    assert [slot.devices for slot in deal(jobs=2)] == [(), ()]
    assert "CUDA_VISIBLE_DEVICES" not in deal()[0].env
    assert [slot.env["OMP_NUM_THREADS"] for slot in deal(env={"OMP_NUM_THREADS": "1"})] == ["1"]
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in deal(num_devices=3)] == ["0", "1", "2"]
    mine = {"CUDA_VISIBLE_DEVICES": "4,7", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    slots = deal(num_devices=2, jobs=3, env=mine)
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "7", "4"]
    assert "RANK" not in slots[0].env
    assert [slot.devices for slot in deal(num_devices=4, ranks=2)] == [("0", "1"), ("2", "3")]
    assert len(deal(jobs=8, num_runs=3)) == 3
    assert ranks_of("distributed", world_size=2, num_devices=0) == 2
    with pytest.raises(UserError, match="one process would train"):
        ranks_of("auto", world_size=2, num_devices=0)


def test_the_best_is_the_best_on_average_over_seeds_and_not_one_that_lost_a_seed(small_cfg):
    _, planned = plan_runs(small_cfg(), {"optimizer.lr": [1e-3, 2e-3, 3e-3], "seed": [0, 1]})

    def best(values, states=("finished",) * 6, metric="val_loss"):
        table = pd.DataFrame({"state": states, metric: values})
        chosen = best_configuration(table, planned, metric=metric)
        return None if chosen is None else (chosen.values["optimizer.lr"], chosen.value)

    # the lowest single one is of the worst on average
    assert best([0.1, 0.9, 0.3, 0.3, 0.4, 0.4]) == (2e-3, 0.3)
    assert best([0.1, 0.9, 0.3, 0.3, 0.4, 0.4], metric="success") == (1e-3, 0.5)
    lost = ("finished", "finished", "finished", "failed", "finished", "finished")
    assert best([0.5, 0.5, 0.1, 0.1, 0.6, 0.6], lost) == (1e-3, 0.5)
    assert best([None] * 6, ("failed",) * 6) is None


def test_what_a_run_reached_is_what_its_rows_say(tmp_path):
    rows = [
        {"kind": "train", "epoch": 1, "loss": 2.0}, {"kind": "val", "loss": 0.5}, {"kind": "train", "epoch": 2, "loss": 1.0},
        {"kind": "val", "loss": 0.7}, {"kind": "eval", "epoch": 1, "domain": "a", "success": 1.0},
        {"kind": "eval", "epoch": 2, "domain": "a", "success": 0.5}, {"kind": "eval", "epoch": 2, "domain": "b", "success": 0.4},
    ]  # fmt: skip
    found = reached(rows)
    # the first checkpoint was evaluated in one of two domains
    assert (found.epoch, found.loss, found.val_loss, found.success) == (2, 1.0, 0.5, 0.45)
    assert reached([]).loss is None
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "train", "ste')
    assert last_row(tmp_path) == {"kind": "train", "step": 1}


LAB = """
import torch
import ppt_kit as ppt

class MyHead(ppt.Head):
    def __init__(self, sizes):
        super().__init__()
        BROKEN
        self.ta = sizes.horizon.action
        self.out = torch.nn.Linear(sizes.width, self.ta * sizes.spec.action_dim)
    def loss(self, tokens, target, seeds):
        return (self.act(tokens, seeds) - target).square().mean(-1)
    def act(self, tokens, seeds):
        return self.out(tokens.mean(1)).unflatten(-1, (self.ta, -1))
"""


def test_a_sweep_trains_what_it_can_and_tells_of_the_rest(small_cfg, tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/heads.py").write_text(LAB.replace("BROKEN", "raise RuntimeError('no such luck')"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kinds = ["my_lab.heads:MyHead", "regression"]
    result = ppt.sweep(small_cfg("suffix=two", "train.total_iters=2"), {"policy.head.kind": kinds}, jobs=2)
    assert list(result.table["state"]) == ["failed", "finished"]
    assert list(result.failed["error"]) == ["RuntimeError: no such luck"]
    assert (result.exit_code, result.best_values) == (1, {"policy.head.kind": "regression"})
    assert ppt.load_config("best", config_path=result.folder).policy.head.kind == "regression"
    assert len(ppt.checkpoints(result.table["run"][1])) == 1


@pytest.mark.long
def test_a_failed_run_is_a_row_the_others_go_on_and_the_best_is_a_file(small_cfg, tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    head = tmp_path / "my_lab/heads.py"
    head.write_text(LAB.replace("BROKEN", "raise RuntimeError('no such luck')"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cfg = small_cfg("suffix=heads")
    over = {"policy.head.kind": ["my_lab.heads:MyHead", "regression", "mlp"]}
    first = ppt.sweep(cfg, over, jobs=2)
    assert list(first.table["state"]) == ["failed", "finished", "finished"]
    assert first.exit_code == 1
    assert list(first.failed["error"]) == ["RuntimeError: no such luck"]
    assert "no such luck" in str(first)
    assert (first.table["minutes"] > 0).all()
    runs = [tmp_path / "models/sweeps/heads/a" / f"kind-{name}" for name in ("regression", "mlp")]
    lowest = [read_metrics(run, "val")["loss"].min() for run in runs]
    assert list(first.table["val_loss"][1:]) == lowest
    winner = ["regression", "mlp"][int(np.argmin(lowest))]
    # whole, and not of the sweep any more
    best = ppt.load_config("best", config_path=first.folder)
    assert (best.policy.head.kind, best.suffix, best.output_dir, best.train.resume) == (
        winner, None, cfg.output_dir, "never",
    )  # fmt: skip
    assert pd.read_csv(first.folder / "table.csv")["state"].tolist() == list(first.table["state"])
    # mended, the same words: the one that failed is tried again, the others are left alone
    head.write_text(LAB.replace("BROKEN", "pass"))
    before = [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs]
    again = ppt.sweep(cfg, over, jobs=2)
    assert list(again.table["state"]) == ["finished"] * 3
    assert again.exit_code == 0
    assert [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs] == before
    # other words in the same folder
    with pytest.raises(UserError, match="holds a run with batch_size=8, and this sweep has batch_size=4"):
        ppt.sweep(small_cfg("suffix=heads", "batch_size=4"), over)


def wait_for(condition, *, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_ended_goes_on_with_the_same_words(how, small_data, tmp_path):
    words = latest(
        *SMALL_WORDS, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path}", "suffix=two",
        "train.total_epochs=400", "train.val_interval=0", "save_interval=1000",
    )  # fmt: skip
    cfg, over = ppt.load_config("quickstart", *words), {"train.total_iters": [3, 600]}
    command = [sys.executable, str(ROOT / "scripts/sweep.py"), *words, "sweep.train.total_iters=[3,600]"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    short, long = (run.run_dir for run in plan_runs(cfg, over)[1])
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        wait_for(lambda: (short / "launch/job.json").exists())
        with pytest.raises(UserError, match="another process runs this sweep"):
            ppt.sweep(cfg, over)
        wait_for(lambda: (long / "metrics.jsonl").exists() and len(read_rows(long / "metrics.jsonl")) > 5)
        job = living_job(long)
        environ = psutil.Process(job.record.pid).environ()
        assert environ["OMP_NUM_THREADS"] == "1"
        first.send_signal(how)
        out, err = first.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert first.returncode == 143
        assert "1 of 2 runs are finished, the others saved; the same words go on" in err
        assert living_job(long) is None
    before = (short / "launch/job.json").read_bytes()
    done = run_script(*command[1:], cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert "2 finished; best loss" in done.stdout
    assert (short / "launch/job.json").read_bytes() == before
    assert state_of(long) == ("finished", "")
    rows = read_rows(long / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 601))
    # it had saved, and went on from there
    saved = [row["step"] for row in rows if row["kind"] == "checkpoint"]
    assert len(saved) == 2
    assert 5 < saved[0] < 600
    assert progress_of(plan_runs(cfg, over)[1][1]) == 1.0


@pytest.mark.long
def test_in_a_notebook_a_sweep_is_one_line_and_a_table(lab, small_data, tmp_path):
    words = latest(*SMALL_WORDS, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path}", "train.total_iters=3")  # fmt: skip
    page = lab.open(
        [
            f"import ppt_kit as ppt\ncfg = ppt.load_config('quickstart', *{words!r})",
            "result = ppt.sweep(cfg, {'optimizer.lr': [1e-3, 3e-4]}, jobs=2)\nresult",
        ]
    )
    outputs = lab.outputs(1)
    # tqdm's bar, and what the cell ends in: no log of a run
    assert [each["output_type"] for each in outputs] == ["display_data", "execute_result"]
    assert "<table" in "".join(outputs[1]["data"]["text/html"])
    lab.screenshot(tmp_path / "sweep.png")
    assert "2 done of 2" in " ".join(page.inner_text(".jp-OutputArea-output:has(.jupyter-widgets)").split())
    assert lab.ask("result.exit_code") == 0
    # that is the runs' own
    assert lab.ask("'deepspeed' in __import__('sys').modules") is False
    assert lab.ask("len(ppt.compare_runs(result))") == 2


def test_the_error_of_a_run_is_the_last_line_that_says_why(tmp_path):
    printed = tmp_path / FOLDER / LOGS / "rank0.log"
    printed.parent.mkdir(parents=True)
    record = Record(pid=1, started=time.time(), host="here", ranks=Share(0, 1, 1), command=[], exit_code=2)
    printed.write_text("starting\nerror: policy.num_heads=3 does not divide 32.\nbye\n")
    assert error_of(tmp_path, record) == "error: policy.num_heads=3 does not divide 32."
    printed.write_text("starting\n")
    # as the system does where memory is short
    assert error_of(tmp_path, replace(record, exit_code=137)) == "ended by SIGKILL; the last it printed: starting"
    assert error_of(tmp_path, replace(record, exit_code=1)) == "exit code 1; the last it printed: starting"
    note_failure(tmp_path, rank=0, text="Traceback (most recent call last):\n  …\nRuntimeError: no such luck\n")
    assert error_of(tmp_path, replace(record, exit_code=1)) == "RuntimeError: no such luck"
