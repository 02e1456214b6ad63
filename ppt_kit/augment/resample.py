"""Shifts and crops of pictures: where each row and column comes from, and fetching it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppt_kit.augment.numbers import whole


@dataclass
class Places:
    """Where each of n rows (or columns) comes from: (1 - weight) * [low] + weight * [high].

    Attributes:
        low, high: (B, n) int64.
        weight: (B, n) float32.
    """

    low: torch.Tensor
    high: torch.Tensor
    weight: torch.Tensor

    def nearest(self) -> torch.Tensor:
        return torch.where(self.weight < 0.5, self.low, self.high)


def image_places(
    image: torch.Tensor, u: dict[str, torch.Tensor], *, crop_ratio: float, shift_px: int
) -> tuple[Places, Places]:
    """Where each row and each column of the (B, To, H, W, C) result comes from, by the camera's numbers `u`."""
    kept = 1 - (1 - crop_ratio) * u["crop"]
    rows, columns = (
        places(size, kept=kept, place=u[f"crop_{axis}"], shift=whole(u[f"shift_{axis}"], shift_px))
        for axis, size in (("y", image.shape[2]), ("x", image.shape[3]))
    )
    return rows, columns


def places(size: int, *, kept: torch.Tensor, place: torch.Tensor, shift: torch.Tensor) -> Places:
    """Of a crop that is resized back to `size`, out of an image that was shifted.

    Args:
        kept: (B,) the crop's share of the image.
        place: (B,) in [0, 1], where it starts.
        shift: (B,) int64 pixels.
    """
    index = torch.arange(size, device=kept.device)
    start = place * size * (1 - kept)
    exact = (start[:, None] + (index + 0.5) * kept[:, None] - 0.5).clamp_(0, size - 1)
    low = exact.long()
    high = (low + 1).clamp_(max=size - 1)
    first, second = ((at + shift[:, None]).clamp_(0, size - 1) for at in (low, high))
    return Places(first, second, exact - low)


def pick(image: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, To, H, W, C) pixels at rows (B, H) and columns (B, W), in the image's own type."""
    frames = torch.arange(image.shape[0] * image.shape[1], device=image.device).view(*image.shape[:2], 1, 1)
    at = (frames * image.shape[2] + rows[:, None, :, None]) * image.shape[3] + columns[:, None, None, :]
    return image.flatten(0, 3).index_select(0, at.flatten()).view_as(image)


def interpolate(planes: torch.Tensor, rows: Places, columns: Places) -> torch.Tensor:
    """(3, B, To, H, W), linear along H, then along W."""
    return _interpolate_columns(_interpolate_rows(planes, rows), columns)


def _interpolate_rows(planes: torch.Tensor, rows: Places) -> torch.Tensor:
    lines, weight = planes.flatten(0, 3), rows.weight[:, None, :, None]
    images = torch.arange(0, len(lines), planes.shape[3], device=planes.device).view(*planes.shape[:3], 1)
    low, high = (
        # whole rows are copied: three times as fast as gathering each pixel along H
        lines.index_select(0, (images + at[:, None]).flatten()).view_as(planes)
        for at in (rows.low, rows.high)
    )
    return high.sub_(low).mul_(weight).add_(low)


def _interpolate_columns(planes: torch.Tensor, columns: Places) -> torch.Tensor:
    low, high = (planes.gather(4, at[:, None, None].expand_as(planes)) for at in (columns.low, columns.high))
    return high.sub_(low).mul_(columns.weight[:, None, None]).add_(low)
