"""Memory that ran out: known as such, and how much of it there was."""

from __future__ import annotations

import contextlib
import gc
import resource
import traceback

import psutil
import torch

# what torch says where it has no class of its own for it
SAID = (
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "CUDA out of memory",
    "CUDA error: out of memory", "Failed to CUDA calloc",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def what_ran_out(error: BaseException) -> str:
    """The first line of such an exception, from where it says what could not be had."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    begins = [line.index(words) for words in SAID if words in line]
    return line[min(begins, default=0) :][:160].rstrip(". ")


def give_back(error: BaseException) -> None:
    """Lets go of what the frames of a failure hold, so that what follows has memory."""
    seen: BaseException | None = error
    while seen is not None:
        # a frame that still runs keeps its variables
        with contextlib.suppress(RuntimeError):
            traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bytes_held() -> int:
    """Of this process, in host memory."""
    return psutil.Process().memory_info().rss


def bytes_to_be_had(device: torch.device, *, ranks_here: int) -> float:
    """What this process could still come to hold, of its device; of the host where that is a CPU.

    Args:
        ranks_here: processes that share the host's memory.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    memory = psutil.Process().memory_info()
    free = psutil.virtual_memory().available / ranks_here
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        # of address space, which shared libraries take too
        free = min(free, max(0, limit - memory.vms))
    return free + memory.rss
