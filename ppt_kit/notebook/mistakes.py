"""A wrong key or value that a cell writes into a configuration is one line, as in the shell."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from ppt_kit.files import show_short
from ppt_kit.keys import leaves_of, type_name
from ppt_kit.schema import Config
from ppt_kit.words import unknown


def install(shell: Any) -> None:
    """In IPython: of a configuration of ours; other ones are told as they were."""
    shell.set_custom_exc((OmegaConfBaseException,), _tell)


def explained(error: OmegaConfBaseException) -> str | None:
    """What a shell says of the same mistake; None where it is not about a key of ours."""
    dotted, parent = error.full_key, error.parent_node
    if not dotted or parent is None or OmegaConf.get_type(parent._get_root()) is not Config:
        return None
    leaves = leaves_of(Config)
    if dotted not in leaves:
        return unknown(dotted, leaves) if isinstance(error, (ConfigKeyError, ConfigAttributeError)) else None
    if not isinstance(error, ValidationError):
        return None
    return f"{dotted}={show_short(error.value)}: takes {type_name(leaves[dotted][0])}."


def _tell(shell: Any, kind: type, error: OmegaConfBaseException, trace: Any, tb_offset: int | None = None) -> None:
    said = explained(error)
    if said is not None:
        # what IPython shows in the place of the frames, which are all of omegaconf
        error._render_traceback_ = lambda: [f"error: {said}"]  # type: ignore[attr-defined]
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
