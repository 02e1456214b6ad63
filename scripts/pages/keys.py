"""docs/reference/configuration.md and scripts.md: every key, told by the code that tells --help."""

from __future__ import annotations

import ast
import importlib
import itertools
from pathlib import Path

from pages.markdown import code, escaped, table
from ppt_kit.config import PACKAGE_CONFIGS
from ppt_kit.help import ToldKey, told_keys
from ppt_kit.keys import leaves_of
from ppt_kit.schema import Config

# what a group's section says before its keys
GROUPS = {
    "": "The run",
    "dataset": "what is read, and in which windows",
    "normalizer": "how numbers are scaled",
    "augment": "what is changed in training batches",
    "policy": "what the policy is made of",
    "optimizer": "how weights are changed",
    "train": "how long, from where, and what is kept",
    "wandb": "the mirror in Weights & Biases",
}
# in the order of what people do; the others behind them by name
ORDER = ("quickstart", "collect_demos", "train", "sweep", "eval_sim", "verify_card", "convert_dataset")
NO_COMMANDS = ("cli", "bench")
HEAD = ("key", "default", "meaning, and what it takes")


def configuration_page() -> str:
    """Every key of a training run, by group; then the configurations that are shipped."""
    groups: dict[str, list[ToldKey]] = {}
    for each in told_keys(Config):
        groups.setdefault(each.name.rpartition(".")[0].split(".")[0], []).append(each)
    parts = [
        "# Configuration keys",
        "Every key of a training run with its default, what it takes and what it means. They come from the schema "
        "that checks them, and the text is that of `python scripts/train.py --help`. Type a key as `key=value` or "
        '`--key=value` behind a script, or as `"key=value"` in `ppt.load_config`. A key that is not here is refused, '
        "with the nearest one that is. The defaults are the schema's own; a configuration file may say otherwise, see "
        "[the shipped ones](#shipped-configurations). The keys of the other scripts are on "
        "[their page](scripts.md).",
    ]
    for group in ["", *(name for name in groups if name)]:
        said = GROUPS.get(group, "")
        title = ": ".join(part for part in (f"`{group}`" if group else "", said) if part)
        parts += [f"## {title}", keys_table(groups[group])]
    return "\n\n".join([*parts, "## Shipped configurations", shipped_table()]) + "\n"


def keys_table(keys: list[ToldKey]) -> str:
    return table(
        HEAD, [(code(key.name), code(key.default), f"{escaped(key.meaning)} *({escaped(key.takes)})*") for key in keys]
    )


def shipped_table() -> str:
    """Name, what its first lines say, and where it is."""
    rows = []
    for path in sorted(PACKAGE_CONFIGS.rglob("*.yaml")):
        name = path.relative_to(PACKAGE_CONFIGS).with_suffix("")
        typed = f"{name.parent}={name.name}" if name.parent != Path() else f"--config-name={name}"
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        said = [line.removeprefix("#").strip() for line in lines if not line.startswith("#  ")]
        file = Path("../../ppt_kit/configs") / path.relative_to(PACKAGE_CONFIGS)
        rows.append((code(typed), escaped(" ".join(said)), f"[{path.name}]({file})"))
    return table(("typed", "what it is for", "file"), rows)


def scripts_page(scripts: Path) -> str:
    """Every script: what its first line says, how it is called, and its keys."""
    parts = [
        "# Scripts",
        "The commands, with the keys that each reads. Those with keys take `key=value` or `--key=value`, and `--help` "
        "prints what is told here. A mistake is one line and exit code 2.",
    ]
    names = [path.stem for path in sorted(scripts.glob("*.py")) if path.stem not in NO_COMMANDS]
    for name in [*ORDER, *(name for name in names if name not in ORDER)]:
        command = scripts.parent / f"ppt_kit/commands/{name}.py"
        # most scripts are the faces of commands of the package
        tree = ast.parse((command if command.is_file() else scripts / f"{name}.py").read_text())
        said = (ast.get_docstring(tree) or "").split("\n\n")[0]
        parts += [f"## {name}.py", escaped(" ".join(said.split())), *_keys_of(tree)]
    parts += ["## bench.py", _benches(scripts)]
    return "\n\n".join(parts) + "\n"


def _keys_of(script: ast.Module) -> list[str]:
    """What a script says of its keys; nothing where it reads none."""
    schema = _schema_of(script)
    if schema is None:
        return []
    if not issubclass(schema, Config):
        return [keys_table(told_keys(schema))]
    own = [key for key in told_keys(schema) if key.name not in leaves_of(Config)]
    said = "It reads all [configuration keys](configuration.md)"
    return [f"{said}, and of its own:", keys_table(own)] if own else [f"{said}."]


def _schema_of(script: ast.Module) -> type | None:
    """The dataclass that it hands to cli.run as `schema=Name`."""
    nodes = list(ast.walk(script))
    words = [word for node in nodes if isinstance(node, ast.Call) for word in node.keywords]
    names = [word.value.id for word in words if word.arg == "schema" and isinstance(word.value, ast.Name)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and set(names) & {alias.name for alias in node.names}:
            return getattr(importlib.import_module(str(node.module)), names[0])
    return None


def _benches(scripts: Path) -> str:
    """What it can measure: a line a module that bench.py names."""
    rows = []
    for node in ast.walk(ast.parse((scripts / "bench.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("benches."):
            name = node.module.removeprefix("benches.")
            text = ast.get_docstring(ast.parse((scripts / f"benches/{name}.py").read_text())) or ""
            rows.append((code(name), escaped(" ".join(text.split("\n\n")[0].split()))))
    said = (
        "Measures speed, memory and learning on your machine: `python scripts/bench.py NAME`; "
        "`--help` behind a name lists its keys."
    )
    return f"{said}\n\n{table(('name', 'what is measured'), rows)}"
