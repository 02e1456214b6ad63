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

    def _shown(self) -> Any:
        if not _in_notebook():
            return None
        # shown already, by ppt.live(run) in a cell before
        if self.panel is not None:
            return self.panel
        from IPython.display import display

        from ppt_kit.notebook.live import live

        try:
            display(live(self))
        except UserError as error:
            log.warning("%s Until then a bar shows the run.", error)
        return self.panel


def _in_notebook() -> bool:
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
