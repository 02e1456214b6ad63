"""Which modules serve which domains, and which rows of a batch they are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.spec import Spec

# the key of modules that serve every domain
EVERY = "all"


@dataclass(frozen=True)
class Group:
    """Domains that one set of stems and one head serve.

    Attributes:
        key: of their modules.
        domains: positions in the policy's `domains`.
        spec: sizes of their observations and actions: of several, the widest.
    """

    key: str
    domains: tuple[int, ...]
    spec: Spec


class Rows(NamedTuple):
    """The rows of a batch that belong to a group.

    Attributes:
        size: how many.
        places: (size,) int64 on the batch's device; None = all.
        on_host: the same in host memory, for what lies there: reading `places` would wait for the device.
    """

    size: int
    places: torch.Tensor | None = None
    on_host: torch.Tensor | None = None


def module_key(name: str) -> str:
    """A domain's name as a module's: nn.ModuleDict refuses dots and the names of its own methods."""
    key = name.replace(".", "·")
    return f"{key}·" if hasattr(nn.ModuleDict(), key) else key


def groups_of(specs: Mapping[str, Spec], share: str) -> list[Group]:
    """Every domain for itself; with share=all, one group of all.

    Raises:
        UserError: one stem cannot read what all of them hold.
    """
    if share == "all":
        return [Group(EVERY, tuple(range(len(specs))), union_of(specs))]
    return [Group(module_key(name), (number,), spec) for number, (name, spec) in enumerate(specs.items())]


def union_of(specs: Mapping[str, Spec]) -> Spec:
    """Sizes that hold every domain: the widest state and action, the largest cloud, each camera by its name.

    Raises:
        UserError: clouds differ in their channels, or two cameras of one name in their size.
    """
    every = list(specs.values())
    with_clouds = {spec.channels: name for name, spec in specs.items() if spec.points}
    if len(with_clouds) > 1:
        told = " and ".join(f"{name} has {channels}" for channels, name in with_clouds.items())
        raise UserError(
            f"policy.share=all: one stem reads all clouds, and of the channels of a point {told}. "
            "Set dataset.point_channels to what all of them have, or policy.share=trunk."
        )
    return Spec(
        state=max((spec.state for spec in every), key=lambda sizes: sum(sizes.values())),
        action=max((spec.action for spec in every), key=lambda sizes: sum(sizes.values())),
        points=max(spec.points for spec in every),
        channels=max(spec.channels for spec in every),
        rgb=_cameras(specs, "rgb"),
        depth=_cameras(specs, "depth"),
        language=any(spec.language for spec in every),
    )


def rows_of(groups: list[Group], batch: Mapping[str, Any]) -> list[Rows]:
    """Of each group, in their order.

    "rows" of the batch, (n,) int64 of each domain in host memory, spares a look at "domain", which on a GPU waits for
    the device.
    """
    domain = batch["domain"]
    if len(groups) == 1:
        return [Rows(len(domain))]
    if "rows" in batch:
        on_host = batch["rows"]
    else:
        numbers = domain.cpu()
        on_host = [(numbers == group.domains[0]).nonzero().squeeze(1) for group in groups]
    return [Rows(len(rows), rows.to(domain.device, non_blocking=True), rows) for rows in on_host]


def _cameras(specs: Mapping[str, Spec], modality: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, spec in specs.items():
        for camera, size in spec.cameras(modality).items():
            if found.setdefault(camera, size) != size:
                raise UserError(
                    f"policy.share=all: one stem reads the camera {camera}, whose {modality} in {name} has "
                    f"{size[0]}x{size[1]} pixels and {found[camera][0]}x{found[camera][1]} in another domain. "
                    "Resize one dataset, or set policy.share=trunk."
                )
    return found
