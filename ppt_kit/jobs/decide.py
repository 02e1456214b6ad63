"""Which mode, and which of the ranks a process starts: decisions from what was asked for and the environment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ppt_kit.checks import check_processes, env_number
from ppt_kit.errors import UserError

# what launchers say in the environment, and the least that each can be
NUMBERS = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "LOCAL_SIZE": 1, "MASTER_PORT": 1}
LAST_PORT = 65_535


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
        UserError: single under a launcher that started several processes, or world_size against the launcher's, or
            see `launch_numbers`.
    """
    numbers = launch_numbers(env)
    if "RANK" in numbers:
        total = numbers["WORLD_SIZE"]
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
        if is_rank(env):
            return "single" if train_mode == "single" else "rank"
        # a node's variables, set by hand: alone it would train beside the others, in the same folder
        if total > 1:
            return "spawn"
    if train_mode == "distributed":
        return "spawn"
    if train_mode == "auto" and 1 < world_size <= num_devices:
        return "spawn"
    return "single"


def is_rank(env: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of a job."""
    return "RANK" in env and "LOCAL_RANK" in env and "WORLD_SIZE" in env


def launch_numbers(env: Mapping[str, str]) -> dict[str, int]:
    """The launcher's variables that are set, of NUMBERS.

    Raises:
        UserError: one is no number, contradicts another, or lacks one that belongs to it.
    """
    found = {}
    for name, low in NUMBERS.items():
        number = env_number(env, name, low=low, **({"high": LAST_PORT} if name == "MASTER_PORT" else {}))
        if number is not None:
            found[name] = number
    if env.get("MASTER_ADDR") == "":
        raise UserError(
            "MASTER_ADDR in the environment is empty: it names rank 0's host. Set it, or type unset MASTER_ADDR."
        )
    _check_whole(found, by_hand="MASTER_ADDR" in env)
    _check_order(found)
    return found


def local_share(env: Mapping[str, str], *, world_size: int, num_devices: int) -> Share:
    """The ranks that a process which starts ranks has to start.

    Alone it starts all of them. With MASTER_ADDR, WORLD_SIZE and RANK set by hand on several nodes, RANK is this node's
    first global rank, and the node starts LOCAL_WORLD_SIZE ranks, or one a device, or one.

    Raises:
        UserError: more ranks than devices, or the variables contradict each other.
    """
    numbers = launch_numbers(env)
    if "MASTER_ADDR" in env and "RANK" in numbers:
        return _share_of_a_node(numbers, world_size=world_size, num_devices=num_devices)
    if num_devices and world_size > num_devices:
        raise UserError(
            f"world_size={world_size}, but {num_devices} GPU(s) are visible{_by_variable(env)}: a rank needs one of "
            f"its own. Set world_size={num_devices}; gradient_accumulation_steps=… makes up for the others."
        )
    check_processes(world_size, key="world_size")
    return Share(first=0, here=world_size, total=world_size)


def why_on_cpu(env: Mapping[str, str]) -> str:
    """Why no GPU is visible to this process, and how to get one, in a sentence."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={visible} hides every GPU: unset it, or name some, as CUDA_VISIBLE_DEVICES=0,1."
    if not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return "This machine has none: ppt.launch(cfg, hostfile=…) or slurm={…} takes the run to one that has."
    import torch

    if torch.version.cuda is None:
        return f"This machine has some, but torch {torch.__version__} is built without CUDA: install the build with it."
    return "This machine has an NVIDIA driver that does not answer: look at nvidia-smi, and python -m ppt_kit doctor."


def num_visible_devices() -> int:
    """Accelerators this process may use; 0 on a CPU machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _by_variable(env: Mapping[str, str]) -> str:
    visible = env.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"


def _share_of_a_node(numbers: Mapping[str, int], *, world_size: int, num_devices: int) -> Share:
    first, total = numbers["RANK"], numbers["WORLD_SIZE"]
    if world_size not in (1, total):
        raise UserError(
            f"world_size={world_size}, but WORLD_SIZE={total}. Set both to the number of processes over all nodes."
        )
    here = numbers.get("LOCAL_WORLD_SIZE", min(num_devices or 1, total - first))
    if first + here > total:
        raise UserError(
            f"RANK={first} with LOCAL_WORLD_SIZE={here} is more than WORLD_SIZE={total}. "
            "RANK is the node's first global rank, from 0; LOCAL_WORLD_SIZE says how many it starts."
        )
    check_processes(here, key="LOCAL_WORLD_SIZE")
    return Share(first=first, here=here, total=total)


def _check_whole(found: Mapping[str, int], *, by_hand: bool) -> None:
    """Raises UserError for part of a launcher's variables; LOCAL_RANK alone is what a run in a notebook leaves."""
    here = [name for name in ("RANK", "WORLD_SIZE") if name in found]
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in found]
    if here and not missing and not by_hand and "LOCAL_RANK" not in found:
        missing = ["LOCAL_RANK (or MASTER_ADDR, on each of several nodes)"]
    if here and missing:
        raise UserError(
            f"{' and '.join(f'{name}={found[name]}' for name in here)} in the environment, but no {missing[0]}: "
            f"part of what a launcher sets. Set it too, or type unset {' '.join(here)} to start without a launcher."
        )


def _check_order(found: Mapping[str, int]) -> None:
    """Raises UserError when a rank is beyond the last one."""
    total = found.get("WORLD_SIZE")
    if total is not None and found["RANK"] >= total:
        raise UserError(
            f"RANK={found['RANK']} with WORLD_SIZE={total} leaves no rank for this node. "
            f"Ranks count from 0 to {total - 1}."
        )
    for name, bound in (("LOCAL_WORLD_SIZE", "WORLD_SIZE"), ("LOCAL_RANK", "RANK")):
        if name in found and bound in found and found[name] > found[bound]:
            raise UserError(f"{name}={found[name]} in the environment is more than {bound}={found[bound]}.")
    if "LOCAL_WORLD_SIZE" in found and found.get("LOCAL_RANK", 0) >= found["LOCAL_WORLD_SIZE"]:
        raise UserError(
            f"LOCAL_RANK={found['LOCAL_RANK']} with LOCAL_WORLD_SIZE={found['LOCAL_WORLD_SIZE']}: "
            f"the ranks of a node count from 0 to {found['LOCAL_WORLD_SIZE'] - 1}."
        )
