"""A generated dataset that looks like something: a hand that fetches a block, for two cameras and as a cloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TABLE, BLOCK, HAND = (0.55, 0.5, 0.45), (0.85, 0.25, 0.2), (0.25, 0.45, 0.85)
DEG = np.pi / 180


def write_scene(path: Path, *, lengths: tuple[int, ...] = (1000,), size: int = 128, points: int = 4096) -> Path:
    """A zarr replay buffer: rgb of front and wrist, depth of front, coloured clouds; actions move the hand by 5 cm.

    Args:
        lengths: of its episodes, in control steps.
        size: height and width of pictures (pixels).
        points: of a cloud.
    """
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    rng = np.random.default_rng(0)
    told = ["fetch the red block"] * len(lengths)
    with ZarrWriter(path, attrs={"descriptions": told}) as writer:
        for number, length in enumerate(lengths):
            writer.append(_episode(rng, length, size=size, points=points), meta={"episode_seeds": number})
    return path


def _episode(rng: np.random.Generator, length: int, *, size: int, points: int) -> dict[str, np.ndarray]:
    time = np.linspace(0, 1, length)
    block = np.array([0.55, rng.uniform(-0.2, 0.2), 0.03])
    swing = np.stack([0.05 * np.sin(9 * time), 0.08 * np.cos(7 * time), 0.1 * np.abs(np.sin(5 * time))], 1)
    hand = (np.array([0.25, 0, 0.35]) * (1 - time[:, None]) + block * time[:, None] + swing).astype(np.float32)
    closed = (time > 0.8).astype(np.float32)[:, None]
    moves = np.diff(hand, axis=0, append=hand[-1:]) / 0.05
    front, depth = _pictures(hand, block, size=size, turn=0)
    wrist, _ = _pictures(hand, block, size=size, turn=90)
    clouds, colors = _clouds(rng, hand, block, points=points)
    return {
        "actions": np.concatenate([moves, closed], 1).astype(np.float32), "obs/eef_pos": hand,
        "obs/normalized_gripper_pos": closed, "obs/images/front": front, "obs/images/wrist": wrist,
        "obs/depths/front": depth, "obs/pointcloud/pos": clouds, "obs/pointcloud/colors": colors,
    }  # fmt: skip


def _pictures(hand: np.ndarray, block: np.ndarray, *, size: int, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """(T, S, S, 3) uint8 and (T, S, S, 1) m: discs over a slanted table, seen from a side."""
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    back = 1.6 - 0.5 * down
    picture = np.stack([channel * (0.75 + 0.25 * down) for channel in TABLE], -1)
    rgb = np.repeat(picture[None], len(hand), 0)
    depth = np.repeat(back[None], len(hand), 0)
    side = np.array([np.sin(turn * DEG), np.cos(turn * DEG)])
    for where, color, radius in ((np.tile(block, (len(hand), 1)), BLOCK, 0.1), (hand, HAND, 0.14)):
        x, y = (where[:, :2] - [0.4, 0]) @ side * 2.2, 0.6 - where[:, 2] * 2.5
        off = np.hypot(across[None] - x[:, None, None], down[None] - y[:, None, None])
        inside = off < radius
        light = np.sqrt(np.clip(1 - (off / radius) ** 2, 0, 1))
        rgb = np.where(inside[..., None], light[..., None] * np.array(color), rgb)
        depth = np.where(inside, 1.1 - 0.1 * light, depth)
    return (rgb * 255).astype(np.uint8), depth[..., None].astype(np.float32)


def _clouds(
    rng: np.random.Generator, hand: np.ndarray, block: np.ndarray, *, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """(T, P, 3) float32 m and uint8: half a table, the rest the block and the hand."""
    half, ball = points // 2, points - points // 2
    table = np.stack([rng.uniform(0.1, 0.8, half), rng.uniform(-0.4, 0.4, half), rng.normal(0, 0.002, half)], 1)
    way = rng.normal(size=(ball, 3))
    shell = 0.05 * way / np.linalg.norm(way, axis=1, keepdims=True)
    is_hand = np.arange(ball) < ball // 2
    centre = np.where(is_hand[None, :, None], hand[:, None], block)
    clouds = np.concatenate([np.broadcast_to(table, (len(hand), half, 3)), centre + shell], 1).astype(np.float32)
    colors = np.concatenate([np.tile(TABLE, (half, 1)), np.where(is_hand[:, None], HAND, BLOCK)])
    shaded = colors * rng.uniform(0.85, 1, (points, 1))
    return clouds, np.broadcast_to((shaded * 255).astype(np.uint8), clouds.shape)
