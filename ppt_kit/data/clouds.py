"""Point clouds as the policy sees them: the columns that were asked for, and clouds made from depth where none is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ppt_kit.cameras import crop, depth_to_points, farthest_points
from ppt_kit.data.store import DecodedColumn, EpisodeStore, metres
from ppt_kit.errors import UserError

CANDIDATES = 4096  # points that farthest-point sampling chooses from: of more, an even share


def compose_cloud(
    position: np.ndarray,
    *,
    channels: int,
    num_points: int,
    color: np.ndarray | None = None,
    segmentation: np.ndarray | None = None,
    color_range: float = 1.0,
) -> np.ndarray:
    """(..., num_points, channels) float32: xyz, then colour in [0, 1], segmentation and height as `channels` asks.

    Args:
        position: (..., P, 3) metres, or (..., P, 6) with the colour behind.
        color: (..., P, 3) uint8 or floats; None takes the columns behind the position.
        color_range: what float colours go to: 1, or 255 as in DP3.
        segmentation: (..., P) or (..., P, 1).
    """
    xyz, columns = position[..., :3].astype(np.float32, copy=False), []
    if channels >= 6:
        color = position[..., 3:6] if color is None else color
        columns.append(color.astype(np.float32) / (255 if color.dtype == np.uint8 else color_range))
    if channels == 5 and segmentation is not None:
        columns.append(segmentation.astype(np.float32).reshape(*xyz.shape[:-1], 1))
    if channels in (4, 5, 7):
        columns.append(xyz[..., 2:3])
    cloud = np.concatenate([xyz, *columns], axis=-1) if columns else xyz
    if cloud.shape[-2] > num_points:
        cloud = cloud[..., np.linspace(0, cloud.shape[-2] - 1, num_points).round().astype(int), :]
    return np.ascontiguousarray(cloud)


def cloud_column(
    store: EpisodeStore, cameras: list[str], *, num_points: int, with_color: bool, crop_box: np.ndarray | None
) -> DecodedColumn:
    """Clouds (N, num_points, 3), or 6 with colours in [0, 1] behind, out of the depth of stored cameras.

    The points of all cameras together, in the world, inside `crop_box`, thinned by farthest-point sampling.

    Args:
        cameras: with a depth column and an entry in store.cameras each.
        crop_box: (2, 3) lower and upper corner, metres; None = everything the cameras see.
    """

    def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        depths = {name: metres(store.read(f"obs/depths/{name}", rows)) for name in cameras}
        images = {name: store.read(f"obs/images/{name}", rows) for name in cameras} if with_color else {}
        for place, row in enumerate(rows.tolist()):
            parts = []
            for name in cameras:
                depth = depths[name][place].reshape(depths[name].shape[1:3])
                points = depth_to_points(depth, *store.cameras[name].at(row))
                if with_color:
                    points = np.concatenate([points, images[name][place].reshape(-1, 3) / np.float32(255)], axis=1)
                valid = np.isfinite(depth).reshape(-1) & (depth.reshape(-1) > 0)
                parts.append(points[valid])
            yield (
                row,
                _thin(np.concatenate(parts), store=store, row=row, num_points=num_points, crop_box=crop_box)[None],
            )

    width = 6 if with_color else 3
    return DecodedColumn(
        (int(store.episode_ends[-1]), num_points, width), np.float32, decode, stored_as=f"depth of {', '.join(cameras)}",
        layout=f"made from depth, {num_points} of the points",
    )  # fmt: skip


def _thin(
    points: np.ndarray, *, store: EpisodeStore, row: int, num_points: int, crop_box: np.ndarray | None
) -> np.ndarray:
    if crop_box is not None:
        points = points[crop(points[:, :3], crop_box)]
    if not len(points):
        raise UserError(
            f"{store.path}: the depth of {store.episode_name(store.episode_of(row))} (row {row}) has no point"
            + (
                f" inside dataset.crop_box={crop_box.reshape(-1).tolist()}. Set another one."
                if crop_box is not None
                else ": it is zero everywhere."
            )
        )
    if len(points) > CANDIDATES:
        points = points[np.linspace(0, len(points) - 1, CANDIDATES).round().astype(int)]
    return points[farthest_points(points[:, :3], num_points)].astype(np.float32)
