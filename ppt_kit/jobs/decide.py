"""Which mode, and which of the ranks a process starts: decisions from what was asked for and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ppt_kit.errors import UserError


class Share(NamedTuple):
    """What one node starts of a job."""

    first: int  # global rank
    here: int  # ranks on this node
    total: int  # ranks on all nodes


def decide(train_mode: str, *, world_size: int, env: Mapping[str, str], num_devices: int) -> str:
    """What this process is to do: "single", "rank" (it is one of a launched job) or "spawn" (it starts the ranks).

    Args:
        train_mode: single, distributed or auto.
        world_size: processes asked for in the configuration.
        env: the environment; a launcher sets RANK, LOCAL_RANK and WORLD_SIZE.
        num_devices: accelerators visible here; CPUs do not count, auto never chooses several CPU ranks by itself.
    Raises:
        UserError: single under a launcher that started several processes, or world_size against the launcher's.
    """
    if is_rank(env):
        total = int(env["WORLD_SIZE"])
        if train_mode == "single" and total > 1:
            raise UserError(
                f"train_mode=single, but a launcher started {total} processes. "
                "Type train_mode=auto, or start it with plain python."
            )
        if world_size not in (1, total):
            raise UserError(
                f"world_size={world_size}, but the launcher started {total} processes. "
                "Leave world_size out: the launcher decides."
            )
        return "single" if train_mode == "single" else "rank"
    if train_mode == "distributed":
        return "spawn"
    if train_mode == "auto" and 1 < world_size <= num_devices:
        return "spawn"
    return "single"


def is_rank(env: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of a job."""
    return "RANK" in env and "LOCAL_RANK" in env and "WORLD_SIZE" in env


def local_share(env: Mapping[str, str], *, world_size: int, num_devices: int) -> Share:
    """The ranks that a process which starts ranks has to start.

    Alone it starts all of them. With MASTER_ADDR, WORLD_SIZE and RANK set by hand on several nodes, RANK is this node's
    first global rank, and the node starts LOCAL_WORLD_SIZE ranks, or one a device, or one.

    Raises:
        UserError: more ranks than devices, or the variables contradict each other.
    """
    if "MASTER_ADDR" in env and "RANK" in env and "WORLD_SIZE" in env:
        return _share_of_a_node(env, world_size=world_size, num_devices=num_devices)
    if num_devices and world_size > num_devices:
        raise UserError(
            f"world_size={world_size}, but {num_devices} device(s) are visible. "
            f"Set world_size={num_devices}, or check CUDA_VISIBLE_DEVICES."
        )
    return Share(first=0, here=world_size, total=world_size)


def num_visible_devices() -> int:
    """Accelerators this process may use; 0 on a CPU machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _share_of_a_node(env: Mapping[str, str], *, world_size: int, num_devices: int) -> Share:
    first, total = int(env["RANK"]), int(env["WORLD_SIZE"])
    if world_size not in (1, total):
        raise UserError(
            f"world_size={world_size}, but WORLD_SIZE={total}. Set both to the number of processes over all nodes."
        )
    here = min(int(env.get("LOCAL_WORLD_SIZE", num_devices or 1)), total - first)
    if here < 1:
        raise UserError(
            f"RANK={first} with WORLD_SIZE={total} leaves no rank for this node. "
            "RANK is the node's first global rank, from 0."
        )
    return Share(first=first, here=here, total=total)
