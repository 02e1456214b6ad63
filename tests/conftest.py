"""Small data of the suite's own, made once; nothing of the package is mocked."""

from __future__ import annotations

import glob
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import lab, lab_server  # noqa: F401

ROOT = Path(__file__).parents[1]
# the suite is of CPUs, several ranks on one machine among it; `make test-gpu` is of a GPU
if os.environ.get("PPT_KIT_TEST_GPU") != "1" and glob.glob("/dev/nvidia[0-9]*"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("WANDB_MODE", "disabled")


def pytest_configure(config):
    """Beside another worker each process has one thread, and so have those it starts; workers inherit it from here."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def write_store(
    path: Path, *, lengths=(12, 7, 9, 15), state_dim=3, action_dim=4, num_points=16, colors=False, seed=0, attrs=None
):
    """A replay buffer whose readings say where they come from: eef_pos[:, 0] is the row, gripper the episode."""
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    rng, row = np.random.default_rng(seed), 0
    with ZarrWriter(
        path, attrs={"descriptions": [f"task {i}" for i in range(len(lengths))], **(attrs or {})}
    ) as writer:
        for episode, length in enumerate(lengths):
            rows = np.arange(row, row + length, dtype=np.float32)
            eef = rng.normal(size=(length, state_dim)).astype(np.float32)
            eef[:, 0] = rows
            actions = rng.normal(size=(length, action_dim)).astype(np.float32)
            actions[:, 0] = rows
            arrays = {
                "actions": actions,
                "obs/eef_pos": eef,
                "obs/normalized_gripper_pos": np.full((length, 1), episode, np.float32),
                "obs/pointcloud/pos": rng.normal(size=(length, num_points, 3)).astype(np.float32),
            }
            if colors:
                arrays["obs/pointcloud/colors"] = rng.integers(0, 256, (length, num_points, 3), dtype=np.uint8)
            writer.append(arrays, meta={"episode_seeds": episode})
            row += length
    return path


def dataset_of(folder, domains, *, split="train", seed=0, modalities=None, **options):
    """The windows of datasets in a folder; options are the keys of `dataset`, no episode is held out unless asked."""
    from ppt_kit.checks import domain_names
    from ppt_kit.data.dataset import MultiTrajDataset, open_stores
    from ppt_kit.data.formats import find_domain
    from ppt_kit.schema import DatasetConfig

    asked = DatasetConfig(**{"val_ratio": 0.0, **options})
    stores = open_stores({name: find_domain(folder, name) for name in domain_names(domains)}, asked)
    return MultiTrajDataset(stores, asked, split=split, seed=seed, modalities=modalities)


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory):
    """Decoded rows of the suite's datasets stay out of the user's own cache."""
    os.environ["PPT_KIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A folder with the datasets `a`, `b` (the same shapes) and `wide` (more state, more action)."""
    folder = tmp_path_factory.mktemp("data")
    write_store(folder / "a.zarr")
    write_store(folder / "b.zarr", lengths=(10, 11), seed=1, colors=True)
    write_store(folder / "wide.zarr", lengths=(9, 14, 8), state_dim=5, action_dim=6, seed=2)
    return folder


SMALL_WORDS = (
    "policy.width=32", "policy.depth=1", "policy.num_heads=2", "dataset.num_points=16", "dataset.val_ratio=0.3",
    "batch_size=8", "log_interval=1", "train.val_interval=1", "optimizer.warmup_steps=2", "wandb.mode=disabled",
)  # fmt: skip


def latest(*words: str) -> list[str]:
    """The words, of which a later one takes the place of an earlier one of its key: given twice it is refused."""
    return list({word.partition("=")[0].removeprefix("--"): word for word in words}.values())


@pytest.fixture
def small_cfg(small_data, tmp_path):
    """A configuration that trains a tiny policy on `a` in seconds: call it with further words."""
    from ppt_kit.config import load_config

    def make(*words: str):
        fixed = (
            f"dataset_path={small_data}",
            "domains=a",
            f"output_dir={tmp_path / 'models'}",
            "suffix=run",
            "train.total_epochs=2",
        )
        return load_config("quickstart", *latest(*SMALL_WORDS, *fixed, *words))

    return make


def forget_my_lab() -> None:
    """The next test's my_lab is another one."""
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.fixture
def lab_with(tmp_path, monkeypatch):
    """Makes a folder to work in that holds my_lab/sim.py of a text."""

    def make(text: str) -> Path:
        (tmp_path / "my_lab").mkdir()
        (tmp_path / "my_lab/sim.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        return tmp_path

    yield make
    forget_my_lab()


def save_new_policy(cfg, run_dir: Path) -> None:
    """model_1.pth in a run folder, of the policy that a configuration begins with."""
    from omegaconf import OmegaConf

    from ppt_kit.checkpoint import save_model
    from ppt_kit.train.assemble import card_of, new_policy, open_sources, statistics

    sources = open_sources(cfg, run_dir)
    stats = statistics(sources)
    policy, _ = new_policy(sources, stats)
    content = {"policy": policy.state_dict(), "ema": None, "step": 1, "epoch": 1}
    content |= card_of(sources.train_set, policy, config=OmegaConf.to_container(cfg, resolve=True), stats=stats)
    save_model(run_dir, content, epoch=1, keep_last=0)


def untrained_run(folder: Path, text: str, simulator: str, *words: str, episodes: int = 3, **options) -> Path:
    """A run folder whose policy has learned nothing, recorded in a simulator of `folder`/my_lab/sim.py.

    Args:
        text: of that file.
        simulator: the class in it.
        words: of the training.
        options: of collecting, task among them.
    """
    import contextlib

    import ppt_kit as ppt

    run_dir = folder / "run"
    for place in (folder / "my_lab", run_dir):
        place.mkdir()
    (folder / "my_lab/sim.py").write_text(text)
    with contextlib.chdir(folder):
        before = list(sys.path)
        domain = ppt.collect(simulator=f"my_lab.sim:{simulator}", episodes=episodes, **options).path.stem
        cfg = ppt.load_config("quickstart", *latest(*SMALL_WORDS, "dataset_path=data", f"domains={domain}", *words))
        save_new_policy(cfg, run_dir)
        sys.path[:] = before
    forget_my_lab()
    return run_dir


def run_script(
    *words: str, cwd: Path = ROOT, timeout: int = 300, env: dict | None = None
) -> subprocess.CompletedProcess:
    """A command as a user types it; the first word is a script's name, or a program with its own arguments."""
    command = [sys.executable, *words] if words[0].endswith(".py") else list(words)
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )


@pytest.fixture
def run_here(capfd, monkeypatch):
    """`run_script` without a process of its own, which would import torch anew: 5 s for a mistake that takes none."""

    def run(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [script, *words])
        monkeypatch.setattr(sys, "path", [str(Path(script).parent), *filter(None, sys.path)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        return subprocess.CompletedProcess([script, *words], ended.value.code, *capfd.readouterr())

    yield run
    forget_my_lab()
