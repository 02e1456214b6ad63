"""Point clouds as patches: points grouped where they are, a token a group."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.cloud_geometry import farthest_points, neighbours, take
from ppt_kit.models.stems.gather import Latents
from ppt_kit.models.stems.options import metres, whole
from ppt_kit.models.stems.stem import Stem


class PatchesStem(Stem):
    """Point cloud (B, To, P, C) float32, metres -> (B, num_latents, width); passed through (B, To * N, width).

    N centres by farthest-point sampling, the nearest points of each, a small PointNet that sees them from their centre
    in units of the radius: what a patch looks like does not change where it is moved, and where it is comes as the
    token's place.

    Args:
        num_groups: N; a cloud of fewer points has as many groups as points.
        group_size: points of a group, the centre among them.
        radius: m; farther ones do not belong to a group, and the nearest, the centre, counts again for each.
        hidden: width of the PointNet.
    Source: Yu et al. 2022, Point-BERT; Pang et al. 2022, Point-MAE (the patches); Qi et al. 2017, PointNet.
    """

    def __init__(
        self, sizes: Sizes, *, num_groups: int = 64, group_size: int = 16, radius: float = 0.1, hidden: int = 64
    ):
        super().__init__()
        num_groups = whole(sizes, "num_groups", num_groups, high=4096)
        self.num_groups = min(num_groups, sizes.spec.points)
        self.group_size = whole(sizes, "group_size", group_size, high=1024)
        self.radius = metres(sizes, "radius", radius, low=0.001, high=10)
        hidden = whole(sizes, "hidden", hidden, low=4, high=1024)
        self.embed = nn.Sequential(
            # from the centre, and the height above the ground
            nn.Linear(sizes.spec.channels + 1, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )
        self.project = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, sizes.width))
        self.gather = Latents(sizes, place_dim=3)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        tokens, places = self.local(readings)
        return self.gather(tokens, places=places)

    def local(self, readings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, To, N, width), and where they are (B, To, N, 3) float32, m."""
        points = readings.flatten(0, 1)
        xyz = points[..., :3]
        centres = take(xyz, farthest_points(xyz, self.num_groups))
        groups = take(points, neighbours(centres, xyz, count=self.group_size, radius=self.radius))
        relative = (groups[..., :3] - centres[:, :, None]) / self.radius
        seen = torch.cat([relative, groups[..., 2:]], dim=-1).to(self.gather.dtype)
        tokens = self.project(self.embed(seen).amax(dim=2))
        frames = readings.shape[:2]
        return tokens.unflatten(0, frames), centres.unflatten(0, frames)
