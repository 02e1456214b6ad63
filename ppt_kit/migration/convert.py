"""A file of ppt_learning written as a file of today."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml

from ppt_kit.checks import check_values
from ppt_kit.config import compose_file, from_mapping
from ppt_kit.errors import UserError
from ppt_kit.keys import show
from ppt_kit.migration.ancestor import Translated
from ppt_kit.migration.reading import read_old


def converted_config(path: Path) -> tuple[Path, str, Translated]:
    """(where it goes, the YAML file's text, what was taken over and what was left out).

    Raises:
        UserError: the file is not there, is not of ppt_learning, or what it says does not fit together.
    """
    if not path.is_file():
        raise UserError(f"--convert-config={path}: no such file.")
    read = compose_file(path.name, path.parent.resolve(), [])
    if not read.is_old:
        raise UserError(f"{path}: is not of ppt_learning: it loads as it is, --config-path={path.parent}.")
    done = read_old(read)
    check_values(from_mapping(done.config))
    head = f"# {path.name} of ppt_learning, with its defaults, in the keys of ppt_kit"
    left = textwrap.indent(done.told(), "#") if done.left else "#  nothing"
    body = yaml.safe_dump(done.config, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    text = f"{head}. Without a counterpart:\n{left}\n{body}"
    return path.with_name(f"{path.stem}_ppt_kit.yaml"), text, done


def told(done: Translated) -> str:
    """The list that is printed: what holds, and what is left out."""
    kept = "\n".join(
        f"  {old} -> {new}={show(value)[:60]}" if old != new else f"  {old}={show(value)[:60]}"
        for old, new, value in done.moved
    )
    return f"holds:\n{kept}\nhas no counterpart:\n{done.told() or '  nothing'}"
