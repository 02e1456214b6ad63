"""Whether W&B works on this machine: asked for by ppt_kit.installation."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from ppt_kit.tracking.mirrors import MirrorOptions, _mode, _start_wandb


def wandb_mode() -> str:
    """What wandb.mode=auto means here: online, offline or disabled; after a run without a connection.

    Raises:
        RuntimeError: it does not start; training would go on without it.
    """
    mode = _mode("auto")
    if mode == "disabled":
        return mode
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ppt_kit").addHandler(handler)
    with tempfile.TemporaryDirectory() as folder:
        run = _start_wandb(Path(folder), MirrorOptions(wandb_mode="offline"))
        if run is None:
            raise RuntimeError("; ".join(said) or "wandb.init gives nothing")
        run.finish()
    return mode
