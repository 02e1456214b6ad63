"""Frames of a video by their time or number: from the keyframe before them on, and all that was decoded on the way."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter

from ppt_kit.errors import UserError
from ppt_kit.lfs import is_lfs_pointer, lfs_line

# what one run of frames holds at most
RUN_BYTES = 32 << 20
# a keyframe this near ahead is reached sooner by decoding on than by seeking, which starts the decoder anew
NEAR_FRAMES = 4
# where the file does not say where its keyframes are, what lies farther ahead is sought
FAR_FRAMES = 64


class VideoFrames:
    """One open video file; a context manager.

    Args:
        fps: what the dataset says of it; None = what the file says.
    Raises:
        UserError: no such file, or it is cut off or holds no video.
    """

    def __init__(self, path: str | Path, *, fps: float | None = None):
        self.path = Path(path)
        self._container = self._opened()
        try:
            self._read_head(fps)
        except UserError:
            self._container.close()
            raise
        self._rgb = VideoReformatter()
        self._packets: Iterator[Any] = iter(())
        # decoded, not yet asked for
        self._waiting: list[Any] = []
        # ticks of the keyframe that was sought last
        self._keyframe = 0

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back."""
        self._packets, self._waiting = iter(()), []
        self._container.close()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return self.num_frames, self.height, self.width, 3

    def decode(self, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Runs (first frame, (n, H, W, 3) uint8) that cover the frames asked for and all decoded on the way.

        Args:
            frames: (M,) sorted numbers; frame i is the one shown i / fps after the first.
        Raises:
            UserError: one is not there, or cannot be decoded; the line names it.
        """
        wanted = np.asarray(frames, np.int64)
        given = np.zeros(len(wanted), bool)
        for times, pictures in self.decode_times(wanted / self.fps):
            numbers = np.rint(times * self.fps).astype(np.int64)
            given |= np.isin(wanted, numbers)
            for begin, end in runs_of(numbers):
                yield int(numbers[begin]), pictures[begin:end]
        if not given.all():
            raise UserError(
                f"{self.path}: frame {wanted[~given][0]} is not there: the video is cut off, or its rate is not "
                f"{self.fps:g} fps."
            )

    def decode_times(self, times_s: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Runs (times (n,) in s, frames (n, H, W, 3) uint8), each frame once, times rising: those nearest to the times
        asked for, where the video reaches so far, and all that were decoded on the way.

        Args:
            times_s: (M,) sorted, s after the video's first frame.
        Raises:
            UserError: a frame cannot be decoded; the line names it.
        """
        run = _Run(max(1, RUN_BYTES // (self.height * self.width * 3)), self.height, self.width)
        # ticks of the newest frame given
        last: int | None = None
        for time in np.asarray(times_s, np.float64).tolist():
            # the nearest frame has come once one lies less than a quarter of a frame before the time
            target = self._start + (time - 0.25 / self.fps) / float(self._tick)
            try:
                if last is not None and last >= target:
                    continue
                if self._worth_seeking(target, last):
                    if run.count:
                        yield run.take()
                    self._seek(target)
                for frame in self._frames():
                    if last is not None and frame.pts <= last:
                        continue
                    last = frame.pts
                    run.add(float((last - self._start) * self._tick), self._picture(frame))
                    if run.full:
                        yield run.take()
                    if last >= target:
                        break
            except (av.FFmpegError, OSError) as error:
                raise self._damaged(time, _reason(error)) from None
        if run.count:
            yield run.take()

    def _opened(self) -> Any:
        try:
            return av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            if is_lfs_pointer(self.path):
                raise UserError(lfs_line(self.path)) from None
            raise UserError(
                f"{self.path}: not a video that can be opened ({_reason(error)}): missing or cut off."
            ) from None

    def _read_head(self, fps: float | None) -> None:
        """Codec, size, rate and length."""
        if not self._container.streams.video:
            raise UserError(f"{self.path}: holds no video.")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        # the list of its frames ends before it says how they are coded
        if context is None:
            raise UserError(f"{self.path}: not a video that can be decoded: its index is cut off or damaged.")
        # a second thread decodes frames ahead that nobody asked for, and slower where every core has a loader already:
        # 554 frames/s with one thread, 435 with two slice threads, 367 with two frame threads (640x480 H.264, two
        # busy cores)
        context.thread_type, context.thread_count = "SLICE", 1
        if context.codec.name == "libdav1d":
            # gives a frame as soon as it is whole; AV1 frames need no waiting
            context.flags |= Flags.low_delay
        self.codec = str(context.codec.canonical_name)
        self.height, self.width = context.height, context.width
        self._tick = self._stream.time_base or Fraction(1, 90_000)
        self._start = self._stream.start_time or 0
        self.fps = float(fps or self._stream.average_rate or self._stream.guessed_rate or 0)
        if not (self.fps > 0 and self.height > 0 and self.width > 0):
            raise UserError(f"{self.path}: a video without a size or a frame rate: it is damaged.")
        self.num_frames = max(len(self._stream.index_entries), self._stream.frames)
        # Matroska does not count them
        if self.num_frames <= 1 and self._container.duration:
            self.num_frames = round(self._container.duration / av.time_base * self.fps)

    def _worth_seeking(self, target: float, last: int | None) -> bool:
        """Whether a keyframe lies between what was decoded last and the target, and not just ahead."""
        if last is None:
            return True
        step = 1 / self.fps / float(self._tick)
        index = self._stream.index_entries
        if len(index) <= 1:
            return target - last > FAR_FRAMES * step
        found = index.search_timestamp(int(target - self._delay()), backward=True)
        return found >= 0 and index[found].timestamp + self._delay() - last > NEAR_FRAMES * step

    def _delay(self) -> int:
        """Ticks between a frame's turn to be decoded and its turn to be shown, where B-frames shift them."""
        index = self._stream.index_entries
        return max(0, self._start - index[0].timestamp) if len(index) else 0

    def _seek(self, target: float) -> None:
        """Goes to the last keyframe that is shown at or before the target.

        Containers seek by the time of decoding, which lies before the time of showing: where the keyframe found is
        shown after the target, the one before it is taken.
        """
        # + 1: a keyframe that is the very frame wanted is shown up to a quarter of a frame after the target
        latest = target + 0.75 / self.fps / float(self._tick)
        asked, before, self._waiting = int(latest - self._delay()), None, []
        while True:
            self._container.seek(asked, stream=self._stream, backward=True, any_frame=False)
            packets = self._container.demux(self._stream)
            first = next((packet for packet in packets if packet.pts is not None), None)
            # nothing from there on
            if first is None:
                self._packets, self._keyframe = iter(()), 0
                return
            shown = int(first.pts or 0)
            place = shown if first.dts is None else first.dts
            if shown <= latest or (before is not None and place >= before):
                self._packets, self._keyframe = _chain(first, packets), shown
                return
            asked, before = min(place, asked) - 1, place

    def _frames(self) -> Iterator[Any]:
        """Frames from here on, as they are shown. A caller that stops finds the rest when it goes on."""
        while True:
            while self._waiting:
                frame = self._waiting.pop(0)
                # frames that are shown before the keyframe but follow it in the file need those before it (open GOP)
                if frame.pts is not None and frame.pts >= self._keyframe:
                    yield frame
            packet = next(self._packets, None)
            if packet is None:
                return
            # the file ends inside it
            if packet.is_corrupt:
                raise self._damaged(float((packet.pts - self._start) * self._tick), "its data is incomplete")
            self._waiting += packet.decode()

    def _picture(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8, good until the next one."""
        time = float((frame.pts - self._start) * self._tick)
        if frame.is_corrupt:
            raise self._damaged(time, "its data is incomplete")
        if (frame.height, frame.width) != (self.height, self.width):
            raise self._damaged(time, f"it is {frame.width}x{frame.height}, the video {self.width}x{self.height}")
        plane: Any = self._rgb.reformat(frame, format="rgb24", threads=1).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        return rows[: self.height, : self.width * 3].reshape(self.height, self.width, 3)

    def _damaged(self, time: float, why: str) -> UserError:
        return UserError(
            f"{self.path}: frame {round(time * self.fps)} ({time:.3f} s) cannot be decoded: {why}. "
            "The file is cut off or damaged."
        )


class _Run:
    """Frames that follow each other, until there are enough of them to hand on."""

    def __init__(self, limit: int, height: int, width: int):
        self._limit, self._size, self.count = limit, (height, width, 3), 0
        self._times: list[float] = []
        self._frames = np.empty((0, *self._size), np.uint8)

    @property
    def full(self) -> bool:
        return self.count == self._limit

    def add(self, time: float, picture: np.ndarray) -> None:
        if self.count == len(self._frames):
            wider = np.empty((min(self._limit, max(4, 2 * self.count)), *self._size), np.uint8)
            wider[: self.count] = self._frames[: self.count]
            self._frames = wider
        self._frames[self.count] = picture
        self._times.append(time)
        self.count += 1

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        times, frames = np.asarray(self._times), self._frames[: self.count]
        self._times, self._frames, self.count = [], np.empty((0, *self._size), np.uint8), 0
        return times, frames


def ends_inside(file: BinaryIO, size: int) -> bool:
    """Whether an mp4 of `size` bytes ends before what it says it holds; false of what is no mp4."""
    place, index = 0, False
    while place < size:
        file.seek(place)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if place == 0 and name != b"ftyp":
            return False
        # 1: the length stands behind the name; 0: up to the end
        length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - place
        index = index or name == b"moov"
        if place + length > size:
            return True
        # padding
        if length < 8:
            break
        place += length
    return not index


def runs_of(numbers: np.ndarray) -> list[tuple[int, int]]:
    """(begin, end) of each stretch of whole numbers that rise by one."""
    if not len(numbers):
        return []
    breaks = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(numbers)]))


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0]
