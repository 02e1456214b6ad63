"""Which devices, and how many threads, each of the runs has that train side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import NUMBERS, decide

VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Slot:
    """Room for one run at a time.

    Attributes:
        devices: names of the GPUs that it has, () on a CPU machine.
        env: the environment of its processes.
    """

    devices: tuple[str, ...]
    env: dict[str, str]


def slots_for(
    *, jobs: int | None, ranks: int, num_runs: int, num_devices: int, num_cores: int, env: Mapping[str, str]
) -> list[Slot]:
    """One slot a run that trains at a time.

    GPUs are dealt out in turn, `ranks` to each: more jobs than there are GPUs for share them. On a CPU machine the
    cores are divided, unless OMP_NUM_THREADS is set.

    Args:
        jobs: runs at a time; None = as many as there are GPUs for, one without GPUs.
        ranks: processes of a run.
        env: this process's environment.
    """
    fitting = max(1, num_devices // ranks)
    count = min(num_runs, jobs if jobs is not None else fitting)
    plain = {name: value for name, value in env.items() if name not in (*NUMBERS, "MASTER_ADDR")}
    plain.setdefault(THREADS, str(max(1, num_cores // (count * ranks))))
    if not num_devices:
        return [Slot((), plain)] * count
    names = env[VISIBLE].split(",") if env.get(VISIBLE) else [str(number) for number in range(num_devices)]
    names = [name.strip() for name in names][:num_devices]
    dealt = [
        tuple(names[(slot * ranks + each) % len(names)] for each in range(min(ranks, len(names))))
        for slot in range(count)
    ]
    return [Slot(devices, {**plain, VISIBLE: ",".join(devices)}) for devices in dealt]


def ranks_of(train_mode: str, *, world_size: int, num_devices: int) -> int:
    """Processes that a run of a sweep has.

    Raises:
        UserError: it wants several, and they are not what this machine has.
    """
    if decide(train_mode, world_size=world_size, env={}, num_devices=num_devices) == "single":
        if world_size > 1:
            raise UserError(
                f"world_size={world_size} with train_mode={train_mode} and {num_devices} device(s): one process would "
                "train. Type train_mode=distributed, or world_size=1."
            )
        return 1
    if num_devices and world_size > num_devices:
        raise UserError(
            f"world_size={world_size}, but {num_devices} device(s) are visible. Set world_size={num_devices}."
        )
    return world_size
