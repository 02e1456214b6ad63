"""Videos of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

VIDEO_FPS = 30


def write_video(path: Path, frames: Sequence[np.ndarray], *, fps: int = VIDEO_FPS) -> None:
    """An H.264 file of (H, W, 3) uint8 frames; H and W even."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
