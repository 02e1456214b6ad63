"""Starting from another run's trunk, stems, heads or encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from ppt_kit.model_keys import MODALITIES, PRETRAINED_PARTS
from ppt_kit.models.domains import module_key
from ppt_kit.models.policy import PPTPolicy

# first words of the names of a part's weights, and what decides their shapes
NAMES = {
    "trunk": ("trunk", "trunks"),
    "stems": ("stems", "positions", "modality_embedding", "missing_tokens"),
    "heads": ("heads", "pools"),
    "encoders": ("encoders",),
}
DECIDED_BY = {
    "trunk": "policy.width, policy.depth, policy.num_heads and policy.trunk_kind",
    "stems": "policy.width, policy.stems and the sizes of the observations",
    "heads": "policy.width, policy.pooling, policy.head and the sizes of the actions",
    "encoders": "policy.encoders",
}
# second word of a name: whose module it is
OF_DOMAINS = ("trunks", "stems", "positions", "heads", "pools")
# a row a modality
OF_MODALITIES = ("modality_embedding", "missing_tokens")


@dataclass
class Taken:
    """What was taken of another run's weights.

    Attributes:
        names: tensors of the policy that have the other run's values now.
        missing: of the parts asked for, those that the other run has not: they stay as they are.
        left_over: of the same parts, the other run's that have no place in the policy.
    """

    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)


def take_parts(
    policy: PPTPolicy, weights: Mapping[str, torch.Tensor], *, parts: Iterable[str] = ("trunk",),
    domain: str | None = None,
) -> Taken:  # fmt: skip
    """Copies parts of `weights` into the policy; everything else stays as it is.

    What belongs to a domain is taken from the domain of the same name; where there is none, from `domain`; else from
    the only one.

    Args:
        weights: another policy's state dict.
        parts: of PRETRAINED_PARTS.
    Raises:
        ValueError: a shape differs, a trunk is not taken whole, or it is not clear whose parts to take.
    """
    asked = {first: part for part in parts for first in NAMES[part]}
    there = {name: value for name, value in weights.items() if _first(name) in asked}
    mine = {name: value for name, value in policy.state_dict().items() if _first(name) in asked}
    taken, used, owners = Taken(), set(), _owners(there)
    if domain is not None and not any(module_key(domain) in keys for keys in owners.values()):
        known = ", ".join(sorted(set().union(*owners.values()))) or "parts that all domains share"
        raise ValueError(f"train.pretrained_domain={domain}: the checkpoint has {known}")
    for name, value in mine.items():
        source, given = _source_of(name, there, owners=owners, domain=domain), None
        if source is not None:
            given = there[source]
            if name in OF_MODALITIES:
                given = _rows_of_modalities(value, given, policy.modalities, _modalities_in(weights))
            used.add(source)
        if given is None:
            taken.missing.append(name)
            continue
        _check_alike(name, value, given, decided_by=DECIDED_BY[asked[_first(name)]])
        value.copy_(given)
        taken.names.append(name)
    taken.left_over = sorted(there.keys() - used)
    _check_trunk(taken)
    return taken


def in_short(names: Iterable[str], *, most: int = 6) -> str:
    """Names of tensors as a line: "stems.b.state (4), heads.b (9)"."""
    counts: dict[str, int] = {}
    for name in names:
        first, *rest = name.split(".")
        module = ".".join([first, *rest[: 2 if first == "stems" else 1]])
        counts[module] = counts.get(module, 0) + 1
    told = [f"{module} ({count})" for module, count in counts.items()]
    more = f", and {len(told) - most} more" if len(told) > most else ""
    return ", ".join(told[:most]) + more


def check_behind_encoders(mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Refuses stems that were trained behind another frozen encoder.

    Args:
        mine, theirs: modality -> fingerprint.
    Raises:
        ValueError: names the first.
    """
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            here, there = (each.get(name, "no frozen encoder") for each in (mine, theirs))
            raise ValueError(
                f"the checkpoint's stem of {name} was trained behind {there}, and here is {here}: its tokens would "
                f"mean nothing. Set policy.encoders.{name} as in that run, or leave stems out of train.pretrained_parts"
            )


def _first(name: str) -> str:
    return name.split(".")[0]


def _owners(weights: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """First word -> the keys of the domains that have one."""
    found: dict[str, set[str]] = {}
    for name in weights:
        if _first(name) in OF_DOMAINS:
            found.setdefault(_first(name), set()).add(name.split(".")[1])
    return found


def _source_of(
    name: str, there: Mapping[str, torch.Tensor], *, owners: Mapping[str, set[str]], domain: str | None
) -> str | None:
    """The tensor of the checkpoint that belongs in the place of `name`; None = it has none."""
    first, *rest = name.split(".")
    # a shared trunk serves every domain, and one of a domain's own can serve all
    if first == "trunk" and "trunks" in owners:
        first, rest = "trunks", ["", *rest]
    elif first == "trunks" and "trunks" not in owners:
        first, rest = "trunk", rest[1:]
    if first in OF_DOMAINS and first in owners:
        rest[0] = _owner_of(rest[0], owners[first], first=first, domain=domain)
    source = ".".join([first, *rest])
    return source if source in there else None


def _owner_of(key: str, keys: set[str], *, first: str, domain: str | None) -> str:
    if key in keys:
        return key
    if domain is not None and module_key(domain) in keys:
        return module_key(domain)
    if len(keys) == 1:
        return next(iter(keys))
    whose = f"of {key}" if key else "for all domains"
    raise ValueError(
        f"the checkpoint has {first} of {', '.join(sorted(keys))}, and none {whose}. "
        "Set train.pretrained_domain to one of them"
    )


def _modalities_in(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """What the policy of a state dict sees."""
    seen = {name.split(".")[2] for name in weights if _first(name) == "stems"}
    return [name for name in MODALITIES if name in seen]


def _rows_of_modalities(
    mine: torch.Tensor, theirs: torch.Tensor, here: list[str], there: list[str]
) -> torch.Tensor | None:
    """`mine` with the rows of modalities that both see; None when rows cannot be told apart."""
    if len(there) != len(theirs) or mine.shape[1:] != theirs.shape[1:]:
        return None
    rows = mine.clone()
    for row, name in enumerate(here):
        if name in there:
            rows[row] = theirs[there.index(name)]
    return rows


def _check_alike(name: str, mine: torch.Tensor, theirs: torch.Tensor, *, decided_by: str) -> None:
    if mine.shape != theirs.shape:
        raise ValueError(
            f"{name} is {tuple(theirs.shape)} in the checkpoint and {tuple(mine.shape)} in the policy: {decided_by} "
            "must be as the checkpoint has them. Or leave that part out of train.pretrained_parts"
        )


def _check_trunk(taken: Taken) -> None:
    """Raises ValueError when a trunk would be half of another one."""
    halves = [(name, "the checkpoint") for name in taken.missing] + [(name, "the policy") for name in taken.left_over]
    for name, where in halves:
        # of several trunks the ones that serve no domain here are left over whole
        if _first(name) == "trunk" or (_first(name) == "trunks" and where == "the checkpoint"):
            raise ValueError(f"{name} is absent in {where}: set {DECIDED_BY['trunk']} as the checkpoint has them")


assert set(NAMES) == set(PRETRAINED_PARTS)
