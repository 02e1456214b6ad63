"""Frames as bytes that a browser unpacks without a library: JPEG, depth in millimetres, quantised clouds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# longest side of what is shown: a picture is a few hundred pixels wide on the page
RGB_SIDE, DEPTH_SIDE = 384, 256
MOST_POINTS = 16_384
JPEG_QUALITY = 85
# frames a page, and about how many bytes it may have
PAGE_STEPS, PAGE_BYTES = 64, 8_000_000
HIGHEST = 65_535


@dataclass
class Packed:
    """Parts of a message: what each is, and its bytes."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=list)

    def add(self, part: dict[str, Any], data: bytes) -> None:
        """One part more."""
        self.parts.append(part)
        self.buffers.append(data)


def pack(seen: Mapping[str, Any]) -> Packed:
    """The pictures and clouds of N frames.

    Args:
        seen: "rgb" {camera: (N, H, W, 3) uint8}, "depth" {camera: (N, H, W, 1) m}, "pointcloud" (N, P, C), "segments"
            (N, P) of its points; each may be absent.
    """
    packed = Packed()
    for camera, frames in seen.get("rgb", {}).items():
        files = [jpeg(frame) for frame in np.asarray(frames)]
        packed.add({"what": "rgb", "camera": camera, "sizes": [*map(len, files)]}, b"".join(files))
    for camera, frames in seen.get("depth", {}).items():
        shown = millimetres(np.asarray(frames))
        packed.add({"what": "depth", "camera": camera, "size": [*shown.shape[1:]]}, shown.tobytes())
    if "pointcloud" in seen:
        _pack_clouds(packed, np.asarray(seen["pointcloud"]), seen.get("segments"))
    return packed


def jpeg(frame: np.ndarray) -> bytes:
    """One picture (H, W, 3) uint8, at most RGB_SIDE pixels wide and high."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((RGB_SIDE, RGB_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def millimetres(depth: np.ndarray) -> np.ndarray:
    """(N, H', W') uint16 of depth (N, H, W, 1) m, every so many pixels; 0 = no reading, also of what is not finite."""
    every = -(-max(depth.shape[1:3]) // DEPTH_SIDE)
    thinned = np.nan_to_num(depth[:, ::every, ::every, 0], nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(np.rint(thinned * 1000), 0, HIGHEST).astype(np.uint16)


def points_shown(points: int) -> int:
    """How many of a cloud's points are sent."""
    return -(-points // -(-points // MOST_POINTS)) if points else 0


def has_color(channels: int) -> bool:
    """Whether a cloud of so many channels holds colours, as `compose_cloud` lays them out."""
    return channels >= 6


def has_segments(channels: int) -> bool:
    """Whether it holds a segmentation."""
    return channels == 5


def page_steps(*, cameras: Sequence[Mapping[str, Any]], points: int) -> int:
    """Frames a page, so that none is larger than a page ought to be."""
    a_frame = 12 * points_shown(points)
    for camera in cameras:
        pixels = camera["height"] * camera["width"]
        a_frame += min(pixels, DEPTH_SIDE**2) * 2 if camera["kind"] == "depth" else min(pixels, RGB_SIDE**2) // 4
    return int(np.clip(PAGE_BYTES // max(1, a_frame), 4, PAGE_STEPS))


def _pack_clouds(packed: Packed, clouds: np.ndarray, segments: np.ndarray | None) -> None:
    """xyz as 16 bits between this page's lowest and highest corner; colours and segments as bytes."""
    if segments is None and has_segments(clouds.shape[-1]):
        segments = clouds[..., 3]
    channels, every = clouds.shape[-1], -(-clouds.shape[1] // MOST_POINTS)
    clouds = clouds[:, ::every]
    xyz = np.nan_to_num(clouds[..., :3])
    low, high = xyz.min((0, 1)), xyz.max((0, 1))
    span = np.where(high > low, high - low, 1)
    numbers = np.rint((xyz - low) / span * HIGHEST).astype(np.uint16)
    part = {"what": "xyz", "points": clouds.shape[1], "low": low.tolist(), "span": span.tolist()}
    packed.add(part, numbers.tobytes())
    if has_color(channels):
        colors = np.rint(np.clip(np.nan_to_num(clouds[..., 3:6]), 0, 1) * 255).astype(np.uint8)
        packed.add({"what": "colors"}, np.ascontiguousarray(colors).tobytes())
    if segments is not None:
        numbers = np.nan_to_num(segments[:, ::every])
        packed.add({"what": "segments"}, np.clip(numbers, 0, 255).astype(np.uint8).tobytes())
