"""ppt_learning's stem of pictures: a residual network, one token a frame and camera, and latents of each frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.errors import UserError
from ppt_kit.models.encoders.backbone import imagenet
from ppt_kit.models.hpt.stems import frame_latents
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.image import check_pictures
from ppt_kit.models.stems.options import whole, wholes
from ppt_kit.models.stems.stem import Stem

# a depth above this was read (m)
LEAST_DEPTH = 0.01


class HPTResNetStem(Stem):
    """rgb {camera: (B, To, H, W, 3) uint8} or depth {camera: (B, To, H, W, 1) float32 m} -> (B, To * n, width).

    n is num_latents, or with null the number of cameras. The network is that of He et al. 2016 with the norms of its
    layers worked into their convolutions: statistics of a batch are nobody's here. Depth is seen in metres; what is
    not finite is as far as the farthest that the camera saw in the window.

    Args:
        blocks: residual blocks of each of the four stages: 2, 2, 2, 2 of ResNet-18.
        hidden: channels of the first stage; each has twice as many as the one before.
        size: that pictures are brought to, px; depth by its nearest pixel, colours by their mean.
        num_heads, dim_head: of the cross-attention, of whose tokens each frame becomes num_latents.
    """

    def __init__(
        self, sizes: Sizes, *, blocks: Sequence[int] = (2, 2, 2, 2), hidden: int = 64, size: int = 224,
        num_heads: int = 8, dim_head: int = 32,
    ):  # fmt: skip
        super().__init__()
        check_pictures(sizes, kind="hpt_resnet")
        counts = wholes(sizes, "blocks", blocks, high=100)
        hidden = whole(sizes, "hidden", hidden, high=1024)
        self.size = whole(sizes, "size", size, low=32, high=4096)
        if sizes.encoded:
            raise UserError(
                f"policy.stems.{sizes.modality}.kind=hpt_resnet reads pictures, and policy.encoders.{sizes.modality} "
                f"gives feature maps in their place. Set policy.encoders.{sizes.modality}.kind=null."
            )
        self.is_depth, self.cameras = sizes.modality == "depth", list(sizes.spec.cameras(sizes.modality))
        self.first = nn.Conv2d(1 if self.is_depth else 3, hidden, 7, stride=2, padding=3)
        stages, before = [], hidden
        for stage, count in enumerate(counts):
            after = hidden * 2**stage
            rows = [Residual(before if not n else after, after, halves=stage > 0 and not n) for n in range(count)]
            stages.append(nn.Sequential(*rows))
            before = after
        self.stages = nn.Sequential(*stages)
        self.project = nn.Linear(before, sizes.width)
        self.gather = frame_latents(sizes, num_heads=num_heads, dim_head=dim_head)

    def forward(self, readings: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
        return self.gather(torch.stack([self._token(readings[name]) for name in self.cameras], dim=2))

    def _token(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, To, H, W, c) -> (B, To, width)."""
        planes = self._depth(pictures) if self.is_depth else self._colours(pictures)
        maps = F.max_pool2d(F.relu(self.first(planes.to(self.first.weight.dtype))), 3, stride=2, padding=1)
        return self.project(self.stages(maps).mean(dim=(2, 3))).unflatten(0, pictures.shape[:2])

    def _colours(self, pictures: torch.Tensor) -> torch.Tensor:
        planes = pictures.flatten(0, 1).permute(0, 3, 1, 2).float()
        if planes.shape[2:] != (self.size, self.size):
            # whole numbers, as pictures of that size have them
            planes = F.interpolate(planes, (self.size, self.size), mode="area").round()
        shift, scale = (numbers[:, None, None] for numbers in imagenet(planes.device))
        return (planes / 255 - shift) / scale

    def _depth(self, pictures: torch.Tensor) -> torch.Tensor:
        read = pictures.isfinite() & (pictures > LEAST_DEPTH)
        farthest = pictures.masked_fill(~read, 0.0).amax(dim=(1, 2, 3, 4), keepdim=True)
        metres = torch.where(pictures.isfinite(), pictures, farthest).flatten(0, 1).permute(0, 3, 1, 2)
        rows, columns = (nearest(old, self.size, device=metres.device) for old in metres.shape[2:])
        return metres[:, :, rows][..., columns]


def nearest(before: int, after: int, *, device: torch.device) -> torch.Tensor:
    """(after,) int64: which of `before` pixels each of `after` is, as OpenCV's INTER_NEAREST takes them."""
    return (torch.arange(after, dtype=torch.float64, device=device) * (1 / (after / before))).long()


class Residual(nn.Module):
    """Two convolutions beside what enters; `halves` the picture."""

    def __init__(self, before: int, after: int, *, halves: bool):
        super().__init__()
        stride = 2 if halves else 1
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1, stride=stride) if halves or before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.skip(x))
