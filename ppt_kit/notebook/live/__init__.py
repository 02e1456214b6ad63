"""A run while it trains, in a notebook: curves, numbers, and what it can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ppt_kit.errors import UserError
from ppt_kit.files import path_of
from ppt_kit.tracking import METRICS, PROVENANCE
from ppt_kit.train.trainer import UnifiedTrainer

if TYPE_CHECKING:
    from ppt_kit.notebook.live.panel import Panel


# what a run folder has from its first moment on, one or the other
OF_A_RUN = ("config.yaml", METRICS, PROVENANCE, "train.log", "launch", "control", "failures", "wandb")


def live(run: Any) -> Panel:
    """A panel that follows a run and steers it: the last line of a cell shows it.

    It reads <run_dir>/metrics.jsonl and asks through <run_dir>/control, so a run of this kernel, a launched job and one
    on another machine that shares the disk are all the same to it.

    Args:
        run: a UnifiedTrainer, or a run folder, which need not be there yet.
    Returns:
        An anywidget; it follows until it is closed.
    Raises:
        UserError: the packages for notebooks are not installed, or the path is a file.
    """
    try:
        from ppt_kit.notebook.live.panel import Panel
    except ModuleNotFoundError as error:
        raise UserError(
            f"a panel needs {error.name}, which is not installed. Type pip install 'ppt_kit[notebook]'."
        ) from None
    if isinstance(run, UnifiedTrainer):
        run.panel = Panel(run.run_dir, failure=lambda: run.failure)
        return run.panel
    folder = path_of(run, what="a run folder, as outputs/models/door-open/exp1")
    if folder.is_file():
        raise UserError(f"{folder}: a file. Give the run folder, e.g. {folder.parent}.")
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if there and not there & set(OF_A_RUN):
        raise UserError(
            f"{folder}: is no run folder, it holds {', '.join(sorted(there)[:4])}. Give <output_dir>/<domain>/<suffix>."
        )
    return Panel(folder)
