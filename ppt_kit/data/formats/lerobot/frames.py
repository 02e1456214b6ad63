"""Frames of the videos by their rows' timestamps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ppt_kit.data.disk.video import VideoFrames, runs_of
from ppt_kit.data.formats.lerobot.rows import Decode, Rows
from ppt_kit.errors import UserError


def frames_of(rows: Rows, feature: str, height: int, width: int) -> Decode:
    """Frames by their time; those decoded on the way that are rows of the dataset come along."""
    videos, fps = rows.episodes.videos[feature], float(rows.episodes.fps)
    files, begins = videos.file[rows.selected], videos.from_s[rows.selected]

    def decode(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        owner = rows.owner(wanted)
        for file in np.unique(files[owner]).tolist():
            mine = files[owner] == file
            yield from decode_file(file, wanted[mine], owner[mine])

    def decode_file(file: int, wanted: np.ndarray, owner: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        inside = wanted - rows.starts[owner]
        times = np.empty(len(wanted))
        for episode in np.unique(owner).tolist():
            times[owner == episode] = begins[episode] + rows.times(episode)[inside[owner == episode]]
        found = _Found(rows, np.flatnonzero(files == file), begins, fps)
        given, order = np.zeros(len(wanted), bool), np.argsort(times, kind="stable")
        try:
            with VideoFrames(videos.files[file], fps=fps) as video:
                if (video.height, video.width) != (height, width):
                    raise UserError(
                        f"{video.path}: its frames are {video.height}x{video.width}, "
                        f"meta/info.json says {height}x{width} (height x width)"
                    )
                for shown, frames in video.decode_times(times[order]):
                    for first, values in found.take(shown, frames):
                        given |= (wanted >= first) & (wanted < first + len(values))
                        yield first, values
                for first, values in found.rest():
                    given |= wanted == first
                    yield first, values
        except UserError as error:
            first = order[np.argmin(given[order])]
            raise UserError(f"{error} ({feature} of {rows.name(int(owner[first]))})") from None
        if not given.all():
            first = order[np.argmin(given[order])]
            raise UserError(
                f"{videos.files[file]}: no frame within half a frame of {times[first]:.3f} s, where "
                f"{rows.name(int(owner[first]))} has its frame {inside[first]}: the video is cut off, or its times "
                "are not the dataset's."
            )

    return decode


class _Found:
    """Which rows the frames of one video file are: each row once, from the frame nearest to its timestamp."""

    def __init__(self, rows: Rows, episodes: np.ndarray, begins: np.ndarray, fps: float):
        self._rows, self._fps = rows, fps
        self._episodes = episodes[np.argsort(begins[episodes], kind="stable")]
        self._begins = begins[self._episodes]
        # episode -> its last row given
        self._newest: dict[int, int] = {}
        # row -> how far off its frame is
        self._held: dict[int, tuple[float, np.ndarray]] = {}

    def take(self, times: np.ndarray, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Runs (first row, values). The last frame is held back: the next run may begin with one nearer to its row."""
        found = list(self._nearest(times))
        rows, which, gap = (np.concatenate(part) for part in zip(*found)) if found else (np.empty(0, np.int64),) * 3
        for row, (before, frame) in self._held.items():
            again = rows == row
            if not (gap[again] < before).any():
                rows, which, gap = rows[~again], which[~again], gap[~again]
                yield row, frame[None]
        last = which == len(times) - 1
        self._held = {row: (off, frames[-1].copy()) for row, off in zip(rows[last].tolist(), gap[last].tolist())}
        rows, which = rows[~last], which[~last]
        for begin, end in runs_of(rows):
            yield int(rows[begin]), _those(frames, which[begin:end])

    def rest(self) -> Iterator[tuple[int, np.ndarray]]:
        """What was held back."""
        for row, (_, frame) in self._held.items():
            yield row, frame[None]
        self._held = {}

    def _nearest(self, times: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows, positions in `times`, gaps in s) (n,) each, an episode at a time."""
        half = 0.5 / self._fps
        low = max(0, int(np.searchsorted(self._begins, times[0] - half, side="right")) - 1)
        high = int(np.searchsorted(self._begins, times[-1] + half, side="right"))
        for episode, begin in zip(self._episodes[low:high].tolist(), self._begins[low:high].tolist()):
            stamps, start = self._rows.times(episode), int(self._rows.starts[episode])
            after = np.clip(np.searchsorted(stamps, times - begin), 1, max(1, len(stamps) - 1))
            after = np.minimum(after, len(stamps) - 1)
            earlier = np.abs(times - begin - stamps[after - 1]) < np.abs(times - begin - stamps[after])
            nearest = np.where(earlier, after - 1, after)
            gap = np.abs(times - begin - stamps[nearest])
            fresh = (nearest > self._newest.get(episode, -1)) | np.isin(nearest + start, list(self._held))
            near = np.flatnonzero((gap <= half * 1.001) & fresh)
            near = near[np.lexsort((gap[near], nearest[near]))]
            inside, first = np.unique(nearest[near], return_index=True)
            if len(inside):
                self._newest[episode] = int(inside[-1])
                yield inside + start, near[first], gap[near[first]]


def _those(frames: np.ndarray, which: np.ndarray) -> np.ndarray:
    """frames[which], without a copy where they follow each other."""
    if which[-1] - which[0] == len(which) - 1 and (np.diff(which) == 1).all():
        return frames[which[0] : which[-1] + 1]
    return frames[which]
