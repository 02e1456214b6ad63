"""Where and of what something was measured; nothing of it says whose machine it is."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "ppt_kit", "torch", "deepspeed", "numpy", "zarr", "h5py", "pyarrow", "av", "mujoco", "metaworld", "gymnasium",
    "transformers", "diffusers",
)  # fmt: skip


def machine() -> dict[str, str]:
    """Processor, cores that may be used, memory, GPUs, system."""
    import psutil

    from ppt_kit.engine import num_cores
    from ppt_kit.engine.probe import visible_gpus

    return {
        "processor": _processor(),
        "cores": f"{num_cores()} of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "GPU": ", ".join(visible_gpus()) or "none",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that what is measured depends on; those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """What is measured: the revision, and whether files differ from it."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        revision, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        revision = None
    if revision is None:
        return "unknown: no git repository"
    return f"{revision}{', with changes' if changed else ''}"


class Load:
    """The system's load (processes that run or want to, a mean over a minute) while something is measured."""

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._ended = threading.Event()

    def __enter__(self) -> Load:
        self.before = os.getloadavg()[0]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def told(self) -> dict[str, float]:
        """load_before, load_mean and load_most of what was measured."""
        seen = self._seen or [os.getloadavg()[0]]
        numbers = {"before": self.before, "mean": sum(seen) / len(seen), "most": max(seen)}
        return {f"load_{name}": round(value, 2) for name, value in numbers.items()}

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._seen.append(os.getloadavg()[0])


def anonymous(text: str) -> str:
    """Without names of hosts and of folders that are somebody's."""
    named = {
        str(Path.cwd()): ".", str(ROOT): "<ppt_kit>", sys.prefix: "<python>", sys.base_prefix: "<python>",
        str(Path.home()): "~",
    }  # fmt: skip
    # the longer first: one may lie in another
    for name in sorted(named, key=len, reverse=True):
        if len(name) > 2:
            text = text.replace(name, named[name])
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "<host>", text)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
