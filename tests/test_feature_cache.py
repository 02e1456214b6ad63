"""Features of a frozen encoder: made once for every frame, the same as live, and never where something random lies before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_WORDS, latest
from test_encoders import words_of
from test_modalities import write_seen

import ppt_kit as ppt
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.models.encoders.backbone import PictureEncoder

ON = ("policy.encoders.rgb.cache=true", "augment.shift_px=0")


@pytest.fixture
def seen(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_seen(folder / "eyes.zarr", kinds=("state", "rgb"))
    write_seen(folder / "more.zarr", kinds=("state", "rgb"), seed=1, lengths=(6, 7, 9))
    return folder


def run_of(folder, name, *words):
    fixed = (
        f"dataset_path={folder}", "domains=eyes", f"output_dir={folder.parent}", f"suffix={name}", "train.total_epochs=2",
        f"dataset.cache_dir={folder.parent / 'cache'}", "policy.modalities=[state,rgb]",
    )  # fmt: skip
    return ppt.UnifiedTrainer(load_config("quickstart", *latest(*SMALL_WORDS, *words_of("resnet18"), *fixed, *words)))


def losses_of(run, kind="train"):
    return ppt.read_metrics(run.run_dir, kind)["loss"].to_numpy()


@pytest.fixture
def frames_encoded(monkeypatch):
    """How many frames each call of a backbone saw."""
    counted, forward = [], PictureEncoder.forward

    def counting(self, readings):
        counted.append(sum(value.shape[0] * value.shape[1] for value in readings.values()))
        return forward(self, readings)

    monkeypatch.setattr(PictureEncoder, "forward", counting)
    return counted


def test_a_run_on_features_is_the_run_on_pictures_and_encodes_each_frame_once(seen, frames_encoded):
    live = run_of(seen, "live", "augment.shift_px=0", "domains=eyes,more")
    assert live.run() == 0
    assert sum(frames_encoded) > 100
    frames_encoded.clear()
    cached = run_of(seen, "cached", *ON, "domains=eyes,more")
    assert cached.run() == 0
    # one more of each domain says how large its features are
    assert sum(frames_encoded) == (9 + 8 + 7) + (6 + 7 + 9) + 2
    for kind in ("train", "val"):
        assert np.abs(losses_of(cached, kind) / losses_of(live, kind) - 1).max() < 1e-3
    frames_encoded.clear()
    again = run_of(seen, "again", *ON, "domains=eyes,more")
    assert again.run() == 0
    assert frames_encoded == []
    assert np.array_equal(losses_of(again), losses_of(cached))


def test_evaluation_encodes_live_what_training_read(seen):
    run = run_of(seen, "run", *ON, "domains=eyes,more")
    sources_rgb = ppt.load_dataset(run.cfg, modalities=["state", "rgb"])
    assert run.run() == 0
    policy = ppt.load_policy(run.run_dir)
    files = sorted((seen.parent / "cache").rglob("features-*.npy"))
    assert len(files) == 2
    for name in ("eyes", "more"):
        domain = sources_rgb.domains[name]
        pictures = torch.from_numpy(domain.store.read("obs/images/front", np.arange(5)))[:, None]
        made = policy.encoders["rgb"]({"front": pictures})["front"][:, 0].numpy()
        match = [np.load(file) for file in files if file.parent.name.startswith(name)]
        assert np.abs(match[0][:5].astype(np.float32) - made).max() < 2e-3 * np.abs(made).max()


def test_other_weights_options_rows_or_data_have_features_of_their_own(seen):
    count = lambda: len(list((seen.parent / "cache").rglob("features-*.npy")))
    one = ("train.total_iters=1", "train.val_interval=0")
    run_of(seen, "a", *ON, *one).run()
    assert count() == 1
    run_of(seen, "b", *ON, *one, "policy.encoders.rgb.options.size=16").run()
    assert count() == 2
    run_of(seen, "c", *ON, *one, "dataset.episode_cnt=2").run()
    assert count() == 3
    write_seen(seen / "new.zarr", kinds=("state", "rgb"), seed=5)
    (seen / "eyes.zarr").rename(seen / "old.zarr")
    (seen / "new.zarr").rename(seen / "eyes.zarr")
    run_of(seen, "d", *ON, *one).run()
    assert count() == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["augment.shift_px=null"], r"augment.shift_px=null changes each picture.*Set augment.shift_px=0"),
        (["augment.brightness=0.2"], r"augment.brightness=0.2 changes.*Set augment.brightness=0,"),
        (["augment.crop_ratio=0.9"], r"Set augment.crop_ratio=1,"),
        (["policy.encoders.rgb.frozen=false"], r"policy.encoders.rgb.frozen=false: what it gives changes"),
        (["policy.encoders.rgb.kind=null", "policy.stems.rgb.kind=cnn", "policy.encoders.rgb.options={}"], "no encoder of rgb"),
        (["policy.encoders.language.cache=true"], "takes rgb and depth; sentences are encoded once"),
        (["dataset.cache_gb=1e-6"], r"take 0.00 GB, and the cache .* takes dataset.cache_gb=1e-06"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_says_which_key(seen, words, says):
    given = [word.partition("=")[0] for word in words]
    dropped = [word for word in words_of("resnet18") if any(word.startswith(f"{name}.") for name in given)]
    cfg_words = [word for word in (*ON, *words) if word not in dropped]
    run = run_of(seen, "run", *cfg_words)
    with pytest.raises(UserError, match=says):
        run.run()


@pytest.mark.long
def test_two_ranks_share_what_one_of_them_made(seen):
    from conftest import run_script

    one = run_of(seen, "one", *ON, "batch_size=8", "train.total_iters=4")
    assert one.run() == 0
    for file in (seen.parent / "cache").rglob("features-*.npy"):
        file.unlink()
    words = latest(
        *SMALL_WORDS, *words_of("resnet18"), f"dataset_path={seen}", "domains=eyes", f"output_dir={seen.parent}",
        "suffix=two", f"dataset.cache_dir={seen.parent / 'cache'}", "policy.modalities=[state,rgb]", *ON,
        "batch_size=4", "train.total_iters=4", "train_mode=distributed", "world_size=2",
    )  # fmt: skip
    done = run_script(str(ROOT / "scripts/train.py"), *words, cwd=seen.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    two = ppt.read_metrics(seen.parent / "eyes/two", "train")["loss"].to_numpy()
    assert np.abs(two / losses_of(one) - 1).max() < 1e-5
