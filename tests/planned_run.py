"""One rank of a few steps, as a process of its own: how much more it came to hold than before it built anything.

python planned_run.py CONFIG.yaml prints the bytes, on a GPU those of its tensors; the launcher's variables say which rank
it is.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import torch

# the first makes the moments, the second is like all others
STEPS = 2


def held_already() -> int:
    """Bytes of memory that this process has come to hold, of a GPU those that it holds now: its most counts from here."""
    if not torch.cuda.is_available():
        return most_held()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def most_held() -> int:
    """Bytes of memory that this process has come to hold."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    from ppt_kit.config import from_file
    from ppt_kit.data.loader import Loader, to_device
    from ppt_kit.engine import Engine, join_world
    from ppt_kit.engine.probe import engine_steps
    from ppt_kit.train.assemble import batch_plan, new_policy, open_sources, statistics

    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    world = join_world(rank=rank, local_rank=rank, world_size=size)
    # DeepSpeed imports half of itself with its first engine
    engine_steps()
    before = held_already()
    cfg = from_file(sys.argv[1])
    sources = open_sources(cfg, Path(cfg.output_dir) / "none")
    policy, _ = new_policy(sources, statistics(sources))
    engine = Engine(policy, sources.cfg, world)
    order = batch_plan(sources, world, origin=(0, 0, 0))
    for _, batches in Loader(sources.train_set, order, rank=rank, first_step=0, last_step=STEPS, pin=False):
        engine.train_step([sources.augment(to_device(batch, world.device)) for batch in batches], learning_rate=1e-3)
    print(most_held() - before, flush=True)
    # leaving the group politely may wait for a rank that has left
    os._exit(0)


if __name__ == "__main__":
    main()
