"""docs/reference/*.md of the public names: signatures and docstrings, grouped by what people do with them."""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

import ppt_kit
from pages.markdown import escaped, from_docstring, table


@dataclass(frozen=True)
class Group:
    """One page.

    Attributes:
        rooms: of the package, whose names are here.
        names: that are here wherever they live.
    """

    title: str
    about: str
    rooms: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


# a name goes to the first group that has it by name, else to that of its room
GROUPS = {
    "setup": Group(
        "Set-up and words", "What a run is told, what is refused, and whether this machine can do it.",
        rooms=("config", "errors", "installation", "words", "plan"),
    ),
    "datasets": Group(
        "Datasets", "Demonstrations in any format: opened, described, drawn, converted; and recorded by an expert.",
        rooms=("data",), names=("collect", "tasks", "inspect", "plot_episode"),
    ),
    "training": Group(
        "Training", "One run, several runs, and what they leave.",
        rooms=("train", "runs", "jobs", "tracking", "zero"),
        names=(
            "UnifiedTrainer", "launch", "attach", "live", "checkpoints", "plot_metrics", "compare_runs", "pick_runs",
        ),
    ),
    "policies": Group(
        "Policies", "A trained policy, how it acts, and what it is made of.", rooms=("models", "checkpoint"),
    ),
    "evaluation": Group(
        "Evaluation", "Success rates with their intervals, floors and ceilings, comparisons, and a real robot.",
        rooms=("sim", "comparing", "verify", "targets", "notebook"),
    ),
}  # fmt: skip
STARS = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}


def pages() -> dict[str, str]:
    """File name -> Markdown: a page a group."""
    modules = ppt_kit._WHERE
    found: dict[str, list[str]] = {file: [] for file in GROUPS}
    for name in ppt_kit.__all__:
        found[_group_of(name, modules[name].split(".")[0])].append(name)
    return {file: _page(GROUPS[file], names) for file, names in found.items()}


def _group_of(name: str, room: str) -> str:
    for file, group in GROUPS.items():
        if name in group.names:
            return file
    for file, group in GROUPS.items():
        if room in group.rooms:
            return file
    raise SystemExit(f"error: ppt_kit.{name} is in {room}, which has no page. Add it to GROUPS in pages/names.py.")


def _page(group: Group, names: list[str]) -> str:
    names = sorted(names, key=lambda name: (name[0].isupper(), name.lower()))
    # not of ppt_kit itself, where a room that is imported may take the place of a function of its name
    objects = {name: getattr(importlib.import_module(f"ppt_kit.{ppt_kit._WHERE[name]}"), name) for name in names}
    given = _given(objects)
    overview = [(f"[`{name}`](#{name.lower()})", escaped(_first(each))) for name, each in objects.items()]
    about = f"{group.about} All of it is `import ppt_kit as ppt`."
    parts = [f"# {group.title}", about, table(("name", "what it is"), overview)]
    for name, each in objects.items():
        parts += _entry(name, each, level=2)
    if given:
        parts += ["## What these give"]
        for name, (each, givers) in given.items():
            by = ", ".join(f"`{giver}`" for giver in givers)
            parts += _entry(name, each, level=3, before=f"What {by} gives." if by else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _first(each: Any) -> str:
    return " ".join((inspect.getdoc(each) or "").split("\n\n")[0].split())


def _entry(name: str, each: Any, *, level: int, before: str = "") -> list[str]:
    """Heading, signature, docstring; of a class its methods too."""
    signature = _signature(name, each, drawn=not before)
    parts = [f"{'#' * level} `{name}`", before, signature, from_docstring(_own_doc(each))]
    if isinstance(each, type):
        for method, function in _methods(each):
            kept = _signature(f"{name}.{method}", function, drawn=True)
            parts += [f"{'#' * (level + 1)} `{name}.{method}`", kept, from_docstring(_own_doc(function))]
    return parts


def _own_doc(each: Any) -> str:
    """Without the line that a dataclass makes of its fields."""
    text = inspect.getdoc(each) or ""
    return "" if isinstance(each, type) and re.match(rf"{each.__name__}\(", text) else text


def _methods(each: type) -> list[tuple[str, Any]]:
    """Public methods and properties with a docstring that classes of ours say, in the order they are written."""
    found: dict[str, Any] = {}
    for owner in reversed(each.__mro__):
        if owner.__module__.startswith("ppt_kit"):
            for name, member in vars(owner).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not name.startswith("_") and isinstance(function, types.FunctionType) and function.__doc__:
                    found[name] = member if isinstance(member, property) else function
    return list(found.items())


def _signature(name: str, each: Any, *, drawn: bool) -> str:
    """As `name(a, *, b=1) -> Kind`, a line an argument where it is long; in a block of its own."""
    if isinstance(each, property):
        returns = each.fget.__annotations__.get("return", "") if each.fget else ""
        return f"```py\n{name}: {returns}\n```" if returns else ""
    if not drawn or (isinstance(each, type) and (issubclass(each, Exception) or getattr(each, "_is_protocol", False))):
        return ""
    try:
        signature = inspect.signature(each)
    except ValueError:
        return ""
    arguments = [argument for argument in signature.parameters.values() if argument.name not in ("self", "cls")]
    if [argument.kind for argument in arguments] == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]:
        return ""
    returns = signature.return_annotation
    end = f" -> {_kind(returns)}" if returns is not inspect.Signature.empty and not isinstance(each, type) else ""
    told = _arguments(arguments)
    line = f"{name}({', '.join(told)}){end}"
    if len(line) > 88:
        line = "\n".join([f"{name}(", *(f"    {each}," for each in told), f"){end}"])
    return f"```py\n{line}\n```"


def _arguments(arguments: list[inspect.Parameter]) -> list[str]:
    """Each as it is written, with the lone * where keywords begin."""
    told, starred = [], False
    for argument in arguments:
        starred = starred or argument.kind is inspect.Parameter.VAR_POSITIONAL
        if argument.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            told.append("*")
            starred = True
        text = STARS.get(argument.kind.name, "") + argument.name
        if argument.annotation is not inspect.Parameter.empty:
            text += f": {_kind(argument.annotation)}"
        if argument.default is not inspect.Parameter.empty:
            default = argument.default.__name__ if isinstance(argument.default, type) else repr(argument.default)
            text += f" = {default}" if ":" in text else f"={default}"
        told.append(text)
    return told


def _kind(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _given(objects: dict[str, Any]) -> dict[str, tuple[type, list[str]]]:
    """Classes of ours that functions give and that are no public names themselves, by name."""
    found: dict[str, tuple[type, list[str]]] = {}
    for name, each in objects.items():
        if isinstance(each, types.FunctionType):
            for kind in _returned(each):
                public = kind.__name__ in ppt_kit.__all__
                if kind.__module__.startswith("ppt_kit") and not public and _own_doc(kind):
                    found.setdefault(kind.__name__, (kind, []))[1].append(name)
    return found


def _returned(function: types.FunctionType) -> list[type]:
    """The classes of its return annotation; a name that its module imports for the type checker alone is looked up."""
    text = function.__annotations__.get("return", "")
    scope = {**vars(importlib.import_module(function.__module__))}
    kinds = []
    for part in re.findall(r"[\w.]+", text if isinstance(text, str) else ""):
        kind = scope.get(part)
        if isinstance(kind, type):
            kinds.append(kind)
    return [kind for kind in kinds if not typing.get_origin(kind)]
