"""A run while it trains, in a notebook: curves, numbers, and what it can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppt_kit.errors import UserError
from ppt_kit.train.trainer import UnifiedTrainer

if TYPE_CHECKING:
    from ppt_kit.notebook.live.panel import Panel


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
    folder = Path(run)
    if folder.is_file():
        raise UserError(f"{folder}: a file. Give the run folder, e.g. {folder.parent}.")
    return Panel(folder)
