"""W&B and TensorBoard: mirrors of metrics.jsonl that may fail in any way without stopping a run."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MirrorOptions:
    """Where rows go beside metrics.jsonl.

    Attributes:
        wandb_mode: auto, online, offline or disabled.
        wandb_id: of the W&B run to go on with.
        settings: the configuration as a plain dict, for W&B.
        tensorboard: event files too, in <run_dir>/tensorboard.
    """

    wandb_mode: str = "disabled"
    wandb_project: str = "ppt_kit"
    wandb_id: str | None = None
    settings: Any = field(default_factory=dict)
    tensorboard: bool = False


class Mirrors:
    """Those of a run. One that fails is told once and left out from then on.

    Attributes:
        wandb_id: of the W&B run; what the options gave where there is none.
    """

    def __init__(self, run_dir: Path, options: MirrorOptions):
        self._wandb = _start_wandb(run_dir, options)
        self.wandb_id: str | None = getattr(self._wandb, "id", options.wandb_id)
        self._board = _start_tensorboard(run_dir) if options.tensorboard else None

    def log(self, row: dict) -> None:
        """The numbers of a row of metrics.jsonl."""
        # told late, by the thread that saves: W&B drops rows of earlier steps
        if row["kind"] in ("checkpoint", "end"):
            return
        numbers = _numbers(row)
        board, self._board = self._board, None
        if board is not None:
            with _harmless("writing for TensorBoard"):
                for name, value in numbers.items():
                    board.add_scalar(name, value, row.get("step"))
                self._board = board
        mirror, self._wandb = self._wandb, None
        if mirror is not None:
            with _harmless("writing to W&B"):
                # an evaluation ends later than the step it is of: W&B counts it where it is, and draws it where it was
                mirror.log(numbers, **({} if row["kind"] == "eval" else {"step": row.get("step")}))
                self._wandb = mirror

    def close(self, *, exit_code: int) -> None:
        """Ends them; what was written stays."""
        if self._board is not None:
            with _harmless("ending TensorBoard's files"):
                self._board.close()
        if self._wandb is not None:
            with _harmless("ending the W&B run"):
                self._wandb.finish(exit_code=exit_code)


def _numbers(row: dict) -> dict[str, float]:
    """Those of a row, by name: loss of kind train is train/loss, success in door-open eval/door-open/success."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    if row["kind"] != "eval":
        return {f"{row['kind']}/{name}": value for name, value in numbers.items()}
    return {"eval/step": row["step"], **{f"eval/{row['domain']}/{name}": value for name, value in numbers.items()}}


def _start_tensorboard(run_dir: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / "tensorboard"))


def _start_wandb(run_dir: Path, options: MirrorOptions) -> Any:
    mode = _mode(options.wandb_mode)
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    with _harmless("starting W&B"):
        import wandb

        run = wandb.init(
            mode=mode,
            project=options.wandb_project,
            # its process may have been started in another folder, by an earlier run of this one
            dir=str(run_dir.absolute()),
            name=run_dir.name,
            config=options.settings,
            reinit="create_new",
            id=options.wandb_id,
            resume="allow" if options.wandb_id else None,
        )
        run.define_metric("eval/*", step_metric="eval/step")
        return run
    return None


def _mode(asked: str) -> Any:
    """What auto means here: what the environment says, else online where W&B is logged in."""
    mode = os.environ.get("WANDB_MODE", asked) if asked == "auto" else asked
    if mode == "auto":
        return "online" if _logged_in() else "offline"
    return mode


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
