"""What a run begins with of another one's weights, and what of it stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.origin import check_same_origin, origin_of
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.pretrained import NAMES, check_behind_encoders, in_short, take_parts
from ppt_kit.train_keys import TrainConfig


def begin_with(policy: PPTPolicy, content: Mapping[str, Any], options: TrainConfig) -> list[str]:
    """Takes the parts that the options name into the policy, and freezes those that are to stay.

    Args:
        content: what a file of weights holds; its averaged weights are taken where it has some.
    Returns:
        A line of what was taken, of what is missing there, of what is left over there, and of what is frozen.
    Raises:
        UserError: the parts do not fit, or one that is to be frozen would stay random.
    """
    parts, freezes = options.pretrained_parts, {"trunk": options.freeze_trunk, "stems": options.freeze_stems}
    try:
        if "stems" in parts:
            check_behind_encoders(policy.encoder_fingerprints, content.get("encoders", {}))
            if "pointcloud" in policy.modalities:
                check_same_origin(policy.cloud_origin, _origin_in(content))
        weights = content.get("ema") or content["policy"]
        taken = take_parts(policy, weights, parts=parts, domain=options.pretrained_domain)
    except ValueError as error:
        raise UserError(f"train.pretrained_dir={options.pretrained_dir}: {error}.") from None
    for part in [part for part, asked in freezes.items() if asked]:
        random = [name for name in taken.missing if name.split(".")[0] in NAMES[part]]
        if random:
            raise UserError(
                f"train.freeze_{part}=true, but {options.pretrained_dir} has no {in_short(random)}: "
                f"that would stay random. Set train.freeze_{part}=false."
            )
        policy.freeze(part)
    counted = {
        "taken": taken.names, "not there, so random at first": taken.missing, "there, but not needed": taken.left_over,
        "frozen": [name for name, weight in policy.named_parameters() if not weight.requires_grad],
    }  # fmt: skip
    return [
        f"train.pretrained_dir: {len(names)} tensors {what}: {in_short(names)}"
        for what, names in counted.items()
        if names
    ]


def _origin_in(content: Mapping[str, Any]) -> str | None:
    """What the clouds of a checkpoint's stems are told from."""
    asked = content.get("config", {}).get("policy", {}).get("cloud_origin")
    return origin_of(asked, {name: View.from_plain(view).spec for name, view in content.get("views", {}).items()})
