"""Writes a LeRobotDataset v3.0 into an empty folder: tables, videos, and what meta/ says of them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ppt_kit.data.disk.blocks import blocks, row_bytes, values_of
from ppt_kit.data.disk.video import VideoFrames
from ppt_kit.data.formats import name_of
from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError

DATA_FILE_MB = 100  # LeRobot's own bounds: a file that has reached its bound takes no further episode
VIDEO_FILE_MB = 200
FILES_A_CHUNK = 1000
LEAST_FPS, MOST_FPS = 0.001, 10_000
STATS_PIXELS = 10_000  # a picture's pixels that its statistics are made of

Progress = Callable[[int], object]  # called with the number of steps just written
PIXELS = "yuv420p"
COUNTED = {"timestamp": np.float32, "frame_index": np.int64, "episode_index": np.int64, "index": np.int64, "task_index": np.int64}  # fmt: skip
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# the first that is there is taken; a keyframe every second frame, as LeRobot does: windows are read at random
ENCODERS = {"av1": ("libsvtav1", "libaom-av1", "libx264"), "h264": ("libx264",), "hevc": ("libx265",)}
OPTIONS = {
    "libsvtav1": {"g": "2", "crf": "30", "preset": "10"},
    "libaom-av1": {"g": "2", "crf": "30", "cpu-used": "8"},
    "libx264": {"g": "2", "crf": "23"},
    # of films shorter than its B-frames look ahead it makes up times, and the mp4 refuses some of those
    "libx265": {"g": "2", "crf": "23", "x265-params": "bframes=0:log-level=none"},
}


@dataclass(frozen=True)
class Feature:
    """One column of the store as LeRobot has it."""

    name: str
    key: str
    kind: str  # "numbers", "image" or "video"
    dtype: np.dtype
    shape: tuple[int, ...]
    labels: list[str] | None

    @property
    def type(self) -> pa.DataType:
        """What it is in the tables."""
        if self.kind == "image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kind = pa.from_numpy_dtype(self.dtype)
        if self.shape == (1,):
            return kind
        if len(self.shape) == 1:
            return pa.list_(kind, self.shape[0])
        for _ in self.shape:
            kind = pa.list_(kind)
        return kind

    def cells(self, values: np.ndarray) -> pa.Array:
        """(n, ...) values as a column of a table."""
        if self.kind == "image":
            return pa.array([{"bytes": _png(image), "path": None} for image in values], self.type)
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        if len(self.shape) == 1:
            return array if self.shape == (1,) else pa.FixedSizeListArray.from_arrays(array, self.shape[0])
        for size in reversed(self.shape):
            array = pa.ListArray.from_arrays(pa.array(np.arange(0, len(array) + 1, size, dtype=np.int32)), array)
        return array


def fps_of(store: EpisodeStore, fps: float | None) -> float:
    """Control steps a second: those given, or else those that the dataset says."""
    found = fps if fps is not None else store.attrs.get("fps")
    if found is None:
        raise UserError(
            f"fps=null: {store.path} does not say its steps a second. Type fps=10, or what it was recorded at."
        )
    if not isinstance(found, (int, float)) or not LEAST_FPS <= found <= MOST_FPS:
        whose = "" if fps is not None else f" (as {store.path} says)"
        raise UserError(
            f"fps={found}{whose}: no number of steps a second from {LEAST_FPS} to {MOST_FPS}. Type fps=10, or what it "
            "was recorded at."
        )
    return found


def features_of(store: EpisodeStore, keys: Sequence[str], *, video: bool, fps: float) -> list[Feature]:
    names, found = store.attrs.get("names", {}), []
    for key in keys:
        name, shape, dtype = _feature_name(key), store.shape(key)[1:], store.dtype(key)
        if name in COUNTED:
            continue
        if key.startswith("obs/images/"):
            if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
                raise UserError(
                    f"{store.path}: {key} is {dtype} of shape {shape}; LeRobot's pictures are uint8 (H, W, 3). Leave it out: keys=[…]."
                )
            if video and (shape[0] % 2 or shape[1] % 2):
                raise UserError(
                    f"{store.path}: {key} is {shape[0]}x{shape[1]}: videos have even sizes. Type video=false."
                )
            found.append(
                Feature(name, key, "video" if video else "image", dtype, shape, ["height", "width", "channels"])
            )
            continue
        if key.startswith("obs/depths/"):
            dtype, shape = np.dtype(np.float32), (*shape[:2], 1)
        if dtype.kind not in "biuf" or 0 in shape:
            raise UserError(
                f"{store.path}: {key} is {dtype} of shape {shape}, which LeRobot has no feature for. Leave it out: keys=[…]."
            )
        found.append(Feature(name, key, "numbers", dtype, shape or (1,), names.get(key)))
    twice = [feature.name for feature in found if sum(other.name == feature.name for other in found) > 1]
    if twice or not found:
        raise UserError(
            f"{store.path}: {f'two columns would be called {twice[0]}' if twice else 'no column to write'}. Set keys=[…]."
        )
    return found


def _feature_name(key: str) -> str:
    for begin, instead in (("obs/", "observation."), ("actions/", "action.")):
        if key.startswith(begin):
            return instead + key.removeprefix(begin).replace("/", ".")
    return "action" if key == "actions" else key.replace("/", ".")


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
        stream = _add_stream(container, name, rate=rate, height=256, width=256)
        for number in range(2):
            container.mux(stream.encode(_frame(picture, number, rate)))
        container.mux(stream.encode(None))


def _frame(picture: np.ndarray, number: int, rate: Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def _add_stream(container: Any, encoder: str, *, rate: Fraction, height: int, width: int) -> Any:
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 greets on stderr otherwise
    stream = container.add_stream(encoder, rate=rate, options=OPTIONS.get(encoder, {"g": "2"}))
    stream.height, stream.width, stream.pix_fmt = height, width, PIXELS
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.open()
    return stream


class LeRobotWriter:
    """A LeRobotDataset in the making."""

    def __init__(self, folder: Path, store: EpisodeStore, features: list[Feature], *, fps: float, encoder: str):
        self._folder, self._store, self._features, self._fps, self._encoder = folder, store, features, fps, encoder
        self._films = [feature for feature in features if feature.kind == "video"]
        self._columns = [feature for feature in features if feature.kind != "video"]
        # without sentences the name, as MultiTrajDataset has it: the language is the same before and after
        sentences = store.sentences or [name_of(store.path)] * len(store.episode_ends)
        self._tasks = list(dict.fromkeys(sentences))
        number = {sentence: place for place, sentence in enumerate(self._tasks)}
        self._task_of = [number[sentence] for sentence in sentences]

    def write(self, progress: Progress | None) -> None:
        rows, totals = [], {feature.name: _Stats() for feature in self._features}
        with ExitStack() as opened:
            data = opened.enter_context(closing(_Tables(self._folder, self._columns)))
            films = {
                feature.name: opened.enter_context(closing(_Films(self._folder, feature, self._fps, self._encoder)))
                for feature in self._films
            }
            for episode in range(len(self._store.episode_ends)):
                begin, end = self._store.bounds(episode)
                stats = {feature.name: _Stats() for feature in self._features} | {name: _Stats() for name in COUNTED}
                row = {"episode_index": episode, "tasks": [self._tasks[self._task_of[episode]]], "length": end - begin}
                row |= data.begin_episode() | {"dataset_from_index": begin, "dataset_to_index": end}
                self._copy_table(data, episode, stats)
                for feature in self._films:
                    row |= films[feature.name].begin_episode(end - begin)
                    self._copy_film(films[feature.name], feature, begin, end, stats[feature.name])
                for name, found in stats.items():
                    totals.setdefault(name, _Stats()).merge(found)
                    row |= {f"stats/{name}/{what}": value for what, value in found.as_lists().items()}
                rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
                if progress is not None:
                    progress(end - begin)
        for film in films.values():
            film.check()
        self._write_meta(rows, totals)

    def _copy_table(self, data: _Tables, episode: int, stats: Mapping[str, _Stats]) -> None:
        begin, end = self._store.bounds(episode)
        largest = max((row_bytes(self._store, feature.key) for feature in self._columns), default=1)
        for rows in blocks(begin, end, row_bytes=largest):
            columns = {}
            for feature in self._columns:
                values = values_of(self._store, feature.key, rows)
                add = stats[feature.name].add if feature.kind == "numbers" else stats[feature.name].add_pictures
                add(values)
                columns[feature.name] = feature.cells(values)
            counted = {
                "timestamp": (rows - begin) / self._fps, "frame_index": rows - begin, "episode_index": np.full(len(rows), episode),
                "index": rows, "task_index": np.full(len(rows), self._task_of[episode]),
            }  # fmt: skip
            for name, values in counted.items():
                stats[name].add(values)
                columns[name] = pa.array(values.astype(COUNTED[name]))
            data.append(columns)

    def _copy_film(self, film: _Films, feature: Feature, begin: int, end: int, stats: _Stats) -> None:
        for rows in blocks(begin, end, row_bytes=row_bytes(self._store, feature.key)):
            values = self._store.read(feature.key, rows)
            stats.add_pictures(values)
            film.append(values)

    def _write_meta(self, rows: list[dict], totals: Mapping[str, _Stats]) -> None:
        meta = self._folder / "meta"
        (meta / "episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), meta / "episodes/chunk-000/file-000.parquet")
        index = pd.Index(self._tasks, name="task")
        pd.DataFrame({"task_index": range(len(self._tasks))}, index=index).to_parquet(meta / "tasks.parquet")
        (meta / "stats.json").write_text(
            json.dumps({name: found.as_lists() for name, found in totals.items()}, indent=4)
        )
        features: dict[str, dict] = {}
        for feature in self._features:
            dtype = str(feature.dtype) if feature.kind == "numbers" else feature.kind
            features[feature.name] = {"dtype": dtype, "shape": list(feature.shape), "names": feature.labels}
            if feature.kind == "video":
                features[feature.name]["info"] = self._film_info(feature)
        for name, kind in COUNTED.items():
            features[name] = {"dtype": np.dtype(kind).name, "shape": [1], "names": None}
        info = {
            "codebase_version": "v3.0", "robot_type": self._store.attrs.get("robot_type"), "total_episodes": len(rows),
            "total_frames": int(self._store.episode_ends[-1]), "total_tasks": len(self._tasks), "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB, "video_files_size_in_mb": VIDEO_FILE_MB, "fps": self._plain_fps(),
            "splits": {"train": f"0:{len(rows)}"}, "data_path": DATA_PATH, "video_path": VIDEO_PATH if self._films else None,
            "features": features,
        }  # fmt: skip
        (meta / "info.json").write_text(json.dumps(info, indent=4, default=plain))

    def _plain_fps(self) -> float:
        return int(self._fps) if float(self._fps).is_integer() else float(self._fps)

    def _film_info(self, feature: Feature) -> dict:
        codec = av.codec.Codec(self._encoder, "w").canonical_name
        return {
            "video.height": feature.shape[0], "video.width": feature.shape[1], "video.codec": codec, "video.pix_fmt": PIXELS,
            "video.is_depth_map": False, "video.fps": self._plain_fps(), "video.channels": 3, "has_audio": False,
        }  # fmt: skip


class _Tables:
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


class _Films:
    """The videos of one camera, several episodes each."""

    def __init__(self, folder: Path, feature: Feature, fps: float, encoder: str):
        self._folder, self._feature, self._encoder = folder, feature, encoder
        self._rate = Fraction(fps).limit_denominator(1_000_000)
        self._counts: list[int] = []  # frames of each file
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
            self._container.mux(self._stream.encode(_frame(picture, self._counts[-1], self._rate)))
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
            self._stream = _add_stream(container, self._encoder, rate=self._rate, height=height, width=width)
            self._container = container
        except (av.FFmpegError, ValueError) as error:
            container.close()
            raise UserError(
                f"{self._feature.key}: {self._encoder} cannot encode {self._feature.shape[1]}x{self._feature.shape[0]} at {self._rate} "
                f"fps ({error}). Type codec=h264, or video=false."
            ) from None


class _Stats:
    """Lowest, highest, mean and standard deviation of rows as they come, in float64.

    Source: Chan, Golub, LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
    """

    def __init__(self) -> None:
        self.count = 0  # rows
        self._values = 0  # that went into the mean of one entry: a picture has many
        self._low = self._high = self._mean = self._squares = np.zeros(())

    def add(self, rows: np.ndarray, *, axes: tuple[int, ...] = (0,)) -> None:
        """Rows (n, ...), taken together over `axes`."""
        rows = rows.astype(np.float64)
        rows = rows[:, None] if rows.ndim == 1 else rows
        part = _Stats()
        part.count, part._values = len(rows), int(np.prod([rows.shape[axis] for axis in axes]))
        part._low, part._high, part._mean = rows.min(axes), rows.max(axes), rows.mean(axes)
        part._squares = rows.var(axes) * part._values
        self.merge(part)

    def add_pictures(self, pictures: np.ndarray) -> None:
        """(n, H, W, 3) uint8: channels in [0, 1], of some pixels of each."""
        step = max(1, int(np.sqrt(pictures.shape[1] * pictures.shape[2] / STATS_PIXELS)))
        self.add(pictures[:, ::step, ::step, :, None, None] / 255.0, axes=(0, 1, 2))

    def merge(self, other: _Stats) -> None:
        if not self.count:
            self.__dict__.update(other.__dict__)
            return
        total = self._values + other._values
        gap = other._mean - self._mean
        self._squares = self._squares + other._squares + gap**2 * (self._values * other._values / total)
        self._mean = self._mean + gap * (other._values / total)
        self._low, self._high = np.minimum(self._low, other._low), np.maximum(self._high, other._high)
        self.count, self._values = self.count + other.count, total

    def as_lists(self) -> dict[str, list]:
        """As stats.json has them; a picture's are (3, 1, 1)."""
        std = np.sqrt(self._squares / max(1, self._values))
        found = {"min": self._low, "max": self._high, "mean": self._mean, "std": std}
        return {**{name: value.tolist() for name, value in found.items()}, "count": [self.count]}


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_A_CHUNK, "file_index": number % FILES_A_CHUNK}


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "wb")


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
