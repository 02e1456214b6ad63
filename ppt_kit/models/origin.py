"""Where a cloud's points are told from: the world as recorded, or the robot's own hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ppt_kit.errors import UserError
from ppt_kit.spec import Spec

# what policy.cloud_origin=auto looks for
AUTO, HAND = "auto", "eef_pos"


def origin_of(asked: str | None, specs: Mapping[str, Spec]) -> str | None:
    """The state key that clouds are told from: of auto, the hand's place where every domain has one; None = none.

    Args:
        asked: policy.cloud_origin.
        specs: domain -> what the policy sees of it.
    """
    if asked != AUTO:
        return asked
    has_hand = all(spec.state.get(HAND) == 3 and spec.points for spec in specs.values())
    return HAND if has_hand else None


def origin_columns(specs: Mapping[str, Spec], name: str) -> torch.Tensor:
    """(number of domains,) int64: the column of each domain's state where the origin's x stands; y and z follow.

    Args:
        specs: domain -> what the policy sees of it.
        name: of the state key, policy.cloud_origin.
    Raises:
        UserError: clouds or states are not seen, or a domain has no such key of three numbers.
    """
    columns = []
    for domain, spec in specs.items():
        missing = next((each for each in ("pointcloud", "state") if each not in spec.modalities), None)
        if missing:
            raise UserError(
                f"policy.cloud_origin={name}, but the policy sees no {missing} of {domain}. Set "
                "policy.cloud_origin=null, or policy.modalities to some that have state and pointcloud."
            )
        if spec.state.get(name) != 3:
            fit = ", ".join(key for key, width in spec.state.items() if width == 3) or "none"
            has = f"{spec.state[name]} numbers there" if name in spec.state else "no such key"
            raise UserError(
                f"policy.cloud_origin={name}: takes a state key of 3 numbers (x, y, z in m), and {domain} has {has}. "
                f"It has of 3 numbers: {fit}. null = clouds as recorded."
            )
        columns.append(spec.layout("state")[name][0])
    return torch.tensor(columns)


def from_origin(cloud: torch.Tensor, state: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Points told from a place that the state knows, frame by frame; what follows x, y and z stays.

    Args:
        cloud: (B, To, P, C) m.
        state: (B, To, Ds), not normalised.
        column: (B,) int64 where each row's x stands in the state.
    Returns:
        (B, To, P, C)
    """
    places = (column[:, None] + torch.arange(3, device=column.device))[:, None].expand(-1, state.shape[1], -1)
    origin = state.gather(-1, places).to(cloud.dtype)[:, :, None]
    return torch.cat([cloud[..., :3] - origin, cloud[..., 3:]], dim=-1)


def check_same_origin(mine: str | None, theirs: str | None) -> None:
    """Refuses stems that were trained on clouds told from elsewhere.

    Args:
        mine, theirs: policy.cloud_origin here, and of the run whose stems are taken.
    Raises:
        ValueError: they differ.
    """
    if mine != theirs:
        here, there = (each or "null" for each in (mine, theirs))
        raise ValueError(
            f"the checkpoint's stem read clouds with policy.cloud_origin={there}, and here it is {here}. Set "
            f"policy.cloud_origin={there}, or leave stems out of train.pretrained_parts"
        )
