"""A run while it trains: what it is asked, on every rank at the same step; what stays of that; what a panel shows."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SMALL_WORDS, latest, run_script

import ppt_kit as ppt
from ppt_kit.checkpoint import load_model, load_resume
from ppt_kit.errors import UserError
from ppt_kit.notebook.live.following import Following, thinned
from ppt_kit.notebook.live.panel import Panel
from ppt_kit.tracking import read_metrics
from ppt_kit.tracking.rows import drop_later_rows
from ppt_kit.train import lines, steering
from ppt_kit.train.steering import FOLDER, ask
from ppt_kit.train.trainer import UnifiedTrainer

LONG = ("train.total_epochs=100000", "save_interval=100000", "train.val_interval=0")


@pytest.fixture
def at_once(monkeypatch):
    """Rank 0 looks for requests at every step, so that what is asked at a step is heard after the next."""
    monkeypatch.setattr(steering, "POLL_S", 0.0)


def asks_at(run, step, what, value=None):
    run.listeners.append(lambda row: row["kind"] == "train" and row["step"] == step and ask(run.run_dir, what, value))


def wait_for(holds, timeout_s=30):
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def of_kind(run, kind):
    return read_metrics(run.run_dir, kind)


def same_weights(one, other):
    a, b = (load_model(run.run_dir) for run in (one, other))
    return all((a[part][name] == b[part][name]).all() for part in ("policy", "ema") for name in a[part])


# ---------------------------------------------------------------- what is asked


def test_another_peak_holds_from_the_next_step_on_and_is_a_row_of_its_own(small_cfg, at_once):
    run = UnifiedTrainer(small_cfg("train.total_epochs=6", "optimizer.lr=0.001"))
    asks_at(run, 4, "lr", "0.002")
    assert run.run() == 0
    told = of_kind(run, "steer").iloc[0]
    assert (told["step"], told["asked"], told["value"], told["was"]) == (5, "lr", 0.002, 0.001)
    rates, total = of_kind(run, "train").set_index("step")["lr"], of_kind(run, "train")["step"].max()
    steps = np.arange(2, total)
    # a cosine from the end of the warm-up, two steps, to the last one
    shape = 0.5 * (1 + np.cos(np.pi * (steps - 2) / (total - 2)))
    np.testing.assert_allclose(rates[steps + 1], shape * np.where(steps < 5, 0.001, 0.002), rtol=1e-12)
    assert not list((run.run_dir / FOLDER).iterdir())


def test_more_epochs_and_fewer_end_the_run_there_without_a_jump_of_the_rate(small_cfg, at_once):
    plain = UnifiedTrainer(small_cfg("train.total_epochs=4", "suffix=plain"))
    assert plain.run() == 0
    per_epoch = of_kind(plain, "train")["step"].max() // 4
    for epochs, suffix in ((9, "more"), (3, "fewer")):
        run = UnifiedTrainer(small_cfg("train.total_epochs=4", f"suffix={suffix}"))
        asks_at(run, 2 * per_epoch, "epochs", epochs)
        assert run.run() == 0
        rows = of_kind(run, "train")
        assert rows["step"].tolist() == list(range(1, epochs * per_epoch + 1))
        assert of_kind(run, "steer").iloc[0][["was", "value"]].tolist() == [4, epochs]
        asked_at = int(of_kind(run, "steer").iloc[0]["step"])
        before = of_kind(plain, "train")["lr"].to_numpy()[: asked_at + 1]
        np.testing.assert_array_equal(rows["lr"].to_numpy()[: asked_at + 1], before)
        assert 0 < rows["lr"].iloc[-1] < before.max() / 5
        assert load_model(run.run_dir)["epoch"] == epochs


def test_at_the_last_step_a_run_still_takes_more_epochs(small_cfg, at_once):
    run = UnifiedTrainer(small_cfg("train.total_epochs=1"))
    last = 0

    def ask_late(row):
        nonlocal last
        if row["kind"] == "train" and row["step"] == row["total_steps"] - 1 and not last:
            last = row["total_steps"]
            ask(run.run_dir, "epochs", 2)

    run.listeners.append(ask_late)
    assert run.run() == 0
    assert of_kind(run, "steer").iloc[0]["step"] == last
    assert of_kind(run, "train")["step"].tolist() == list(range(1, 2 * last + 1))


def test_save_now_writes_a_checkpoint_and_stop_ends_with_one(small_cfg, at_once):
    run = UnifiedTrainer(small_cfg(*LONG))
    asks_at(run, 3, "save")
    asks_at(run, 8, "stop")
    assert run.run() == 143
    assert of_kind(run, "checkpoint")["step"].tolist() == [4, 9]
    assert of_kind(run, "end").iloc[0][["reason", "step"]].tolist() == ["Stop", 9]
    assert load_resume(run.run_dir)["engine"]["step"] == load_model(run.run_dir)["step"] == 9


def test_a_run_stopped_and_resumed_after_a_change_goes_on_to_the_bit(small_cfg, at_once):
    words = ("train.total_epochs=4", "optimizer.lr=0.001")
    straight, stopped = (UnifiedTrainer(small_cfg(*words, f"suffix={name}")) for name in ("straight", "stopped"))
    for run in (straight, stopped):
        asks_at(run, 3, "lr", 0.004)
        asks_at(run, 5, "epochs", 6)
    assert straight.run() == 0
    asks_at(stopped, 9, "stop")
    assert stopped.run() == 143
    again = UnifiedTrainer(small_cfg(*words, "suffix=stopped", "train.resume=auto"))
    assert again.run() == 0
    a, b = (of_kind(run, "train")[["step", "epoch", "loss", "lr", "total_steps"]] for run in (straight, again))
    assert a.equals(b)
    assert same_weights(straight, again)
    assert of_kind(again, "steer")["asked"].tolist() == ["lr", "epochs", "stop"]


def test_a_configuration_that_changed_since_says_more_than_what_was_asked_before(small_cfg, at_once):
    run = UnifiedTrainer(small_cfg(*LONG, "optimizer.lr=0.001"))
    asks_at(run, 3, "lr", 0.004)
    asks_at(run, 5, "stop")
    assert run.run() == 143
    again = UnifiedTrainer(small_cfg(*LONG, "optimizer.lr=0.002", "train.resume=auto"))
    asks_at(again, 8, "stop")
    assert again.run() == 143
    assert of_kind(again, "train")["lr"].iloc[-1] == pytest.approx(0.002, rel=1e-6)


def test_what_was_asked_of_a_run_that_is_gone_does_not_stop_the_next(small_cfg):
    cfg = small_cfg()
    run = UnifiedTrainer(cfg)
    ask(run.run_dir, "stop")
    time.sleep(0.01)
    assert run.run() == 0
    assert of_kind(run, "end").iloc[0]["reason"] == "finished"


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("lr", "-1", "above 0"), ("lr", "nan", "above 0"), ("lr", "fast", "above 0"), ("lr", 1e9, "at most 100"),
        ("epochs", 3, "in epoch 7 already"), ("epochs", "2.5", "whole number"), ("pause", 1, "can be asked to"),
    ],
)  # fmt: skip
def test_what_no_run_could_take_is_refused_where_it_is_asked(tmp_path, what, value, said):
    with pytest.raises(UserError, match=said):
        ask(tmp_path, what, value, epoch=7)
    assert not (tmp_path / FOLDER).exists()


def test_what_a_run_cannot_take_is_refused_in_a_row_and_changes_nothing(small_cfg, at_once):
    plain, run = (UnifiedTrainer(small_cfg("train.total_iters=12", f"suffix={name}")) for name in ("plain", "run"))
    written = 0

    def write(row):
        nonlocal written
        if row["kind"] == "train" and row["step"] == 3:
            ask(run.run_dir, "epochs", 50)
            for text in ('{"what": "lr", "value": -1, "id": "x"}', '{"what": "explode"}', "{half"):
                written += 1
                (run.run_dir / FOLDER / f"{written}.json").write_text(text)

    run.listeners.append(write)
    assert plain.run() == run.run() == 0
    refused = of_kind(run, "steer")["refused"].tolist()
    assert len(refused) == 2
    assert "above 0" in refused[0]
    assert "train.total_iters=12" in refused[1]
    assert same_weights(plain, run)
    assert len(of_kind(run, "checkpoint")) == len(of_kind(plain, "checkpoint"))


RANK = """
import json, os, sys
from ppt_kit.config import load_config
from ppt_kit.train.steering import ask
from ppt_kit.train.trainer import UnifiedTrainer

run = UnifiedTrainer(load_config("quickstart", *json.loads(sys.argv[1])))
seen = []

def note(row):
    if row["kind"] == "train":
        seen.append([row["step"], row["lr"], row["total_steps"]])
        if row["step"] == 4 and os.environ["RANK"] == "0":
            ask(run.run_dir, "lr", 0.003)
            ask(run.run_dir, "epochs", 4000)
        if row["step"] == 150 and os.environ["RANK"] == "0":
            ask(run.run_dir, "stop")

run.listeners.append(note)
code = run.run()
json.dump([code, seen], open(f"{sys.argv[2]}/{os.environ['RANK']}.json", "w"))
"""


def test_two_ranks_obey_at_the_same_step(small_cfg, small_data, tmp_path):
    words = latest(
        *SMALL_WORDS, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path / 'models'}", "suffix=run",
        "train_mode=distributed", "train.total_epochs=30000", "optimizer.lr=0.001", "train.val_interval=0",
        "save_interval=100000", "deepspeed=zero1",
    )  # fmt: skip
    (tmp_path / "rank.py").write_text(RANK)
    done = run_script(
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(tmp_path / "rank.py"),
        json.dumps(words), str(tmp_path),
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1], done.stderr[-2000:]
    code, seen = ranks[0]
    rates = {step: rate for step, rate, _ in seen}
    told = read_metrics(tmp_path / "models/a/run", "steer").set_index("asked")
    changed = told.loc["lr", "step"]
    assert rates[changed] == pytest.approx(0.001, rel=1e-3)
    assert rates[changed + 1] == pytest.approx(0.003, rel=1e-3)
    assert (code, seen[-1][0]) == (143, told.loc["stop", "step"])
    totals = {step: total for step, _, total in seen}
    assert totals[told.loc["epochs", "step"]] < totals[told.loc["epochs", "step"] - 1]


# ---------------------------------------------------------------- in the background


def test_in_the_background_a_run_leaves_the_caller_free_and_ends_as_it_is_asked(small_cfg):
    run = UnifiedTrainer(small_cfg(*LONG))
    assert run.run(background=True) is None
    assert run.running
    with pytest.raises(UserError, match="in the background already"):
        run.run()
    with pytest.raises(TimeoutError):
        run.wait(timeout_s=0.01)
    while not (run.run_dir / "metrics.jsonl").exists() or len(of_kind(run, "train")) < 3:
        time.sleep(0.05)
    run.stop()
    assert run.wait(timeout_s=30) == 143
    assert not run.running
    end = of_kind(run, "end").iloc[0]
    assert load_resume(run.run_dir)["engine"]["step"] == end["step"]


# threading prints the traceback
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_wrong_is_told_before_the_background_begins_and_what_breaks_later_by_wait(small_cfg):
    with pytest.raises(UserError, match="no-such"):
        UnifiedTrainer(small_cfg("domains=no-such")).run(background=True)
    run = UnifiedTrainer(small_cfg())
    run.listeners.append(lambda row: 1 / 0)
    run.run(background=True)
    with pytest.raises(ZeroDivisionError):
        run.wait(timeout_s=30)
    assert isinstance(run.failure, ZeroDivisionError)
    with pytest.raises(UserError, match="background=True"):
        UnifiedTrainer(small_cfg()).wait()


def test_a_process_that_ends_saves_what_trains_in_its_background(small_cfg, small_data, tmp_path):
    words = latest(
        *SMALL_WORDS, *LONG, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path / 'models'}",
        "suffix=run",
    )  # fmt: skip
    code = (
        "import json, sys, time\nimport ppt_kit as ppt\n"
        "run = ppt.UnifiedTrainer(ppt.load_config('quickstart', *json.loads(sys.argv[1])))\n"
        "run.run(background=True)\n"
        "while not (run.run_dir / 'metrics.jsonl').exists() or not len(ppt.read_metrics(run.run_dir, 'train')):\n"
        "    time.sleep(0.05)\n"
    )
    (tmp_path / "script.py").write_text(code)
    done = run_script(str(tmp_path / "script.py"), json.dumps(words), env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "models/a/run"
    assert read_metrics(folder, "end").iloc[0]["reason"] == "Stop"
    assert load_resume(folder)["engine"]["step"] == read_metrics(folder, "end").iloc[0]["step"]


def test_a_launched_run_in_the_background_is_stopped_through_its_folder(small_cfg):
    run = UnifiedTrainer(small_cfg(*LONG, "train_mode=distributed", "world_size=2"))
    run.run(background=True)
    while not (run.run_dir / "metrics.jsonl").exists() or len(of_kind(run, "train")) < 3:
        assert run.running
        time.sleep(0.1)
    run.stop()
    assert run.wait(timeout_s=60) == 143
    assert of_kind(run, "end").iloc[0]["reason"] == "Stop"
    assert load_resume(run.run_dir)["engine"]["step"] == of_kind(run, "end").iloc[0]["step"]


# ---------------------------------------------------------------- what is followed


def row_text(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_folder_is_followed_from_before_it_is_there_line_by_line_and_through_a_resume(tmp_path):
    following, path = Following(tmp_path / "later"), tmp_path / "later/metrics.jsonl"
    assert not following.read()
    path.parent.mkdir()
    path.write_text(row_text({"kind": "train", "step": 1}, {"kind": "train", "step": 2})[:-4])
    assert following.read()
    assert [row["step"] for row in following.rows] == [1]
    with path.open("a") as file:
        file.write("2}\n" + row_text({"kind": "train", "step": 3}))
    assert following.read()
    assert not following.read()
    assert ([row["step"] for row in following.rows], following.part) == ([1, 2, 3], 0)
    # as a run that goes on from step 1 does
    drop_later_rows(path, 1)
    with path.open("a") as file:
        file.write(row_text({"kind": "train", "step": 2, "loss": 9}))
    assert following.read()
    assert ([row["step"] for row in following.rows], following.part) == ([1, 2], 1)


def test_a_long_curve_comes_thinned_and_nothing_else_of_it_is_lost():
    rows = [{"kind": "train", "step": step, "loss": 1.0, "forward_s": 0.1} for step in range(1, 10_002)]
    rows.insert(50, {"kind": "val", "step": 50, "loss": 2.0})
    shown = thinned(rows, most=1000)
    assert [row for row in shown if row["kind"] == "val"] == [rows[50]]
    steps = [row["step"] for row in shown if row["kind"] == "train"]
    assert (steps[0], steps[-1]) == (1, 10_001)
    assert 900 < len(steps) <= 1001
    assert "forward_s" not in shown[0]


def test_a_page_is_sent_what_it_lacks_and_only_that(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(row_text(*({"kind": "train", "step": step} for step in (1, 2, 3))))
    panel = Panel(tmp_path)
    try:
        assert (panel.news["first"], panel.news["end"]) == (0, 3)
        panel._hear(panel, {"has": 3, "part": 0}, [])
        with path.open("a") as file:
            file.write(row_text({"kind": "train", "step": 4}))
        wait_for(lambda: panel.news["end"] == 4)
        assert [row["step"] for row in panel.news["rows"]] == [4]
        # a page that was loaded again
        panel._hear(panel, {"has": 0, "part": None}, [])
        assert [row["step"] for row in panel.news["rows"]] == [1, 2, 3, 4]
        panel._hear(panel, {"ask": "lr", "value": "-1", "number": "7"}, [])
        assert panel.news["said"]["number"] == "7"
        assert "above 0" in panel.news["said"]["refused"]
        panel._hear(panel, {"ask": "lr", "value": "0.25", "number": "8"}, [])
        asked = json.loads(next((tmp_path / FOLDER).iterdir()).read_text())
        assert (asked["what"], asked["value"], asked["id"]) == ("lr", 0.25, panel.news["said"]["id"])
    finally:
        panel.close()


def test_live_takes_a_run_and_a_folder_and_says_what_a_file_is(small_cfg, tmp_path):
    run = UnifiedTrainer(small_cfg())
    assert ppt.live(run) is run.panel
    assert run.panel.run_dir == run.run_dir
    panel = ppt.live(str(tmp_path))
    assert panel.run_dir == tmp_path
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="the run folder"):
        ppt.live(tmp_path / "metrics.jsonl")
    for each in (panel, run.panel):
        each.close()


def test_in_a_log_file_a_run_is_lines_ever_fewer_and_no_bar(caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(lines.time, "monotonic", lambda: clock[0])
    row = {
        "step": 120, "total_steps": 4000, "epoch": 3, "epochs": 100, "loss": 0.04131, "samples_per_s": 812.4,
        "steps_per_s": 5.0,
    }  # fmt: skip
    with caplog.at_level("INFO", logger="ppt_kit"):
        told = lines.Lines(shown=True)
        for second in range(36_000):
            clock[0] = float(second)
            told.tell(row)
    assert caplog.messages[0] == "step 120/4000  epoch 3/100  loss 0.0413  812 windows/s  13 min left"
    assert 100 < len(caplog.messages) < 250


def test_what_a_run_gives_is_its_exit_code_and_reads_as_a_sentence(small_cfg):
    run = ppt.UnifiedTrainer(small_cfg("train.total_iters=2"))
    code = run.run()
    assert code == 0
    assert repr(code) == f"{run.run_dir}: finished"
    assert f"{int(code)}" == "0"
