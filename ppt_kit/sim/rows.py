"""The rows of evaluations on disk: one whole line an episode, as it ends, and which of them need not be run again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ppt_kit.errors import UserError
from ppt_kit.files import append_whole, json_row, write_whole
from ppt_kit.models.policy import PPTPolicy

# what rows must share to be of one evaluation, beside the path of the checkpoint
IDENTITY = ("weights", "domain", "task", "options", "zero_keys", "control")
# what a row must say to be one
NEEDED = {"success", "error", "steps", "return", "subtasks"}
# what of a row the clock says; the rest is the same whenever, and wherever, its episode is run
TIMED = ("policy_ms", "policy_share", "episode_s")


class RowFile:
    """<log_name>.jsonl, which several evaluations may share: each row says what it is of.

    Args:
        path: of the file; its folder is made with the first row.
        common: what every row of this evaluation says: checkpoint and IDENTITY.
    """

    def __init__(self, path: Path, common: Mapping[str, Any]):
        self.path, self.common = path, dict(common)

    def take_up(self, seeds: Sequence[int], *, film: frozenset[int]) -> dict[int, dict]:
        """seed -> row of the episodes that were run before; their rows stay, one a seed.

        Rows of this evaluation that are to be run again leave the file: those of errors, and those of `film` whose
        video is not there. So does a last line that is only half written. Rows of others stay as they are.

        Raises:
            UserError: the file cannot be read or written.
        """
        done: dict[int, dict] = {}
        with self._told(), locked(self.path.parent):
            if not self.path.exists():
                return done
            kept, before = [], self.path.read_bytes()
            for line in before.splitlines(keepends=True):
                row = json_row(line)
                if row is not None and line.endswith(b"\n") and self._is_ours(row, seeds):
                    seed = row["seed"]
                    if row["error"] is not None or seed in done or (seed in film and not _is_there(row.get("video"))):
                        continue
                    # as it is called now
                    done[seed] = _completed(row) | {name: self.common.get(name) for name in ("checkpoint", "epoch")}
                # what is no row is somebody's too; without its end it is the half of one
                if line.endswith(b"\n"):
                    kept.append(line)
            if b"".join(kept) != before:
                write_whole(self.path, lambda beside: beside.write_bytes(b"".join(kept)))
        return done

    def add(self, row: dict) -> None:
        """Appends a row: it is on the disk, whole, or not in the file.

        Raises:
            UserError: the disk does not take it.
        """
        line = (json.dumps(row) + "\n").encode()
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.parent):
                append_whole(self.path, line)

    def _is_ours(self, row: dict, seeds: Sequence[int]) -> bool:
        checkpoint, seed = row.get("checkpoint"), row.get("seed")
        return (
            all(row.get(name) == self.common.get(name) for name in IDENTITY)
            and set(row) >= NEEDED
            and isinstance(seed, int)
            and seed in seeds
            and isinstance(checkpoint, str)
            and os.path.realpath(checkpoint) == os.path.realpath(self.common["checkpoint"])
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: {error.strerror}. The rows before are kept; make room, or choose another "
                "log name, and type the same again: it goes on."
            ) from None


def run_of(checkpoint: str | Path) -> Path:
    """The run folder that a checkpoint is of: a file is one of it, a folder is it, also when its name has a dot."""
    path = Path(checkpoint)
    return path.parent if path.suffix == ".pth" else path


def weights_id(policy: PPTPolicy, domain: str) -> str:
    """Twelve hex digits of what acts: every weight, the configuration of its parts, and how it sees the domain.

    Averaged and raw weights of one file differ in it, and so does what was changed in a notebook.
    """
    digest = hashlib.sha256()
    for name, value in policy.state_dict().items():
        digest.update(weight_bytes(name, value))
    parts = (policy.card.get("config") or {}).get("policy")
    described = {"parts": parts, "horizon": str(policy.horizon), "view": policy.card["views"][domain]}
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:12]


def weight_bytes(name: str, value: torch.Tensor) -> bytes:
    """What a hash of weights takes of one of them: name, shape, type and every bit."""
    head = f"{name} {tuple(value.shape)} {value.dtype}".encode()
    return head + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def short_id(described: Mapping[str, Any]) -> str:
    """Eight hex digits of a mapping of plain values."""
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:8]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, where the disk can: rows are appended by several, and the file is replaced by one."""
    if not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # some network disks know no locks
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _completed(row: dict) -> dict:
    """A row with the keys of today: those of before were all of episodes that stopped at their success."""
    step = row["steps"] if row["success"] else None
    new: dict[str, Any] = {"control": None, "traceback": None, "attempts": 1, "scores": {}}
    new |= {"trace": None, "made_with": None}
    return {"success_last": row["success"], "success_step": step, **dict.fromkeys(TIMED), **new, **row}


def _is_there(video: Any) -> bool:
    return isinstance(video, str) and Path(video).is_file()
