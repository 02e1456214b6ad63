"""2N steps == N, kill -9, resume, N: bit for bit, with real processes killed at moments of the system's choosing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import zarr
from conftest import ROOT, SMALL_WORDS, latest

from ppt_kit.checkpoint import load_model, load_resume, resume_files
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.jobs.ranks import free_port
from ppt_kit.tracking import read_metrics
from ppt_kit.train.progress import progress_of
from ppt_kit.train.trainer import UnifiedTrainer

TRAIN = str(ROOT / "scripts/train.py")
STEPS = 60
WORDS = [
    *SMALL_WORDS, "domains=a,wide", "policy.dropout=0.2", f"train.total_iters={STEPS}", "train.total_epochs=99", "save_interval=1",
    "train.last_k_checkpoints=2", "log_interval=7", "train.resume=auto",
]  # fmt: skip


def command_of(small_data, tmp_path, name, *words, ranks=1):
    batch = f"batch_size={8 // ranks}"
    mode = ["train_mode=distributed", f"world_size={ranks}"] if ranks > 1 else []
    places = (f"dataset_path={small_data}", f"output_dir={tmp_path}", f"suffix={name}")
    return [sys.executable, TRAIN, *latest(*WORDS, batch, *mode, *places, *words)]


def start(command):
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


def processes_with(word):
    """Pids of the living processes that have `word` on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = open(f"/proc/{pid}/cmdline").read()  # noqa: SIM115
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]  # noqa: SIM115
            if word in line and state != "Z" and int(pid) != os.getpid():
                found.append(int(pid))
    return found


def kill_everything(word):
    for pid in processes_with(word):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition, *, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def assert_same_run(one, two):
    a, b = load_model(one), load_model(two)
    for part in ("policy", "ema"):
        different = [name for name in a[part] if not torch.equal(a[part][name], b[part][name])]
        assert different == [], part
    columns = ["step", "epoch", "loss", "lr", "grad_norm"]
    x, y = (read_metrics(folder, "train") for folder in (one, two))
    assert x[[c for c in columns if c in x]].equals(y[[c for c in columns if c in y]])
    for kind in ("val", "checkpoint"):
        x, y = (read_metrics(folder, kind) for folder in (one, two))
        if kind == "checkpoint":  # a stop signal saves once more, between the epochs' saves
            x, y = (rows[rows["path"].str.contains("model_")].reset_index() for rows in (x, y))
        assert list(x["step"]) == list(y["step"]), kind
        assert x["loss"].equals(y["loss"]), kind
    assert progress_of(load_resume(one)) == progress_of(load_resume(two))


CASES = [
    pytest.param(0, 1, id="stage 0"),
    pytest.param(3, 1, id="stage 3", marks=pytest.mark.long),
    pytest.param(2, 2, id="stage 2, two ranks", marks=pytest.mark.long),
]
MORE = [
    pytest.param(s, r, id=f"stage {s}, {r} ranks", marks=pytest.mark.long)
    for s, r in ((1, 1), (2, 1), (0, 2), (1, 2), (3, 2))
]


@pytest.mark.parametrize(("stage", "ranks"), CASES + MORE)
def test_a_killed_and_resumed_run_is_the_run_that_was_not_killed(small_data, tmp_path, stage, ranks):
    straight, broken = (
        command_of(small_data, tmp_path, name, f"deepspeed=zero{stage}", ranks=ranks) for name in ("straight", "broken")
    )
    finish(straight)
    folder = tmp_path / "a+wide/broken"
    process = start(broken)
    wait_for(lambda: len(resume_files(folder)) >= 2)
    kill_everything(str(tmp_path))
    process.wait()
    step = int(resume_files(folder)[-1].stem.removeprefix("step_"))
    assert 0 < step < STEPS
    finish(broken)
    assert_same_run(tmp_path / "a+wide/straight", folder)
    assert f"resumed after step {step}" in (folder / "train.log").read_text()


@pytest.mark.parametrize(("before", "after"), [((0, 1), (0, 2)), pytest.param((2, 2), (2, 1), marks=pytest.mark.long), pytest.param((1, 1), (3, 2), marks=pytest.mark.long), pytest.param((3, 2), (0, 1), marks=pytest.mark.long)])  # fmt: skip
def test_another_world_size_or_stage_goes_on_with_the_same_losses(small_data, tmp_path, before, after):
    """Relative difference of the losses below 1e-5, as between one process and two that never stopped."""
    straight = command_of(small_data, tmp_path, "straight", "log_interval=1")
    assert UnifiedTrainer(load_config("quickstart", *straight[2:])).run() == 0
    folder = tmp_path / "a+wide/moved"
    first = command_of(small_data, tmp_path, "moved", "log_interval=1", f"deepspeed=zero{before[0]}", ranks=before[1])
    process = start(first)
    wait_for(lambda: len(resume_files(folder)) >= 2)
    kill_everything(str(tmp_path))
    process.wait()
    finish(command_of(small_data, tmp_path, "moved", "log_interval=1", f"deepspeed=zero{after[0]}", ranks=after[1]))
    a, b = (read_metrics(tmp_path / "a+wide" / name, "train")["loss"].to_numpy() for name in ("straight", "moved"))
    assert len(a) == len(b) == STEPS
    assert abs(a / b - 1).max() < 1e-5


@pytest.mark.parametrize(
    ("number", "ranks"), [(signal.SIGTERM, 1), pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.long)]
)
def test_a_stop_signal_saves_says_so_and_exits_with_its_code(small_data, tmp_path, number, ranks):
    command = command_of(
        small_data,
        tmp_path,
        "run",
        "save_interval=50",
        "train.total_iters=100000",
        "train.total_epochs=99999",
        ranks=ranks,
    )
    process, folder = start(command), tmp_path / "a+wide/run"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(read_metrics(folder)) > 2)
    began = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number, output[-2000:]
    assert time.monotonic() - began < 20
    assert f"stopped by {signal.Signals(number).name}" in output
    end = read_metrics(folder, "end").iloc[-1]
    assert end["reason"] == signal.Signals(number).name
    assert load_resume(folder)["engine"]["step"] == end["step"] == load_model(folder)["step"]
    assert processes_with(str(tmp_path)) == []


@pytest.mark.parametrize("way", ["deepspeed", pytest.param("torchrun", marks=pytest.mark.long)])
def test_a_killed_launcher_leaves_no_rank_behind_and_what_it_had_is_saved(small_data, tmp_path, way):
    """kill -9 of the process the user started; `deepspeed` has one more between it and the ranks."""
    words = command_of(
        small_data, tmp_path, "run", "save_interval=500", "train.total_iters=100000", "train.total_epochs=99999"
    )[2:]
    folder, here = tmp_path / "a+wide/run", os.path.dirname(sys.executable)
    ranks = {
        "deepspeed": ["--num_gpus=2", f"--master_port={free_port()}"],
        "torchrun": ["--nproc_per_node=2", f"--master_port={free_port()}"],
    }[way]
    env = {**os.environ, "PATH": here + os.pathsep + os.environ["PATH"]}
    process = subprocess.Popen(
        [os.path.join(here, way), *ranks, TRAIN, *words], cwd=ROOT, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(read_metrics(folder)) > 2)
    process.kill()
    wait_for(lambda: processes_with(str(tmp_path)) == [], seconds=30)
    assert load_resume(folder)["engine"]["step"] > 2


def test_minutes_between_saves(small_cfg):
    run = UnifiedTrainer(small_cfg("train.save_every_minutes=0.00001", "save_interval=99", "train.total_iters=5"))
    run.run()
    rows = read_metrics(run.run_dir, "checkpoint")
    assert list(rows["step"]) == [1, 2, 3, 4, 5]
    assert [path.name for path in run.run_dir.glob("model_*.pth")] == ["model_2.pth"]  # the end of the last epoch


def test_a_finished_run_has_nothing_to_go_on_with(small_cfg):
    UnifiedTrainer(small_cfg()).run()
    again = UnifiedTrainer(small_cfg("train.resume=auto"))
    before = (again.run_dir / "model.pth").read_bytes()
    assert again.run() == 0
    assert (again.run_dir / "model.pth").read_bytes() == before
    longer = UnifiedTrainer(small_cfg("train.resume=auto", "train.total_epochs=3"))
    longer.run()
    assert read_metrics(longer.run_dir, "train")["step"].is_monotonic_increasing


def test_another_architecture_or_dataset_is_refused_and_touches_nothing(small_cfg):
    run = UnifiedTrainer(small_cfg())
    run.run()
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}
    for word in ("policy.depth=2", "dataset.action_horizon=4", "seed=8"):
        with pytest.raises(UserError, match=word.split(".")[0].split("=")[0]):
            UnifiedTrainer(small_cfg("train.resume=auto", "train.total_epochs=3", word)).run()
    assert before == {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}


def test_a_truncated_state_names_the_file_and_the_one_before(small_cfg):
    run = UnifiedTrainer(small_cfg("save_interval=1"))
    run.run()
    newest = resume_files(run.run_dir)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_0+8.pt: damaged.*go on from step_0+4.pt"):
        UnifiedTrainer(small_cfg("train.resume=auto", "train.total_epochs=3")).run()


def test_a_disk_that_is_full_for_a_while_costs_a_save_not_the_run(small_cfg, monkeypatch):
    from ppt_kit import checkpoint

    real, calls = checkpoint.save_resume, []

    def full_once(*args):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr("ppt_kit.train.loop.save_resume", full_once)
    run = UnifiedTrainer(small_cfg("save_interval=1", "train.total_epochs=3"))
    assert run.run() == 0
    assert "No space left" in (run.run_dir / "train.log").read_text()
    assert len(resume_files(run.run_dir)) == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk):
    """Takes the last byte of a disk; gives the file that holds it."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65536, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


def test_a_full_disk_costs_saves_not_the_run(small_cfg, small_disk, caplog):
    """Four steps an epoch, a save each: the disk is full from step 6 to 15, so the second and third save fail."""
    run = UnifiedTrainer(small_cfg(f"output_dir={small_disk}", "save_interval=1", "train.total_epochs=5"))
    failed = lambda: [record.getMessage() for record in caplog.records if "saving failed" in record.getMessage()]

    def at(row):
        if row["kind"] == "train" and row["step"] == 6:
            wait_for(lambda: resume_files(run.run_dir))
            fill(small_disk)
        if row["kind"] == "train" and row["step"] == 15:
            wait_for(lambda: len(failed()) == 2)
            assert load_model(run.run_dir)["step"] == load_resume(run.run_dir)["engine"]["step"] == 4
            assert [path.name for path in run.run_dir.glob("model_*")] == ["model_1.pth"]
            assert list(run.run_dir.rglob(".*")) == []
            (small_disk / "ballast").unlink()

    run.listeners.append(at)
    assert run.run() == 0
    assert all("No space left on device" in line and str(run.run_dir) in line for line in failed())
    assert load_model(run.run_dir)["step"] == load_resume(run.run_dir)["engine"]["step"] == 20
    assert list(read_metrics(run.run_dir, "train")["step"]) == list(range(1, 21))
    assert list(read_metrics(run.run_dir, "checkpoint")["epoch"]) == [1, 4, 5]


def test_a_stop_on_a_full_disk_says_so_and_leaves_the_save_before(small_cfg, small_disk, capsys):
    words = [f"output_dir={small_disk}", "save_interval=1", "train.total_iters=30", "train.total_epochs=9999"]
    run = UnifiedTrainer(small_cfg(*words))

    def at(row):
        if row["kind"] == "train" and row["step"] == 6:
            wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "ppt_kit-writer"])
            fill(small_disk)
            signal.raise_signal(signal.SIGTERM)

    run.listeners.append(at)
    assert run.run() == 1
    assert "could not be saved: [Errno 28] No space left on device" in capsys.readouterr().out
    assert load_model(run.run_dir)["step"] == load_resume(run.run_dir)["engine"]["step"] == 4
    (small_disk / "ballast").unlink()
    assert UnifiedTrainer(small_cfg(*words, "train.resume=auto")).run() == 0
    assert list(read_metrics(run.run_dir, "train")["step"]) == list(range(1, 31))


def test_a_read_only_output_dir_is_one_line_before_training(small_data, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for ranks in (1, 2):
        command = command_of(small_data, tmp_path, "run", f"output_dir={small_disk}", ranks=ranks)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2, done.stderr[-2000:]
        (line,) = done.stderr.strip().splitlines()
        assert f"{small_disk} cannot be written to" in line


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_loss_that_is_no_number_stops_or_is_skipped(small_cfg, tmp_path, on_nan):
    """One cloud in the training data is infinite, as from a broken depth camera."""
    cfg = small_cfg(f"train.on_nan={on_nan}", "dataset.val_ratio=0", "train.total_epochs=3")
    shutil.copytree(cfg.dataset_path, tmp_path / "bad")
    zarr.open_group(str(tmp_path / "bad/a.zarr"), mode="a")["data/obs/pointcloud/pos"][14, 3] = np.inf
    cfg.dataset_path = str(tmp_path / "bad")
    run = UnifiedTrainer(cfg)
    if on_nan == "stop":
        with pytest.raises(UserError, match=r"a.zarr: data/obs/pointcloud/pos of episode 1 \(row 14\) is not finite"):
            run.run()
        assert not (run.run_dir / "model.pth").exists()
    else:
        assert run.run() == 0
        assert read_metrics(run.run_dir, "train")["skipped"].iloc[-1] >= 3
        weights = load_model(run.run_dir)["policy"]
        assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.long
def test_a_row_that_one_of_two_ranks_cannot_use_is_the_last_that_is_told(small_data, tmp_path):
    shutil.copytree(small_data, tmp_path / "bad")
    zarr.open_group(str(tmp_path / "bad/a.zarr"), mode="a")["data/obs/pointcloud/pos"][14, 3] = np.inf
    command = command_of(tmp_path / "bad", tmp_path, "run", "dataset.val_ratio=0", "train.total_epochs=3", ranks=2)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "pointcloud/pos of episode 1 (row 14) is not finite" in done.stderr
    assert "closed by peer" not in done.stderr


def test_a_loss_that_is_no_number_on_finite_data_writes_down_its_windows(small_data, small_cfg, tmp_path):
    shutil.copytree(small_data, tmp_path / "huge")
    positions = zarr.open_group(str(tmp_path / "huge/a.zarr"), mode="a")["data/obs/eef_pos"]
    # as they are their squares are more than a float holds
    positions[:] = positions[:] * 1e36
    words = [
        f"dataset_path={tmp_path / 'huge'}",
        "normalizer.mode=identity",
        "dataset.val_ratio=0",
        "train.val_interval=0",
    ]
    run = UnifiedTrainer(small_cfg(*words))
    with pytest.raises(FloatingPointError, match=r"nan_step_.*The data is finite"):
        run.run()
    (told,) = run.run_dir.glob("nan_step_*.json")
    assert len(json.loads(told.read_text())["windows"]) == 8
    assert not (run.run_dir / "model.pth").exists()


def test_the_best_checkpoint_outlives_the_last_k(small_cfg):
    words = [
        "save_interval=1",
        "train.total_epochs=6",
        "train.last_k_checkpoints=1",
        "train.best_metric=val_loss",
        "train.safetensors=true",
    ]
    run = UnifiedTrainer(small_cfg(*words, "optimizer.lr=0.05"))
    run.run()
    rows = read_metrics(run.run_dir, "checkpoint")
    best = int(rows.loc[rows["val_loss"].idxmin(), "epoch"])
    kept = {int(path.stem.removeprefix("model_")) for path in run.run_dir.glob("model_[0-9]*.pth")}
    assert kept == {best, 6}
    assert load_model(run.run_dir / "model_best.pth")["epoch"] == best
    from safetensors.torch import load_file

    plain = load_model(run.run_dir)
    assert torch.equal(load_file(run.run_dir / "model.safetensors")["heads.a.queries"], plain["ema"]["heads.a.queries"])


@pytest.mark.long
def test_fifty_kills_at_random_moments(small_data, tmp_path):
    """kill -9 of a rank, of the launcher, or of all: no orphan, no hang beyond 30 s, no torn file, resume exact each time."""
    straight = command_of(small_data, tmp_path, "straight", ranks=2)
    finish(straight)
    dice, trials, rounds = random.Random(0), 0, 0
    while trials < 50:
        rounds += 1
        name = f"broken{rounds}"
        folder, finished = tmp_path / "a+wide" / name, False
        command = command_of(small_data, tmp_path, name, ranks=2)
        while not finished and trials < 50:
            process = start(command)
            time.sleep(dice.uniform(3, 12))
            victims = processes_with(str(tmp_path)) or [process.pid]
            what = dice.choice(["rank", "launcher", "all"])
            children = [pid for pid in victims if pid != process.pid] or victims
            for pid in {"rank": [dice.choice(children)], "launcher": [process.pid], "all": victims}[what]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            trials += 1
            wait_for(lambda: processes_with(str(tmp_path)) == [], seconds=30)
            process.wait()
            for path in resume_files(folder):
                torch.load(path, weights_only=True)
            if (folder / "metrics.jsonl").exists():
                finished = (read_metrics(folder)["kind"] == "end").any()
        finish(command)
        assert_same_run(tmp_path / "a+wide/straight", folder)


def test_another_global_batch_goes_on_where_the_data_was(small_cfg):
    """Two epochs at 8 windows a step, then one at 4: the epochs count passes, the steps go on, and the change is told."""
    first = UnifiedTrainer(small_cfg("train.total_epochs=2"))
    first.run()
    second = UnifiedTrainer(small_cfg("train.resume=auto", "train.total_epochs=3", "batch_size=4"))
    second.run()
    rows = read_metrics(second.run_dir, "train")
    assert list(rows["step"]) == list(range(1, len(rows) + 1))
    assert list(rows["epoch"]) == [1] * 4 + [2] * 4 + [3] * 7
    assert "the global batch was 8 and is 4 now" in (second.run_dir / "train.log").read_text()


@pytest.mark.parametrize("stops", [(9,), (1,), (9, 30)])
def test_the_learning_rate_goes_on_where_it_was_with_another_global_batch(small_cfg, stops):
    """At each stop the batch is halved, so that what is left has twice the steps: no jump there, and none at the end."""
    batch = 8
    for stop in (*stops, None):
        run = UnifiedTrainer(small_cfg("train.resume=auto", "train.total_epochs=10", f"batch_size={batch}"))
        run.listeners.append(lambda row, stop=stop: row["step"] == stop and signal.raise_signal(signal.SIGTERM))
        run.run()
        batch //= 2
    rates = read_metrics(run.run_dir, "train")["lr"].to_numpy()[2:]  # after the warm-up
    peak, steps_whole = 1e-3, 4 * 10
    steepest = peak * 0.5 * np.pi / (steps_whole - 2)  # the cosine's, at the first batch size; then it is flatter
    assert run.cfg.optimizer.lr == peak
    assert len(rates) > 50
    assert (np.diff(rates) < 0).all()
    assert np.abs(np.diff(rates)).max() <= steepest * 1.001
    assert rates[-1] < peak * 0.01


def test_a_stop_that_cannot_save_says_so(small_cfg, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ppt_kit.train.loop.save_resume", full)
    run = UnifiedTrainer(small_cfg("train.total_iters=9999", "train.total_epochs=9999", "save_interval=9999"))
    run.listeners.append(lambda row: row["step"] == 5 and signal.raise_signal(signal.SIGTERM))
    assert run.run() == 1
    assert "could not be saved" in (run.run_dir / "train.log").read_text()
    assert "not saved" in read_metrics(run.run_dir, "end").iloc[-1]["reason"]


def test_a_signal_passed_on_by_the_launcher_is_not_a_second_one(small_cfg):
    run = UnifiedTrainer(small_cfg("train.total_iters=9999", "train.total_epochs=9999", "save_interval=9999"))
    run.listeners.append(lambda row: row["step"] == 5 and [signal.raise_signal(signal.SIGTERM) for _ in range(3)])
    assert run.run() == 128 + signal.SIGTERM
    assert load_resume(run.run_dir)["engine"]["step"] in (5, 6)
