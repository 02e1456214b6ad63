"""DeepSpeed without its greetings."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch


def import_deepspeed() -> Any:
    """The module, imported at first use: that takes seconds."""
    with quiet():
        import deepspeed

    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|deepspeed")
    return deepspeed


def forget_autocast() -> None:
    """DeepSpeed keeps for the whole process that an engine uses autocast: the next one's reduction would follow it."""
    import_deepspeed()
    from deepspeed.runtime import torch_autocast

    torch_autocast.TORCH_AUTOCAST_INITIALIZED, torch_autocast.TORCH_AUTOCAST_DTYPE = False, None


def leave_whole(policy: Any, *, compiled: bool = False) -> None:
    """Of parts that say `forward_derivative`, ZeRO-3 brings all weights at once, and the compiler leaves them out."""
    for part in policy.modules():
        if getattr(part, "forward_derivative", False):
            import_deepspeed().utils.set_z3_leaf_module(part, True)
            if compiled:
                part.forward = torch.compiler.disable(part.forward)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed greets on import and on every initialize; our own log says what matters."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
