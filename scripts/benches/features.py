"""What an epoch costs on pictures behind a frozen encoder, on features that are kept of them, and on states alone."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from ppt_kit.config import load_config
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.keys import key
from ppt_kit.train.trainer import UnifiedTrainer


@dataclass
class FeaturesBench:
    """Epochs on pictures behind a frozen encoder, on kept features, and on states alone."""

    encoder: str = key("resnet18", "policy.encoders.rgb.kind, with random weights")
    episodes: int = key(4, "of the dataset", low=1)
    steps: int = key(50, "of an episode", low=2)
    image_size: int = key(96, "height and width of its pictures (pixels)", low=16)
    epochs: int = key(6, "of each run", low=2)


def features(cfg: DictConfig) -> int:
    """Prints a line a run: what comes before the first step, and the median of the epochs after it."""
    kept = ("policy.stems.rgb.kind=maps", f"policy.encoders.rgb.kind={cfg.encoder}", "augment.shift_px=0")
    runs = {
        "states alone": ("policy.modalities=[state]",),
        # 4 of the state and 8 of the pictures: what is left is not the trunk's
        "as many tokens": ("policy.modalities=[state]", "policy.stems.state.num_latents=12"),
        "kept features": (*kept, "policy.encoders.rgb.cache=true"),
        "pictures": kept,
    }
    logging.getLogger("ppt_kit").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder) / "seen.zarr", cfg)
        print(f"{cfg.encoder}, {cfg.episodes * cfg.steps} frames of {cfg.image_size} x {cfg.image_size}")
        for name, words in runs.items():
            before, epoch = _timed(folder, name, cfg.epochs, words)
            print(f"  {name:<14} before the first epoch {before:7.2f} s, an epoch {epoch:7.2f} s", flush=True)
    return 0


def _timed(folder: str, name: str, epochs: int, words: tuple[str, ...]) -> tuple[float, float]:
    """(seconds before the first epoch ended less one epoch, seconds of a later epoch) of one run."""
    fixed = (
        "domains=seen", f"dataset_path={folder}", f"output_dir={folder}/models", f"suffix={name.replace(' ', '-')}",
        f"dataset.cache_dir={folder}/cache", f"train.total_epochs={epochs}", "train.val_interval=0", "log_interval=1",
        "wandb.mode=disabled", "dataset.val_ratio=0", "save_interval=1000",
    )  # fmt: skip
    run, ended = UnifiedTrainer(load_config("quickstart", *fixed, *words)), dict[int, float]()
    run.listeners.append(
        lambda row: ended.update({row["epoch"]: time.perf_counter()} if row["kind"] == "train" else {})
    )
    began = time.perf_counter()
    run.run()
    times = [ended[epoch] for epoch in sorted(ended)]
    epoch = statistics.median(np.diff(times))
    return times[0] - began - epoch, epoch


def _write(path: Path, cfg: DictConfig) -> None:
    rng, size = np.random.default_rng(0), cfg.image_size
    with ZarrWriter(path) as writer:
        for _ in range(cfg.episodes):
            writer.append({
                "actions": rng.normal(size=(cfg.steps, 4)).astype(np.float32),
                "obs/joints": rng.normal(size=(cfg.steps, 4)).astype(np.float32),
                "obs/images/front": rng.integers(0, 256, (cfg.steps, size, size, 3), dtype=np.uint8),
            })  # fmt: skip
