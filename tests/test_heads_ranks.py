"""Two ranks whose batches hold different domains train as one process does on the union, with every head and ZeRO stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from ppt_kit.config import load_config, typed
from ppt_kit.engine import Engine, join_world
from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import HeadConfig, PolicyConfig
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.spec import Spec

NET = {"widths": [8, 16]}
CASES = {
    "regression": ("regression", {}),
    "mlp": ("mlp", {}),
    "decoder": ("decoder", {}),
    "diffusion": ("diffusion", NET),
    "diffusion transformer": ("diffusion", {"network": "transformer"}),
    "flow": ("flow", NET),
    "meanflow": ("meanflow", NET),
    "meanflow transformer": ("meanflow", {"network": "transformer"}),
    "mixture": ("mixture", {}),
    "cvae": ("cvae", {}),
}
STEPS = 6


def engine_of(name: str, stage: int, world) -> Engine:
    torch.manual_seed(0)
    asked = PolicyConfig(width=16, depth=1, num_heads=2, dropout=0.1, head=HeadConfig(*CASES[name]))
    asked.stems.pointcloud.kind = None
    specs = {
        "a": Spec(state={"joints": 4}, action={"actions": 4}),
        "wide": Spec(state={"joints": 6}, action={"actions": 7}),
    }
    words = (f"deepspeed=zero{stage}", "batch_size=4", "train.ema_decay=0")
    return Engine(PPTPolicy(specs, asked, horizon=Horizon(2, 8)), typed(load_config("", *words)), world)


def batch_at(step: int, *, rank: int | None) -> dict:
    """Four windows of each domain; a rank has those of one alone, in turn."""
    g = torch.Generator().manual_seed(step)
    whole = {
        "state": torch.randn(8, 2, 6, generator=g), "action": torch.rand(8, 8, 7, generator=g) * 2 - 1,
        "action_is_pad": torch.rand(8, 8, generator=g) < 0.2, "domain": torch.arange(8) // 4,
        "noise_seed": torch.arange(8) + 1000 * step,
    }  # fmt: skip
    if rank is not None:
        mine = slice(0, 4) if (rank + step) % 2 == 0 else slice(4, 8)
        whole = {name: value[mine] for name, value in whole.items()}
    return {"obs": {"state": whole.pop("state")}, **whole}


def losses_of(name: str, stage: int, world, *, rank: int | None) -> list[float]:
    engine = engine_of(name, stage, world)
    return [float(engine.train_step([batch_at(step, rank=rank)], learning_rate=1e-2)) for step in range(STEPS)]


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=pytest.mark.long) for stage in (0, 1, 2)] + [3])
def test_two_ranks_with_different_domains_give_the_losses_of_one_process(stage, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    done = subprocess.run(
        [*command, str(stage), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name in CASES:
        one = torch.tensor(losses_of(name, 0, join_world(), rank=None))
        two = torch.tensor([rank[name] for rank in ranks]).mean(0)
        assert (one / two - 1).abs().max() < 1e-5, (name, one, two)
        # and it does learn something, so that wrong gradients would show
        assert (one[1:] != one[0]).all(), name


if __name__ == "__main__":
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    joined = join_world(rank=rank, local_rank=rank, world_size=world_size)
    told = {name: losses_of(name, int(sys.argv[1]), joined, rank=rank) for name in CASES}
    with open(f"{sys.argv[2]}/{rank}.json", "w") as file:
        json.dump(told, file)
