"""One row in: metrics.jsonl (the truth), {job_name}.log and W&B (a mirror that may fail); read back as pandas."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import netrc
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from ppt_kit.files import write_text

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class Tracker:
    """Writes what a run has to tell. On ranks other than the first it does nothing.

    Args:
        active: whether this process writes.
        wandb_mode: auto, online, offline or disabled.
        settings: the configuration as a plain dict, for W&B.
        tensorboard: event files too, in <run_dir>/tensorboard.
        resumed_step: rows of later steps are dropped, the run writes them again; None for a new run.
        wandb_id: of the W&B run to go on with.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        active: bool,
        job_name: str,
        wandb_mode: str,
        wandb_project: str,
        settings: dict,
        tensorboard: bool = False,
        resumed_step: int | None = None,
        wandb_id: str | None = None,
    ):
        self.run_dir, self.active = run_dir, active
        self._handlers: list[logging.Handler] = []
        self._wandb: Any = None
        self.wandb_id = wandb_id  # of the mirror, for the part of the run that goes on after this one
        self._board: Any = None
        self._lock = threading.Lock()
        if not active:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        if resumed_step is not None:
            _drop_later_rows(run_dir / METRICS, resumed_step)
        self._file = open(run_dir / METRICS, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        self._unwritten = b""  # rows that a full disk did not take
        self._log_to(run_dir / f"{job_name}.log")
        self._wandb = _start_wandb(run_dir, mode=wandb_mode, project=wandb_project, settings=settings, run_id=wandb_id)
        self.wandb_id = getattr(self._wandb, "id", wandb_id)
        self._board = _start_tensorboard(run_dir) if tensorboard else None

    def row(self, kind: str, **values: Any) -> dict:
        """One line of metrics.jsonl, flushed; numbers that are not finite become null with a `<name>_text` beside them.

        While the disk takes none, rows wait for it in memory.
        """
        row = {"kind": kind, **{name: _plain(value) for name, value in values.items()}}
        for name, value in list(row.items()):
            if isinstance(value, float) and not math.isfinite(value):
                row[name], row[f"{name}_text"] = None, str(value)
        if self.active:
            with self._lock:  # the thread that saves tells its rows too
                self._write(json.dumps(row) + "\n")
                self._mirror(row)
        return row

    def sync(self) -> None:
        """The rows so far are on the disk.

        Raises:
            OSError: they are not, and a state saved now would go on without them.
        """
        if self.active:
            with self._lock:
                if self._unwritten:
                    raise OSError(errno.ENOSPC, "rows wait for the disk", str(self.run_dir / METRICS))
                os.fsync(self._file.fileno())

    def close(self, *, exit_code: int = 0) -> None:
        """Ends the files and the mirror; what was written stays."""
        if not self.active:
            return
        with self._lock:
            self._write("")
            self._file.close()
        for handler in self._handlers:
            logging.getLogger("ppt_kit").removeHandler(handler)
            handler.close()
        if self._board is not None:
            with _harmless("ending TensorBoard's files"):
                self._board.close()
        if self._wandb is not None:
            with _harmless("ending the W&B run"):
                self._wandb.finish(exit_code=exit_code)

    def _write(self, line: str) -> None:
        waited = bool(self._unwritten)
        self._unwritten += line.encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not waited:
                log.error("%s: %s; its rows wait in memory", self.run_dir / METRICS, error)

    def _mirror(self, row: dict) -> None:
        if row["kind"] in ("checkpoint", "end"):  # told late, by the thread that saves: W&B drops rows of earlier steps
            return
        numbers = {f"{row['kind']}/{name}": value for name, value in row.items() if isinstance(value, (int, float))}
        board, self._board = self._board, None  # a mirror that fails is told once and left out from then on
        if board is not None:
            with _harmless("writing for TensorBoard"):
                for name, value in numbers.items():
                    board.add_scalar(name, value, row.get("step"))
                self._board = board
        mirror, self._wandb = self._wandb, None
        if mirror is not None:
            with _harmless("writing to W&B"):
                mirror.log(numbers, step=row.get("step"))
                self._wandb = mirror

    def _log_to(self, path: Path) -> None:
        package = logging.getLogger("ppt_kit")
        package.setLevel(logging.INFO)
        file = _LogFile(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        screen = logging.StreamHandler(_BesideBars())
        screen.setFormatter(logging.Formatter("%(message)s"))
        self._handlers = [file, screen]
        for handler in self._handlers:
            package.addHandler(handler)


def read_metrics(run_dir: str | Path, kind: str | None = None) -> pd.DataFrame:
    """The rows of a run's metrics.jsonl, also while it is being written and after a crash.

    Args:
        run_dir: the run folder.
        kind: "train", "val", "checkpoint" or "eval"; None = all.
    Returns:
        One line a row; columns of other kinds are NaN, and left out when `kind` is given. Without a row it has the
        columns kind and step.
    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
    """
    rows = read_rows(Path(run_dir) / METRICS)
    wanted = [row for row in rows if kind is None or row.get("kind") == kind]
    if not wanted:
        return pd.DataFrame(columns=["kind", "step"])  # a run that was killed before its first row
    frame = pd.DataFrame(wanted)
    return frame.dropna(axis=1, how="all") if kind is not None else frame


def read_rows(path: Path) -> list[dict]:
    """The JSON lines of a file; a last line that is only half written is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def provenance(dataset_fingerprints: dict[str, str]) -> dict:
    """Where a run comes from: versions, git revision, host, command, data."""
    packages = ("ppt_kit", "torch", "deepspeed", "numpy", "zarr", "metaworld", "mujoco")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "git_revision": _git_revision(),
        "host": platform.node(),
        "command": sys.argv,
        "datasets": dataset_fingerprints,
    }


def fingerprint_of(path: Path) -> str:
    """Twelve hex digits of a dataset's file names, sizes and modification times."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def bar_pace() -> dict:
    """tqdm's pace: ten times a second for a person, every ten seconds into a file."""
    return {"mininterval": 0.1 if sys.stderr.isatty() or "ipykernel" in sys.modules else 10.0}


class _LogFile(logging.FileHandler):
    """A log whose disk may be full for a while: that costs lines of it, which the screen has, and not the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _BesideBars:
    """A stream whose lines go above tqdm's bars instead of through them."""

    def write(self, text: str) -> None:
        from tqdm.auto import tqdm

        if text.strip():
            tqdm.write(text.rstrip("\n"))

    def flush(self) -> None:
        """tqdm.write flushes."""


def _drop_later_rows(path: Path, step: int) -> None:
    """Rows after `step`, and the end of the run before, are written again by the run that goes on."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row.get("step", 0) <= step and row.get("kind") != "end"]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _start_tensorboard(run_dir: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / "tensorboard"))


def _start_wandb(run_dir: Path, *, mode: str, project: str, settings: dict, run_id: str | None) -> Any:
    mode = os.environ.get("WANDB_MODE", mode) if mode == "auto" else mode
    if mode == "auto":
        mode = "online" if _logged_in() else "offline"
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    with _harmless("starting W&B"):
        import wandb

        kind: Any = mode
        return wandb.init(
            mode=kind,
            project=project,
            dir=str(run_dir),
            name=run_dir.name,
            config=settings,
            reinit="create_new",
            id=run_id,
            resume="allow" if run_id else None,
        )
    return None


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return any("wandb" in host for host in netrc.netrc().hosts)
    return False


@contextlib.contextmanager
def _harmless(doing: str) -> Iterator[None]:
    """A mirror may fail in any way; training goes on and says so."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning("%s failed (%s); metrics.jsonl has everything", doing, said)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _git_revision() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
        return found.stdout.strip() or None
    return None
