"""The processes of a run: how they meet, what one of them tells the others, how they part."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import datetime
import os
import socket
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ppt_kit.checks import env_number
from ppt_kit.engine.quiet import import_deepspeed
from ppt_kit.errors import UserError

COLLECTIVES_TIMEOUT = datetime.timedelta(minutes=30)
# torch's
DEFAULT_PORT = 29_500


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0: the one that writes files."""
        return self.rank == 0

    def memory_gb(self) -> dict[str, float]:
        """host_gb: what this process holds; device_gb, on a GPU: the most that its tensors have held. 1e9 bytes."""
        import psutil

        held = {"host_gb": psutil.Process().memory_info().rss}
        if self.device.type == "cuda":
            held["device_gb"] = torch.cuda.max_memory_allocated(self.device)
        return {name: round(count / 1e9, 3) for name, count in held.items()}


def join_world(*, rank: int = 0, local_rank: int = 0, world_size: int = 1, rendezvous_timeout_s: float = 300) -> World:
    """Makes the process group: in memory for one process, over the launcher's MASTER_ADDR for several.

    Args:
        rendezvous_timeout_s: how long to wait for the other processes at the start.
    Raises:
        UserError: the local rank has no device, the port is taken, or the others did not come in time.
    """
    accelerator = import_deepspeed().accelerator.get_accelerator()
    # DeepSpeed's engine asserts on it
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    device = _take_device(accelerator, local_rank)
    backend = accelerator.communication_backend_name()
    if not dist.is_initialized():
        if world_size == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            if device.type == "cuda":
                # or NCCL complains of it on the last line
                atexit.register(_end_group)
        else:
            _choose_interface()
            _meet(backend, rank=rank, world_size=world_size, timeout_s=rendezvous_timeout_s)
    return World(rank=rank, local_rank=local_rank, size=world_size, device=device)


def leave_world(world: World) -> None:
    """Ends a group of several processes; the one-process group stays, torch cannot make it twice in a kernel."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def choose_algorithms(device: torch.device, *, deterministic: bool) -> None:
    """On a GPU: of its algorithms those that repeat to the bit, where torch has one; the other ones are warned of."""
    if device.type != "cuda":
        return
    # it says so at each start; of the few tokens of a policy it repeats
    warnings.filterwarnings("ignore", message="Memory Efficient attention defaults to a non-deterministic")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # memory that is written before it is read needs no zeros
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _end_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for the other ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def tensors_from_first(tensors: dict[str, torch.Tensor] | None, world: World) -> dict[str, torch.Tensor]:
    """Rank 0's tensors on every rank, on its device; only rank 0 gives some."""
    given = tensors or {}
    if world.size == 1:
        return {name: value.to(world.device) for name, value in given.items()}
    listed = from_first([(name, tuple(value.shape), value.dtype) for name, value in given.items()])
    shared = {}
    for name, shape, dtype in listed:
        mine = given[name] if name in given else torch.empty(shape, dtype=dtype, device=world.device)
        shared[name] = mine.to(world.device)
        dist.broadcast(shared[name], src=0)
    return shared


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _take_device(accelerator: Any, local_rank: int) -> torch.device:
    if accelerator.device_name() == "cpu":
        # a C++ op would be built at first use: 29-100 s, refused without ninja, and a killed build locks the next
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        _cpu_habits()
        return torch.device("cpu")
    if local_rank >= accelerator.device_count():
        raise UserError(
            f"local rank {local_rank}, but {accelerator.device_count()} device(s) are visible. Start fewer processes."
        )
    # read as the first product of matrices is asked for: products that repeat to the bit
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    accelerator.set_device(local_rank)
    return torch.device(accelerator.device_name(local_rank))


def _cpu_habits() -> None:
    """Threads shared between the ranks of a host, and freed memory kept: activations are the same size every step."""
    if "OMP_NUM_THREADS" not in os.environ:
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        ranks_here = next(filter(None, (env_number(os.environ, name, low=1) for name in names)), 1)
        torch.set_num_threads(max(1, num_cores() // ranks_here))
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # without these two glibc maps and unmaps every large activation: page faults were 40 % of a training step
        # gaps of larger blocks, as ZeRO has, glibc fills badly: at stage 1 a process held 1.5 times what was in use
        libc.mallopt(-3, 1 << 26)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        # M_ARENA_MAX: every thread's own arena reserves 64 MB of address space, a dozen of them here
        libc.mallopt(-8, 2)


def give_back_freed() -> None:
    """Lets the system have what was freed on the host, e.g. the weights that DeepSpeed has copied."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _choose_interface() -> None:
    """Tells gloo the network interface that leads to MASTER_ADDR: by itself it may take the loopback one."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if "GLOO_SOCKET_IFNAME" in os.environ or address.startswith("127.") or address == "localhost":
        return
    import psutil

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # a datagram socket: nothing is sent, the route is looked up
        probe.connect((address, 9))
        mine = probe.getsockname()[0]
        for name, entries in psutil.net_if_addrs().items():
            if any(entry.address == mine for entry in entries):
                os.environ["GLOO_SOCKET_IFNAME"] = name


def _meet(backend: str, *, rank: int, world_size: int, timeout_s: float) -> None:
    """The process group of a launched job; torchrun brings its own meeting place, other launchers name rank 0's."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=COLLECTIVES_TIMEOUT)
        return
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = env_number(os.environ, "MASTER_PORT", low=1, high=65_535) or DEFAULT_PORT
    place = f"{address}:{port}"
    timeout = datetime.timedelta(seconds=timeout_s)
    try:
        store = dist.TCPStore(address, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        arrived = _wait_for_all(store, world_size, timeout_s)
    except (dist.DistNetworkError, dist.DistStoreError, RuntimeError) as error:
        raise _why_not_met(error, place, rank=rank, timeout_s=timeout_s) from None
    if arrived < world_size:
        raise UserError(
            f"{arrived} of {world_size} processes came to {place} within {timeout_s:g} s. Start the others, "
            "check WORLD_SIZE and RANK (a node's first global rank; LOCAL_WORLD_SIZE says how many it starts), "
            "or set rendezvous_timeout_s higher."
        )
    store.set_timeout(COLLECTIVES_TIMEOUT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVES_TIMEOUT)


def _wait_for_all(store: dist.TCPStore, world_size: int, timeout_s: float) -> int:
    """How many processes have come when all have, or when the time is over."""
    arrived = store.add("ppt_kit/arrived", 1)
    deadline = time.monotonic() + timeout_s
    while arrived < world_size and time.monotonic() < deadline:
        time.sleep(0.1)
        arrived = store.add("ppt_kit/arrived", 0)
    return arrived


def _why_not_met(error: Exception, place: str, *, rank: int, timeout_s: float) -> UserError:
    if "EADDRINUSE" in str(error) or "already in use" in str(error):
        return UserError(
            f"{place} is taken by another program, so rank 0 cannot listen there. Set MASTER_PORT to a free port."
        )
    return UserError(
        f"rank {rank} did not reach rank 0 at {place} within {timeout_s:g} s. Check MASTER_ADDR, MASTER_PORT and "
        "the firewall, or set rendezvous_timeout_s higher."
    )
