"""UnifiedTrainer as people meet it: in a notebook it shows itself."""

from __future__ import annotations

import logging
import sys
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.train import trainer

log = logging.getLogger(__name__)


class UnifiedTrainer(trainer.UnifiedTrainer):
    __doc__ = trainer.UnifiedTrainer.__doc__
    # whether `run` has shown its panel, or met it
    _was_shown = False

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
