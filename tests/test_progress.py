"""What a run remembers when it is resumed: every field of Progress, through a file and through a stop."""

from __future__ import annotations

import signal
from dataclasses import fields

import numpy as np
import torch
import zarr
from conftest import ROOT, write_store

from ppt_kit.checkpoint import load_resume, save_resume
from ppt_kit.tracking import read_metrics
from ppt_kit.train.progress import Progress, progress_of
from ppt_kit.train.trainer import UnifiedTrainer

OLD = ROOT / "tests/before/models/press.001/run"
ALL_SET = Progress(
    position=(3, 40), global_batch=24, losses=[0.5, 0.25], best=(0.125, 7), schedule=[9, 0.75], wandb_id="abc",
    loss=0.375, val_loss=0.0625, skipped=5, steered={"lr": [1e-4, 2e-4]},
)  # fmt: skip


def test_every_field_comes_back_from_a_file(tmp_path):
    fresh = Progress()
    unset = [
        each.name for each in fields(Progress) if repr(getattr(ALL_SET, each.name)) == repr(getattr(fresh, each.name))
    ]
    assert unset == [], "a new field needs a value of its own in ALL_SET"
    path = save_resume(tmp_path, {"engine": {"step": 1}, "progress": ALL_SET.state()})
    stored = torch.load(path, weights_only=True)
    assert list(stored["progress"]) == [each.name for each in fields(Progress)]
    assert progress_of(stored) == ALL_SET


def test_a_saved_state_does_not_change_with_the_run_that_goes_on():
    progress = Progress(losses=[1.0])
    state = progress.state()
    progress.losses.append(2.0)
    assert state["losses"] == [1.0]


def test_a_field_that_a_file_lacks_has_its_default_and_one_that_nobody_knows_is_left_out():
    progress = Progress.from_state({"global_batch": 3, "best": [0.5, 2], "of a later version": 1})
    assert progress == Progress(global_batch=3, best=(0.5, 2), loss=progress.loss, val_loss=progress.val_loss)
    assert np.isnan([progress.loss, progress.val_loss]).all()


def test_a_file_from_before_has_its_values_beside_the_engines_state():
    progress = progress_of(load_resume(OLD))
    assert (progress.position, progress.global_batch, progress.schedule) == ((0, 96), 16, [2, 0.0])
    assert (progress.best, progress.losses, progress.wandb_id, progress.skipped) == ((float("inf"), None), [], None, 0)
    assert progress.loss == read_metrics(OLD, "train")["loss"].iloc[-1]


def test_a_resumed_run_knows_what_the_run_that_was_not_stopped_knows(small_cfg, tmp_path):
    """One cloud is infinite, so that batches are skipped before the stop and after it."""
    write_store(tmp_path / "bad/a.zarr")
    zarr.open_group(str(tmp_path / "bad/a.zarr"), mode="a")["data/obs/pointcloud/pos"][14, 3] = np.inf
    words = [
        f"dataset_path={tmp_path / 'bad'}", "train.on_nan=skip", "dataset.val_ratio=0", "train.total_epochs=4",
        "train.best_metric=loss", "train.resume=auto", "save_interval=1", "log_interval=3",
    ]  # fmt: skip
    straight, stopped, resumed = (UnifiedTrainer(small_cfg(*words, f"suffix={name}")) for name in ("x", "y", "y"))
    assert straight.run() == 0
    stopped.listeners.append(lambda row: row["step"] == 9 and signal.raise_signal(signal.SIGTERM))
    assert stopped.run() == 128 + signal.SIGTERM
    before = progress_of(load_resume(stopped.run_dir)).skipped
    assert resumed.run() == 0
    one, two = (progress_of(load_resume(run.run_dir)) for run in (straight, resumed))
    assert repr(one) == repr(two)
    assert 0 < before < two.skipped
    rows = [read_metrics(run.run_dir, "train") for run in (straight, resumed)]
    assert rows[0][["step", "loss", "skipped"]].equals(rows[1][["step", "loss", "skipped"]])
