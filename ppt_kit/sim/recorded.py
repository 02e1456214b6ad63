"""What a checkpoint says of the simulator its data came from, read as what a user types is: it can say anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy

COLUMNS = ("cloud", "rgb", "depth")
WIDTHS = ("state", "action")
ADVICE = "The checkpoint is damaged or was written by another program: train again, or repair what it says."


@dataclass(frozen=True)
class Recorded:
    """Of one domain.

    Attributes:
        env: what `make_env` builds.
        seeds: of the demonstrations.
    """

    env: dict[str, Any]
    seeds: list[int]


def recorded(policy: PPTPolicy, domain: str) -> Recorded:
    """What the policy's card says of a domain's simulator; how it sees the domain is checked too.

    Raises:
        UserError: it says nothing of a simulator, or what it says is of another kind.
    """
    source = _mapping(policy.card["sources"], domain, where="sources")
    if source.get("env") is None:
        raise UserError(
            f"domain {domain}: its dataset does not say which simulator it comes from, "
            "so it cannot be evaluated in one."
        )
    env = _mapping(source, "env", where=f"sources.{domain}")
    for name in ("simulator", "task"):
        if not isinstance(env.get(name), str) or not env[name]:
            raise _wrong(f"sources.{domain}.env.{name}", env.get(name), takes="a name")
    strange = next((name for name in env if not isinstance(name, str)), None)
    if strange is not None:
        raise _wrong(f"sources.{domain}.env", strange, takes="options by name")
    seeds = source.get("seeds", [])
    if not isinstance(seeds, (list, tuple)) or not all(map(_is_whole, seeds)):
        raise _wrong(f"sources.{domain}.seeds", seeds, takes="a list of whole numbers")
    _check_view(policy.card.get("views"), domain)
    return Recorded(env=dict(env), seeds=[int(seed) for seed in seeds])


def tasks_of(policy: PPTPolicy) -> dict[str, Any]:
    """domain -> the task it was recorded in; None where the card does not say."""
    if not isinstance(policy.card.get("sources"), Mapping):
        raise UserError("this policy was not loaded from a run folder: use ppt_kit.load_policy(run_dir).")
    tasks = {}
    for domain in policy.domains:
        env = _mapping(policy.card["sources"], domain, where="sources").get("env")
        tasks[domain] = env.get("task") if isinstance(env, Mapping) else None
    return tasks


def _check_view(views: Any, domain: str) -> None:
    where = f"views.{domain}"
    view = _mapping(views, domain, where="views")
    lacking = next((each.name for each in fields(View) if each.name not in view), None)
    if lacking is not None:
        raise _wrong(f"{where}.{lacking}", None, takes="how it was seen")
    for name in WIDTHS:
        if not all(_is_whole(width) and width > 0 for width in _mapping(view, name, where=where).values()):
            raise _wrong(f"{where}.{name}", view[name], takes="how many numbers each column has")
    for name in COLUMNS:
        if not all(isinstance(column, str) for column in _mapping(view, name, where=where).values()):
            raise _wrong(f"{where}.{name}", view[name], takes="names of columns")
    for name in ("points", "channels"):
        if not _is_whole(view[name]) or view[name] < 0:
            raise _wrong(f"{where}.{name}", view[name], takes="a whole number")
    try:
        View.from_plain(view)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{where} cannot be read ({type(error).__name__}: {error}). {ADVICE}") from None


def _mapping(values: Any, name: str, *, where: str) -> Mapping[str, Any]:
    inner = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(inner, Mapping):
        raise _wrong(f"{where}.{name}", inner, takes="a mapping of names to values")
    return inner


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _wrong(where: str, value: Any, *, takes: str) -> UserError:
    said = "is absent" if value is None else f"is {' '.join(repr(value).split())[:80]}"
    return UserError(f"{where} of the checkpoint {said}: it takes {takes}. {ADVICE}")
