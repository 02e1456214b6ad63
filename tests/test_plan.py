"""What a plan says of memory, against what processes take, and what a run says that has run out of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, latest, run_script
from omegaconf import OmegaConf

import ppt_kit as ppt
from ppt_kit.jobs.ranks import free_port
from ppt_kit.memory.activations import Activations, measure
from ppt_kit.memory.choosing import same_global_batch
from ppt_kit.memory.failure import is_out_of_memory, what_ran_out
from ppt_kit.memory.ledger import Setup, Sizes, most, parts_of
from ppt_kit.memory.plan import GB, Room
from ppt_kit.train.assemble import new_policy, read_sources, statistics
from ppt_kit.train.planning import plan_of

on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="memory of processes on a CPU")
# so large, 40 million parameters, that its weights are not lost beside what Python takes
LARGE = ("policy.width=640", "policy.depth=7", "policy.num_heads=8", "batch_size=8", "train.ema_decay=0.99")


def taken(cfg, folder, *, ranks: int) -> float:
    """GB that the fuller rank of a few steps came to hold."""
    OmegaConf.save(cfg, folder / "config.yaml")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    if ranks > 1:
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        env["LOCAL_WORLD_SIZE"] = str(ranks)
    command = [sys.executable, str(ROOT / "tests/planned_run.py"), str(folder / "config.yaml")]
    started = []
    for rank in range(ranks):
        own = env | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        started.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True))
    said = [each.communicate(timeout=400)[0] for each in started]
    assert all(each.returncode == 0 for each in started)
    return max(int(text.split()[-1]) for text in said) / GB


def in_steps(row) -> float:
    """GB that a row says of the steps alone, without what a save takes beside them."""
    return (row.total - row.parts.get("saving", 0.0)) / GB


# two ranks need two GPUs
RANKS = [ranks for ranks in (1, 2) if ranks <= torch.cuda.device_count() or not torch.cuda.is_available()]
WAYS = [
    *(("zero0", precision, ranks) for precision in ("fp32", "autocast") for ranks in RANKS),
    *((f"zero{stage}", precision, ranks) for stage in (1, 2, 3) for precision in ("fp32", "bf16") for ranks in RANKS),
    *(("zero2_offload", precision, 1) for precision in ("fp32", "bf16")),
]
QUICK = [("zero1", "fp32", RANKS[-1])]


@pytest.mark.parametrize(
    ("deepspeed", "precision", "ranks"),
    [*QUICK, *(pytest.param(*way, marks=pytest.mark.long) for way in WAYS if way not in QUICK)],
)
def test_a_plan_says_what_processes_take(small_cfg, tmp_path, capfd, deepspeed, precision, ranks):
    cfg = small_cfg(*latest(*LARGE, f"deepspeed={deepspeed}", f"precision={precision}"))
    sources = read_sources(cfg)
    room, policy = Room(1e12, 0, 0, "enough"), new_policy(sources, statistics(sources))[0]
    plan = plan_of(sources, policy, ranks=ranks, room=room, on_gpu=torch.cuda.is_available(), brief=True)
    said, took = in_steps(plan.row(deepspeed, precision)), taken(cfg, tmp_path, ranks=ranks)
    with capfd.disabled():
        print(
            f"\n{deepspeed:<14} {precision:<9} {ranks} rank(s)  planned {said:.3f} GB  took {took:.3f} GB  "
            f"{said / took - 1:+.1%}", end="", flush=True,
        )  # fmt: skip
    assert said == pytest.approx(took, rel=0.15)


def test_a_batch_takes_what_torch_allocates_for_it(small_cfg):
    """Against a policy whose activations are known: a product of matrices and its derivative."""

    class Known(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, 1000))

        def forward(self, batch):
            # (B, 1000) float32 is kept for the backward pass, and its gradient is made there
            return {"loss": (batch["x"] @ self.weight).exp().sum()}

    found = measure(Known(), lambda size: {"x": torch.randn(size, 64) * 0.01}, precision="fp32", wanted=256, free=1e12)
    assert found.per_window == pytest.approx(3 * 4 * 1000, rel=0.34)
    assert found.fixed < 2 * 64 * 1000 * 4
    assert found.measured.keys() == {128, 256}


def test_what_is_frozen_has_no_gradient_and_no_moments():
    def parts(trained, frozen):
        setup = Setup(
            stage=0, precision="fp32", ranks=1, accumulates=False, averages=True, on_gpu=True,
            zero={"offload_optimizer": None, "reduce_bucket_size": 1},
        )  # fmt: skip
        return parts_of(Sizes(trained, frozen, largest=10), setup, 0.0)

    half, whole = parts(500, 500), parts(1000, 0)
    assert half["weights"] == whole["weights"] == 4000
    assert (half["optimizer"], half["gradients"], half["averaged"]) == (4000, 2000, 2000)
    assert (whole["optimizer"], whole["gradients"], whole["averaged"]) == (8000, 4000, 4000)


def test_more_ranks_take_less_each_and_never_at_stage_0():
    def total(stage, ranks, batch=0.0, live=10**6):
        zero = {"offload_optimizer": None, "reduce_bucket_size": 1000, "max_live_parameters": live}
        setup = Setup(
            stage=stage, precision="bf16", ranks=ranks, accumulates=False, averages=False, on_gpu=True, zero=zero
        )
        return most(Sizes(10**8, 0, 10**6), setup, batch)

    assert total(0, 1) == total(0, 8)
    for stage in (1, 2, 3):
        assert total(stage, 1) > total(stage, 2) > total(stage, 8)
    assert total(1, 8) > total(2, 8) > total(3, 8)
    # it brings whole weights together as long as they are fewer than that
    assert total(3, 8, live=10**9) > total(3, 8)
    assert total(3, 8, batch=1e9) - total(3, 8, batch=5e8) == pytest.approx(5e8)


def test_buffers_of_deepspeeds_own_size_are_counted_whole(small_cfg, tmp_path):
    """A file that leaves them to DeepSpeed makes two of 5e8 numbers, however small the policy is."""
    (tmp_path / "plain.json").write_text('{"zero_optimization": {"stage": 2, "overlap_comm": true}}')
    plan = ppt.plan(small_cfg(f"deepspeed={tmp_path / 'plain.json'}", "batch_size=2"), num_gpus=2, gpu_gb=80)
    assert plan.row(str(tmp_path / "plain.json"), "bf16").parts["work"] > 2e9
    assert plan.row("zero2", "bf16").parts["work"] < 1e8


@pytest.mark.parametrize(("batch", "steps", "largest", "want"), [(64, 1, 64, (64, 1)), (64, 1, 40, (32, 2)), (30, 2, 7, (6, 10)), (7, 1, 3, (1, 7))])  # fmt: skip
def test_a_smaller_batch_keeps_the_global_one(small_cfg, batch, steps, largest, want):
    cfg = small_cfg(f"batch_size={batch}", f"gradient_accumulation_steps={steps}")
    assert same_global_batch(cfg, largest=largest) == want


def test_a_plan_shows_itself_and_its_words_are_a_configuration(small_cfg):
    plan = ppt.plan(small_cfg("batch_size=8"), num_gpus=4, gpu_gb=24)
    table = plan.table
    assert isinstance(table, pd.DataFrame)
    assert set(table["deepspeed"]) == {"zero0", "zero1", "zero2", "zero3", "zero2_offload"}
    assert set(table["precision"]) == {"fp32", "autocast", "bf16", "fp16"}
    # whose first step would be wrong
    assert table[(table["deepspeed"] == "zero0") & table["precision"].isin(["bf16", "fp16"])].empty
    assert (table["largest_batch"] >= 8).all()
    parts = [name for name in table.columns if name.endswith("_gb") and name != "total_gb"]
    assert np.allclose(table[parts].sum(axis=1), table["total_gb"], atol=0.004)
    # everything fits: nothing is quicker than stage 0
    assert plan.words == ["deepspeed=zero0", "precision=fp32", "batch_size=8", "gradient_accumulation_steps=1"]
    assert small_cfg(*plan.words).deepspeed == "zero0"
    assert "gpu_gb=24" in str(plan)
    assert "NCCL" in str(plan)
    assert "<table>" in plan._repr_html_()
    assert repr(plan) == str(plan)


def test_what_does_not_fit_is_divided_and_what_never_does_is_said(small_cfg):
    cfg = small_cfg("batch_size=32", "policy.width=256", "policy.depth=4")
    plan = ppt.plan(cfg, num_gpus=8, gpu_gb=1000)
    stage_0, stage_3 = (plan.row(name, "fp32").total / GB for name in ("zero0", "zero3"))
    assert stage_3 < stage_0
    # room for stage 3 and not for stage 0; CUDA's own GB and a tenth come off it
    between = ppt.plan(cfg, num_gpus=8, gpu_gb=(1.0 + (stage_0 + stage_3) / 2) / 0.9)
    assert not between.row("zero0", "fp32").largest_batch >= 32
    assert between.choice["deepspeed"] != "zero0"
    assert "not with zero0" in between.said
    nothing = ppt.plan(cfg, num_gpus=8, gpu_gb=1.0)
    assert (nothing.fits, nothing.words) == (False, [])
    assert nothing.said.startswith("Nothing fits: ")


def test_a_line_goes_through_two_batches():
    line = Activations.through({8: 180, 16: 340}, device="cpu")
    assert (line.per_window, line.fixed, line.of(100)) == (20, 20, 2020)


def test_python_prints_a_plan(small_data, tmp_path):
    words = (
        f"dataset_path={small_data}", "domains=a", "policy.width=32", "policy.depth=1", "policy.num_heads=2",
        "dataset.num_points=16", "num_gpus=8", "gpu_gb=24", "--config-name=quickstart",
    )  # fmt: skip
    done = run_script(sys.executable, "-m", "ppt_kit", "plan", *words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"zero3 +fp16", done.stdout)
    assert "Choose deepspeed=zero0 precision=fp32" in done.stdout
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ a run that runs out of it

# bytes of address space: Python, torch and DeepSpeed take 1 GB of it, and 3 GB while they are imported
LIMIT = 3_600_000_000
BIG = ("policy.width=256", "policy.depth=4", "policy.num_heads=4", "batch_size=16384", "train.total_iters=1", "dataset.pad_before=0", "train.val_interval=0")  # fmt: skip


def test_memory_that_ran_out_is_known_by_what_torch_and_numpy_really_raise():
    for ask in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            ask()
        assert is_out_of_memory(error.value)
        assert "enforce fail" not in what_ran_out(error.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert what_ran_out(MemoryError()) == "MemoryError"


@on_a_cpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_without_memory_names_the_numbers_that_fit(small_cfg, tmp_path, ranks):
    """A real limit on address space, in the processes that train."""
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))\n"
    (tmp_path / "sitecustomize.py").write_text(limited)
    words = [f"{name}={small_cfg().get(name)}" for name in ("dataset_path", "output_dir", "suffix")]
    words += ["domains=a", "dataset.num_points=16", *BIG]
    words += ["train_mode=distributed", "world_size=2"] if ranks == 2 else []
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_script(
        str(ROOT / "scripts/train.py"), *words, cwd=tmp_path, env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    )
    told = [line for line in done.stderr.splitlines() if "out of memory" in line]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr[-3000:]
    # ranks that run out at one time say the same, but of which of their tensors it was
    assert len({re.sub(r"\(Default.*\)", "", line) for line in told}) == 1, done.stderr
    assert "batch_size=16384, deepspeed=zero0, precision=fp32" in told[0]
    size, steps = map(int, re.search(r"batch_size=(\d+) gradient_accumulation_steps=(\d+)", told[0]).groups())
    assert 1 <= size < 16384
    assert size * steps == 16384
