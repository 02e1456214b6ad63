"""UnifiedTrainer as people meet it: in a notebook it shows itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ppt_kit.errors import UserError
from ppt_kit.train import trainer

log = logging.getLogger(__name__)


class ExitCode(int):
    """What a run ended with, as a shell knows it: 0 = all went well. A cell that ends in it shows a sentence."""

    run_dir: Path

    @classmethod
    def of(cls, code: int, run_dir: Path) -> ExitCode:
        """The code of the run in a folder."""
        told = cls(code)
        told.run_dir = run_dir
        return told

    def __repr__(self) -> str:
        if self:
            return f"{self.run_dir}: stopped and saved (exit code {int(self)}); run.resume() goes on"
        return f"{self.run_dir}: finished"


class UnifiedTrainer(trainer.UnifiedTrainer):
    __doc__ = trainer.UnifiedTrainer.__doc__
    # whether `run` has shown its panel, or met it
    _was_shown = False

    def _work(self) -> Callable[[], int]:
        # a cell that is run again goes on, or finds the run finished
        if self._was_shown:
            OmegaConf.update(self.cfg, "train.resume", "auto")
        return super()._work()

    def _noted(self, work: Callable[[], int]) -> int:
        return ExitCode.of(super()._noted(work), self.run_dir)

    def _shown(self) -> Any:
        if not _in_notebook():
            return None
        from IPython.display import display

        from ppt_kit.notebook.live import live

        was_shown, self._was_shown = self._was_shown, True
        # made by ppt.live(run) in a cell before: it is shown there
        if self.panel is not None and not was_shown:
            return self.panel
        try:
            display(self.panel if self.panel is not None else live(self))
        except UserError as error:
            log.warning("%s Until then a bar shows the run.", error)
        return self.panel


def _in_notebook() -> bool:
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
