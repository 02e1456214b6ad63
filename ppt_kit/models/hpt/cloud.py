"""openpoints' PointNeXt as a stem of ppt_learning: fewer and fewer points, and at the end the maximum over all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.errors import UserError
from ppt_kit.keys import show
from ppt_kit.models.hpt.stems import frame_latents, in_unit_sphere, projection_of
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.cloud_geometry import farthest_points, first_within, take
from ppt_kit.models.stems.options import number, one_of, option, switch, whole, wholes
from ppt_kit.models.stems.stem import Stem
from ppt_kit.randomness import uniform

SAMPLERS = ("random", "farthest")
# lowest and highest of a network's whole numbers
LIMITS = {"hidden": (4, 1024), "num_layers": (1, 10), "group_size": (1, 1024), "expansion": (1, 64)}


@dataclass(frozen=True)
class Around:
    """How the points around a centre are gathered.

    Attributes:
        count: the first so many in the cloud's order.
        radius: of the ball, in the cloud's units.
        in_radii: whether places are told from the centre in units of the radius, or as they are.
    """

    count: int
    radius: float
    in_radii: bool

    def grouped(self, centres: torch.Tensor, xyz: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Centres (R, N, 3), points (R, P, 3) with features (R, P, C) -> (R, N, count, 3 + C)."""
        index = first_within(centres, xyz, count=self.count, radius=self.radius)
        relative = take(xyz, index) - centres[:, :, None]
        relative = relative / self.radius if self.in_radii else relative
        return torch.cat([relative.to(features.dtype), take(features, index)], dim=-1)


class HPTPointNeXtStem(Stem):
    """Point cloud (B, To, P, C) float32, metres -> (B, To * num_latents, width); passed through (B, To, width).

    The first stage is one layer on every point, the last the maximum over all; a stage between them takes one centre of
    every `strides` points, gathers a ball around each, and is twice as wide as the one before. There is no BatchNorm:
    what was adopted has it in its layers, by the statistics that it acted by.

    Args:
        network: what differs from the defaults of Network, by its names, e.g. {"strides": [1, 4, 4, 1], "radius": 0.1}.
        sampler: random, with each sample's seed; or farthest, the first point first.
        projection: behind it: linear, norm (a LayerNorm behind it), or none.
        unit_sphere, up: see HPTCloudStem.
        num_heads, dim_head: of the cross-attention, of whose tokens each frame becomes num_latents.
    Source: Qian et al. 2022, PointNeXt, and github.com/guochengqian/openpoints (models/backbone/pointnext.py).
    """

    def __init__(
        self, sizes: Sizes, *, network: Mapping[str, Any] = MappingProxyType({}), sampler: str = "random",
        projection: str = "linear", unit_sphere: bool = True, up: int = 2, num_heads: int = 8, dim_head: int = 32,
    ):  # fmt: skip
        super().__init__()
        self.unit_sphere = switch(sizes, "unit_sphere", unit_sphere)
        self.up = whole(sizes, "up", up, low=0, high=2)
        self.sampler = one_of(sizes, "sampler", sampler, SAMPLERS)
        self.stages, width = checked(sizes, network).made(sizes.spec.channels)
        self.project = projection_of(sizes, projection, inside=width)
        self.gather = frame_latents(sizes, num_heads=num_heads, dim_head=dim_head)

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        points = in_unit_sphere(readings, up=self.up) if self.unit_sphere else readings
        frames = points.shape[:2]
        xyz = points[..., :3].flatten(0, 1)
        features = points.flatten(0, 1).to(next(self.stages.parameters()).dtype)
        for place, stage in enumerate(self.stages):
            for block in stage.children():
                if isinstance(block, Gathers):
                    chosen = self.sampled(xyz, seeds, place, count=max(1, xyz.shape[1] // block.stride))
                    xyz, features = block(xyz, features, chosen)
                else:
                    features = block(xyz, features)
        return self.gather(self.project(features).unflatten(0, frames))

    def sampled(self, xyz: torch.Tensor, seeds: torch.Tensor, stage: int, *, count: int) -> torch.Tensor:
        """(R, count) int64: which points of xyz (R, P, 3) become the centres of a stage."""
        if self.sampler == "farthest":
            first = torch.zeros(len(xyz), 1, dtype=torch.long, device=xyz.device)
            return farthest_points(xyz, count, first=first)
        drawn = uniform(seeds, (len(xyz) // len(seeds), count), stream=f"hpt_pointnext.{stage}")
        return (drawn.flatten(0, 1) * xyz.shape[1]).long()


@dataclass(frozen=True)
class Network:
    """How the stages of a network are put together.

    Attributes:
        hidden: width of the first stage.
        strides: of each stage; 1 as the first is the layer on every point, 1 as the last gathers all points.
        blocks: of each stage, the gathering one among them; the others are residual.
        num_layers: of each gathering block.
        residual: whether a centre's own features are added in a gathering block.
        radius, radius_scaling: of the first balls; how much larger those of the next stage are.
        in_radii: places around a centre are told in units of the radius.
        group_size: points of a ball.
        expansion: how many times as wide the layer inside a residual block is.
    """

    hidden: int = 32
    strides: Sequence[int] = (1, 2, 2, 2, 2, 1)
    blocks: Sequence[int] = (1, 1, 1, 1, 1, 1)
    num_layers: int = 2
    residual: bool = True
    radius: float = 0.15
    radius_scaling: float = 1.5
    in_radii: bool = True
    group_size: int = 32
    expansion: int = 4

    def made(self, inside: int) -> tuple[nn.ModuleList, int]:
        """The stages for points of `inside` numbers, and the width of the last."""
        stages, width, radius = nn.ModuleList(), self.hidden, self.radius
        for place, (stride, count) in enumerate(zip(self.strides, self.blocks)):
            width = width * (1 if stride == 1 else 2)
            wider = radius * (1 if stride == 1 else self.radius_scaling)
            stage = nn.ModuleList([self._first(place, inside, width, radius=radius)])
            around = Around(self.group_size, wider, self.in_radii)
            stage.extend(InvertedResidual(width, around, expansion=self.expansion) for _ in range(1, count))
            stages.append(stage)
            inside, radius = width, wider
        return stages, width

    def _first(self, place: int, inside: int, width: int, *, radius: float) -> nn.Module:
        """The block that a stage begins with."""
        stride = self.strides[place]
        if stride > 1:
            widths = [inside + 3, *[width // 2] * (self.num_layers - 1), width]
            around = Around(self.group_size, radius, self.in_radii)
            return Gathers(widths, around, stride=stride, residual=self.residual)
        return EveryPoint([inside, width]) if place == 0 else AllPoints([inside + 3, *[width] * self.num_layers])


class EveryPoint(nn.Module):
    """One layer on every point."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = _layers(widths)

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.layers[0](features)


class AllPoints(nn.Module):
    """All points of a cloud, with their places, as one."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = _layers(widths)

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return _through(self.layers, torch.cat([xyz.to(features.dtype), features], dim=-1)).amax(dim=1, keepdim=True)


class Gathers(nn.Module):
    """Points (R, P, 3) with features (R, P, inside) -> N of them, with features (R, N, outside).

    Args:
        stride: N is P / stride.
    """

    def __init__(self, widths: Sequence[int], around: Around, *, stride: int, residual: bool):
        super().__init__()
        self.around, self.stride, self.residual = around, stride, residual
        self.layers = _layers(widths)
        inside, outside = widths[0] - 3, widths[-1]
        self.skip = nn.Linear(inside, outside) if residual and inside != outside else None

    def forward(
        self, xyz: torch.Tensor, features: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`chosen` (R, N) int64: which points become the centres."""
        centres = take(xyz, chosen)
        near = self.around.grouped(centres, xyz, features)
        if not self.residual:
            return centres, _through(self.layers, near).amax(dim=2)
        own = take(features, chosen)
        own = own if self.skip is None else self.skip(own)
        return centres, F.relu(_through(self.layers, near, last=False).amax(dim=2) + own)


class InvertedResidual(nn.Module):
    """One layer on what lies around each point, then two on the point, the first of them wider."""

    def __init__(self, width: int, around: Around, *, expansion: int):
        super().__init__()
        self.around = around
        self.layers = _layers([width + 3, width])
        self.mlp = _layers([width, expansion * width, width])

    def forward(self, xyz: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        near = _through(self.layers, self.around.grouped(xyz, xyz, features)).amax(dim=2)
        return F.relu(features + _through(self.mlp, near, last=False))


def _layers(widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(before, after) for before, after in zip(widths, widths[1:]))


def _through(layers: nn.ModuleList, x: torch.Tensor, *, last: bool = True) -> torch.Tensor:
    """ReLU behind each layer; behind the last one where `last`."""
    for place, layer in enumerate(layers):
        x = layer(x)
        x = F.relu(x) if last or place < len(layers) - 1 else x
    return x


def checked(sizes: Sizes, asked: Mapping[str, Any]) -> Network:
    """The network of a stem.

    Raises:
        UserError: an option is none of it, or does not fit the others, or the cloud.
    """
    known = [each.name for each in fields(Network)]
    if not isinstance(asked, Mapping) or set(asked) - set(known):
        raise UserError(f"{option(sizes, 'network')}={show(asked)}: takes {', '.join(known)}.")
    given = Network(**asked)
    for name, (low, high) in LIMITS.items():
        whole(sizes, f"network.{name}", getattr(given, name), low=low, high=high)
    for name, most in (("radius", 10), ("radius_scaling", 100)):
        number(sizes, f"network.{name}", getattr(given, name), low=0.001, high=most)
    for name in ("residual", "in_radii"):
        switch(sizes, f"network.{name}", getattr(given, name))
    _check_stages(sizes, given)
    return given


def _check_stages(sizes: Sizes, given: Network) -> None:
    strides = wholes(sizes, "network.strides", given.strides, high=4096)
    blocks = wholes(sizes, "network.blocks", given.blocks, high=100)
    said = f"{option(sizes, 'network.strides')}={show(strides)}"
    if strides[-1] != 1 or len(strides) < 2 or 1 in strides[1:-1]:
        raise UserError(f"{said}: only the first may be 1, and the last has to be: it gathers all points.")
    if sizes.spec.points < math.prod(strides):
        raise UserError(
            f"{said}: of {sizes.spec.points} points none is left at the end. Set dataset.num_points to "
            f"{math.prod(strides)} or more."
        )
    said = f"{option(sizes, 'network.blocks')}={show(blocks)}"
    if len(blocks) != len(strides):
        raise UserError(f"{said}: takes one number a stage, as strides={show(strides)}.")
    if any(stride == 1 and count > 1 for stride, count in zip(strides, blocks)):
        raise UserError(f"{said}: a stage of stride 1 is one block.")
