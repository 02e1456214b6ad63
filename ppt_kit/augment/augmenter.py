"""Augmentation of training batches, on their device and a batch at a time; the keys are `augment` in the configuration.

Every random number is a function of the sample's noise_seed, so of (seed, step, window): neither the process nor the
rest of the batch changes it. What is drawn once for a sample holds for all frames of its window, so that motion between
frames stays motion; sensor noise (of pixels and points) is drawn for every frame. Each camera has its own numbers, and
the colour and depth of one camera are shifted and cropped alike, so that their pixels still meet.

Turning or shifting the world is a change of its frame: everything moves with it, the robot's base and the cameras too.
Clouds and the poses in states and actions get new numbers; images, depth and joint angles stay as they are.
Pictures are shifted by default (augment.shift_px=null): a network that reads them from ten demonstrations overfits
otherwise. In evaluation they are as they come.

Statistics of the normaliser are those of the data as recorded: moved poses can leave [-1, 1] a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from ppt_kit.augment.clouds import change_cloud
from ppt_kit.augment.pictures import change_depth, change_rgb
from ppt_kit.augment.world import World
from ppt_kit.checks import moves_world
from ppt_kit.errors import UserError
from ppt_kit.model_keys import MODALITIES
from ppt_kit.schema import AugmentConfig
from ppt_kit.spec import Spec

HEIGHT_CHANNELS = (4, 5, 7)  # clouds whose last column is the height, z
CHANGES = {"rgb": change_rgb, "depth": change_depth}
# option -> the modalities it changes, one of which must be there
CHANGED = {
    **dict.fromkeys(("brightness", "contrast", "saturation", "hue", "blur_sigma"), ("rgb",)),
    **dict.fromkeys(("shift_px", "crop_ratio"), ("rgb", "depth")),
    **dict.fromkeys(("depth_shift_m", "depth_scale", "depth_noise_m", "depth_dropout"), ("depth",)),
    # images do not show how the world was turned: without a cloud the policy could not know
    **dict.fromkeys(("cloud_jitter_m", "cloud_dropout", "rotation_deg", "translation_m"), ("pointcloud",)),
}


class Augmenter:
    """Changes batches as `augment` in the configuration says.

    Args:
        options: `augment` of a checked configuration.
        specs: domain -> what its batches hold, in the order of the batch's "domain".
    Attributes:
        options: as AugmentConfig.
        is_on: false when nothing is asked for; calling gives the batch itself then.
    Raises:
        UserError: an option without its modality, or parts that do not fit a state or an action.
    """

    def __init__(self, options: Any, specs: Mapping[str, Spec]):
        # plain attributes: reading them from a DictConfig costs more than drawing the numbers
        typed = options if isinstance(options, AugmentConfig) else OmegaConf.to_object(options)
        self.options: AugmentConfig = typed  # type: ignore[assignment]
        asked = [name for name in CHANGED if is_asked(name, self.options)]
        by_default = self.options.shift_px is None and any(spec.rgb or spec.depth for spec in specs.values())
        self.is_on = bool(asked) or by_default
        _check_modalities(asked, specs)
        self._has_height = any(spec.channels in HEIGHT_CHANNELS for spec in specs.values())
        self._world = World(self.options, specs) if moves_world(self.options) else None

    @torch.no_grad()
    def __call__(self, batch: dict) -> dict:
        """The batch of the dataset's contract with "noise_seed" (B,), changed; what stays is the same tensor."""
        if not self.is_on:
            return batch
        seeds, obs, options = batch["noise_seed"], dict(batch["obs"]), self.options
        out, motion = {**batch, "obs": obs}, None
        if self._world is not None:
            motion, domain = self._world.motion(seeds), batch["domain"]
            out["action"] = self._world.moved("action", batch["action"], motion=motion, domain=domain)
            if "state" in obs:
                obs["state"] = self._world.moved("state", obs["state"], motion=motion, domain=domain)
        if "pointcloud" in obs:
            obs["pointcloud"] = change_cloud(
                obs["pointcloud"], seeds, options=options, motion=motion, has_height=self._has_height
            )
        for kind, change in CHANGES.items():
            if kind in obs:
                cameras = obs[kind].items()
                obs[kind] = {camera: change(image, seeds, camera=camera, options=options) for camera, image in cameras}
        return out


def is_asked(option: str, options: AugmentConfig) -> bool:
    """Whether an option of CHANGED changes something, as it is set."""
    value = getattr(options, option)
    if option == "crop_ratio":
        return value < 1
    return any(value) if isinstance(value, list) else bool(value)


def _check_modalities(asked: list[str], specs: Mapping[str, Spec]) -> None:
    there = {name for spec in specs.values() for name in spec.modalities}
    for option in asked:
        takers = CHANGED[option]
        if not there.intersection(takers):
            held = ", ".join(name for name in MODALITIES if name in there)
            raise UserError(
                f"augment.{option} changes {' and '.join(takers)}, but the policy's batches hold {held} only. "
                f"Leave augment.{option} out, or train on {takers[0]}."
            )
