"""Where a run comes from."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import yaml

from ppt_kit.programs import clone

PROVENANCE = "provenance.yaml"
PACKAGES = ("ppt_kit", "torch", "deepspeed", "numpy", "zarr", "metaworld", "mujoco")


def provenance(dataset_fingerprints: dict[str, str]) -> dict:
    """Where a run comes from: versions, git revision, host, command, data."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_revision": _git_revision(),
        "host": platform.node(),
        "command": sys.argv,
        "datasets": dataset_fingerprints,
    }


def began_here(run_dir: Path) -> bool:
    """Whether the run in a folder says that it is of this host."""
    with contextlib.suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
        said = yaml.safe_load((run_dir / PROVENANCE).read_text(encoding="utf-8"))
        return isinstance(said, dict) and said.get("host") == platform.node()
    return False


def fingerprint_of(path: Path) -> str:
    """Twelve hex digits of a dataset's file names, sizes and modification times."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _git_revision() -> str | None:
    """Of the clone that this runs from; an installation inside of somebody's repository is not of its revision."""
    folder = clone()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if folder is not None:
            found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
            return found.stdout.strip() or None
    return None
