"""What is looked at, one function each, in a process of its own: what hangs or crashes takes nothing with it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ppt_kit.errors import UserError
from ppt_kit.programs import clone

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GOOD, NOTE, BAD = "good", "note", "bad"
MARK = "ppt_kit-found: "
# the packages behind it in a version of ours; pip finds an installed ppt_kit here, and with it their ranges
INSTALL = "pip install -c constraints.txt" if clone() else "pip install ppt_kit"
# 1e9 bytes: below the first something will fail, below the second it may
FULL_GB, TIGHT_GB = 1, 10
SHM_FULL_GB, SHM_TIGHT_GB = 0.03, 1


class Found(NamedTuple):
    """What one look gave: good, a note (nothing fails, but it is to be known), or bad; in words; and what to type."""

    state: str
    said: str
    cure: str = ""


def tell(name: str) -> None:
    """Prints what a look gave, for the process that started this one. What is raised is something bad too."""
    try:
        found = PROBES[name][0]()
    except UserError as error:
        found = Found(BAD, *_halves(str(error)))
    except Exception as error:
        found = Found(BAD, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", CURES.get(name, ""))
    print(MARK + json.dumps(found), flush=True)


def _python() -> Found:
    said = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Found(NOTE, said, "Only Linux is tested.")
    return Found(GOOD, said)


def _versions() -> Found:
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("ppt_kit") or ()]
    needed = [each for each in wanted if each.marker is None]
    # what works on the package itself needs the others, and is told by make setup
    others = [each for each in wanted if each.marker and not {"test", "docs"} & set(str(each.marker).split('"'))]
    wrong = [_unlike(each) for each in needed if _unlike(each)]
    if wrong:
        typed = " ".join(f"'{each.name}{each.specifier}'" for each in needed if _unlike(each))
        return Found(BAD, "; ".join(map(str, wrong)), f"{INSTALL} {typed}")
    said = f"{len(needed)} packages in their ranges: torch {metadata.version('torch')}, " + (
        f"deepspeed {metadata.version('deepspeed')}, numpy {metadata.version('numpy')}"
    )
    lacking = {str(each.marker).split('"')[1] for each in others if _unlike(each)}
    if lacking:
        extras = ",".join(sorted(lacking))
        missing = "; ".join(sorted({str(_unlike(each)) for each in others if _unlike(each)}))
        return Found(NOTE, f"{said}. Of what is optional: {missing}", f"pip install 'ppt_kit[{extras}]'")
    return Found(GOOD, said)


def _unlike(requirement: Requirement) -> str | None:
    """What is wrong with a package, in words."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} is {version}, not {requirement.specifier}"


def _gpus() -> Found:
    import torch

    from ppt_kit.engine.probe import nccl_version, visible_gpus

    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
            return Found(
                BAD, f"this machine has an NVIDIA driver, and torch {torch.__version__} sees no GPU",
                "Look at nvidia-smi and CUDA_VISIBLE_DEVICES; a torch with +cpu in its version needs the CUDA build.",
            )  # fmt: skip
        return Found(NOTE, "no GPU: training runs on the CPU, ranks meet over gloo")
    gpus, nccl = visible_gpus(), nccl_version()
    said = f"{', '.join(gpus)}; CUDA {torch.version.cuda}"
    if nccl is None and len(gpus) > 1:
        return Found(BAD, f"{said}, but this torch has no NCCL", "Install torch as pip has it for Linux.")
    return Found(GOOD, f"{said}, NCCL {nccl}")


def _deepspeed() -> Found:
    from ppt_kit.engine.probe import engine_steps, left_locks

    version, ops = engine_steps()
    said = f"DeepSpeed {version} takes a step; compiled ops: {', '.join(ops) or 'none, and none is needed'}"
    locks = left_locks()
    if locks:
        return Found(NOTE, f"{said}. A killed build left {locks[0]}", f"rm {' '.join(map(str, locks))}")
    return Found(GOOD, said)


def _rendering() -> Found:
    from ppt_kit.sim.simulators.rendering import check_rendering

    try:
        metadata.version("mujoco")
    except metadata.PackageNotFoundError:
        return Found(NOTE, "MuJoCo is not installed: no simulator", "pip install 'ppt_kit[sim]'")
    check_rendering()
    return Found(GOOD, f"MuJoCo renders by {os.environ.get('MUJOCO_GL') or 'the display'}")


def _ports() -> Found:
    from ppt_kit.jobs.ranks import free_port

    given = os.environ.get("MASTER_PORT")
    with socket.create_server(("127.0.0.1", int(given or 0))) as server:
        with socket.create_connection(server.getsockname(), timeout=5):
            pass
    return Found(
        GOOD, f"MASTER_PORT {given} is free" if given else f"ranks can meet on this machine (as at {free_port()})"
    )


def _disk() -> Found:
    from ppt_kit.files import check_place

    places = {
        "output_dir": Path("outputs"), "dataset.cache_dir": Path(os.environ.get("PPT_KIT_CACHE", "~/.cache/ppt_kit")),
        "TMPDIR": Path(os.environ.get("TMPDIR", "/tmp")),
    }  # fmt: skip
    free = {}
    for name, place in places.items():
        place = place.expanduser().absolute()
        check_place(place, key=name, needs=int(FULL_GB * 1e9))
        there = next(each for each in (place, *place.parents) if each.exists())
        free[name] = shutil.disk_usage(there).free / 1e9
    said = ", ".join(f"{gb:.0f} GB free for {name}" for name, gb in free.items())
    if min(free.values()) < TIGHT_GB:
        return Found(
            NOTE, said, "Checkpoints and decoded videos take room: dataset.cache_gb and last_k_checkpoints bound it."
        )
    return Found(GOOD, said)


def _shared_memory() -> Found:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Found(NOTE, "there is no /dev/shm")
    gb = shutil.disk_usage(place).free / 1e9
    cure = "In a container: docker run --shm-size=8g …"
    if gb < SHM_TIGHT_GB:
        return Found(BAD if gb < SHM_FULL_GB else NOTE, f"{gb:.2f} GB free; NCCL between GPUs uses it", cure)
    return Found(GOOD, f"{gb:.1f} GB free")


def _wandb() -> Found:
    from ppt_kit.tracking.probe import wandb_mode

    try:
        mode = wandb_mode()
    except RuntimeError as error:
        return Found(NOTE, f"{error}: runs are kept in metrics.jsonl alone", CURES["W&B"])
    said = {
        "online": "logged in",
        "offline": "not logged in: runs stay here, in wandb/",
        "disabled": "WANDB_MODE=disabled",
    }
    return Found(GOOD if mode == "online" else NOTE, said.get(mode, mode), "wandb login" if mode == "offline" else "")


def _two_ranks() -> Found:
    from ppt_kit.engine.probe import two_ranks_add_up
    from ppt_kit.jobs.ranks import free_port

    return Found(GOOD, f"two ranks add up over {two_ranks_add_up(free_port(), timeout_s=80)}")


def _halves(said: str) -> tuple[str, str]:
    """A mistake and its cure, which is what begins with what to type."""
    for verb in (" Type ", " Set ", " Install "):
        head, found, tail = said.partition(verb)
        if found:
            return head, f"{verb.strip()} {tail}"
    return said, ""


CURES = {
    "packages": "make setup, or pip install . in a clone" if clone() else "pip install ppt_kit",
    "GPU and NCCL": "Look at nvidia-smi; the driver must be as new as the CUDA that torch was built with.",
    "DeepSpeed": f"{INSTALL} deepspeed torch",
    "ports": "unset MASTER_PORT, or give a free one",
    "W&B": f"{INSTALL} wandb; wandb.mode=disabled does without",
    "two ranks": "Set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to a network interface; look at the firewall.",
}
# what is looked at, and how long it may take (s)
PROBES: dict[str, tuple[Callable[[], Found], float]] = {
    "Python": (_python, 10), "packages": (_versions, 20), "GPU and NCCL": (_gpus, 90), "DeepSpeed": (_deepspeed, 120),
    "two ranks": (_two_ranks, 100), "rendering": (_rendering, 60), "ports": (_ports, 10), "disk": (_disk, 20),
    "shared memory": (_shared_memory, 10), "W&B": (_wandb, 60),
}  # fmt: skip
