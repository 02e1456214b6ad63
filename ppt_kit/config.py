"""Words -> one checked, typed configuration.

A configuration is a YAML file (composed by Hydra, so `defaults:` lists, groups and `${…}` work) merged onto the
dataclasses of schema.py, then the words of the command line or the notebook cell. Keys that the schema does not have,
values of another type and numbers out of range are refused here, before any file or device is touched.
"""

from __future__ import annotations

import dataclasses
import difflib
import threading
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from ppt_kit.checks import check_values
from ppt_kit.errors import UserError
from ppt_kit.files import show_short
from ppt_kit.keys import fits, leaves_of, show, type_name
from ppt_kit.migration.reading import Composed, empty_files, missing_files, search_path, tell, todays
from ppt_kit.schema import BEFORE_STEMS, DEFAULT_CONFIG, DEFAULT_OPTIONS, RENAMED, Config
from ppt_kit.words import parse_words, set_word, unknown
from ppt_kit.yaml_files import first_line, is_file, is_folder, named_groups, read_yaml

PACKAGE_CONFIGS = Path(__file__).parent / "configs"
ONE_AT_A_TIME = threading.Lock()  # Hydra has one state for all threads


def load_config(
    name: str = DEFAULT_CONFIG, *words: str, config_path: str | Path | None = None, schema: type = Config
) -> DictConfig:
    """The configuration `name`, changed by `words`.

    Args:
        name: a YAML file without its ending, in `config_path` or among the shipped ones; "" for the schema's defaults.
        words: `key=value` or `--key=value`, dots for nested keys; `group=file` takes what configs/group/file.yaml says,
            e.g. policy/head=flow.
        config_path: folder to look in before the shipped configs.
        schema: dataclass that types the result.
    Returns:
        A struct-mode DictConfig with every key of the schema, interpolations resolved.
    Raises:
        UserError: no such file, an unknown key, a wrong type, or a value out of range.
    """
    wrong = next((each for each in (name, *words) if not isinstance(each, str)), None)
    if wrong is not None:
        raise UserError(
            f"{show_short(wrong)}: is no word. Give the name of a YAML file, then words as train.total_epochs=20."
        )
    pairs = parse_words(words, schema=schema)
    folder = _folder_of(name, config_path) if name else PACKAGE_CONFIGS
    group_words, value_pairs = _split_groups(pairs, folder=folder, schema=schema)
    tree, told = OmegaConf.structured(schema), ""
    if name or group_words:
        origin = f"{name}.yaml" if name else " ".join(group_words)
        values, told = todays(compose_file(name, folder, group_words))
        composed = OmegaConf.create(values)
        for word in group_words:
            _take_whole(composed, word, roots=[folder, PACKAGE_CONFIGS], leaves=leaves_of(schema))
        tree = _merge(tree, composed, schema, origin=origin)
    # a mapping before its parts
    for dotted, text in sorted(value_pairs, key=lambda pair: pair[0].count(".")):
        tree = set_word(tree, dotted, text, schema)
    checked = _checked(tree, schema, origin=f"{name}.yaml, or a word" if name else "a word")
    tell(told)
    return checked


def from_file(path: str | Path, *, schema: type = Config) -> DictConfig:
    """The configuration that a run wrote to its folder.

    Raises:
        UserError: the file is not there or does not fit the schema.
    """
    if not is_file(Path(path)):
        raise UserError(f"{path}: no such file. A run folder holds a config.yaml; name that file.")
    text, _ = read_yaml(Path(path))
    tree = _merge(OmegaConf.structured(schema), renamed(_tree(text)), schema, origin=str(path))
    return _checked(tree, schema, origin=str(path))


def from_mapping(values: Any, *, schema: type = Config) -> DictConfig:
    """The configuration in a mapping, plain or OmegaConf's, e.g. the one inside model.pth.

    Raises:
        UserError: it does not fit the schema.
    """
    if not (isinstance(values, Mapping) or OmegaConf.is_dict(values) or dataclasses.is_dataclass(values)):
        raise UserError(
            f"the configuration is {show(values)[:80]}. Give what load_config gives, or a mapping of its keys."
        )
    tree = _merge(OmegaConf.structured(schema), renamed(_tree(values)), schema, origin="the configuration")
    return _resolved(tree, schema, origin="the configuration")


def renamed(values: Any) -> Any:
    """A configuration that an older version wrote, with today's names."""
    for old, new in RENAMED.items():
        group, _, name = old.rpartition(".")
        within = OmegaConf.select(values, group)
        if OmegaConf.is_dict(within) and name in within:
            if old in BEFORE_STEMS and "modalities" not in within:
                # there was nothing else that a policy could see
                values = OmegaConf.merge(values, {group: {"modalities": ["state", "pointcloud"]}})
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


def compose_file(name: str, folder: Path, group_words: list[str]) -> Composed:
    """A YAML file with its `defaults` and the groups' files of words put in; "" = these alone.

    Raises:
        UserError: a file cannot be read.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException

    path, values, chosen = _file_in(folder, name) if name else folder, dict[str, Any](), set[str]()
    if name:
        chosen = named_groups(path, roots=[folder, PACKAGE_CONFIGS])
        _, values = read_yaml(path)
    gone = missing_files(values, roots=[folder, PACKAGE_CONFIGS])
    try:
        with ONE_AT_A_TIME, empty_files(gone) as stand_in:
            search = search_path([place for place in (PACKAGE_CONFIGS, *stand_in) if place != folder])
            GlobalHydra.instance().clear()
            with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
                file = name.removesuffix(".yaml") or None
                try:
                    composed = compose(file, overrides=[*_chosen_again(group_words, chosen), *search])
                except ConfigCompositionException:
                    # what was chosen from may have gone with the file that a word takes the place of
                    words = [word.split("=")[0] for word in group_words]
                    chosen = {group for group in chosen if not any(group.startswith(f"{each}/") for each in words)}
                    composed = compose(file, overrides=[*_chosen_again(group_words, chosen), *search])
    # Hydra raises many kinds; each is about the user's file
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
    return Composed(typing.cast(dict, OmegaConf.to_container(composed)), values, gone, path)


def _chosen_again(group_words: list[str], chosen: set[str]) -> list[str]:
    """For Hydra: a group that `defaults` choose from is chosen from again, another one is added."""
    return [word if word.split("=")[0] in chosen else f"+{word}" for word in group_words]


def _folder_of(name: str, config_path: str | Path | None) -> Path:
    if config_path is not None and not (str(config_path) and is_folder(Path(config_path))):
        raise UserError(f"--config-path={str(config_path)[:200]}: no such folder.")
    folders = [Path(config_path).resolve()] if config_path is not None else []
    folders.append(PACKAGE_CONFIGS)
    for folder in folders:
        if is_file(_file_in(folder, name)):
            return folder
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    places = " or ".join("the shipped configs" if folder == PACKAGE_CONFIGS else str(folder) for folder in folders)
    raise UserError(
        f"--config-name={name[:80]}: no file {name[:80]}.yaml in {places}; there is {', '.join(known)}.{hint}"
    )


def _file_in(folder: Path, name: str) -> Path:
    return folder / f"{name.removesuffix('.yaml')}.yaml"


def _split_groups(
    pairs: list[tuple[str, str]], *, folder: Path, schema: type
) -> tuple[list[str], list[tuple[str, str]]]:
    """Words that choose a file of a config group (`policy/head=flow`) go to Hydra, the others are values.

    Raises:
        UserError: the group has no such file.
    """
    groups, values, leaves = [], [], leaves_of(schema)
    for dotted, text in pairs:
        group, key = dotted.replace(".", "/"), dotted.replace("/", ".")
        files = _files_of_group(group, [folder, PACKAGE_CONFIGS])
        # a schema without these keys has no such group; one that has the key itself takes the word as its value too
        if not any(leaf == key or leaf.startswith(f"{key}.") for leaf in leaves) or not files:
            _refuse_group(dotted)
            values.append((dotted, text))
        elif text in files:
            named_groups(files[text], roots=[folder, PACKAGE_CONFIGS])
            groups.append(f"{group}={text}")
        elif key in leaves:
            values.append((dotted, text))
        else:
            near = difflib.get_close_matches(text, files, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{dotted}={text[:80]}: no such file of the group {group}: {', '.join(sorted(files))}.{hint}"
            )
    return groups, values


def _take_whole(composed: DictConfig, word: str, *, roots: list[Path], leaves: dict) -> None:
    """A mapping of a group's file takes the place of the configuration's: options of another head are not kept."""
    group, _, text = word.partition("=")
    values = {group.replace("/", "."): OmegaConf.to_container(OmegaConf.load(_files_of_group(group, roots)[text]))}
    for dotted, value in _flatten(values, leaves):
        if dotted in leaves and leaves[dotted][0] is Any:
            OmegaConf.update(composed, dotted, value, merge=False, force_add=True)


def _refuse_group(dotted: str) -> None:
    """Raises UserError when a word is written as a group, and is none."""
    if "/" in dotted:
        known = {str(path.parent.relative_to(PACKAGE_CONFIGS)) for path in PACKAGE_CONFIGS.glob("*/**/*.yaml")}
        near = difflib.get_close_matches(dotted, known - {dotted}, 1)
        raise UserError(f"unknown key {dotted[:80]}." + (f" Did you mean {near[0]}?" if near else ""))


def _files_of_group(group: str, roots: list[Path]) -> dict[str, Path]:
    """Name -> file of a config group; one of the user's own stands before a shipped one."""
    found: dict[str, Path] = {}
    for root in reversed(roots):
        if is_folder(root / group):
            found |= {path.stem: path for path in (root / group).glob("*.yaml")}
    return found


def _merge(tree: DictConfig, values: Any, schema: type, *, origin: str) -> DictConfig:
    """`tree` with `values` in it; a mapping that the schema takes as one value takes the place of the default."""
    leaves = leaves_of(schema)
    for dotted, value in _flatten(OmegaConf.to_container(values), leaves):
        if dotted not in leaves:
            raise UserError(f"{origin}: " + unknown(dotted, leaves))
        kind = leaves[dotted][0]
        if value == "???":
            raise UserError(f"{origin}: {dotted} is ???: give it a value.")
        # an interpolation is resolved later
        if not fits(value, kind) and "${" not in str(value):
            raise UserError(f"{origin}: {dotted}={show(value)[:80]}: takes {type_name(kind)}.")
        if kind is Any:
            OmegaConf.update(tree, dotted, None, merge=False)
    try:
        return typing.cast(DictConfig, OmegaConf.merge(tree, values))
    except (OmegaConfBaseException, ValueError, OverflowError) as error:
        where = getattr(error, "full_key", None) or ""
        raise UserError(f"{origin}: {where}: {first_line(error)}") from None


def _tree(values: Any) -> Any:
    """A mapping, a dataclass or the text of a YAML file, for OmegaConf."""
    try:
        return OmegaConf.create(values or {}) if isinstance(values, str) else OmegaConf.create(values)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "full_key", None) or "a value"
        raise UserError(f"the configuration: {where} cannot be used: {first_line(error)}") from None


def _checked(tree: DictConfig, schema: type, *, origin: str) -> DictConfig:
    """The same, interpolations resolved and values in range; `origin` is where they stand."""
    check_values(_resolved(tree, schema, origin=origin), schema)
    return tree


def _resolved(tree: DictConfig, schema: type, *, origin: str) -> DictConfig:
    """The same, every interpolation as the value it stands for, and ~/ as the home folder."""
    try:
        OmegaConf.resolve(tree)
    # an interpolation may call a function of the user's
    except Exception as error:
        said = "it leads back to itself" if isinstance(error, RecursionError) else first_line(error)
        where = f"{origin}: {_unresolved(tree, schema)}"
        raise UserError(f"{where}: an interpolation ${{…}} does not resolve: {said}") from None
    for dotted in leaves_of(schema):
        value = OmegaConf.select(tree, dotted)
        if isinstance(value, str) and value.startswith("~/"):
            with flag_override(tree, "readonly", False):
                OmegaConf.update(tree, dotted, str(Path(value).expanduser()))
    return tree


def _unresolved(tree: DictConfig, schema: type) -> str:
    """The key that cannot be read."""
    for dotted in leaves_of(schema):
        try:
            value = OmegaConf.select(tree, dotted)
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
        except Exception:
            return dotted
    return "the configuration"


def _flatten(values: Any, leaves: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """[(dotted key, its value)], down to the schema's keys."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        nested = isinstance(value, dict) and value and dotted not in leaves
        found += _flatten(value, leaves, f"{dotted}.") if nested else [(dotted, value)]
    return found
