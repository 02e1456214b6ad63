"""The engine and the loop with real processes: losses against plain torch, ranks against one process, files on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_WORDS, latest, run_script

from ppt_kit.checkpoint import checkpoints, load_model, load_policy, numbered_models, save_model
from ppt_kit.config import load_config, typed
from ppt_kit.data.dataset import load_dataset
from ppt_kit.data.loader import BatchPlan, Loader
from ppt_kit.data.normalizer import fit_normalizer
from ppt_kit.errors import UserError
from ppt_kit.jobs.ranks import free_port
from ppt_kit.models.policy import build_policy
from ppt_kit.tracking import MirrorOptions, Tracker, read_metrics
from ppt_kit.train.trainer import UnifiedTrainer

TRAIN = str(ROOT / "scripts/train.py")


def losses_of(run_dir) -> np.ndarray:
    frame = read_metrics(run_dir, "train")
    assert list(frame["step"]) == list(range(1, len(frame) + 1))
    return frame["loss"].to_numpy()


def train_words(small_data, tmp_path, name, *words):
    return latest(
        *SMALL_WORDS, f"dataset_path={small_data}", f"output_dir={tmp_path / 'models'}", f"suffix={name}", "domains=a",
        "train.total_iters=20", "train.total_epochs=99", *words,
    )  # fmt: skip


def test_losses_are_those_of_a_plain_torch_loop(small_cfg):
    cfg = small_cfg("train.total_epochs=4", "gradient_clipping=0.5")
    run = UnifiedTrainer(cfg)
    run.run()

    data = load_dataset(cfg, split="train", modalities=["state", "pointcloud"])
    torch.manual_seed(cfg.seed)
    policy = build_policy(typed(cfg), data.specs)
    policy.set_normalizer(fit_normalizer(data))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.0, betas=(0.95, 0.999), weight_decay=1e-6)
    plan = BatchPlan(len(data), cfg.batch_size, seed=cfg.seed)
    total, want = plan.steps_per_pass * 4, []
    for step, (batch,) in Loader(data, plan, rank=0, first_step=0, last_step=total, pin=False):
        warm = cfg.optimizer.warmup_steps
        cosine = 0.5 * (1 + np.cos(np.pi * (step - warm) / (total - warm)))
        optimizer.param_groups[0]["lr"] = cfg.optimizer.lr * ((step + 1) / warm if step < warm else cosine)
        loss = policy(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        want.append(loss.item())
    assert np.allclose(losses_of(run.run_dir), want, rtol=1e-5)
    assert want[-1] < want[0]


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.long), 2])
def test_two_ranks_of_the_deepspeed_launcher_equal_one_process(small_data, tmp_path, stage):
    """The ancestor called past DDP: gradients were never averaged. Same global batch, same 20 losses."""
    one = train_words(small_data, tmp_path, "one", "batch_size=16", f"deepspeed=zero{stage}", "domains=a,wide")
    two = train_words(small_data, tmp_path, "two", "batch_size=8", f"deepspeed=zero{stage}", "domains=a,wide")
    assert UnifiedTrainer(load_config("quickstart", *one)).run() == 0
    launcher = os.path.join(os.path.dirname(sys.executable), "deepspeed")
    env = {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    done = run_script(launcher, "--num_gpus=2", f"--master_port={free_port()}", TRAIN, *two, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    a, b = (losses_of(tmp_path / "models/a+wide" / name) for name in ("one", "two"))
    assert len(a) == 20
    assert np.abs(a / b - 1).max() < 1e-5
    weights = [load_model(tmp_path / "models/a+wide" / name)["policy"] for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-4) for name in weights[0])


def test_plain_python_starts_its_own_ranks(small_data, tmp_path):
    words = train_words(
        small_data, tmp_path, "own", "batch_size=4", "train_mode=distributed", "world_size=2", "train.total_iters=3"
    )
    done = subprocess.run([sys.executable, TRAIN, *words], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "global batch 8 = batch_size 4 x 2 process(es)" in done.stdout + done.stderr
    assert len(losses_of(tmp_path / "models/a/own")) == 3


@pytest.mark.parametrize(
    "words",
    [["deepspeed=zero1"], ["deepspeed=zero3"], ["deepspeed=zero2", "gradient_accumulation_steps=2", "batch_size=4"]],
    ids=" ".join,
)
def test_every_stage_and_accumulation_gives_the_same_losses(small_cfg, words):
    runs = [UnifiedTrainer(small_cfg(f"suffix={index}", *extra)) for index, extra in enumerate(([], words))]
    for run in runs:
        run.run()
    a, b = (losses_of(run.run_dir) for run in runs)
    assert np.abs(a / b - 1).max() < 1e-5
    weights = [load_policy(run.run_dir).state_dict() for run in runs]  # averaged, gathered from shards at stage 3
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-4) for name in weights[0])


def test_the_run_folder_holds_what_the_contract_says(small_cfg):
    run = UnifiedTrainer(small_cfg("train.total_epochs=5", "save_interval=1", "train.last_k_checkpoints=2"))
    assert not run.run_dir.exists()  # constructing touches nothing
    run.run()
    names = {path.name for path in run.run_dir.iterdir()}
    assert names == {
        "config.yaml",
        "provenance.yaml",
        "metrics.jsonl",
        "train.log",
        "model.pth",
        "model_4.pth",
        "model_5.pth",
        "resume",
    }
    plain = torch.load(run.run_dir / "model.pth", weights_only=True)
    assert (plain["epoch"], plain["config"]["seed"]) == (5, 0)
    assert set(plain["policy"]) == set(plain["ema"])
    assert all(not value.is_floating_point() or value.dtype == torch.float32 for value in plain["policy"].values())
    table = checkpoints(run.run_dir)
    assert list(table["epoch"]) == [4, 5]
    assert table["val_loss"].notna().all()
    assert read_metrics(run.run_dir)["kind"].value_counts()["checkpoint"] == 5
    assert "global batch 8 = batch_size 8 x 1 process(es) x accumulation 1" in (run.run_dir / "train.log").read_text()


def test_a_loaded_policy_acts_and_its_averaged_weights_differ_from_the_raw(small_cfg):
    run = UnifiedTrainer(small_cfg())
    run.run()
    data = load_dataset(run.cfg, modalities=["state", "pointcloud"])
    obs = data.__getitems__([0, 1, 2])["obs"]
    averaged, raw = load_policy(run.run_dir), load_policy(run.run_dir, use_ema=False)
    assert averaged.act(obs, "a").shape == (3, 8, 4)
    assert not torch.equal(averaged.act(obs), raw.act(obs))
    assert averaged.card["sources"]["a"]["seeds"] == []


def test_the_averaged_weights_follow_their_formula():
    from ppt_kit.engine import Averaged

    layer = torch.nn.Linear(2, 1, bias=False)
    average, want = Averaged(layer, decay=0.9), layer.weight.detach().clone()
    for step in range(1, 40):
        with torch.no_grad():
            layer.weight.add_(0.1)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * layer.weight.detach()
    assert torch.allclose(average.shadow[0], want, atol=1e-6)
    live = layer.weight.detach().clone()
    with average.applied():
        assert torch.allclose(layer.weight, want, atol=1e-6)
    assert torch.equal(layer.weight, live)


def test_a_run_is_never_written_over(small_cfg):
    UnifiedTrainer(small_cfg()).run()
    with pytest.raises(UserError, match="holds a run already"):
        UnifiedTrainer(small_cfg()).run()


def test_two_trainers_live_in_one_process_and_give_the_same_numbers(small_cfg):
    runs = [UnifiedTrainer(small_cfg(f"suffix={name}"), mode="single") for name in "xy"]
    for run in runs:
        run.run()
    assert np.array_equal(*(losses_of(run.run_dir) for run in runs))


def test_epoch_iters_total_iters_and_debug_set_the_length(small_cfg):
    for name, words, steps in (
        ("p", ["train.epoch_iters=3"], 6),
        ("q", ["train.total_iters=4"], 4),
        ("r", ["debug=true", "train.total_epochs=50", "train.epoch_iters=30"], 10),
    ):
        run = UnifiedTrainer(small_cfg(f"suffix={name}", *words))
        run.run()
        assert len(losses_of(run.run_dir)) == steps


def test_a_frozen_trunk_stays_and_the_rest_learns(small_cfg):
    first = UnifiedTrainer(small_cfg("suffix=first"))
    first.run()
    words = [
        "suffix=second",
        f"train.pretrained_dir={first.run_dir}",
        "train.freeze_trunk=true",
        "seed=9",
        "deepspeed=zero2",
    ]
    second = UnifiedTrainer(small_cfg(*words))
    second.run()
    before, after = load_model(first.run_dir)["ema"], load_model(second.run_dir)["policy"]
    for name in before:
        if name.startswith("trunk."):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(before["heads.a.queries"], after["heads.a.queries"])
    wrong = UnifiedTrainer(small_cfg("suffix=third", f"train.pretrained_dir={first.run_dir}", "policy.depth=2"))
    with pytest.raises(UserError, match="policy.depth"):
        wrong.run()


def test_weights_of_domains_are_read(small_cfg):
    """A weight that is far smaller shows in the data: the loss is that of a run on almost the other domain alone."""
    runs = {
        words: UnifiedTrainer(small_cfg(f"suffix={index}", f"domains={words}"))
        for index, words in enumerate(("{a: 1, b: 1}", "{a: 1, b: 99}"))
    }
    counts = {}
    for words, run in runs.items():
        from ppt_kit.train.assemble import mixture_of

        data = load_dataset(run.cfg, modalities=["state", "pointcloud"])
        plan = BatchPlan(len(data), 8, mixture=mixture_of(run.cfg.domains, data))
        counts[words] = np.bincount(data.__getitems__(plan.order(0))["domain"].numpy(), minlength=2)
        run.run()
    assert abs(int(np.diff(counts["{a: 1, b: 1}"])[0])) <= 1
    assert counts["{a: 1, b: 99}"][0] <= 1
    losses = [losses_of(run.run_dir) for run in runs.values()]
    assert not np.allclose(*losses)


def test_listeners_get_every_row(small_cfg):
    run, rows = UnifiedTrainer(small_cfg()), []
    run.listeners.append(rows.append)
    run.run()
    assert rows == [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------ checkpoints


def test_a_full_disk_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    content = {"policy": {}, "config": {}, "views": {}, "epoch": 1}
    save_model(tmp_path, content, epoch=1, keep_last=3)
    before = (tmp_path / "model.pth").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path, {**content, "epoch": 2}, epoch=2, keep_last=3)
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "model_1.pth"]


def test_the_last_k_are_kept_by_epoch_not_by_name(tmp_path):
    for epoch in (8, 9, 10, 11):
        save_model(tmp_path, {"epoch": epoch}, epoch=epoch, keep_last=3)
    assert [path.name for path in numbered_models(tmp_path)] == ["model_9.pth", "model_10.pth", "model_11.pth"]


def test_damaged_foreign_and_executable_files_are_refused(tmp_path):
    good = tmp_path / "model.pth"
    save_model(tmp_path, {"policy": {"x": torch.zeros(999)}, "config": {}, "views": {}}, epoch=None, keep_last=0)
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:500])
    torch.save({"weights": 1}, tmp_path / "foreign.pth")
    torch.save({"policy": print}, tmp_path / "code.pth")
    for name, says in (
        ("cut.pth", "damaged"),
        ("foreign.pth", "not written by ppt_kit"),
        ("code.pth", "can run anything"),
        ("no.pth", "no such file"),
    ):
        with pytest.raises(UserError, match=says):
            load_model(tmp_path / name)


# ------------------------------------------------------------------ tracking


def test_metrics_are_read_while_they_are_written_and_after_a_crash(tmp_path):
    tracker = Tracker(tmp_path, active=True, job_name="train")
    tracker.row("train", step=1, loss=np.float32(0.5))
    tracker.row("train", step=2, loss=float("nan"))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    frame = read_metrics(tmp_path, "train")
    assert list(frame["step"]) == [1, 2]
    assert frame["loss"][0] == pytest.approx(0.5)
    assert np.isnan(frame["loss"][1])
    tracker.close()


def test_tensorboard_and_a_folder_that_nobody_writes_to(small_cfg):
    run = UnifiedTrainer(small_cfg("tensorboard=true", "train.total_iters=2"))
    run.run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.run_dir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    with pytest.raises(UserError, match="cannot be written to"):
        UnifiedTrainer(small_cfg("output_dir=/proc/models")).run()


def test_wandb_offline_mirrors_and_a_failing_wandb_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    offline = MirrorOptions(wandb_mode="offline", wandb_project="x", settings={"seed": 1})
    tracker = Tracker(tmp_path / "off", active=True, job_name="train", mirrors=offline)
    tracker.row("train", step=1, loss=0.5)
    tracker.close()
    assert list((tmp_path / "off/wandb").glob("offline-run-*/*.wandb"))

    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    absent = Tracker(tmp_path / "absent", active=True, job_name="train", mirrors=offline)
    absent.row("train", step=1, loss=0.5)
    absent.close()
    assert "W&B failed" in (tmp_path / "absent/train.log").read_text()
    assert len(read_metrics(tmp_path / "absent")) == 1


def test_a_part_of_a_configuration_is_enough_and_a_typo_in_it_is_told():
    from omegaconf import OmegaConf

    run = UnifiedTrainer(OmegaConf.create({"seed": 3, "suffix": "x", "train": {"total_epochs": 2}}))
    assert (run.cfg.seed, run.cfg.train.total_epochs, run.cfg.batch_size) == (3, 2, 64)
    with pytest.raises(UserError, match="Did you mean seed"):
        UnifiedTrainer(OmegaConf.create({"sed": 3}))
