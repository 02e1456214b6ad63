"""Points that lie far from each other, and the neighbours of each: batched, in float32, without waiting for a device.

Distances are sums of squared differences, axis by axis: the expanded square |a|^2 - 2ab + |b|^2 would lose millimetres,
and a matrix product may round a point's distance otherwise in another place of the cloud, so that order would matter.
"""

from __future__ import annotations

import torch

# a direction that no edge of a table, no axis and no diagonal stands square to
OBLIQUE = (0.8090, 0.5257, 0.2629)
# between centres and points that are held at once, where a cloud has thousands of both (64 MB)
MOST_DISTANCES = 1 << 24


@torch.no_grad()
def farthest_points(xyz: torch.Tensor, count: int, *, first: torch.Tensor | None = None) -> torch.Tensor:
    """(R, count) int64: points of each cloud, each as far as can be from those before it.

    The first is the outermost in one fixed direction, so that which points are chosen depends on where they are, not on
    their order. A cloud with fewer different places than `count` has some of its points again.

    Args:
        xyz: (R, P, 3) float32, m.
        first: (R, 1) int64, another first point.
    Source: Eldar et al. 1997, farthest point strategy.
    """
    planes = xyz.permute(2, 0, 1).contiguous()
    gap, distance = torch.empty_like(planes), torch.empty_like(planes[0])
    nearest = torch.full_like(distance, torch.inf)
    chosen = torch.zeros(len(xyz), count, dtype=torch.long, device=xyz.device)
    outward = sum(plane * weight for plane, weight in zip(planes, OBLIQUE))
    last = outward.argmax(dim=-1, keepdim=True) if first is None else first
    chosen[:, :1] = last
    for number in range(1, count):
        torch.sub(planes, planes.gather(2, last.expand(3, -1, -1)), out=gap)
        gap.mul_(gap)
        torch.add(gap[0], gap[1], out=distance).add_(gap[2])
        torch.minimum(nearest, distance, out=nearest)
        last = nearest.argmax(dim=-1, keepdim=True)
        chosen[:, number : number + 1] = last
    return chosen


@torch.no_grad()
def neighbours(centres: torch.Tensor, xyz: torch.Tensor, *, count: int, radius: float) -> torch.Tensor:
    """(R, N, count) int64: the points nearest to each centre, nearest first.

    A place that no point within `radius` is left for has the nearest again: under a maximum that counts once.

    Args:
        centres: (R, N, 3) float32, m.
        xyz: (R, P, 3) float32, m.
        radius: m.
    """
    near = _squared(centres, xyz).topk(min(count, xyz.shape[1]), dim=-1, largest=False)
    index = torch.where(near.values <= radius**2, near.indices, near.indices[..., :1])
    return torch.cat([index, index[..., :1].expand(-1, -1, count - index.shape[-1])], dim=-1)


@torch.no_grad()
def first_within(centres: torch.Tensor, xyz: torch.Tensor, *, count: int, radius: float) -> torch.Tensor:
    """(R, N, count) int64: the first points of the cloud, in its order, that are nearer than `radius` to each centre.

    A place that none is left for has the first of them again, and point 0 where there is none.

    Args:
        centres: (R, N, 3) float32, m.
        xyz: (R, P, 3) float32, m.
        radius: m.
    Source: the ball query of PointNet++, Qi et al. 2017, as openpoints has it.
    """
    points = xyz.shape[1]
    order = torch.arange(points, device=xyz.device, dtype=torch.int32)
    found = []
    for some in centres.split(max(1, MOST_DISTANCES // (len(xyz) * points)), dim=1):
        inside = torch.where(_squared(some, xyz) < radius**2, order, points)
        found.append(inside.topk(min(count, points), dim=-1, largest=False).values.long())
    near = torch.cat(found, dim=1)
    first = near[..., :1] % points
    return torch.cat([torch.where(near < points, near, first), first.expand(-1, -1, count - near.shape[-1])], dim=-1)


def _squared(centres: torch.Tensor, xyz: torch.Tensor) -> torch.Tensor:
    """(R, N, P) m^2 between centres (R, N, 3) and points (R, P, 3)."""
    distance = torch.zeros(*centres.shape[:2], xyz.shape[1], device=xyz.device)
    for of_centre, of_point in zip(centres.unbind(-1), xyz.unbind(-1)):
        gap = of_centre[:, :, None] - of_point[:, None, :].contiguous()
        distance.addcmul_(gap, gap)
    return distance


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values (R, P, C) at index (R, …) int64 -> (R, …, C)."""
    first = torch.arange(len(values), device=values.device) * values.shape[1]
    flat = index + first.view(-1, *[1] * (index.ndim - 1))
    return values.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, index.shape)
