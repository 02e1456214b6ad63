"""What only a GPU can show: the same losses as on the CPU, resumed to the bit, nothing waited for, a card that is full.

`make test-gpu` runs it, with the plans of test_plan.py against what a GPU takes. Several ranks are tested on the CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_WORDS, latest, run_script
from test_modalities import write_seen
from test_resume import assert_same_run

import ppt_kit as ppt
from ppt_kit.data.loader import Loader, to_device
from ppt_kit.engine import Engine, join_world
from ppt_kit.tracking import read_metrics
from ppt_kit.train.assemble import batch_plan, new_policy, open_sources, statistics
from ppt_kit.train.trainer import UnifiedTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TRAIN = str(ROOT / "scripts/train.py")
DROPS = "policy.dropout=0.2"
# of a loss, against float32 on the CPU
CLOSE = {"fp32": 1e-3, "autocast": 0.05, "bf16": 0.05, "fp16": 0.05}
WAYS = [
    ("zero0", "fp32"), ("zero0", "autocast"), ("zero1", "bf16"), ("zero1", "fp16"), ("zero2", "fp32"),
    ("zero2", "bf16"), ("zero2_offload", "fp32"), ("zero2_offload", "bf16"), ("zero3", "fp32"), ("zero3", "bf16"),
    ("zero3", "fp16"),
]  # fmt: skip


@pytest.fixture(scope="session")
def on_the_cpu(small_data, tmp_path_factory):
    """Losses of the small run in a process that sees no GPU."""
    folder = tmp_path_factory.mktemp("cpu")
    places = (f"dataset_path={small_data}", f"output_dir={folder}", "domains=a", "suffix=cpu", "train.total_epochs=2")
    command = [sys.executable, TRAIN, *latest(*SMALL_WORDS, *places, DROPS)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_metrics(folder / "a/cpu", "train")["loss"].to_numpy()


@pytest.mark.parametrize(("deepspeed", "precision"), WAYS)
def test_a_gpu_gives_the_losses_of_the_cpu(small_cfg, on_the_cpu, deepspeed, precision):
    run = UnifiedTrainer(small_cfg(DROPS, f"deepspeed={deepspeed}", f"precision={precision}"))
    run.run()
    rows = read_metrics(run.run_dir, "train")
    losses = rows["loss"].to_numpy()
    # a loss scale that begins too high leaves steps out, and moves what follows
    compared = 1 if precision == "fp16" else len(losses)
    assert np.abs(losses / on_the_cpu - 1)[:compared].max() < CLOSE[precision]
    assert np.isfinite(losses).all()
    assert rows["device_gb"].max() > 0
    policy = ppt.load_policy(run.run_dir)
    assert next(policy.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("deepspeed", "precision"), [("zero0", "fp32"), ("zero2", "bf16"), ("zero3", "fp32")])
def test_a_run_that_was_stopped_goes_on_to_the_bit(small_cfg, deepspeed, precision):
    words = (
        DROPS, f"deepspeed={deepspeed}", f"precision={precision}", "train.total_epochs=4", "save_interval=1",
        "optimizer.warmup_steps=100", "train.resume=auto",
    )  # fmt: skip
    whole, again = (UnifiedTrainer(small_cfg(*words, f"suffix={name}")) for name in ("whole", "again"))
    assert (whole.run(), again.run()) == (0, 0)
    assert_same_run(whole.run_dir, again.run_dir)
    assert UnifiedTrainer(small_cfg(*words, "suffix=cut", "train.total_iters=8")).run() == 0
    rest = UnifiedTrainer(small_cfg(*words, "suffix=cut"))
    assert rest.run() == 0
    assert_same_run(whole.run_dir, rest.run_dir)


HEADS = [
    f"policy/head={name}"
    for name in (
        "regression",
        "mlp",
        "flow",
        "diffusion",
        "diffusion_transformer",
        "cvae",
        "mixture",
        "meanflow",
        "decoder",
    )
]
CLOUDS = [f"policy/stems/pointcloud={name}" for name in ("dp3", "patches", "pointnext")]
PICTURES = [
    "policy.stems.rgb.kind=maps policy.encoders.rgb.kind=resnet18 policy.modalities=[state,rgb]",
    "policy.modalities=[state,depth]",
]
AUGMENT = "augment.cloud_jitter_m=0.01 augment.cloud_dropout=0.1 augment.rotation_deg=[0,0,20] augment.action_parts=[displacement,none] augment.state_parts.eef_pos=none"  # fmt: skip


def with_data(words, folder):
    """The words, and of those that see pictures where these are."""
    if words not in PICTURES:
        return words.split()
    write_seen(folder / "seen.zarr")
    return [*words.split(), f"dataset_path={folder}", "domains=seen", "policy.cloud_origin=null"]


@pytest.mark.parametrize("words", [*HEADS, *CLOUDS, *PICTURES, AUGMENT])
def test_a_step_waits_for_nothing(small_cfg, tmp_path, words):
    """Between steps that are logged the host runs ahead of the GPU: torch tells of every call that waits for it."""
    cfg = small_cfg(DROPS, *with_data(words, tmp_path))
    world = join_world()
    sources = open_sources(cfg, tmp_path / "none")
    engine = Engine(new_policy(sources, statistics(sources))[0], sources.cfg, world)
    order = batch_plan(sources, world, origin=(0, 0, 0))
    waits: list[str] = []
    for step, batches in Loader(sources.train_set, order, rank=0, first_step=0, last_step=6, pin=True):
        if step == 3:
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.train_step([sources.augment(to_device(b, world.device)) for b in batches], learning_rate=1e-3)
        waits += [f"{said.filename}:{said.lineno}" for said in caught if "synchroniz" in str(said.message)]
    torch.cuda.set_sync_debug_mode("default")
    assert set(waits) == set()


@pytest.mark.parametrize("words", [CLOUDS[-1], *PICTURES, AUGMENT])
def test_runs_repeat_to_the_bit(small_cfg, tmp_path, words):
    """What adds up with atomics, or lets cuDNN choose, did not: deterministic=true."""
    data, losses = with_data(words, tmp_path), []
    for suffix in ("one", "two", "three"):
        run = UnifiedTrainer(small_cfg(DROPS, *data, f"suffix={suffix}", "train.total_epochs=3"))
        run.run()
        losses.append(read_metrics(run.run_dir, "train")["loss"].to_numpy())
    assert np.array_equal(losses[0], losses[1])
    assert np.array_equal(losses[0], losses[2])


def test_what_a_gpu_learned_acts_alike_on_the_cpu(small_cfg):
    run = UnifiedTrainer(small_cfg("policy/head=flow"))
    run.run()
    rng, seeds = np.random.default_rng(0), torch.tensor([1, 2, 3])
    state, cloud = (rng.normal(size=size).astype(np.float32) for size in ((3, 2, 4), (3, 2, 16, 3)))
    obs = {"state": torch.from_numpy(state), "pointcloud": torch.from_numpy(cloud)}
    policies = {device: ppt.load_policy(run.run_dir, device=device) for device in ("cpu", "cuda")}
    here, there = (
        policy.act({name: value.to(device) for name, value in obs.items()}, seeds=seeds.to(device)).cpu()
        for device, policy in policies.items()
    )
    assert torch.allclose(here, there, atol=1e-4)


def test_a_compiled_policy_gives_the_same_losses(small_cfg):
    losses = []
    for word in ("compile=false", "compile=true"):
        torch._dynamo.reset()
        run = UnifiedTrainer(small_cfg(DROPS, word, f"suffix={word[8:]}"))
        run.run()
        losses.append(read_metrics(run.run_dir, "train")["loss"].to_numpy())
    assert np.abs(losses[1] / losses[0] - 1).max() < 1e-3


FULL = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 1e9), dtype=torch.uint8, device="cuda")
print("full", flush=True)
sys.stdin.read()
"""


def test_a_full_card_is_one_line_and_what_it_proposes_fits(small_cfg):
    """Another process leaves 3 GB of it."""
    words = [f"{name}={small_cfg().get(name)}" for name in ("dataset_path", "output_dir", "suffix")]
    words += [*latest(*SMALL_WORDS, "domains=a", "batch_size=16384", "policy.width=256", "train.total_iters=1")]
    other = subprocess.Popen(
        [sys.executable, "-c", FULL, "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "full\n"
        done = run_script(TRAIN, *words)
        told = [line for line in done.stderr.splitlines() if "out of memory" in line]
        assert (done.returncode, len(told), "Traceback" in done.stderr) == (2, 1, False), done.stderr[-3000:]
        ways = re.findall(r"batch_size=\d+ gradient_accumulation_steps=\d+", told[0])
        assert ways, told[0]
        done = run_script(TRAIN, *latest(*words, *ways[0].split(), "train.resume=auto"))
        assert done.returncode == 0, told[0] + done.stderr[-3000:]
    finally:
        other.kill()
        other.wait()
