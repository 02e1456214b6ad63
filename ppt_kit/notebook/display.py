"""What a notebook shows of objects that are not ours to give a look: configurations."""

from __future__ import annotations

import html
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppt_kit.keys import default_of, leaves_of, show
from ppt_kit.notebook import completion, mistakes
from ppt_kit.schema import Config
from ppt_kit.tables import STYLE
from ppt_kit.tracking import log_as_lines


def install() -> None:
    """In IPython: configurations have a look and their keys are completed.

    In a notebook what the package warns of is a line, not a red block.
    """
    shell = sys.modules["IPython"].get_ipython()
    if shell is None:
        return
    shell.display_formatter.formatters["text/html"].for_type(DictConfig, html_of)
    shell.display_formatter.formatters["text/plain"].for_type(DictConfig, _print_plain)
    completion.install(shell)
    mistakes.install(shell)
    if "ipykernel" in sys.modules:
        log_as_lines()


def html_of(cfg: DictConfig) -> str | None:
    """What differs from the defaults, and all of it under a fold; None of a configuration that is not ours."""
    if not _is_ours(cfg):
        return None
    rows = "".join(
        f'<tr><td><b>{html.escape(name)}</b></td><td>{html.escape(now)}</td><td style="opacity:.6">'
        f"{html.escape(default)}</td></tr>"
        for name, (now, default) in changed(cfg).items()
    )
    whole = html.escape(OmegaConf.to_yaml(cfg))
    return (
        f'{STYLE}<div class="ppt-table"><table><thead><tr><th>key</th><th>value</th><th>default</th></tr></thead>'
        f"<tbody>{rows}</tbody></table><details><summary>all {len(leaves_of(Config))} keys</summary>"
        f"<pre>{whole}</pre></details></div>"
    )


def changed(cfg: DictConfig) -> dict[str, tuple[str, str]]:
    """Dotted key -> (its value, its default) as they are typed, of those that differ."""
    found = {}
    for dotted, (_, leaf) in leaves_of(Config).items():
        now, default = OmegaConf.select(cfg, dotted), default_of(leaf)
        if show(now) != show(default):
            found[dotted] = (show(now), show(default))
    return found


def _is_ours(cfg: DictConfig) -> bool:
    return OmegaConf.get_type(cfg) is Config


def _print_plain(cfg: DictConfig, printer: Any, cycle: bool) -> None:
    if not _is_ours(cfg):
        printer.text(repr(cfg))
        return
    lines = [f"{name}={now}" for name, (now, _) in changed(cfg).items()]
    printer.text(f"configuration: {len(lines)} of {len(leaves_of(Config))} keys differ from their defaults\n  ")
    printer.text("\n  ".join(lines))
