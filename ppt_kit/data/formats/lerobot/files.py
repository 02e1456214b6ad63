"""The files that episodes go into, parquet and mp4, several episodes each."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppt_kit.data.disk.video import VideoFrames
from ppt_kit.data.formats.lerobot.encoders import add_stream, frame_of
from ppt_kit.data.formats.lerobot.features import COUNTED, Feature
from ppt_kit.errors import UserError

# LeRobot's own bounds: a file that has reached its bound takes no further episode
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
FILES_A_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


class Tables:
    """The parquet files of the numbers, several episodes each."""

    def __init__(self, folder: Path, columns: list[Feature]):
        fields = [(feature.name, feature.type) for feature in columns]
        self._schema = pa.schema(
            fields + [(name, pa.from_numpy_dtype(np.dtype(kind))) for name, kind in COUNTED.items()]
        )
        self._folder, self._number = folder, -1
        self._file: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None

    def begin_episode(self) -> dict:
        """Where the next episode goes."""
        if self._file is None or self._file.tell() >= DATA_FILE_MB << 20:
            self.close()
            self._number += 1
            self._file = _create(self._folder / DATA_PATH.format(**_place(self._number)))
            self._writer = pq.ParquetWriter(self._file, self._schema)
        return {f"data/{name}": value for name, value in _place(self._number).items()}

    def append(self, columns: Mapping[str, pa.Array]) -> None:
        assert self._writer is not None
        self._writer.write_table(pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema))

    def close(self) -> None:
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if file is not None:
                file.close()


class Films:
    """The videos of one camera, several episodes each."""

    def __init__(self, folder: Path, feature: Feature, fps: float, encoder: str):
        self._folder, self._feature, self._encoder = folder, feature, encoder
        self._rate = Fraction(fps).limit_denominator(1_000_000)
        # frames of each file
        self._counts: list[int] = []
        self._file: BinaryIO | None = None
        self._container: Any = None
        self._stream: Any = None

    def begin_episode(self, length: int) -> dict:
        """Where the next episode goes."""
        if self._file is None or self._file.tell() >= VIDEO_FILE_MB << 20:
            self.close()
            self._open()
        first = self._counts[-1]
        where = _place(len(self._counts) - 1) | {
            "from_timestamp": float(first / self._rate),
            "to_timestamp": float((first + length) / self._rate),
        }
        return {f"videos/{self._feature.name}/{name}": value for name, value in where.items()}

    def append(self, pictures: np.ndarray) -> None:
        for picture in pictures:
            self._container.mux(self._stream.encode(frame_of(picture, self._counts[-1], self._rate)))
            self._counts[-1] += 1

    def close(self) -> None:
        container, file, self._container, self._file = self._container, self._file, None, None
        try:
            if container is not None:
                container.mux(self._stream.encode(None))
                container.close()
        finally:
            if file is not None:
                file.close()

    def check(self) -> None:
        """Whether every frame arrived: FFmpeg keeps some of a full disk's errors to itself."""
        for number, count in enumerate(self._counts):
            try:
                with VideoFrames(self._path(number)) as video:
                    found = video.num_frames
            except UserError:
                found = 0
            if found != count:
                raise OSError(f"{found} of {count} frames of {self._feature.key} arrived in a video: is the disk full?")

    def _path(self, number: int) -> Path:
        return self._folder / VIDEO_PATH.format(video_key=self._feature.name, **_place(number))

    def _open(self) -> None:
        self._counts.append(0)
        self._file = _create(self._path(len(self._counts) - 1))
        container = av.open(self._file, "w", format="mp4")
        height, width = self._feature.shape[:2]
        try:
            self._stream = add_stream(container, self._encoder, rate=self._rate, height=height, width=width)
            self._container = container
        except (av.FFmpegError, ValueError) as error:
            container.close()
            raise UserError(
                f"{self._feature.key}: {self._encoder} cannot encode {width}x{height} at {self._rate} fps ({error}). "
                "Type codec=h264, or video=false."
            ) from None


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_A_CHUNK, "file_index": number % FILES_A_CHUNK}


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "wb")
