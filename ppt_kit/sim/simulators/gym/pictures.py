"""A picture of any size as a square one."""

from __future__ import annotations

import numpy as np


def fitted(picture: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the whole (H, W, 3) uint8 picture, in the middle of black where it is not square."""
    from PIL import Image

    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(picture, np.uint8)
    scale = size / max(height, width)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = Image.fromarray(np.ascontiguousarray(picture, np.uint8)).resize(shape[::-1], Image.Resampling.BOX)
    out = np.zeros((size, size, 3), np.uint8)
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    out[top : top + shape[0], left : left + shape[1]] = np.asarray(small)
    return out
