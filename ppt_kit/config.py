"""Words -> one checked, typed configuration.

A configuration is a YAML file (composed by Hydra, so `defaults:` lists, groups and `${…}` work) merged onto the
dataclasses of schema.py, then the words of the command line or the notebook cell. Keys that the schema does not have,
values of another type and numbers out of range are refused here, before any file or device is touched.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppt_kit.checks import check_values
from ppt_kit.errors import UserError
from ppt_kit.keys import default_of, leaves_of, show, type_name
from ppt_kit.schema import DEFAULT_OPTIONS, RENAMED, Config
from ppt_kit.words import parse_words, set_word, unknown

PACKAGE_CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = "quickstart"


def load_config(
    name: str = DEFAULT_CONFIG, *words: str, config_path: str | Path | None = None, schema: type = Config
) -> DictConfig:
    """The configuration `name`, changed by `words`.

    Args:
        name: a YAML file without its ending, in `config_path` or among the shipped ones; "" for the schema's defaults.
        words: `key=value` or `--key=value`, dots for nested keys.
        config_path: folder to look in before the shipped configs.
        schema: dataclass that types the result.
    Returns:
        A struct-mode DictConfig with every key of the schema, interpolations resolved.
    Raises:
        UserError: no such file, an unknown key, a wrong type, or a value out of range.
    """
    pairs = parse_words(words)
    group_words, value_pairs = _split_groups(pairs, _folder_of(name, config_path)) if name else ([], pairs)
    tree = OmegaConf.structured(schema)
    if name:
        tree = _merge(tree, _compose(name, config_path, group_words), schema, origin=f"{name}.yaml")
    for dotted, text in value_pairs:
        tree = set_word(tree, dotted, text, schema)
    try:
        OmegaConf.resolve(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"an interpolation does not resolve: {_first_line(error)}") from None
    check_values(tree, schema)
    return tree


def from_file(path: str | Path, *, schema: type = Config) -> DictConfig:
    """The configuration that a run wrote to its folder.

    Raises:
        UserError: the file is not there or does not fit the schema.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file. A run folder holds a config.yaml; name that file.")
    tree = _merge(OmegaConf.structured(schema), renamed(OmegaConf.load(path)), schema, origin=str(path))
    check_values(tree, schema)
    return tree


def from_mapping(values: Any, *, schema: type = Config) -> DictConfig:
    """The configuration in a mapping, plain or OmegaConf's, e.g. the one inside model.pth.

    Raises:
        UserError: it does not fit the schema.
    """
    return _merge(OmegaConf.structured(schema), renamed(OmegaConf.create(values)), schema, origin="the configuration")


def renamed(values: Any) -> Any:
    """A configuration that an older version wrote, with today's names."""
    for old, new in RENAMED.items():
        group, _, name = old.rpartition(".")
        within = OmegaConf.select(values, group)
        if OmegaConf.is_dict(within) and name in within:
            values = OmegaConf.create(OmegaConf.to_container(values))
            within = OmegaConf.select(values, group)
            value = within.pop(name)
            # an option of a part that has its default is not written: {} then and now is the same configuration
            if value != DEFAULT_OPTIONS.get(new):
                OmegaConf.update(values, new, value, force_add=True)
    return values


def typed(cfg: Any) -> Any:
    """The dataclass object of a configuration: plain attributes, lists and dictionaries.

    Args:
        cfg: what `load_config`, `from_file` or `from_mapping` gave, a mapping of Config's keys, or the object itself.
    """
    if dataclasses.is_dataclass(cfg):
        return cfg
    known = OmegaConf.is_config(cfg) and dataclasses.is_dataclass(OmegaConf.get_type(cfg))
    return OmegaConf.to_object(cfg if known else from_mapping(cfg))


def describe_keys(schema: type = Config, *, defaults: DictConfig | None = None) -> str:
    """One line a key: name, default, what it means. `defaults` replaces the schema's own."""
    rows = []
    for dotted, (kind, leaf) in leaves_of(schema).items():
        value = OmegaConf.select(defaults, dotted) if defaults is not None else default_of(leaf)
        choices = "|".join(show(choice) for choice in leaf.metadata["choices"])
        meaning = leaf.metadata["doc"] + (f" [{choices}]" if choices else "")
        rows.append((dotted, show(value), type_name(kind), meaning))
    widths = [min(44, max(len(row[i]) for row in rows)) for i in range(3)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {doc}" for a, b, c, doc in rows)


def _compose(name: str, config_path: str | Path | None, group_words: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder = _folder_of(name, config_path)
    search = [] if folder == PACKAGE_CONFIGS else [f"hydra.searchpath=[file://{PACKAGE_CONFIGS}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            return compose(Path(name).stem if name.endswith(".yaml") else name, overrides=[*group_words, *search])
    # Hydra and YAML raise many kinds; each is about the user's file
    except Exception as error:
        raise UserError(f"{folder / name}: cannot be read: {_first_line(error)}") from None


def _folder_of(name: str, config_path: str | Path | None) -> Path:
    if config_path is not None and not Path(config_path).is_dir():
        raise UserError(f"--config-path={config_path}: no such folder.")
    folders = [Path(config_path).resolve()] if config_path is not None else []
    folders.append(PACKAGE_CONFIGS)
    for folder in folders:
        if (folder / name).with_suffix(".yaml").is_file():
            return folder
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    places = " or ".join(map(_short, folders))
    raise UserError(f"--config-name={name}: no {name}.yaml in {places}; there is {', '.join(known)}.{hint}")


def _split_groups(pairs: list[tuple[str, str]], folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Words that choose a file of a config group (`policy=small`) go to Hydra, the others are values."""
    groups, values = [], []
    for dotted, text in pairs:
        in_group = any((root / dotted / f"{text}.yaml").is_file() for root in (folder, PACKAGE_CONFIGS))
        groups.append(f"+{dotted}={text}") if in_group else values.append((dotted, text))
    return groups, values


def _merge(tree: DictConfig, values: Any, schema: type, *, origin: str) -> DictConfig:
    leaves = leaves_of(schema)
    for dotted in _flatten(values, leaves):
        if dotted not in leaves:
            raise UserError(f"{origin}: " + unknown(dotted, leaves))
    try:
        return typing.cast(DictConfig, OmegaConf.merge(tree, values))
    except OmegaConfBaseException as error:
        raise UserError(f"{origin}: {error.full_key}: {_first_line(error)}") from None


def _flatten(values: Any, leaves: dict, prefix: str = "") -> list[str]:
    if not OmegaConf.is_dict(values):
        return []
    found = []
    for name in values:
        dotted = f"{prefix}{name}"
        # the node itself: an interpolation is resolved later
        inner = values._get_node(name)
        nested = OmegaConf.is_dict(inner) and dotted not in leaves
        found += _flatten(inner, leaves, f"{dotted}.") if nested and len(inner) else [dotted]
    return found


def _short(folder: Path) -> str:
    return "the shipped configs" if folder == PACKAGE_CONFIGS else str(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
