"""The grammar of a configuration's words, one in shell and cell: `key=value`, `--key=value`, `--key value`."""

from __future__ import annotations

import difflib
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppt_kit.errors import UserError
from ppt_kit.keys import leaves_of, type_name, unwrap
from ppt_kit.schema import RENAMED


def parse_words(words: typing.Sequence[str]) -> list[tuple[str, str]]:
    """[(dotted key, text)] of `key=value`, `--key=value` and `--key value`; a bare `--flag` means true.

    Raises:
        UserError: a word that is none of these.
    """
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise UserError(f"{word!r} is not key=value. Type e.g. seed=1 or --seed=1; --help lists the keys.")
            text = rest.pop(0) if rest and not rest[0].startswith("--") and "=" not in rest[0] else "true"
        pairs.append((name.lstrip("+").replace("/", "."), text))
    return pairs


def set_word(tree: DictConfig, dotted: str, text: str, schema: type) -> DictConfig:
    """`tree` with the key `dotted` set to what `text` says in the schema's type.

    Raises:
        UserError: an unknown key, or a text of another type.
    """
    leaves = leaves_of(schema)
    owner = next((leaf for leaf in leaves if dotted.startswith(f"{leaf}.") and leaves[leaf][0] is Any), None)
    if dotted not in leaves and owner is None:
        raise UserError(unknown(dotted, leaves))
    kind = leaves[dotted][0] if dotted in leaves else Any
    try:
        OmegaConf.update(tree, dotted, _typed(text, kind), merge=False, force_add=owner is not None)
    except (OmegaConfBaseException, ValueError):
        raise UserError(f"{dotted}={text}: takes {type_name(kind)}, {text!r} is none.") from None
    return tree


def _typed(text: str, kind: Any) -> Any:
    """Text as the schema's type: text stays text (`1e5`, `rollout #3`), the rest is read as YAML."""
    optional, inner = unwrap(kind)
    if optional and text in ("null", "None", ""):
        return None
    if inner is str:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if typing.get_origin(inner) is list:
        text = text if text.startswith("[") else f"[{text}]"
    value = OmegaConf.create({"value": OmegaConf.from_dotlist([f"value={text}"]).value}).value
    if inner is int and isinstance(value, (float, bool)):
        raise ValueError("not a whole number")
    if inner is float and isinstance(value, bool):
        raise ValueError("not a number")
    return value


def unknown(dotted: str, leaves: dict) -> str:
    """What is said of a key that no leaf has: the nearest one, or what is in the group of that name."""
    if dotted in RENAMED:
        return f"unknown key {dotted}: it is called {RENAMED[dotted]} now."
    near = difflib.get_close_matches(dotted, leaves, 1, cutoff=0.5)
    # `lr` -> `optimizer.lr`: compare the last part alone
    if not near:
        near = [name for name in leaves if name.rsplit(".")[-1] == dotted.rsplit(".")[-1]][:1]
    same_end = [name for name in leaves if name.rsplit(".")[-1] == dotted]
    near = same_end[:1] or near
    groups = {name.rsplit(".", 1)[0] for name in leaves if "." in name}
    if dotted in groups:
        one = next(name for name in leaves if name.startswith(f"{dotted}."))
        return f"{dotted} is a group of keys. Set one of them, e.g. {one}."
    return f"unknown key {dotted}." + (f" Did you mean {near[0]}?" if near else "") + " --help lists the keys."
