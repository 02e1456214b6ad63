"""What augmentation makes of one training window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ppt_kit.augment.augmenter import CHANGED, Augmenter, is_asked
from ppt_kit.config import typed
from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.notebook.inspect.packing import pack
from ppt_kit.randomness import sample_seeds
from ppt_kit.schema import AugmentConfig


class Augmented:
    """The windows of a dataset, changed as training changes them.

    Args:
        options: a configuration, or its `augment`; None = as the configuration has it by default.
    Attributes:
        is_on: whether anything is changed.
        said: the options that change something.
    """

    def __init__(self, dataset: MultiTrajDataset, options: Any = None):
        self.dataset = dataset
        self.options = augment_of(options)
        self._change = Augmenter(self.options, dataset.specs)
        self.is_on = self._change.is_on
        asked = [name for name in CHANGED if is_asked(name, self.options)]
        by_default = ["shift_px, by default"] if self.is_on and not asked else []
        self.said = ", ".join([f"{name}={getattr(self.options, name)}" for name in asked] or by_default)

    def window(self, number: int, step: int, *, draw: int) -> tuple[dict[str, Any], list[bytes]]:
        """The window at one step of an episode: its last frame packed, and its numbers.

        Args:
            draw: another number, other noise; training draws one an update.
        Returns:
            {"parts", "groups"}: of the frame's parts, then float32 bytes of "state" (To, Ds) and "action" (Ta, Da).
        """
        changed = self._change(self._batch(number, step, draw=draw))
        obs = changed["obs"]
        last = lambda value: value[:, -1].numpy()
        seen: dict[str, Any] = {
            kind: {camera: last(image) for camera, image in obs[kind].items()}
            for kind in ("rgb", "depth")
            if kind in obs
        }
        if "pointcloud" in obs:
            seen["pointcloud"] = last(obs["pointcloud"])
        packed = pack(seen)
        numbers = {"state": obs.get("state"), "action": changed["action"]}
        groups = {name: value[0].numpy() for name, value in numbers.items() if value is not None and value.shape[-1]}
        buffers = [np.ascontiguousarray(value, np.float32).tobytes() for value in groups.values()]
        return {"parts": packed.parts, "groups": list(groups)}, [*packed.buffers, *buffers]

    def _batch(self, number: int, step: int, *, draw: int) -> dict[str, Any]:
        """The contract's batch of one window; beyond an edge the first or last row is repeated."""
        name, episode = self.dataset.find_episode(number)
        domain, horizon = self.dataset.domains[name], self.dataset.horizon
        first, end = domain.store.bounds(episode)
        rows = lambda offsets: np.clip(first + step + offsets, first, end - 1)
        seen = domain.observations(rows(horizon.seen)[None], kinds=self.dataset.modalities)
        obs = {kind: value if kind == "language" else _tensors(value) for kind, value in seen.items()}
        seeds = torch.from_numpy(sample_seeds(0, draw, np.array([first + step])))
        place = list(self.dataset.domains).index(name)
        action = torch.from_numpy(domain.values("action", rows(horizon.acted))[None])
        return {"obs": obs, "action": action, "domain": torch.tensor([place]), "noise_seed": seeds}


def augment_of(options: Any) -> AugmentConfig:
    """`augment` out of what a user has at hand.

    Raises:
        UserError: there is no such option, or it takes no such value.
    """
    if options is None or isinstance(options, AugmentConfig):
        return options or AugmentConfig()
    given = options if "augment" in options or "dataset" in options else {"augment": options}
    return typed(given).augment


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tensors(each) for name, each in value.items()}
    return torch.from_numpy(np.array(value))
