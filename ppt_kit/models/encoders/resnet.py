"""ResNet-18 and ResNet-50 (He et al. 2015): feature maps of the last stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ppt_kit.models.encoders.backbone import PictureEncoder, need_transformers
from ppt_kit.models.part import Sizes

MOST_GROUPS = 32


class ResNet18(PictureEncoder):
    """See PictureEncoder; the maps are a 32nd of the picture's height and width.

    Statistics of a batch are never used: weights that are loaded keep the statistics they were trained with, random
    ones have GroupNorm (Wu and He 2018; in imitation: Chi et al. 2023) in BatchNorm's place.
    """

    model_type = "resnet"
    random_sizes = ("depths", "hidden_sizes", "embedding_size")
    standard: dict[str, Any] = {
        "layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512],
    }  # fmt: skip

    def __init__(self, sizes: Sizes, **options: Any):
        super().__init__(sizes, **options)
        self.width = self.config.hidden_sizes[-1]

    def train(self, mode: bool = True) -> ResNet18:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def made(self, config: dict[str, Any], *, pretrained: bool) -> Any:
        library = need_transformers("policy.encoders")
        net = library.ResNetModel(library.ResNetConfig.from_dict({**self.standard, **config}))
        if not pretrained:
            _group_norms(net)
        return net

    def maps(self, net: nn.Module, planes: torch.Tensor) -> torch.Tensor:
        return net(planes).last_hidden_state


class ResNet50(ResNet18):
    """As ResNet18, of fifty layers."""

    standard = {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}


def _group_norms(net: nn.Module) -> None:
    """Puts a GroupNorm in the place of each BatchNorm."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                groups = max(n for n in range(1, min(MOST_GROUPS, channels) + 1) if channels % n == 0)
                setattr(module, name, nn.GroupNorm(groups, channels))
