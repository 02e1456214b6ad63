"""Point clouds as a policy sees them: the channels that were asked for; made from depth where none is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ppt_kit.cameras import crop, depth_to_points, farthest_points
from ppt_kit.data.disk.rows import spread
from ppt_kit.data.store import DecodedColumn, EpisodeStore, metres
from ppt_kit.errors import UserError

# points that farthest-point sampling chooses from: of more, an even share
CANDIDATES = 4096


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
        color: (..., P, 3) whole numbers to 255, or floats; None takes the columns behind the position.
        color_range: what float colours go to: 1, or 255 as in DP3.
        segmentation: (..., P) or (..., P, 1).
    """
    xyz, columns = position[..., :3].astype(np.float32, copy=False), []
    if channels >= 6:
        color = position[..., 3:6] if color is None else color
        columns.append(color.astype(np.float32) / (255 if color.dtype.kind in "iu" else color_range))
    if channels == 5 and segmentation is not None:
        columns.append(segmentation.astype(np.float32).reshape(*xyz.shape[:-1], 1))
    if channels in (4, 5, 7):
        columns.append(xyz[..., 2:3])
    cloud = np.concatenate([xyz, *columns], axis=-1) if columns else xyz
    if cloud.shape[-2] > num_points:
        cloud = cloud[..., spread(num_points, cloud.shape[-2]), :]
    return np.ascontiguousarray(cloud)


@dataclass(frozen=True)
class CloudSource:
    """What clouds are made from where none are stored: the depth of calibrated cameras.

    The points of all cameras together, in the world, inside the crop box, thinned by farthest-point sampling. A depth
    of 0, or one that is not finite, is no point: so depth cameras say that they saw none.

    Attributes:
        cameras: names; each has depth and a calibration.
        with_color: whether their images give the colours.
        crop_box: lower and upper corner x0, y0, z0, x1, y1, z1 (m); None = everything the cameras see.
    """

    cameras: list[str]
    with_color: bool = False
    crop_box: list[float] | None = None

    def column(self, store: EpisodeStore, *, num_points: int) -> DecodedColumn:
        """Clouds (N, num_points, 3), or 6 with colours in [0, 1] behind, of every row of a store."""

        def decode(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            kinds = ("depths", "images") if self.with_color else ("depths",)
            names = [f"obs/{kind}/{camera}" for kind in kinds for camera in self.cameras]
            read = {name: store.read(name, rows) for name in names}
            for place, row in enumerate(rows.tolist()):
                poses = {camera: store.cameras[camera].at(row) for camera in self.cameras}
                reading = {name: values[place] for name, values in read.items()}
                where = f"{store.path}: the depth of {store.episode_name(store.episode_of(row))} (row {row})"
                yield row, self._cloud(reading, poses, num_points=num_points, where=where)[None]

        return DecodedColumn(
            (int(store.episode_ends[-1]), num_points, 6 if self.with_color else 3), np.float32, decode,
            stored_as=f"depth of {', '.join(self.cameras)}", layout=f"made from depth, {num_points} of the points",
        )  # fmt: skip

    def of_reading(
        self, reading: Mapping[str, np.ndarray], cameras: Mapping[str, np.ndarray], *, num_points: int
    ) -> np.ndarray:
        """(num_points, 3 or 6) of one frame of a simulator.

        Args:
            reading: stored column -> its reading.
            cameras: <camera>/intrinsics (3, 3) and <camera>/extrinsics (4, 4), camera to world.
        """
        poses = {name: (cameras[f"{name}/intrinsics"], cameras[f"{name}/extrinsics"]) for name in self.cameras}
        return self._cloud(reading, poses, num_points=num_points, where="the depth of the simulator")

    def _cloud(
        self, reading: Mapping[str, np.ndarray], poses: Mapping[str, tuple[np.ndarray, np.ndarray]], *,
        num_points: int, where: str,
    ) -> np.ndarray:  # fmt: skip
        parts = []
        for name in self.cameras:
            depth = metres(np.asarray(reading[f"obs/depths/{name}"])[None])[0, ..., 0]
            points = depth_to_points(depth, *poses[name])
            if self.with_color:
                color = np.asarray(reading[f"obs/images/{name}"]).reshape(-1, 3) / np.float32(255)
                points = np.concatenate([points, color], axis=1)
            valid = np.isfinite(depth).reshape(-1) & (depth.reshape(-1) > 0)
            parts.append(points[valid])
        return self._thin(np.concatenate(parts), num_points=num_points, where=where)

    def _thin(self, points: np.ndarray, *, num_points: int, where: str) -> np.ndarray:
        if self.crop_box is not None:
            points = points[crop(points[:, :3], np.asarray(self.crop_box, np.float64).reshape(2, 3))]
        if not len(points):
            inside = f" inside dataset.crop_box={list(self.crop_box)}. Set another one." if self.crop_box else None
            raise UserError(f"{where} has no point{inside or ': it is zero, or not finite, everywhere.'}")
        if len(points) > CANDIDATES:
            points = points[spread(CANDIDATES, len(points))]
        return points[farthest_points(points[:, :3], num_points)].astype(np.float32)
