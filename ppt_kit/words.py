"""The grammar of a configuration's words, one in shell and cell: `key=value`, `--key=value`, `--key value`."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppt_kit.errors import UserError
from ppt_kit.keys import leaves_of, type_name, unwrap
from ppt_kit.schema import RENAMED, ROLLOUT_RUNNER, Config, EvaluateConfig

# numbers as everybody reads them: YAML has others, which make 8 of 010, 90 of 1:30 and 16 of 0x10
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
NO_NUMBER = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE)
BOOLS = {"true": True, "True": True, "false": False, "False": False}
NULLS = ("null", "None")
# says which process this is, which the environment says too; launchers add it
LAUNCHER_WORD = re.compile(r"--local[-_]rank(=[0-9]+)?")


class PlainLoader(yaml.SafeLoader):
    """YAML in which a number, true, false and null are what they look like, and everything else is text."""

    # asked in this order, of a scalar with any first letter
    yaml_implicit_resolvers: typing.ClassVar[dict] = {
        None: [
            ("tag:yaml.org,2002:bool", re.compile(f"({'|'.join(BOOLS)})$")),
            ("tag:yaml.org,2002:null", re.compile(f"({'|'.join(NULLS)})$")),
            ("tag:yaml.org,2002:int", re.compile(f"{WHOLE.pattern}$")),
            ("tag:yaml.org,2002:float", re.compile(f"{NUMBER.pattern}$")),
        ]
    }


def parse_words(words: Sequence[str], *, schema: type = Config, beside: Sequence[str] = ()) -> list[tuple[str, str]]:
    """[(dotted key, text)] of `key=value`, `--key=value` and `--key value`; a bare `--flag` means true.

    Args:
        schema: which keys are flags.
        beside: further keys, of text.
    Raises:
        UserError: a word that is none of these, or a key with two values.
    """
    leaves = leaves_of(schema)
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not isinstance(word, str):
            raise UserError(f"{word!r} is no word. Type e.g. 'seed=1'.")
        dashes = word.startswith("--")
        name, equals, text = word.removeprefix("--").partition("=")
        if dashes and name not in leaves and name.replace("-", "_") in (*leaves, *beside):
            name = name.replace("-", "_")
        _check_key(name, word, is_whole=bool(equals) or dashes)
        if not equals:
            text = _text_behind(rest, name, leaves, (*beside, *(ROLLOUT_RUNNER if schema is EvaluateConfig else ())))
        elif text.startswith("="):
            raise UserError(f"{_said(word)} has two signs of equality. Type {name}={text.lstrip('=')}.")
        pairs.append((name, text))
    _refuse_two_values(pairs, schema)
    pairs = [_own_word(name, text, schema) for name, text in pairs]
    return pairs


def own_words(words: Sequence[str]) -> list[str]:
    """The words without those that launchers add: `--local_rank=0`, `--local-rank 0`.

    Raises:
        UserError: a local rank that is no number.
    """
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if LAUNCHER_WORD.fullmatch(word) is None:
            if re.match(r"--local[-_]rank\b", word):
                raise UserError(f"{_said(word)}: a launcher adds it, with a number. Leave it out.")
            kept.append(word)
        elif "=" not in word and rest and re.fullmatch("[0-9]+", rest[0]):
            rest.pop(0)
    return kept


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
        value = _typed(text, kind, where=f"{dotted}={_short(text)}")
        if owner is not None:
            dotted, value = owner, _with_part(tree, owner, dotted.removeprefix(f"{owner}."), value)
        OmegaConf.update(tree, dotted, value, merge=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        said = f"takes {type_name(kind)}, {_said(text)} is none.{_hint(text, kind)}"
        raise UserError(f"{dotted}={_short(text)}: {said}") from None
    return tree


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
    hint = f"Did you mean {near[0]}?" if near else "--help lists the keys, and in a notebook load_config() shows them."
    return f"unknown key {_short(dotted)}. {hint}"


def nodes_of(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """Every node of parsed YAML, each once."""
    seen, left = set(), [node]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, yaml.MappingNode):
            left += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            left += each.value


def refuse_twins(node: yaml.Node | None, *, where: str) -> None:
    """Raises UserError when a mapping of parsed YAML has a key twice: the first would be dropped."""
    for mapping in nodes_of(node):
        names: set[str] = set()
        for name, _ in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
            if str(name.value) in names:
                raise UserError(f"{where}, line {name.start_mark.line + 1}: {name.value} is given twice. Give it once.")
            names.add(str(name.value))


def _check_key(name: str, word: str, *, is_whole: bool) -> None:
    """Raises UserError unless `name` can be a dotted key of a whole word."""
    parts = name.split(".")
    plain = all(part and part == part.strip() and part.isprintable() for part in parts) and name[0] not in "-+~"
    if name.startswith("+") and is_whole:
        bare = _said(word.lstrip("+"))
        raise UserError(f"{_said(word)} is not key=value: Hydra's + and ~ are not needed here. Type {bare}.")
    if not plain or not is_whole:
        raise UserError(f"{_said(word)} is not key=value. Type e.g. seed=1 or --seed=1; --help lists the keys.")


def _text_behind(rest: list[str], name: str, leaves: dict, beside: Sequence[str]) -> str:
    """The value of `--name`, taken from `rest`; of a flag without one, true."""
    if rest and isinstance(rest[0], str) and not rest[0].startswith("--") and "=" not in rest[0]:
        return rest.pop(0)
    if name not in leaves and name not in beside:
        raise UserError(unknown(name, leaves))
    if name in beside or unwrap(leaves[name][0])[1] is not bool:
        raise UserError(f"--{name} has no value. Type --{name}=….")
    return "true"


def _own_word(name: str, text: str, schema: type) -> tuple[str, str]:
    """A pair in the schema's own words, where another program's are another word for one of its keys."""
    if schema is not EvaluateConfig or name not in ROLLOUT_RUNNER:
        return name, text
    flags = {**dict.fromkeys(("true", "True"), "-1"), **dict.fromkeys(("false", "False"), "0")}
    return ROLLOUT_RUNNER[name], flags.get(text, text) if name.endswith("save_video") else text


def _refuse_two_values(pairs: list[tuple[str, str]], schema: type) -> None:
    given: dict[str, tuple[str, str, str]] = {}
    for name, text in pairs:
        own, value = _own_word(name, text, schema)
        first, said, before = given.setdefault(own, (name, text, value))
        if before == value:
            continue
        if first == name:
            raise UserError(f"{name} is given twice, as {_short(said)} and as {_short(text)}. Give it once.")
        raise UserError(
            f"{first}={_short(said)} and {name}={_short(text)} are two words for one key. Give one of them."
        )


def _typed(text: str, kind: Any, *, where: str) -> Any:
    """Text as the schema's type: text stays text (`1e5`, `rollout #3`).

    Args:
        where: what the user typed.
    Raises:
        ValueError, yaml.YAMLError: it is of another type.
    """
    optional, inner = unwrap(kind)
    if optional and text in NULLS:
        return None
    # resolved later, with the whole configuration
    if "${" in text:
        return text
    if inner is Any:
        return _anything(text, where=where) if text else ""
    if not text and (optional or typing.get_origin(inner) is not list):
        raise ValueError("empty")
    if typing.get_origin(inner) is list:
        return _listed(text, typing.get_args(inner)[0])
    return _scalar(text, inner)


def _scalar(text: str, kind: type) -> Any:
    if kind is str:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    text = text.strip(" ")
    if kind is bool and text in BOOLS:
        return BOOLS[text]
    if kind is int and WHOLE.fullmatch(text):
        return int(text)
    if kind is float and (NUMBER.fullmatch(text) or NO_NUMBER.fullmatch(text)):
        return float(text.replace(".", "") if NO_NUMBER.fullmatch(text) else text)
    raise ValueError(f"no {kind.__name__}")


def _listed(text: str, kind: type) -> list:
    """A list with or without its brackets; its items are texts first, so that 007 among names stays 007."""
    items = yaml.load(text if text.startswith("[") else f"[{text}]", Loader=yaml.BaseLoader)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("no list")
    if text in NULLS:
        raise ValueError("no list")
    return [item if kind is str else _scalar(item, kind) for item in items]


def _anything(text: str, *, where: str) -> Any:
    """A number, true, null, a text, or a list or mapping of those."""
    if text[0] not in "[{'\"":
        # `a: b` is a text here, and so are 007 and yes
        return yaml.load(text, Loader=PlainLoader) if _is_plain(text) else text
    node = yaml.compose(text, Loader=PlainLoader)
    refuse_twins(node, where=where)
    return yaml.load(text, Loader=PlainLoader)


def _is_plain(text: str) -> bool:
    return text in BOOLS or text in NULLS or NUMBER.fullmatch(text) is not None


def _with_part(tree: DictConfig, owner: str, part: str, value: Any) -> dict:
    """The mapping at `owner` with one part more; `a.b` is b in the mapping a.

    Raises:
        UserError: what is there is no mapping.
    """
    there = OmegaConf.select(tree, owner)
    if there is not None and not OmegaConf.is_dict(there):
        raise UserError(f"{owner}.{part}: {owner} is {there}, which has no parts. Type {owner}={{{part}: …}}.")
    whole = typing.cast(dict, OmegaConf.to_container(there)) if there is not None else {}
    within, names = whole, part.split(".")
    for name in names[:-1]:
        within = within.setdefault(name, {})
        if not isinstance(within, dict):
            raise UserError(f"{owner}.{part}: {name} is {within}, which has no parts.")
    within[names[-1]] = value
    return whole


def _hint(text: str, kind: Any) -> str:
    """How it is to be written, where that can be told."""
    optional, inner = unwrap(kind)
    if not text:
        return f" Give a value{', or null' if optional else ''}."
    if inner is Any:
        return " Brackets and quotes must be closed, keys given once."
    if inner is int and NUMBER.fullmatch(text) and abs(float(text)) < 1e15 and float(text).is_integer():
        return f" Type {float(text):.0f}."
    if inner in (int, float):
        return " Numbers are written in plain digits, as 1000."
    return ""


def _said(text: str) -> str:
    """A text in quotes, cut where it would fill the screen."""
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _short(text: str) -> str:
    """A text in one line, cut where it would fill the screen."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:81])
    return text if len(text) <= 80 else f"{text[:80]}…"
