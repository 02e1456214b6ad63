"""What an encoder makes of pictures: latents gather from every cell of its maps, each with its place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.gather import Latents
from ppt_kit.models.stems.image import check_pictures, grid
from ppt_kit.models.stems.stem import Stem


class MapStem(Stem):
    """Feature maps {camera: (B, To, h, w, c)} of an encoder of rgb or depth -> (B, num_latents, width)."""

    takes_missing = True

    def __init__(self, sizes: Sizes):
        super().__init__()
        check_pictures(sizes, kind="maps")
        if not sizes.encoded:
            raise UserError(
                f"policy.stems.{sizes.modality}.kind=maps: it reads the feature maps of an encoder. "
                f"Set policy.encoders.{sizes.modality}.kind=resnet18, resnet50 or dinov2."
            )
        self.cameras = list(sizes.spec.cameras(sizes.modality))
        self.project = nn.Sequential(nn.LayerNorm(sizes.encoded), nn.Linear(sizes.encoded, sizes.width))
        self.camera = nn.Parameter(torch.randn(len(self.cameras), sizes.width) * 0.02)
        self.gather = Latents(sizes, place_dim=2)

    def forward(
        self,
        readings: Mapping[str, torch.Tensor],
        seeds: torch.Tensor,
        missing: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`missing`: camera -> (B,) bool, true where the camera gave nothing."""
        tokens, places, lost = [], [], []
        for name, camera in zip(self.cameras, self.camera):
            maps = readings[name]
            height, width = maps.shape[2:4]
            tokens.append(self.project(maps.flatten(2, 3).to(self.gather.dtype)) + camera)
            places.append(grid(height, width, device=maps.device))
            if missing is not None:
                lost.append(missing[name][:, None, None].expand(-1, 1, height * width))
        return self.gather(
            torch.cat(tokens, dim=2), places=torch.cat(places), missing=torch.cat(lost, dim=2) if lost else None
        )
