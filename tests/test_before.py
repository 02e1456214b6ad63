"""A run folder that version 0.1.0 wrote before policies had parts: it loads, evaluates and goes on as the code did that wrote it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT

import ppt_kit as ppt
from ppt_kit.config import from_file

BEFORE = ROOT / "tests/before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A copy of the folder, to work in; gives its run folder."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before/models/press.001/run"


def test_it_loads_and_acts_as_it_did(before):
    policy = ppt.load_policy(before)
    data = ppt.open_dataset("data/press.001.zarr", state_keys=["eef_pos", "normalized_gripper_pos"])
    obs = data.__getitems__(EXPECTED["windows"])["obs"]
    assert torch.allclose(policy.act(obs, "press.001"), torch.tensor(EXPECTED["actions"]), atol=1e-6)


def test_it_is_evaluated_as_it_was(before):
    rows = ppt.evaluate(ppt.load_policy(before), episodes=2, max_steps=15).rows
    for row, want in zip(rows, EXPECTED["rows"]):
        assert {name: row[name] for name in ("seed", "success", "steps")} == {
            name: want[name] for name in ("seed", "success", "steps")
        }
        assert row["return"] == pytest.approx(want["return"], rel=1e-4)


def test_it_goes_on_as_if_it_had_not_stopped(before):
    cfg = from_file(before / "config.yaml")
    cfg.train.resume = "auto"
    run = ppt.UnifiedTrainer(cfg)
    assert run.run() == 0
    losses = ppt.read_metrics(run.run_dir, "train")["loss"].to_numpy()
    assert np.abs(losses / EXPECTED["losses"] - 1).max() < 1e-5
    again = ppt.load_policy(run.run_dir)
    assert again.card["step"] == 12


def test_it_goes_on_with_the_words_that_started_it(before):
    """Keys that have other names now, and defaults, are the same configuration."""
    stored = from_file(before / "config.yaml")
    words = (
        "policy.width=8", "policy.depth=1", "policy.num_heads=2", "policy.dropout=0.1", "dataset.num_points=16",
        "dataset.val_ratio=0", "batch_size=16", "log_interval=1", "optimizer.warmup_steps=2", "wandb.mode=disabled",
        "dataset_path=data", "domains=press.001", "output_dir=models", "train.total_iters=12", "train.total_epochs=99",
        "save_interval=99", "suffix=run", "train.resume=auto",
    )  # fmt: skip
    # its clouds were as recorded, which the quickstart's are no longer
    with pytest.raises(
        ppt.UserError, match="'cloud_origin': 'auto'.*'cloud_origin': None.*would not go on as it began"
    ):
        ppt.UnifiedTrainer(ppt.load_config("quickstart", *words)).run()
    cfg = ppt.load_config("quickstart", *words, "policy.cloud_origin=null")
    assert list(stored.policy.modalities) == ["state", "pointcloud"]
    assert {**cfg.policy, "modalities": None} == {**stored.policy, "modalities": None}
    assert ppt.UnifiedTrainer(cfg).run() == 0
    assert ppt.load_policy(before).card["step"] == 12
