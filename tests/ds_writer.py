"""Written with plain DeepSpeed, as anybody's script is: checkpoints of a tiny model at every ZeRO stage.

`python ds_writer.py FOLDER PORT PORT`, of one rank and of two; each checkpoint has the whole weights beside it, as
expected.pt, gathered from the model itself.
"""

import datetime
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

STEPS = 2


class Tiny(nn.Module):
    """Odd sizes, a frozen part, a buffer, and one tensor of two names."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.second = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 3, bias=False)
        self.tied = nn.Linear(5, 3, bias=False)
        self.tied.weight = self.second.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([1.5, 2.5, 3.5]))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        hidden = self.frozen(self.first(x))
        return ((self.second(hidden) + self.tied(hidden)) * self.scale.to(x.dtype)).square().mean()


def train(folder: Path, stage: int, *, rank: int, half: bool = False) -> None:
    import deepspeed

    torch.manual_seed(stage)
    model = Tiny()
    groups = [
        {"params": [p for name, p in model.named_parameters() if name.startswith(part) and p.requires_grad], "lr": rate}
        for part, rate in (("first", 0.01), ("second", 0.02))
    ]
    settings = {
        "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    if half:
        settings["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=settings)
    for step in range(STEPS):
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + rank))
        engine.backward(engine(batch.to(torch.bfloat16 if half else torch.float32)))
        engine.step()
        engine.save_checkpoint(str(folder), client_state={"epoch": step, "path": Path("data")})
    whole = whole_weights(engine.module, stage=stage, half=half)
    if rank == 0:
        torch.save(whole, folder / "expected.pt")
    dist.barrier()


def whole_weights(model, *, stage, half):
    from deepspeed.utils import safe_get_full_fp32_param

    exact = {name: safe_get_full_fp32_param(p) for name, p in model.named_parameters() if half and p.requires_grad}
    context = __import__("deepspeed").zero.GatheredParameters(list(model.parameters())) if stage == 3 else None
    if context:
        context.__enter__()
    whole = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
    whole |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    if context:
        context.__exit__(None, None, None)
    # at stage 0 it gives None: DeepSpeed keeps the exact ones without names
    whole |= {name: value.detach().clone() for name, value in exact.items() if value is not None}
    if half:
        whole["tied.weight"] = whole["second.weight"]
    return {name: v.float() if v.is_floating_point() else v for name, v in whole.items()}


def run(folder: str, *, rank: int, world_size: int, port: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    for stage in range(4):
        train(Path(folder) / f"zero{stage}x{world_size}", stage, rank=rank)
    for stage in (0, 1, 3):
        train(Path(folder) / f"half{stage}x{world_size}", stage, rank=rank, half=True)


def main(folder: str, *ports: str) -> int:
    """One rank meets itself at the first port, two each other at the second; what takes long to import is so once."""
    import deepspeed  # noqa: F401

    # otherwise a C++ op is built at first use
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    children = []
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(folder, rank=rank, world_size=world_size, port=ports[world_size - 1])
                code = 0
            finally:
                sys.stdout.flush()
                if code:
                    traceback.print_exc()
                os._exit(code)
        children.append(child)
    return max(os.waitpid(child, 0)[1] for child in children)


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
