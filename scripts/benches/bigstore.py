"""A store far larger than the memory a process may have: time to the first batch, and memory while it trains."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from benches.stores import write_big_store
from ppt_kit.config import load_config
from ppt_kit.keys import key


@dataclass
class BigStoreBench:
    """A store far larger than the memory a process may have: time to the first batch, and memory while it trains."""

    gigabytes: float = key(10.0, "size of the generated store (GB)", low=0.1)
    limit_gb: float = key(2.0, "address space of the process that trains (GB)", low=1)
    steps: int = key(300, "optimizer steps", low=10)
    batch_size: int = key(32, "windows", low=1)
    folder: str | None = key(None, "where the store goes, kept for the next time; null = a temporary folder")


def bigstore(cfg: DictConfig) -> int:
    """Writes the store here, then measures in a process of its own whose address space is limited."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(cfg.folder or temporary)
        if not (folder / "big.zarr").exists():
            write_big_store(folder, cfg.gigabytes)
        size = sum(file.stat().st_size for file in (folder / "big.zarr").rglob("*") if file.is_file())
        limit = f"{cfg.limit_gb:g} GB of address space (RLIMIT_AS)"
        print(f"store of {size / 1e9:.1f} GB; {limit} for the process that reads and trains")
        context = multiprocessing.get_context("spawn")
        arguments = (str(folder), temporary, cfg.limit_gb, cfg.steps, cfg.batch_size)
        reader = context.Process(target=_measure, args=arguments)
        reader.start()
        reader.join()
    return reader.exitcode or 0


def _measure(folder: str, output_dir: str, limit_gb: float, steps: int, batch_size: int) -> None:
    import resource

    # before the limit, which is for what is read and trained
    import ppt_kit.train.trainer  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (int(limit_gb * 1e9), int(limit_gb * 1e9)))
    _read(folder, batch_size)
    _train(folder, output_dir, steps=steps, batch_size=batch_size)


def _read(folder: str, batch_size: int) -> None:
    import ppt_kit as ppt

    rng = np.random.default_rng(1)
    began = time.perf_counter()
    data = ppt.open_dataset(Path(folder) / "big.zarr", action_horizon=16)
    data.__getitems__(rng.integers(0, len(data), batch_size))
    print(f"first batch of {batch_size} windows, all modalities: {time.perf_counter() - began:.2f} s after opening")
    before = _resident_mb()
    for _ in range(100):
        data.__getitems__(rng.integers(0, len(data), batch_size))
    print(f"resident memory after 1 and after 101 batches: {before:.0f} and {_resident_mb():.0f} MB")


def _train(folder: str, output_dir: str, *, steps: int, batch_size: int) -> None:
    from ppt_kit.train.trainer import UnifiedTrainer

    words = (
        f"dataset_path={folder}", "domains=big", f"output_dir={output_dir}", "suffix=bench", "wandb.mode=disabled",
        f"train.total_iters={steps}", "train.total_epochs=999", "train.val_interval=0", f"log_interval={steps // 10}",
        f"batch_size={batch_size}", "policy.width=64", "policy.depth=1", "dataset.num_points=256",
    )  # fmt: skip
    run = UnifiedTrainer(load_config("quickstart", *words))
    held: list[float] = []
    run.listeners.append(lambda row: held.append(_resident_mb()))
    code = run.run()
    told = ", ".join(f"{value:.0f}" for value in held[:10])
    print(f"trained {steps} steps, exit code {code}; resident memory at ten places (MB): {told}")


def _resident_mb() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e6
