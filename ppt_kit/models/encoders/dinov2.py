"""DINOv2 (Oquab et al. 2023): one token a patch of a vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ppt_kit.models.encoders.backbone import PictureEncoder, need_transformers
from ppt_kit.models.part import Sizes


class DinoV2(PictureEncoder):
    """See PictureEncoder; the maps have a cell for each patch of 14 x 14 pixels."""

    model_type = "dinov2"
    random_sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    # of facebook/dinov2-small
    standard: dict[str, Any] = {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14,
    }  # fmt: skip

    def __init__(self, sizes: Sizes, **options: Any):
        super().__init__(sizes, **options)
        self.width = self.config.hidden_size

    def takes(self, height: int, width: int) -> tuple[int, int]:
        patch = self.config.patch_size
        height, width = (max(1, round(size / patch)) * patch for size in super().takes(height, width))
        return height, width

    def made(self, config: dict[str, Any], *, pretrained: bool) -> Any:
        library, sizes = need_transformers("policy.encoders"), {**self.standard, **config}
        if not pretrained:
            _check_sizes({name: sizes[name] for name in self.random_sizes})
        return library.Dinov2Model(library.Dinov2Config.from_dict(sizes))

    def maps(self, net: nn.Module, planes: torch.Tensor) -> torch.Tensor:
        patch = self.config.patch_size
        tokens = net(planes).last_hidden_state[:, 1:]
        return tokens.mT.unflatten(-1, (planes.shape[2] // patch, planes.shape[3] // patch))


def _check_sizes(sizes: dict[str, Any]) -> None:
    """What the library would make, and fail with at the first picture."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} takes a whole number, at least 1")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ValueError("hidden_size takes a multiple of num_attention_heads")
