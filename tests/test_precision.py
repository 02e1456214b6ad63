"""Number formats: autocast keeps float32 weights and follows fp32, by our word or by DeepSpeed's own section."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ppt_kit.config import load_config
from ppt_kit.engine import check_settings
from ppt_kit.errors import UserError
from ppt_kit.tracking import read_metrics
from ppt_kit.train.trainer import UnifiedTrainer


def losses_with(small_cfg, name, *words):
    run = UnifiedTrainer(small_cfg(f"suffix={name}", "train.total_iters=6", *words))
    assert run.run() == 0
    return read_metrics(run.run_dir, "train")["loss"].to_numpy()


def test_autocast_follows_fp32_at_every_stage_and_leaves_no_trace(small_cfg):
    """DeepSpeed keeps it in a global: an engine made afterwards must give the numbers that it gave before."""
    before = losses_with(small_cfg, "before", "deepspeed=zero2")
    for stage in range(4):
        cast = losses_with(small_cfg, f"cast{stage}", "precision=autocast", f"deepspeed=zero{stage}")
        assert np.abs(cast / before - 1).max() < 0.05, stage
        assert not np.array_equal(cast, before), stage
    assert np.array_equal(losses_with(small_cfg, "after", "deepspeed=zero2"), before)


def test_autocast_keeps_float32_weights_and_resumes_bit_for_bit(small_cfg):
    words = (
        "precision=autocast",
        "deepspeed=zero2",
        "train.resume=auto",
        "optimizer.warmup_steps=100",
        "save_interval=1",
    )
    whole = losses_with(small_cfg, "whole", *words, "train.total_epochs=9")
    parts = UnifiedTrainer(small_cfg("suffix=parts", *words, "train.total_epochs=9", "train.total_iters=3"))
    assert parts.run() == 0
    saved = torch.load(parts.run_dir / "model.pth", weights_only=True)["policy"]["trunk.blocks.0.mlp.0.weight"]
    assert not torch.equal(saved, saved.bfloat16().float())
    resumed = losses_with(small_cfg, "parts", *words, "train.total_epochs=9")
    assert np.array_equal(resumed[:3], whole[:3])
    assert np.array_equal(resumed, whole)


def settings_file(folder, **autocast):
    path = folder / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "torch_autocast": autocast}))
    return f"deepspeed={path}"


def test_deepspeeds_own_section_is_the_same_thing(small_cfg, tmp_path):
    asked = losses_with(small_cfg, "asked", "precision=autocast", "deepspeed=zero1")
    assert np.array_equal(losses_with(small_cfg, "own", settings_file(tmp_path, enabled=True, dtype="bfloat16")), asked)


@pytest.mark.parametrize(
    ("section", "precision", "says"),
    [
        ({"enabled": True}, "bf16", "one or the other"),
        ({"enabled": False}, "autocast", "torch_autocast.enabled=false"),
        ({"enabled": True, "dtype": "float16"}, "fp32", "takes bfloat16 or bf16"),
        ({"enable": True}, "fp32", "Did you mean enabled"),
    ],
)
def test_sections_that_contradict_the_precision_are_refused(tmp_path, section, precision, says):
    with pytest.raises(UserError, match=says):
        check_settings(load_config("quickstart", settings_file(tmp_path, **section), f"precision={precision}"))
