"""Starting from another run's trunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ppt_kit.models.policy import PPTPolicy


def load_trunk(policy: PPTPolicy, weights: Mapping[str, torch.Tensor], *, freeze: bool) -> int:
    """Copies the trunk of `weights` into the policy; stems and heads stay as they are.

    Args:
        weights: another policy's state dict.
        freeze: the trunk is not trained.
    Returns:
        How many tensors were copied.
    Raises:
        ValueError: the trunks differ; the first difference is named.
    """
    assert policy.trunk is not None
    mine = policy.trunk.state_dict()
    theirs = {name.removeprefix("trunk."): value for name, value in weights.items() if name.startswith("trunk.")}
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in theirs or name not in mine or mine[name].shape != theirs[name].shape:
            here, there = (tuple(side[name].shape) if name in side else "absent" for side in (mine, theirs))
            raise ValueError(
                f"trunk.{name} is {there} in the checkpoint and {here} in the policy: "
                "set policy.width, policy.depth and policy.num_heads as the checkpoint has them"
            )
    policy.trunk.load_state_dict(theirs)
    if freeze:
        policy.freeze("trunk")
    return len(theirs)
