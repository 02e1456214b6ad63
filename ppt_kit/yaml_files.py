"""YAML files as people write them: read, refused where they mean something else, and the files that they name."""

from __future__ import annotations

from pathlib import Path

import yaml

from ppt_kit.errors import UserError
from ppt_kit.migration.ancestor import is_ancestors
from ppt_kit.words import BOOLS, NO_NUMBER, NUMBER, WHOLE, nodes_of, refuse_twins

# of a file that people write, with its aliases written out
MOST_VALUES = 100_000


def read_yaml(path: Path) -> tuple[str, dict]:
    """The text of a YAML file that holds keys with values, each written as what it is; and the values as texts.

    Raises:
        UserError: it is something else; the line says where.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8. Save it as UTF-8, or name a YAML file.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{path}, line {line}: is no YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        line = text[: getattr(error, "position", 0)].count("\n") + 1
        raise UserError(
            f"{path}, line {line}: is no YAML: {getattr(error, 'reason', 'brackets in brackets')}."
        ) from None
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}: holds no keys with values. Write e.g. seed: 1.")
    if node is not None and _num_values(node, {}) > MOST_VALUES:
        raise UserError(f"{path}: its aliases stand for more than {MOST_VALUES} values. Write out what is meant.")
    refuse_twins(node, where=str(path))
    for each in nodes_of(node):
        _check_node(each, path)
    return text, values or {}


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are once each alias is what it stands for."""
    if id(node) not in known:
        # one that leads back to itself is refused elsewhere
        known[id(node)] = 0
        parts = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else []
        inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_num_values(each, known) for each in inner)
    return known[id(node)]


def _check_node(node: yaml.Node, path: Path) -> None:
    """Refuses what is no plain value, and what YAML reads as another: 010 as 8, 1:30 as 90, yes as true."""
    where = f"{path}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode) and not all(isinstance(name, yaml.ScalarNode) for name, _ in node.value):
        raise UserError(f"{where}: a list or a mapping is no key. Write e.g. seed: 1.")
    if not node.tag.startswith("tag:yaml.org,2002:") or "/" in node.tag:
        raise UserError(f"{where}: {node.tag} makes an object of Python; only plain values are read.")
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return
    kind = node.tag.rsplit(":", 1)[-1]
    is_number = WHOLE.fullmatch(node.value) or NUMBER.fullmatch(node.value) or NO_NUMBER.fullmatch(node.value)
    if (kind in ("int", "float") and not is_number) or (kind == "bool" and node.value not in BOOLS):
        told = "true or false" if kind == "bool" else "the number in plain digits, as 1000"
        raise UserError(
            f"{where}: {node.value} means something else in YAML. "
            f"Write {told}, or '{node.value}' in quotes if it is a text."
        )


def named_groups(path: Path, *, roots: list[Path], above: tuple[Path, ...] = ()) -> set[str]:
    """The config groups that the `defaults` of a configuration, and of the files that they name, choose a file of.

    All of them are looked at, those that are there: Hydra says what is not.

    Args:
        roots: folders that groups are looked for in.
        above: the files that led here.
    Returns:
        e.g. {"policy/head"}.
    Raises:
        UserError: one cannot be read, or they lead back to themselves.
    """
    if path in above:
        circle = " -> ".join(each.stem for each in (*above[above.index(path) :], path))
        raise UserError(f"{path}: its defaults lead back to it: {circle}. Take one of them out.")
    _, values = read_yaml(path)
    if "hydra" in values and not is_ancestors({key: value for key, value in values.items() if key != "hydra"}):
        raise UserError(f"{path}: unknown key hydra: only its defaults and interpolations are used here. Delete it.")
    named = values.get("defaults", [])
    if not isinstance(named, list):
        raise UserError(f"{path}: defaults must be a list, e.g. defaults: [quickstart, _self_].")
    groups = set[str]()
    for entry in named:
        for group, choice in entry.items() if isinstance(entry, dict) else [("", entry)]:
            for one in choice if isinstance(choice, list) else [choice]:
                found = next((file for file in _places_of(group, str(one), path, roots) if is_file(file)), None)
                if found is None or one == "_self_":
                    continue
                chosen, package = group_of(found, roots=roots), group.partition("@")[2]
                groups |= {chosen} if group and package in ("", chosen.replace("/", ".")) else set()
                groups |= named_groups(found, roots=roots, above=(*above, path))
    return groups


def _places_of(group: str, name: str, path: Path, roots: list[Path]) -> list[Path]:
    """Where the file may be that an entry of `defaults` in `path` names; "" = no group."""
    # "override /policy@here: small" is policy/small.yaml
    folder = group.split("@")[0].split(" ")[-1]
    # a group of a file of a group is told from where that group is, in each root
    inner = [] if folder.startswith("/") else [root / group_of(path, roots=roots) / folder for root in roots]
    file = f"{name.split('@')[0].removesuffix('.yaml').lstrip('/')}.yaml"
    return [place / file for place in (path.parent / folder, *inner, *(root / folder.strip("/") for root in roots))]


def group_of(file: Path, *, roots: list[Path]) -> str:
    """The config group that a file is of: its folder, told from the root that it lies in; "." of one in none."""
    return next((file.parent.relative_to(root) for root in roots if file.is_relative_to(root)), Path()).as_posix()


def is_file(path: Path) -> bool:
    """False also for a name that no disk takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """As `is_file`."""
    try:
        return path.is_dir()
    except OSError:
        return False


def first_line(error: BaseException) -> str:
    # Hydra wraps what others raise, and may say nothing itself
    while not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
