"""Generated stores of random numbers: one episode's worth three ways for the loader, and one too big for the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_loader_store(folder: Path, *, kind: str, episodes: int, length: int) -> None:
    """The same episodes three times.

    ours.zarr as we write them, chunked.zarr as the ancestor did (a compressed chunk a frame), bare/ a file a key.
    """
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    rng = np.random.default_rng(0)
    with ZarrWriter(folder / "ours.zarr") as writer:
        for _ in range(episodes):
            writer.append(_numbers(rng, length, action=7) | _pictures(rng, length, kind))
    _copy_in_other_forms(folder)


def write_big_store(folder: Path, gigabytes: float) -> None:
    """big.zarr: episodes that share their cloud and pictures."""
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    steps, rng = 200, np.random.default_rng(0)
    clouds = rng.random((steps, 1024, 3), dtype=np.float32)
    images = rng.integers(0, 256, (steps, 128, 128, 3), dtype=np.uint8)
    count = int(gigabytes * 1e9 / (clouds.nbytes + images.nbytes))
    with ZarrWriter(folder / "big.zarr") as writer:
        for _ in range(count):
            low = _numbers(rng, steps, action=4)
            writer.append({**low, "obs/pointcloud/pos": clouds, "obs/images/front": images})


def _numbers(rng: np.random.Generator, steps: int, *, action: int) -> dict[str, np.ndarray]:
    return {
        "actions": rng.normal(size=(steps, action)).astype(np.float32),
        "obs/eef_pos": rng.normal(size=(steps, 3)).astype(np.float32),
        "obs/normalized_gripper_pos": rng.random((steps, 1), dtype=np.float32),
    }


def _pictures(rng: np.random.Generator, steps: int, kind: str) -> dict[str, np.ndarray]:
    if kind == "pointcloud":
        return {"obs/pointcloud/pos": rng.random((steps, 512, 3), dtype=np.float32)}
    if kind == "depth":
        return {"obs/depths/front": rng.random((steps, 128, 128, 1), dtype=np.float32)}
    return {
        f"obs/images/{camera}": rng.integers(0, 256, (steps, 128, 128, 3), dtype=np.uint8)
        for camera in ("front", "wrist")
    }


def _copy_in_other_forms(folder: Path) -> None:
    import zarr

    from ppt_kit.data.formats import open_store

    source: Any = zarr.open_group(str(folder / "ours.zarr"), mode="r")
    target: Any = zarr.open_group(str(folder / "chunked.zarr"), mode="w", zarr_format=2)
    (folder / "bare").mkdir(exist_ok=True)
    for name in open_store(folder / "ours.zarr").keys():  # noqa: SIM118
        values = source[f"data/{name}"][:]
        np.save(folder / "bare" / f"{name.replace('/', '.')}.npy", values)
        chunks = (1, *values.shape[1:])
        target.create_array(f"data/{name}", shape=values.shape, chunks=chunks, dtype=values.dtype)[:] = values
