"""Clouds of training batches: moved with the world, jittered, and points lost."""

from __future__ import annotations

import torch

from ppt_kit.augment.motion import Motion
from ppt_kit.augment.numbers import noise
from ppt_kit.randomness import uniform
from ppt_kit.schema import AugmentConfig


def change_cloud(
    cloud: torch.Tensor, seeds: torch.Tensor, *, options: AugmentConfig, motion: Motion | None, has_height: bool
) -> torch.Tensor:
    """(B, To, P, C): move, jitter, drop; the height last, so that it is the z that is there.

    Args:
        seeds: (B,) int64, the samples'.
        motion: of the world; None where it stays.
        has_height: the last column is the height, z.
    """
    if motion is None and not options.cloud_jitter_m and not options.cloud_dropout:
        return cloud
    points, xyz = tuple(cloud.shape[1:3]), cloud[..., :3]
    if motion is not None:
        xyz = motion.position(xyz.flatten(1, 2)).view_as(xyz)
    if options.cloud_jitter_m:
        xyz = xyz + options.cloud_jitter_m * noise(seeds, (*points, 3), stream="augment.cloud.jitter")
    others = cloud[..., 3:-1] if has_height else cloud[..., 3:]
    cloud = torch.cat([xyz, others, xyz[..., 2:]] if has_height else [xyz, others], dim=-1)
    return _drop_points(cloud, seeds, share=options.cloud_dropout) if options.cloud_dropout else cloud


def _drop_points(cloud: torch.Tensor, seeds: torch.Tensor, *, share: float) -> torch.Tensor:
    """(B, To, P, C) with a share of each frame's points replaced by copies of others."""
    drawn = uniform(seeds, (2, *cloud.shape[1:3]), stream="augment.cloud.dropout")
    source = _copies_of_kept(drawn[:, 0], drawn[:, 1], share=share)
    return cloud.gather(2, source[..., None].expand_as(cloud))


def _copies_of_kept(drawn: torch.Tensor, choice: torch.Tensor, *, share: float) -> torch.Tensor:
    """(B, To, P) int64: which point of the frame each one becomes: itself, or a kept one where drawn < share."""
    # at least one point of a frame stays
    keep = (drawn >= share) | (drawn == drawn.amax(-1, keepdim=True))
    kept_first = keep.int().argsort(dim=-1, descending=True, stable=True)
    count = keep.sum(-1, keepdim=True)
    chosen = (choice * count).long().minimum(count - 1)
    return torch.where(keep, torch.arange(keep.shape[-1], device=keep.device), kept_first.gather(-1, chosen))
