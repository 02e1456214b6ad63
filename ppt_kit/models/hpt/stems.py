"""Stems of ppt_learning: a network for each frame, and latents that gather from that frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.models.hpt.layers import FrameLatents, perceptron
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.options import one_of, option, switch, whole, wholes
from ppt_kit.models.stems.stem import Stem

PROJECTIONS = ("linear", "norm", "none")


class HPTStateStem(Stem):
    """Normalised proprioception (B, To, Ds) -> (B, To * num_latents, width); passed through (B, To, width).

    Args:
        widths: of the hidden layers.
        norm: LayerNorm in those behind the first.
        num_heads, dim_head: of the cross-attention, of whose tokens each frame becomes num_latents.
    """

    def __init__(
        self, sizes: Sizes, *, widths: Sequence[int] = (128, 256), norm: bool = True, num_heads: int = 8,
        dim_head: int = 32,
    ):  # fmt: skip
        super().__init__()
        hidden = wholes(sizes, "widths", widths, high=65_536)
        switch(sizes, "norm", norm)
        self.embed = perceptron(sizes.spec.state_dim, hidden, sizes.width, norm=norm)
        self.gather = frame_latents(sizes, num_heads=num_heads, dim_head=dim_head)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return self.gather(self.embed(readings.to(next(self.embed.parameters()).dtype))[:, :, None])


class HPTCloudStem(Stem):
    """Point cloud (B, To, P, C) float32, metres -> (B, To * num_latents, width); passed through (B, To, width).

    DP3's encoder, a projection, and latents of each frame.

    Args:
        hidden: width of the first layer of a point; the second has twice, the third four times as much.
        norm: LayerNorm in them.
        projection: behind the maximum over a frame's points: linear, norm (a LayerNorm behind it), or none.
        unit_sphere: clouds are moved to the mean of the window's points and scaled so that the farthest is at 1, as
            openpoints does; the height, column 3 of 4, is from the window's lowest point, in metres.
        up: axis of that height.
        num_heads, dim_head: of the cross-attention, of whose tokens each frame becomes num_latents.
    """

    def __init__(
        self, sizes: Sizes, *, hidden: int = 64, norm: bool = True, projection: str = "linear",
        unit_sphere: bool = False, up: int = 2, num_heads: int = 8, dim_head: int = 32,
    ):  # fmt: skip
        super().__init__()
        hidden = whole(sizes, "hidden", hidden, low=4, high=1024)
        switch(sizes, "norm", norm)
        self.unit_sphere = switch(sizes, "unit_sphere", unit_sphere)
        self.up = whole(sizes, "up", up, low=0, high=2)
        widths = [sizes.spec.channels, hidden, 2 * hidden, 4 * hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
        self.embed = nn.Sequential(*layers)
        self.project = projection_of(sizes, projection, inside=4 * hidden)
        self.gather = frame_latents(sizes, num_heads=num_heads, dim_head=dim_head)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        points = in_unit_sphere(readings, up=self.up) if self.unit_sphere else readings
        features = self.embed(points.to(next(self.embed.parameters()).dtype)).amax(dim=2)
        return self.gather(self.project(features)[:, :, None])


def in_unit_sphere(points: torch.Tensor, *, up: int) -> torch.Tensor:
    """(B, To, P, C) m -> the same, of each window together: xyz within the unit sphere, then its height.

    Args:
        up: axis of the height, which takes column 3 of 4, and the last of 5 and 7.
    """
    xyz, height = points[..., :3], points[..., up : up + 1]
    centred = xyz - xyz.mean(dim=(1, 2), keepdim=True)
    farthest = centred.norm(dim=-1, keepdim=True).amax(dim=(1, 2), keepdim=True)
    # a cloud of one point, or a blank one, has no size
    parts = [centred / farthest.clamp(min=1e-9), points[..., 3:]]
    if points.shape[-1] in (4, 5, 7):
        parts = [parts[0], points[..., 3:-1], height - height.amin(dim=(1, 2), keepdim=True)]
    return torch.cat(parts, dim=-1)


def frame_latents(sizes: Sizes, *, num_heads: int, dim_head: int) -> FrameLatents:
    """The latents of a stem.

    Raises:
        UserError: an option is no whole number.
    """
    whole(sizes, "num_heads", num_heads, high=1024)
    whole(sizes, "dim_head", dim_head, high=65_536)
    return FrameLatents(sizes, num_heads=num_heads, dim_head=dim_head)


def projection_of(sizes: Sizes, kind: str, *, inside: int) -> nn.Module:
    """What makes a token of `inside` numbers: linear, norm (a LayerNorm behind it), or none.

    Raises:
        UserError: it is none of these, or none where the numbers are not as many as a token's.
    """
    one_of(sizes, "projection", kind, PROJECTIONS)
    if kind == "none":
        if inside != sizes.width:
            raise UserError(
                f"{option(sizes, 'projection')}=none: {inside} numbers would be a token, and policy.width="
                f"{sizes.width}. Set policy.width={inside}, or projection to linear."
            )
        return nn.Identity()
    linear = nn.Linear(inside, sizes.width)
    return nn.Sequential(linear, nn.LayerNorm(sizes.width)) if kind == "norm" else nn.Sequential(linear)
