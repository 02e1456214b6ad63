"""Point clouds by a hierarchy of PointNeXt's kind: fewer and fewer points, each knowing more of what lies around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.cloud_geometry import farthest_points, neighbours, take
from ppt_kit.models.stems.gather import Latents
from ppt_kit.models.stems.options import metres, whole, wholes
from ppt_kit.models.stems.stem import Stem


class PointNeXtStem(Stem):
    """Point cloud (B, To, P, C) float32, metres -> (B, num_latents, width); passed through (B, To * N, width).

    Every stage takes fewer centres by farthest-point sampling, gathers what lies within a ball around each, and mixes
    neighbouring centres in residual blocks; the radius and the width double from stage to stage. Places enter from the
    centre, in units of the radius, alone: where a token is comes as its place. LayerNorm instead of BatchNorm, whose
    statistics would depend on the batch.

    Args:
        num_centres: of each stage; the last is N. A cloud of fewer points has as many centres as points.
        group_size: points of a ball, the centre among them.
        radius: of the first stage's balls, m; a residual block's are twice as wide as its stage's.
        hidden: width of the first stage.
        num_blocks: residual blocks of each stage.
    Source: Qian et al. 2022, PointNeXt; Qi et al. 2017, PointNet++.
    """

    def __init__(
        self, sizes: Sizes, *, num_centres: Sequence[int] = (128, 32), group_size: int = 16, radius: float = 0.08,
        hidden: int = 32, num_blocks: int = 1,
    ):  # fmt: skip
        super().__init__()
        counts = wholes(sizes, "num_centres", num_centres, high=4096)
        group_size = whole(sizes, "group_size", group_size, high=1024)
        radius = metres(sizes, "radius", radius, low=0.001, high=10)
        hidden = whole(sizes, "hidden", hidden, low=4, high=1024)
        num_blocks = whole(sizes, "num_blocks", num_blocks, low=0, high=100)
        # the height above the ground, and what is known of a point beside its place
        self.embed = nn.Linear(sizes.spec.channels - 2, hidden)
        self.stages = nn.ModuleList()
        inside = hidden
        for depth, count in enumerate(counts):
            self.stages.append(
                Stage(
                    inside, hidden * 2**depth, count=min(count, sizes.spec.points), group_size=group_size,
                    radius=radius * 2**depth, num_blocks=num_blocks,
                )
            )  # fmt: skip
            inside = hidden * 2**depth
        self.project = nn.Sequential(nn.LayerNorm(inside), nn.Linear(inside, sizes.width))
        self.gather = Latents(sizes, place_dim=3)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        tokens, places = self.local(readings)
        return self.gather(tokens, places=places)

    def local(self, readings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, To, N, width), and where they are (B, To, N, 3) float32, m."""
        points = readings.flatten(0, 1)
        xyz, features = points[..., :3], self.embed(points[..., 2:].to(self.gather.dtype))
        for stage in self.stages:
            xyz, features = stage(xyz, features)
        frames = readings.shape[:2]
        return self.project(features).unflatten(0, frames), xyz.unflatten(0, frames)


class Stage(nn.Module):
    """Points (R, P, 3) m with features (R, P, inside) -> `count` of them, with features (R, count, outside)."""

    def __init__(self, inside: int, outside: int, *, count: int, group_size: int, radius: float, num_blocks: int):
        super().__init__()
        self.count, self.group_size, self.radius = count, group_size, radius
        self.reduce = Ball(inside, outside)
        self.blocks = nn.ModuleList(InvertedResidual(outside) for _ in range(num_blocks))

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centres = take(xyz, farthest_points(xyz, self.count))
        features = F.relu(self.reduce(features, *self._around(centres, xyz, self.radius)))
        if len(self.blocks):
            index, relative = self._around(centres, centres, 2 * self.radius)
            for block in self.blocks:
                features = block(features, index, relative)
        return centres, features

    def _around(self, centres: torch.Tensor, xyz: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Which points lie around each centre (R, N, K), and where from it, in units of the radius (R, N, K, 3)."""
        index = neighbours(centres, xyz, count=self.group_size, radius=radius)
        return index, (take(xyz, index) - centres[:, :, None]) / radius


class InvertedResidual(nn.Module):
    """What lies around a point, then two layers, four times as wide between them, beside the point's own features."""

    def __init__(self, width: int):
        super().__init__()
        self.ball = Ball(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, features: torch.Tensor, index: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        return F.relu(features + self.mlp(F.relu(self.ball(features, index, relative))))


class Ball(nn.Module):
    """One layer on the features and the relative place of each neighbour, and the largest of each number."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.feature = nn.Linear(inside, outside)
        self.relative = nn.Linear(3, outside, bias=False)
        self.norm = nn.LayerNorm(outside)

    def forward(self, features: torch.Tensor, index: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        """Features (R, P, inside), index (R, N, K), relative (R, N, K, 3) float32 -> (R, N, outside)."""
        # the layer before the neighbours are gathered: a point is in many balls
        grouped = take(self.feature(features), index) + self.relative(relative.to(features.dtype))
        return self.norm(grouped.amax(dim=2))
