"""The video encoders of FFmpeg, as LeRobot sets them."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from typing import Any

import av
import numpy as np

from ppt_kit.errors import UserError

PIXELS = "yuv420p"
# the first that is there is taken; a keyframe every second frame, as LeRobot does: windows are read at random
ENCODERS = {"av1": ("libsvtav1", "libaom-av1", "libx264"), "h264": ("libx264",), "hevc": ("libx265",)}
OPTIONS = {
    "libsvtav1": {"g": "2", "crf": "30", "preset": "10"},
    "libaom-av1": {"g": "2", "crf": "30", "cpu-used": "8"},
    "libx264": {"g": "2", "crf": "23"},
    # of films shorter than its B-frames look ahead it makes up times, and the mp4 refuses some of those
    "libx265": {"g": "2", "crf": "23", "x265-params": "bframes=0:log-level=none"},
}


def encoder_of(codec: str) -> str:
    """Name of the FFmpeg encoder for a codec: the first that writes a video here."""
    names, why = ENCODERS.get(codec, (codec,)), ""
    for name in names:
        try:
            if av.codec.Codec(name, "w").type == "video":
                _try_encoder(name)
                return name
            why = why or f"{name} encodes no video"
        except av.codec.codec.UnknownCodecError:
            why = why or f"this FFmpeg has no {' nor '.join(names)}"
        except (av.FFmpegError, ValueError, TypeError) as error:
            why = why or f"{name} writes no {PIXELS} video into an mp4 ({getattr(error, 'strerror', None) or error})"
    raise UserError(f"codec={codec}: {why}. Type codec=h264, or video=false for PNG.")


def _try_encoder(name: str) -> None:
    """Writes a short video into memory: what an encoder or the mp4 refuses is known before a row is read."""
    picture, rate = np.zeros((256, 256, 3), np.uint8), Fraction(10)
    with av.open(io.BytesIO(), "w", format="mp4") as container:
        stream = add_stream(container, name, rate=rate, height=256, width=256)
        for number in range(2):
            container.mux(stream.encode(frame_of(picture, number, rate)))
        container.mux(stream.encode(None))


def frame_of(picture: np.ndarray, number: int, rate: Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def add_stream(container: Any, encoder: str, *, rate: Fraction, height: int, width: int) -> Any:
    # errors only: SVT-AV1 greets on stderr otherwise
    os.environ.setdefault("SVT_LOG", "1")
    stream = container.add_stream(encoder, rate=rate, options=OPTIONS.get(encoder, {"g": "2"}))
    stream.height, stream.width, stream.pix_fmt = height, width, PIXELS
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.open()
    return stream
