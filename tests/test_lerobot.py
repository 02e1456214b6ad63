"""LeRobot datasets, v2.1 and v3.0: every value where it belongs, each mistake one line, and conversions that lose nothing.

The datasets are built here with pyarrow and PyAV alone; what we write is read here with pyarrow and PyAV alone.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from conftest import ROOT, run_script, write_store
from PIL import Image

from ppt_kit.cameras import Camera
from ppt_kit.data.convert import to_lerobot, to_zarr
from ppt_kit.data.dataset import open_dataset
from ppt_kit.data.disk.video import VideoFrames
from ppt_kit.data.formats import open_store
from ppt_kit.data.store import DecodedColumn, EpisodeStore
from ppt_kit.errors import UserError

FPS = 10
SIZE = (48, 96)  # height, width of the pictures
BITS = 9
LENGTHS = (23, 40, 11)
CODECS = {
    "h264-2": ("libx264", {"g": "2", "crf": "20"}),
    "h264-30": ("libx264", {"g": "30", "bf": "3", "crf": "20", "sc_threshold": "0"}),
    "h264-open": ("libx264", {"g": "12", "bf": "3", "crf": "20", "x264-params": "open-gop=1:scenecut=0"}),
    "h264-late": ("libx264", {"g": "30", "bf": "3", "crf": "20"}),  # its first frame is not shown at 0
    "hevc-open": ("libx265", {"crf": "20", "x265-params": "keyint=12:open-gop=1:log-level=none"}),
    "av1-2": ("libsvtav1", {"g": "2", "crf": "25", "preset": "12"}),
    "av1-30": ("libsvtav1", {"g": "30", "crf": "25", "preset": "12"}),
    "vp9-30": ("libvpx-vp9", {"g": "30", "crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}


def picture(number: int) -> np.ndarray:
    """A picture that says its number: BITS blocks across, black or white, above a grey ramp."""
    height, width = SIZE
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.linspace(60, 200, width, dtype=np.uint8)[None, :, None]
    image[:, :, 0] += np.uint8(number % 40)
    for bit in range(BITS):
        block = slice(bit * 10 + 3, bit * 10 + 13)
        image[: height // 2, block] = 255 if number >> bit & 1 else 0
    return image


def number_in(image: np.ndarray) -> int:
    """What `picture` drew, after lossy compression too."""
    rows = image[4 : SIZE[0] // 2 - 4].astype(float)
    return sum(1 << bit for bit in range(BITS) if rows[:, bit * 10 + 6 : bit * 10 + 10].mean() > 128)


def write_video(path: Path, numbers, codec: str, *, fps: float = FPS, **container_options: str) -> None:
    name, options = CODECS[codec]
    rate = Fraction(fps).limit_denominator(100_000)
    late = {"use_editlist": "0"} if codec == "h264-late" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={**late, **container_options}) as container:
        stream = container.add_stream(name, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for position, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = position, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


class Made:
    """A dataset on disk and what it should read as: the frame of store row r shows the number r."""

    def __init__(self, path: Path, version: str, lengths=LENGTHS, *, codec="h264-30", episodes_a_file=2):
        self.path, self.version, self.lengths, self.codec = path, version, lengths, codec
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        total = int(self.ends[-1])
        rng = np.random.default_rng(3)
        inside = np.concatenate([np.arange(n) for n in lengths])
        self.values = {
            "action": rng.normal(size=(total, 4)).astype(np.float32),
            "observation.state": rng.normal(size=(total, 3)),  # float64
            "observation.environment_state": rng.normal(size=(total, 2, 3)).astype(np.float32),
            "observation.force.wrist": rng.normal(size=(total, 1)).astype(np.float32),
            "next.reward": np.arange(total, dtype=np.float32)[:, None],
            "next.done": np.isin(np.arange(total), self.ends - 1)[:, None],
            "timestamp": (inside / FPS).astype(np.float32)[:, None],
            "frame_index": inside[:, None],
            "episode_index": np.repeat(np.arange(len(lengths)), lengths)[:, None],
            "index": np.arange(total)[:, None],
            "task_index": np.repeat(np.arange(len(lengths)) % 2, lengths)[:, None],
        }
        self.tasks = ["pick the cube", "open the drawer, gently"]
        self.features = {
            name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]), "names": None}
            for name, values in self.values.items()
        }
        self.features["action"]["names"] = ["dx", "dy", "dz", "grip"]
        self.features["observation.state"]["names"] = {"motors": ["a", "b", "c"]}
        video = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
        self.features["observation.images.front"] = {**video, "info": {"video.codec": codec.split("-")[0]}}
        self.features["observation.image"] = {
            "dtype": "image",
            "shape": [3, *SIZE],
            "names": ["channel", "height", "width"],
        }
        self.features["observation.images.far"] = {**video, "info": {"video.is_depth_map": True}}
        self.features["note"] = {"dtype": "string", "shape": [1], "names": None}
        self._write(episodes_a_file)

    def copied(self, path: Path) -> Made:
        """The same dataset at another place, to be damaged."""
        shutil.copytree(self.path, path)
        copy = object.__new__(Made)
        copy.__dict__.update(self.__dict__, path=path)
        return copy

    def column(self, name: str, rows: slice) -> pa.Array:
        values = self.values[name][rows]
        if values.ndim == 2 and values.shape[1] == 1:
            return pa.array(values[:, 0])
        kind = pa.from_numpy_dtype(values.dtype)
        array = pa.array(values.reshape(-1), kind)
        for size in values.shape[:0:-1]:
            # v2.1 files have lists of one length, v3.0 files often plain lists
            fixed = pa.FixedSizeListArray.from_arrays(array, size)
            array = fixed if self.version == "v2.1" else fixed.cast(pa.list_(array.type))
        return array

    def table(self, rows: slice) -> pa.Table:
        columns = {name: self.column(name, rows) for name in self.values}
        numbers = range(rows.start, rows.stop)
        columns["observation.image"] = pa.array(
            [{"bytes": png(picture(i)), "path": None} for i in numbers],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        columns["note"] = pa.array(["x"] * len(numbers))
        return pa.table(columns)

    def _write(self, episodes_a_file: int) -> None:
        meta = self.path / "meta"
        meta.mkdir(parents=True)
        info = {
            "codebase_version": self.version, "robot_type": "arm", "fps": FPS, "chunks_size": 2, "total_episodes": len(self.lengths),
            "total_frames": int(self.ends[-1]), "splits": {"train": "0:2", "rest": "2:3"}, "features": self.features,
        }  # fmt: skip
        if self.version == "v3.0":
            info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            self._write_v3(episodes_a_file)
        else:
            info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
            info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
            self._write_v2()
        (meta / "info.json").write_text(json.dumps(info))

    def _write_v2(self) -> None:
        episodes = []
        for e, (begin, end) in enumerate(zip(self.starts.tolist(), self.ends.tolist())):
            file = self.path / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self.table(slice(begin, end)), file, row_group_size=10)
            write_video(self.video(e), range(begin, end), self.codec)
            tasks = [self.tasks[e % 2]] + (["a later task"] if e == 2 else [])
            episodes.append({"episode_index": e, "tasks": tasks, "length": end - begin})
        (self.path / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in episodes))
        lines = [json.dumps({"task_index": i, "task": task}) for i, task in enumerate(self.tasks)]
        (self.path / "meta/tasks.jsonl").write_text("\n".join(lines))

    def _write_v3(self, episodes_a_file: int) -> None:
        rows = []
        for number, low in enumerate(range(0, len(self.lengths), episodes_a_file)):
            high = min(low + episodes_a_file, len(self.lengths))
            begin, end = int(self.starts[low]), int(self.ends[high - 1])
            file = self.path / f"data/chunk-000/file-{number:03d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(self.table(slice(begin, end)), file, row_group_size=17)
            write_video(self.video(low), range(begin, end), self.codec)
            for e in range(low, high):
                rows.append(
                    {
                        "episode_index": e,
                        "tasks": [self.tasks[e % 2]] + (["a later task"] if e == 2 else []),
                        "length": self.lengths[e],
                        "dataset_from_index": int(self.starts[e]),
                        "dataset_to_index": int(self.ends[e]),
                        "data/chunk_index": 0,
                        "data/file_index": number,
                        "videos/observation.images.front/chunk_index": 0,
                        "videos/observation.images.front/file_index": number,
                        "videos/observation.images.front/from_timestamp": (self.starts[e] - begin) / FPS,
                        "videos/observation.images.front/to_timestamp": (self.ends[e] - begin) / FPS,
                        "stats/action/mean": [0.0] * 4,
                    }
                )
        file = self.path / "meta/episodes/chunk-000/file-000.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows[::-1]), file)  # in no order
        pd.DataFrame({"task_index": [0, 1]}, index=self.tasks).to_parquet(self.path / "meta/tasks.parquet")

    def video(self, e: int) -> Path:
        if self.version == "v3.0":
            return self.path / f"videos/observation.images.front/chunk-000/file-{e // 2:03d}.mp4"
        return self.path / f"videos/chunk-{e // 2:03d}/observation.images.front/episode_{e:06d}.mp4"

    def data(self, e: int) -> Path:
        if self.version == "v3.0":
            return self.path / f"data/chunk-000/file-{e // 2:03d}.parquet"
        return self.path / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet"


KEYS = {
    "action": "actions", "observation.state": "obs/state", "observation.environment_state": "obs/environment_state",
    "observation.force.wrist": "obs/force/wrist", "next.reward": "next.reward", "next.done": "next.done",
    "timestamp": "timestamp", "frame_index": "frame_index", "episode_index": "episode_index", "index": "index",
    "task_index": "task_index",
}  # fmt: skip


@pytest.fixture(scope="module", params=["v2.1", "v3.0"])
def made(request, tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("made") / "set", request.param)


@pytest.fixture
def broken(made, tmp_path) -> Made:
    """A copy to damage."""
    return made.copied(tmp_path / "broken")


def edges_and_random(ends, seed=0) -> np.ndarray:
    starts = np.concatenate([[0], ends[:-1]])
    rng = np.random.default_rng(seed)
    rows = np.concatenate([starts, ends - 1, starts + 1, rng.integers(0, ends[-1], 40)])
    return rng.permutation(np.concatenate([rows, rows[:7]]))


# ---------------------------------------------------------------------------------------------------- reading


def test_every_column_has_its_name_type_and_values(made):
    store = open_store(made.path, cache_gb=0)
    assert set(store.keys()) == {*KEYS.values(), "obs/images/front", "obs/images/image"}
    assert store.episode_ends.tolist() == made.ends.tolist()
    assert store.sentences == [made.tasks[0], made.tasks[1], made.tasks[0]]
    for feature, key in KEYS.items():
        rows = edges_and_random(made.ends)
        got = store.read(key, rows)
        assert store.columns[key].stored_as == feature
        assert got.dtype == store.dtype(key) == made.values[feature].dtype
        assert store.shape(key) == made.values[feature].shape
        np.testing.assert_array_equal(got, made.values[feature][rows])
    assert store.attrs["fps"] == FPS
    assert (store.attrs["robot_type"], store.attrs["codebase_version"]) == ("arm", made.version)
    assert store.attrs["names"] == {"actions": ["dx", "dy", "dz", "grip"], "obs/state": ["a", "b", "c"]}
    assert set(store.attrs["skipped"]) == {"observation.images.far", "note"}


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_pictures_and_frames_are_the_rows_own_cold_and_warm(made, tmp_path, cache_gb):
    store = open_store(made.path, cache_dir=tmp_path / "cache", cache_gb=cache_gb)
    for seed in range(3):
        rows = edges_and_random(made.ends, seed)
        exact = store.read("obs/images/image", rows)
        np.testing.assert_array_equal(exact, np.stack([picture(row) for row in rows]))
        frames = store.read("obs/images/front", rows)
        assert [number_in(frame) for frame in frames] == rows.tolist()
        assert np.abs(frames.astype(int) - exact).mean() < 8
    again = open_store(made.path, cache_dir=tmp_path / "cache", cache_gb=cache_gb)
    np.testing.assert_array_equal(again.read("obs/images/front", rows), frames)


@pytest.mark.parametrize("codec", CODECS)
def test_the_right_frame_whatever_the_codec_and_its_groups(tmp_path, codec):
    path = tmp_path / "film.mp4"
    write_video(path, range(100), codec)
    with av.open(str(path)) as container:
        straight = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [number_in(frame) for frame in straight] == list(range(100))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    leading = any(before.is_keyframe and after.pts < before.pts for before, after in zip(packets, packets[1:]))
    assert leading == codec.endswith("open")
    assert (min(packet.pts for packet in packets) > 0) == codec.endswith("late")
    with VideoFrames(path) as video:
        assert video.shape == (100, *SIZE, 3)
        assert (video.codec, video.fps) == (codec.split("-")[0], FPS)
    rng = np.random.default_rng(0)
    several = [np.sort(rng.choice(100, 5, replace=False)) for _ in range(12)]
    for wanted in [np.arange(100), *several, *np.arange(100)[:, None]]:
        seen: list[int] = []
        with VideoFrames(path) as video:
            for first, frames in video.decode(wanted):
                for number, frame in enumerate(frames, first):
                    np.testing.assert_array_equal(frame, straight[number])
                    seen.append(number)
        assert len(set(seen)) == len(seen)
        assert set(wanted.tolist()) <= set(seen)


@pytest.mark.parametrize("codec", ["h264-2", "av1-2", "av1-30", "h264-late"])
def test_a_dataset_of_that_codec_gives_each_row_its_frame(tmp_path, codec):
    made = Made(tmp_path / "set", "v3.0", codec=codec)
    store = open_store(made.path, cache_dir=tmp_path / "cache")
    for seed in range(2):
        rows = edges_and_random(made.ends, seed)
        assert [number_in(frame) for frame in store.read("obs/images/front", rows)] == rows.tolist()


def test_what_was_decoded_on_the_way_is_kept(made, tmp_path):
    store = open_store(made.path, cache_dir=tmp_path / "cache")
    column = store.columns["obs/images/front"]
    store.read("obs/images/front", np.array([20]))
    assert column.cache.share() >= 21 / made.ends[-1]
    store.read("obs/images/image", np.array([20]))
    assert store.columns["obs/images/image"].cache.share() == 1 / made.ends[-1]


def test_long_runs_come_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("ppt_kit.data.disk.video.RUN_BYTES", 7 * SIZE[0] * SIZE[1] * 3)
    made = Made(tmp_path / "set", "v3.0")
    column = open_store(made.path, cache_gb=0).columns["obs/images/front"]
    runs = list(column.decode(np.arange(made.ends[-1])))
    assert 4 <= max(len(frames) for _, frames in runs) <= 7
    assert sorted(row for first, frames in runs for row in range(first, first + len(frames))) == list(
        range(made.ends[-1])
    )


def test_a_split_selects_its_episodes(made):
    store = open_store(made.path, filter_key="rest", cache_gb=0)
    begin, end = made.starts[2], made.ends[2]
    assert store.episode_ends.tolist() == [end - begin]
    np.testing.assert_array_equal(store.read("actions", np.arange(11)), made.values["action"][begin:end])
    assert [number_in(f) for f in store.read("obs/images/front", np.array([10, 0]))] == [end - 1, begin]
    np.testing.assert_array_equal(store.read("obs/images/image", np.array([3]))[0], picture(begin + 3))
    assert store.episode_name(0) == "episode 0 (episode_index 2)"
    assert store.sentences == [made.tasks[0]]
    with pytest.raises(UserError, match="it has train, rest"):
        open_store(made.path, filter_key="test", cache_gb=0)


def test_timestamps_decide_not_frame_numbers(broken):
    """Every row's time is that of the frame after it: that frame is the row's."""
    e = 1
    table = pq.read_table(broken.data(e))
    stamps = np.asarray(table["timestamp"])
    mine = np.asarray(table["episode_index"]) == e
    stamps = np.where(mine, np.minimum(stamps + np.float32(1 / FPS), np.float32(39 / FPS)), stamps)
    stamps[np.flatnonzero(mine)[-1]] += np.float32(0.3 / FPS)  # within half a frame of the last one
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(stamps))
    pq.write_table(table, broken.data(e))
    rows = np.arange(broken.starts[e], broken.ends[e] - 2)
    store = open_store(broken.path, cache_gb=0)
    assert [number_in(f) for f in store.read("obs/images/front", rows)] == (rows + 1).tolist()


def test_episodes_may_begin_between_two_frames_times(tmp_path):
    """Films that were joined: the second episode begins 0.37 frames later than counting would say, and drifts by 1 ms."""
    made = Made(tmp_path / "set", "v3.0")
    gap = 0.037
    with av.open(str(made.video(0)), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "7", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for row in range(made.ends[1]):
            frame = av.VideoFrame.from_ndarray(picture(row), format="rgb24")
            late = gap + 0.001 * (row % 2) if row >= made.starts[1] else 0
            frame.pts, frame.time_base = round((row / FPS + late) * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file = made.path / "meta/episodes/chunk-000/file-000.parquet"
    listed = pq.read_table(file).to_pylist()
    for row in listed:
        if row["episode_index"] == 1:
            row["videos/observation.images.front/from_timestamp"] += gap
    pq.write_table(pa.Table.from_pylist(listed), file)
    store = open_store(made.path, cache_gb=0)
    for rows in (np.arange(made.ends[-1]), edges_and_random(made.ends), *edges_and_random(made.ends)[:20, None]):
        assert [number_in(frame) for frame in store.read("obs/images/front", rows)] == rows.tolist()


def test_a_store_that_was_read_goes_on_in_forked_processes(made, tmp_path):
    import multiprocessing

    store = open_store(made.path, cache_dir=tmp_path / "cache")
    store.read("obs/images/front", np.array([30]))
    store.read("actions", np.array([30]))

    def child(queue, seed):
        rows = edges_and_random(made.ends, seed)
        numbers = [number_in(frame) for frame in store.read("obs/images/front", rows)]
        right = np.array_equal(store.read("actions", rows), made.values["action"][rows])
        queue.put(numbers == rows.tolist() and right)

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=child, args=(queue, seed)) for seed in range(3)]
    for process in children:
        process.start()
    assert [queue.get(timeout=60) for _ in children] == [True] * 3
    for process in children:
        process.join()


@pytest.mark.parametrize("at_once", [3, 4, 100])
def test_a_film_of_twice_the_rate_gives_every_second_frame(tmp_path, monkeypatch, at_once):
    """Whichever frame begins a piece: one half a frame off must not take the row from the one that is its own."""
    monkeypatch.setattr("ppt_kit.data.disk.video.RUN_BYTES", at_once * SIZE[0] * SIZE[1] * 3)
    made = Made(tmp_path / "set", "v2.1")
    for e, (begin, end) in enumerate(zip(made.starts, made.ends)):
        write_video(made.video(e), range(2 * begin, 2 * end), "h264-30", fps=2 * FPS)
    store = open_store(made.path, cache_gb=0)
    for rows in (np.arange(made.ends[-1]), edges_and_random(made.ends)):
        assert [number_in(frame) for frame in store.read("obs/images/front", rows)] == (2 * rows).tolist()


def test_a_frame_lost_between_two_episodes_is_not_replaced_by_the_next_ones_first(tmp_path):
    made = Made(tmp_path / "set", "v3.0", codec="h264-2")
    lost = int(made.ends[0]) - 1
    with av.open(str(made.video(0)), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "2", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for row in range(made.ends[1]):
            if row != lost:
                frame = av.VideoFrame.from_ndarray(picture(row), format="rgb24")
                frame.pts, frame.time_base = row, Fraction(1, FPS)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    store = open_store(made.path, cache_gb=0)
    rows = np.array([lost - 1, lost + 1])
    assert [number_in(frame) for frame in store.read("obs/images/front", rows)] == rows.tolist()
    with pytest.raises(UserError, match=r"file-000.mp4: no frame .* 2.200 s, where episode 0 has its frame 22"):
        store.read("obs/images/front", np.array([lost]))


def test_parts_of_an_action_stay_apart_where_there_is_no_whole(broken):
    info = json.loads((broken.path / "meta/info.json").read_text())
    for name in ("action.arm", "action.hand.grip"):
        info["features"][name] = {"dtype": "float32", "shape": [4], "names": None}
    del info["features"]["action"]
    (broken.path / "meta/info.json").write_text(json.dumps(info))
    for e in (0, 1, 2):
        table = pq.read_table(broken.data(e))
        for name in ("action.arm", "action.hand.grip"):
            if name not in table.column_names:
                table = table.append_column(name, table["action"])
        pq.write_table(table, broken.data(e))
    store = open_store(broken.path, cache_gb=0)
    assert {key for key in store.columns if key.startswith("actions")} == {"actions/arm", "actions/hand/grip"}
    np.testing.assert_array_equal(store.read("actions/arm", np.array([5])), broken.values["action"][[5]])


def test_pictures_may_lie_beside_the_table(broken):
    e = 0
    table = pq.read_table(broken.data(e))
    (broken.path / "images").mkdir()
    stored = []
    for i in range(len(table)):
        (broken.path / f"images/{i}.png").write_bytes(png(picture(i)))
        stored.append({"bytes": None, "path": f"images/{i}.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    at = table.column_names.index("observation.image")
    pq.write_table(table.set_column(at, "observation.image", pa.array(stored, kind)), broken.data(e))
    store = open_store(broken.path, cache_gb=0)
    np.testing.assert_array_equal(store.read("obs/images/image", np.array([7, 2, 7]))[1], picture(2))
    os.remove(broken.path / "images/3.png")
    with pytest.raises(UserError, match=r"images/3.png: observation.image of episode 0, frame 3"):
        store.read("obs/images/image", np.array([3]))


def test_only_the_column_asked_for_is_read(made, monkeypatch):
    asked = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, i, columns=None, **more: asked.append(columns) or read(self, i, columns, **more),
    )
    open_store(made.path, cache_gb=0).read("obs/state", np.array([0, 70]))
    assert asked == [["observation.state"]] * len(asked)
    assert len(asked) == 2  # two row groups


# ---------------------------------------------------------------------------------------------------- what is broken


def test_a_missing_file_is_named_with_its_episode(broken):
    os.remove(broken.video(2))
    with pytest.raises(UserError, match=f"{broken.video(2).name}.*episode 2"):
        open_store(broken.path)
    os.remove(broken.data(2))
    with pytest.raises(UserError, match=f"{broken.data(2).name}.*episode 2"):
        open_store(broken.path)


def test_a_parquet_cut_off_is_refused_at_the_door(broken):
    file = broken.data(2)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{file.name}: cut off.*episode 2"):
        open_store(broken.path)


def test_a_parquet_damaged_inside_is_named_when_it_is_read(broken):
    file = broken.data(2)
    data = bytearray(file.read_bytes())
    data[-400:-8] = b"\0" * 392
    file.write_bytes(data)
    store = open_store(broken.path, cache_gb=0)
    with pytest.raises(UserError, match=rf"{file.name}: action of episode 2"):
        store.read("actions", np.array([made_row(broken, 2)]))


def made_row(made: Made, episode: int) -> int:
    return int(made.starts[episode]) + 3


def test_a_parquet_of_another_length_is_refused_when_it_is_read(broken):
    file = broken.data(2)
    pq.write_table(pq.read_table(file).slice(0, 9), file)
    store = open_store(broken.path, cache_gb=0)
    with pytest.raises(UserError, match=rf"{file.name}: 9 rows, but episode 2 in it should have 11"):
        store.read("actions", np.array([made_row(broken, 2)]))
    np.testing.assert_array_equal(store.read("actions", np.array([0])), broken.values["action"][:1])


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_video_cut_off_is_named_with_its_episode(broken, share):
    file = broken.video(2)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match=rf"{file.name}.*episode 2"):
        open_store(broken.path, cache_gb=0).read("obs/images/front", np.array([made_row(broken, 2)]))


def test_a_video_cut_off_inside_its_index_is_named(tmp_path):
    file = tmp_path / "film.mp4"
    write_video(file, range(30), "h264-30")
    whole = file.read_bytes()
    for end in range(whole.index(b"moov"), whole.index(b"udta") - 8, 20):  # udta says who wrote it
        file.write_bytes(whole[:end])
        with pytest.raises(UserError, match="film.mp4: "), VideoFrames(file) as video:
            list(video.decode(np.arange(30)))


@pytest.mark.parametrize("codec", ["h264-2", "vp9-30", "av1-30"])
def test_a_video_cut_off_behind_its_index_gives_what_is_whole_and_refuses_the_rest(tmp_path, codec):
    write_video(tmp_path / "cut.mp4", range(100), codec, movflags="faststart")
    with av.open(str(tmp_path / "cut.mp4")) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pts is not None]
    with open(tmp_path / "cut.mp4", "r+b") as file:
        file.truncate(places[50][0] + places[50][1] // 2)
    with VideoFrames(tmp_path / "cut.mp4") as video:
        assert [number_in(f) for _, run in video.decode(np.array([45])) for f in run][-1] == 45
        for number in (50, 51, 95):
            with pytest.raises(UserError, match=r"cut.mp4: frame (5|9)\d"):
                list(video.decode(np.array([number])))


@pytest.mark.parametrize(("codec", "changed"), [("h264-2", 3), ("h264-2", 1000), ("av1-30", 3)])
def test_bytes_that_changed_inside_a_frame_are_refused(tmp_path, codec, changed):
    """As far as the decoder tells: VP9 and HEVC carry no sum that would show it."""
    write_video(tmp_path / "film.mp4", range(100), codec)
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    with av.open(str(tmp_path / "film.mp4")) as container:
        packet = [packet for packet in container.demux(video=0) if packet.pts is not None][31]
    begin = packet.pos + packet.size // 2
    end = min(begin + changed, packet.pos + packet.size)
    data[begin:end] = bytes(255 - byte for byte in data[begin:end])
    (tmp_path / "film.mp4").write_bytes(data)
    with VideoFrames(tmp_path / "film.mp4") as video:
        with pytest.raises(UserError, match=r"film.mp4: frame 3\d .*cannot be decoded"):
            list(video.decode(np.arange(28, 40)))
        assert number_in(next(iter(video.decode(np.array([2]))))[1][-1]) == 2


def test_a_video_shorter_than_its_episode_names_file_episode_and_time(broken):
    last = int(broken.ends[2]) - 1
    write_video(broken.video(2), range(broken.starts[2], broken.ends[2] - 4), "h264-30")
    store = open_store(broken.path, cache_gb=0)
    assert number_in(store.read("obs/images/front", np.array([last - 4]))[0]) == last - 4
    with pytest.raises(
        UserError, match=rf"{broken.video(2).name}: no frame .* 1.000 s, where episode 2 has its frame 10"
    ):
        store.read("obs/images/front", np.array([last]))


def test_a_picture_that_is_none_is_named(broken):
    e, file = 2, broken.data(2)
    table = pq.read_table(file)
    stored = table["observation.image"].to_pylist()
    stored[3]["bytes"] = stored[3]["bytes"][:60]
    stored[4]["bytes"] = png(np.zeros((5, 6, 3), np.uint8))
    stored[5] = {"bytes": None, "path": None}
    at = table.column_names.index("observation.image")
    pq.write_table(table.set_column(at, "observation.image", pa.array(stored, table["observation.image"].type)), file)
    store = open_store(broken.path, cache_gb=0)
    for frame, says in ((3, "cannot be decoded"), (4, r"\(5, 6\) pixels"), (5, "missing")):
        with pytest.raises(UserError, match=rf"{file.name}: observation.image of episode {e}, frame {frame}, .*{says}"):
            store.read("obs/images/image", broken.starts[e : e + 1] + frame)
    np.testing.assert_array_equal(
        store.read("obs/images/image", broken.starts[e : e + 1])[0], picture(broken.starts[e])
    )


def change_info(made: Made, **changes) -> None:
    file = made.path / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codebase_version": "v1.6"}, "version v1.6; v2.0, v2.1, v3.0 can be read"),
        ({"fps": 0}, "fps=0"),
        ({"features": None}, "info.json: damaged"),
        ({"total_episodes": 4}, "lists total_episodes=3, info.json says 4"),
        ({"data_path": "data/{nothing}.parquet"}, "nothing"),
    ],
)
def test_an_info_that_cannot_be_is_one_line(broken, changes, says):
    change_info(broken, **changes)
    with pytest.raises(UserError, match=says):
        open_store(broken.path)


@pytest.mark.parametrize("text", ["3", "[]", '{"codebase_version": "v3.0",', "", '{"fps": 10}', "\0\0"])
def test_an_info_that_is_damaged_is_said_to_be(broken, text):
    (broken.path / "meta/info.json").write_text(text)
    with pytest.raises(UserError, match=r"meta/info.json: damaged \(.*\). Copy it again"):
        open_store(broken.path)


def test_version_2_0_is_read_as_2_1_is(tmp_path):
    made = Made(tmp_path / "set", "v2.1")
    change_info(made, codebase_version="v2.0")
    store = open_store(made.path, cache_gb=0)
    np.testing.assert_array_equal(store.read("actions", np.array([40])), made.values["action"][[40]])
    assert number_in(store.read("obs/images/front", np.array([40]))[0]) == 40


@pytest.mark.parametrize(
    ("feature", "about", "says"),
    [
        ("action", {"dtype": "float32", "shape": [5]}, r"action: 4 numbers a row, meta/info.json says \[5\]"),
        ("action", {"dtype": "int64", "shape": [4]}, "holds float32, meta/info.json says int64"),
        ("observation.gone", {"dtype": "float32", "shape": [5]}, "has no column observation.gone"),
        ("observation.images.front", {"dtype": "video", "shape": [50, 96, 3]}, "48x96, meta/info.json says 50x96"),
    ],
)
def test_a_feature_that_is_not_as_described_is_refused(broken, feature, about, says):
    features = json.loads((broken.path / "meta/info.json").read_text())["features"]
    change_info(broken, features={**features, feature: about})
    store = open_store(broken.path, cache_gb=0)
    key = next(key for key, column in store.columns.items() if column.stored_as == feature)
    with pytest.raises(UserError, match=says) as caught:
        store.read(key, np.array([0]))
    assert "episode 0" in str(caught.value)


def test_ten_thousand_episodes_open_quickly(tmp_path):
    """Files are looked at, not opened as tables or videos: each is four bytes long."""
    count, path = 10_000, tmp_path / "many"
    (path / "meta").mkdir(parents=True)
    for chunk in range(count // 1000):
        (path / f"data/chunk-{chunk:03d}").mkdir(parents=True)
        (path / f"videos/chunk-{chunk:03d}/cam").mkdir(parents=True)
    for e in range(count):
        (path / f"data/chunk-{e // 1000:03d}/episode_{e:06d}.parquet").write_bytes(b"PAR1")
        (path / f"videos/chunk-{e // 1000:03d}/cam/episode_{e:06d}.mp4").write_bytes(b"film")
    lines = [json.dumps({"episode_index": e, "tasks": ["t"], "length": 100}) for e in range(count)]
    (path / "meta/episodes.jsonl").write_text("\n".join(lines))
    (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "t"}\n')
    features = {
        "action": {"dtype": "float32", "shape": [2]},
        "cam": {"dtype": "video", "shape": [4, 4, 3], "names": None},
    }
    info = {
        "codebase_version": "v2.1", "fps": 10, "chunks_size": 1000, "features": features, "total_episodes": count,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (path / "meta/info.json").write_text(json.dumps(info))
    # of this process alone: another test may run beside it
    start = time.process_time()
    store = open_store(path, cache_gb=0)
    assert time.process_time() - start < 4  # 0.6 s
    assert len(store.episode_ends) == count


# ---------------------------------------------------------------------------------------------------- converting


def in_memory(path: Path, arrays: dict, lengths=LENGTHS, **more) -> EpisodeStore:
    """A store whose rows are arrays."""

    def column(key):
        values = arrays[key]
        return DecodedColumn(
            values.shape, values.dtype, lambda rows: iter([(0, values)]), stored_as=key, layout="memory"
        )

    return EpisodeStore(
        path=path,
        format="memory",
        episode_ends=np.cumsum(lengths),
        columns={key: column(key) for key in arrays},
        **more,
    )


def everything(tmp_path: Path, lengths=LENGTHS) -> tuple[EpisodeStore, dict]:
    rng, total = np.random.default_rng(5), sum(lengths)
    arrays = {
        "actions": rng.normal(size=(total, 4)).astype(np.float32),
        "obs/state": rng.normal(size=(total, 3)),
        "obs/arm/joints": rng.normal(size=(total, 7)).astype(np.float32),
        "obs/grip": rng.normal(size=total).astype(np.float32),
        "obs/plan": rng.normal(size=(total, 2, 3)).astype(np.float32),
        "obs/images/front": np.stack([picture(i) for i in range(total)]),
        "obs/images/wrist": np.stack([picture(i + 300)[:, ::-1] for i in range(total)]),
        "obs/depths/front": rng.uniform(0.1, 2, (total, 6, 8)),
        "obs/pointcloud/pos": rng.normal(size=(total, 5, 3)).astype(np.float32),
        "rewards": np.arange(total, dtype=np.float64),
        "next.done": np.arange(total) % 7 == 0,
        "steps": np.arange(total),
    }
    moving = np.tile(np.eye(4), (total, 1, 1))
    moving[:, 0, 3] = np.arange(total)
    camera, turning = Camera(np.diag([50.0, 50, 1]), moving[min(7, total - 1)]), Camera(np.eye(3), moving)
    store = in_memory(
        tmp_path / "source", arrays, lengths, sentences=["one", "two, " + "long " * 40, "one"][: len(lengths)],
        attrs={"fps": FPS, "robot_type": "arm", "task": "x", "limit": np.float32(2), "names": {"actions": list("abcd")}},
        cameras={"front": camera, "turning": turning},
    )  # fmt: skip
    return store, arrays


def test_to_zarr_keeps_every_value_and_name(tmp_path, monkeypatch):
    monkeypatch.setattr("ppt_kit.data.disk.blocks.BLOCK_BYTES", 5 * SIZE[0] * SIZE[1] * 3)  # episodes in several blocks
    store, arrays = everything(tmp_path)
    steps: list[int] = []
    to_zarr(store, tmp_path / "out.zarr", progress=steps.append)
    assert steps == list(LENGTHS)
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert root["meta/episode_ends"][:].tolist() == np.cumsum(LENGTHS).tolist()
    for key, values in arrays.items():
        got = root[f"data/{key}"][:]
        if key == "obs/depths/front":
            values = values.astype(np.float32)[..., None]
        assert got.dtype == values.dtype, key
        np.testing.assert_array_equal(got, values)
    assert root.attrs["descriptions"] == store.sentences
    assert root.attrs["robot_type"] == "arm"
    assert root.attrs["limit"] == 2
    assert [str(text) for text in root["meta/episode_descriptions"][:]] == [text[:100] for text in store.sentences]
    np.testing.assert_array_equal(root["meta/camera_info/front/intrinsics"][:], np.diag([50, 50, 1]))
    np.testing.assert_array_equal(root["meta/camera_info/front/extrinsics"][:], store.cameras["front"].extrinsics)
    np.testing.assert_array_equal(root["meta/camera_info/turning/intrinsics"][:], np.eye(3))
    again = open_store(tmp_path / "out.zarr")
    assert again.sentences == store.sentences
    np.testing.assert_array_equal(again.cameras["front"].extrinsics, store.cameras["front"].extrinsics)
    np.testing.assert_array_equal(again.cameras["turning"].extrinsics, store.cameras["turning"].extrinsics)
    np.testing.assert_array_equal(
        again.read("obs/images/front", np.array([70, 3])), arrays["obs/images/front"][[70, 3]]
    )


LEROBOT_KEYS = [
    "actions", "obs/state", "obs/arm/joints", "obs/grip", "obs/plan", "obs/images/front", "obs/images/wrist", "rewards", "next.done",
    "steps",
]  # fmt: skip


def read_lerobot(path: Path) -> tuple[dict, list[dict], dict[str, np.ndarray]]:
    """A little reader of v3.0: info, episodes, every feature's rows."""
    info = json.loads((path / "meta/info.json").read_text())
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    episodes = sorted(
        (row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["episode_index"]
    )
    rows: dict[str, list] = {name: [] for name in info["features"]}
    for episode in episodes:
        file = path / info["data_path"].format(
            chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
        )
        table = pq.read_table(file, filters=[("episode_index", "=", episode["episode_index"])])
        assert len(table) == episode["length"]
        for name, about in info["features"].items():
            if about["dtype"] == "video":
                place = {part: episode[f"videos/{name}/{part}"] for part in ("chunk_index", "file_index")}
                begin, end = (episode[f"videos/{name}/{part}_timestamp"] for part in ("from", "to"))
                with av.open(str(path / info["video_path"].format(video_key=name, **place))) as container:
                    frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
                half = 0.5 / info["fps"]
                rows[name] += [image for time, image in frames if begin - half < time < end - half]
            elif about["dtype"] == "image":
                rows[name] += [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in table[name].to_pylist()]
            else:
                rows[name] += [
                    np.asarray(cell, about["dtype"]).reshape(about["shape"]) for cell in table[name].to_pylist()
                ]
    return info, episodes, {name: np.stack(values) for name, values in rows.items()}


@pytest.mark.parametrize("codec", ["av1", "h264", None])
def test_to_lerobot_is_read_back_by_an_independent_reader(tmp_path, monkeypatch, codec):
    monkeypatch.setattr("ppt_kit.data.disk.blocks.BLOCK_BYTES", 9 * SIZE[0] * SIZE[1] * 3)
    store, arrays = everything(tmp_path)
    path = to_lerobot(store, tmp_path / "out", video=codec is not None, codec=codec or "av1", keys=LEROBOT_KEYS)
    info, episodes, rows = read_lerobot(path)
    assert [episode["length"] for episode in episodes] == list(LENGTHS)
    assert [episode["tasks"] for episode in episodes] == [[sentence] for sentence in store.sentences]
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [(0, 23), (23, 63), (63, 74)]
    same = {
        "action": "actions", "observation.state": "obs/state", "observation.arm.joints": "obs/arm/joints", "observation.grip": "obs/grip",
        "observation.plan": "obs/plan", "rewards": "rewards", "next.done": "next.done", "steps": "steps",
    }  # fmt: skip
    for name, key in same.items():
        assert info["features"][name]["dtype"] == str(arrays[key].dtype)
        np.testing.assert_array_equal(rows[name].reshape(arrays[key].shape), arrays[key])
    for camera in ("front", "wrist"):
        got, want = rows[f"observation.images.{camera}"], arrays[f"obs/images/{camera}"]
        if codec is None:
            np.testing.assert_array_equal(got, want)
        else:
            assert got.shape == want.shape
            assert np.abs(got.astype(int) - want).mean() < 8
            assert [number_in(f if camera == "front" else f[:, ::-1]) for f in got] == [
                i + (0 if camera == "front" else 300) for i in range(74)
            ]
            assert info["features"][f"observation.images.{camera}"]["info"]["video.codec"] == codec
    inside = np.concatenate([np.arange(n) for n in LENGTHS])
    np.testing.assert_array_equal(rows["timestamp"][:, 0], (inside / FPS).astype(np.float32))
    np.testing.assert_array_equal(rows["frame_index"][:, 0], inside)
    np.testing.assert_array_equal(rows["index"][:, 0], np.arange(74))
    np.testing.assert_array_equal(rows["episode_index"][:, 0], np.repeat([0, 1, 2], LENGTHS))
    np.testing.assert_array_equal(rows["task_index"][:, 0], np.repeat([0, 1, 0], LENGTHS))
    tasks = pd.read_parquet(path / "meta/tasks.parquet")
    assert tasks.index.tolist() == store.sentences[:2]
    assert tasks["task_index"].tolist() == [0, 1]
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 74, 2, FPS)
    assert info["features"]["action"]["names"] == list("abcd")
    assert info["robot_type"] == "arm"
    assert not list(tmp_path.glob(".*"))


def test_statistics_are_those_of_numpy(tmp_path):
    store, arrays = everything(tmp_path)
    path = to_lerobot(store, tmp_path / "out", video=False, keys=LEROBOT_KEYS)
    stats = json.loads((path / "meta/stats.json").read_text())
    _, episodes, _ = read_lerobot(path)
    values = arrays["actions"].astype(np.float64)
    for what, reduce in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        np.testing.assert_allclose(stats["action"][what], reduce(values, axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            episodes[1][f"stats/action/{what}"], reduce(values[23:63], axis=0), rtol=1e-9, atol=1e-12
        )
        image = reduce(arrays["obs/images/front"] / 255.0, axis=(0, 1, 2))
        np.testing.assert_allclose(np.array(stats["observation.images.front"][what])[:, 0, 0], image, rtol=1e-9)
    assert stats["action"]["count"] == [74]
    assert stats["rewards"]["max"] == [73.0]
    assert np.shape(stats["observation.plan"]["mean"]) == (2, 3)


def test_files_hold_several_episodes_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("ppt_kit.data.formats.lerobot.files.DATA_FILE_MB", 0)
    monkeypatch.setattr("ppt_kit.data.formats.lerobot.files.VIDEO_FILE_MB", 0)
    monkeypatch.setattr("ppt_kit.data.formats.lerobot.files.FILES_A_CHUNK", 2)
    store, arrays = everything(tmp_path)
    path = to_lerobot(store, tmp_path / "out", codec="h264", keys=LEROBOT_KEYS)
    assert len(list(path.glob("data/*/*.parquet"))) == 3
    assert (path / "data/chunk-001/file-000.parquet").is_file()
    assert (path / "videos/observation.images.front/chunk-001/file-000.mp4").is_file()
    _, _, rows = read_lerobot(path)
    np.testing.assert_array_equal(rows["action"], arrays["actions"])
    again = open_store(path, cache_gb=0)
    rows = edges_and_random(np.cumsum(LENGTHS))
    assert [number_in(f) for f in again.read("obs/images/front", rows)] == rows.tolist()


def test_there_and_back_again(made, tmp_path):
    source = open_store(made.path, cache_gb=0)
    zarr_store = open_store(to_zarr(source, tmp_path / "a.zarr"))
    back = open_store(to_lerobot(zarr_store, tmp_path / "back", video=False), cache_gb=0)
    rows = np.arange(made.ends[-1])
    assert set(back.keys()) == set(source.keys())
    assert back.episode_ends.tolist() == source.episode_ends.tolist()
    assert back.sentences == source.sentences
    assert back.attrs["names"] == source.attrs["names"]
    for key in source.columns:
        assert back.dtype(key) == source.dtype(key)
        assert back.shape(key) == source.shape(key)
        np.testing.assert_array_equal(back.read(key, rows), source.read(key, rows))


def test_depth_and_clouds_are_never_left_out_silently(tmp_path, caplog):
    store, arrays = everything(tmp_path)
    to_lerobot(store, tmp_path / "rest", video=False)
    assert "no place for obs/depths/front, obs/pointcloud/pos, the cameras' calibration: left out. Type" in caplog.text
    assert set(open_store(tmp_path / "rest", cache_gb=0).columns) >= set(arrays) - {
        "obs/depths/front", "obs/pointcloud/pos",
    }  # fmt: skip
    path = to_lerobot(store, tmp_path / "out", keys=["actions", "obs/depths/front", "obs/pointcloud/pos"])
    _, _, rows = read_lerobot(path)
    np.testing.assert_array_equal(
        rows["observation.depths.front"], arrays["obs/depths/front"].astype(np.float32)[..., None]
    )
    np.testing.assert_array_equal(rows["observation.pointcloud.pos"], arrays["obs/pointcloud/pos"])
    again = open_store(path, cache_gb=0)
    np.testing.assert_array_equal(again.read("obs/pointcloud/pos", np.array([9])), arrays["obs/pointcloud/pos"][[9]])


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


WRITERS = {"zarr": to_zarr, "lerobot": lambda *args, **more: to_lerobot(*args, keys=LEROBOT_KEYS, codec="h264", **more)}


@pytest.mark.parametrize("to", WRITERS)
def test_an_interrupted_conversion_leaves_nothing_and_spares_what_was_there(tmp_path, to):
    store, _ = everything(tmp_path)
    target = WRITERS[to](everything(tmp_path, lengths=(3, 4))[0], tmp_path / "out")
    before = tree(target)

    def stop(_):
        raise KeyboardInterrupt

    for place, more in ((target, {"overwrite": True}), (tmp_path / "new/deep/out", {})):
        with pytest.raises(KeyboardInterrupt):
            WRITERS[to](store, place, progress=stop, **more)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert tree(target) == before
    with pytest.raises(UserError, match="exists already"):
        WRITERS[to](store, target)
    assert tree(target) == before
    WRITERS[to](store, target, overwrite=True)
    assert open_store(target, cache_gb=0).episode_ends.tolist() == np.cumsum(LENGTHS).tolist()


@pytest.mark.parametrize("to", WRITERS)
def test_what_a_killed_conversion_left_is_gone_after_the_next(tmp_path, to):
    killed = (
        "import os, pathlib, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_lerobot import everything, WRITERS\n"
        "store, _ = everything(pathlib.Path(sys.argv[2]))\n"
        "WRITERS[sys.argv[3]](store, sys.argv[4], progress=lambda _: os.kill(os.getpid(), signal.SIGTERM))\n"
    )
    target = tmp_path / "out"
    words = [str(ROOT / "tests"), str(tmp_path), to, str(target)]
    subprocess.run([sys.executable, "-c", killed, *words], env={**os.environ, "PYTHONPATH": str(ROOT)})
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.writing-")
    (tmp_path / f".out.writing-{os.getppid()}").mkdir()  # that one runs
    (tmp_path / ".out.writing-99999999@another-machine").mkdir()  # who knows whether that one does
    (tmp_path / ".out.writing-99999999").mkdir()
    WRITERS[to](everything(tmp_path)[0], target)
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "out", f".out.writing-{os.getppid()}", ".out.writing-99999999@another-machine",
    }  # fmt: skip


def test_overwriting_never_replaces_the_source(tmp_path):
    source = open_store(write_store(tmp_path / "a.zarr"))
    for target in (tmp_path / "a.zarr", tmp_path, tmp_path / "a.zarr/inside"):
        with pytest.raises(UserError, match="lies in the source"):
            to_zarr(source, target, overwrite=True)


FULL = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import numpy as np
from test_lerobot import everything, WRITERS
from ppt_kit.errors import UserError
from ppt_kit.data.convert import to_lerobot
store, _ = everything(pathlib.Path({source!r}), lengths=(200,))
noise = np.random.default_rng(0).integers(0, 256, (200, 64, 96, 3), dtype=np.uint8)
column = store.columns["obs/images/front"]
column.shape, column.decode = noise.shape, lambda rows: iter([(0, noise)])
store.columns = {{"actions": store.columns["actions"], "obs/images/front": column}}

def fill(rows):
    # enough is free when it begins, and gone when the pictures come
    with open(pathlib.Path({target!r}).with_name("fill"), "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            yield 0, noise[:, ::16, ::16]

if {to!r} == "filled":
    column.shape, column.decode = (200, 4, 6, 3), fill
try:
    if {to!r} in ("zarr", "filled"):
        WRITERS["zarr"](store, {target!r}, overwrite=True)
    else:
        to_lerobot(store, {target!r}, overwrite=True, video={to!r} == "film", codec="libx264")
except UserError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("to", ["zarr", "filled", "film", "pictures"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, to):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=400k none {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    code = FULL.format(tests=str(ROOT / "tests"), source=str(tmp_path), target=str(disk / "kept"), to=to)
    (tmp_path / "fill.py").write_text(code)
    kept = in_memory(tmp_path / "x", {"actions": np.zeros((5, 2), np.float32)}, (2, 3))
    to_zarr(kept, tmp_path / "kept") if to in ("zarr", "filled") else to_lerobot(kept, tmp_path / "kept", fps=5)
    script = (
        f"{mount} && cp -r {tmp_path}/kept {disk}/ && {sys.executable} {tmp_path}/fill.py && "
        f"rm -f {disk}/fill && ls -A {disk} && "
        f"diff -r {tmp_path}/kept {disk}/kept && echo same"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    # how much an array needs is known before
    assert ("3.7 MB are needed there and 0." if to == "zarr" else os.strerror(errno.ENOSPC)) in lines[0]
    assert lines[0].startswith("refused:")
    assert lines[1:] == ["kept", "same"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"keys": ["obs/stat"]}, "keys=obs/stat: .* has no such column; it has actions"),
        ({"fps": None}, "fps=null: .* Type fps=10"),
        ({"fps": float("inf")}, "fps=inf: no number of steps a second .*Type fps=10"),
        ({"fps": float("nan")}, "fps=nan: no number of steps a second .*Type fps=10"),
        ({"codec": "mpeg9"}, "codec=mpeg9: this FFmpeg has no mpeg9"),
        ({"codec": "libmp3lame"}, "codec=libmp3lame: libmp3lame encodes no video. Type codec=h264"),
        (
            {"codec": "png"},
            r"codec=png: png writes no yuv420p video into an mp4 \(.*\). Type codec=h264, or video=false",
        ),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, more, says):
    store, _ = everything(tmp_path)
    store.attrs = {}
    with pytest.raises(UserError, match=says):
        to_lerobot(store, tmp_path / "out", **{"keys": LEROBOT_KEYS, "fps": 10, **more})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "name", "right"),
    [
        (to_zarr, "z.zarr.zip", "z.zarr"),
        (to_zarr, "z.hdf5", "z.zarr"),
        (to_lerobot, "x.zarr", "x"),
        (to_lerobot, "x.zarr.zip", "x"),
        (to_lerobot, "x.h5", "x"),
    ],
)
def test_a_name_that_ends_as_another_formats_is_refused(tmp_path, to, name, right):
    store, _ = everything(tmp_path)
    with pytest.raises(UserError, match=rf"target=.*{name}: .*Type target={tmp_path}/{right}\.$"):
        to(store, tmp_path / name, keys=["actions"])
    assert not list(tmp_path.iterdir())


def test_the_language_is_the_same_after_a_conversion(tmp_path):
    arrays = {"actions": np.zeros((5, 2), np.float32), "obs/state": np.zeros((5, 3), np.float32)}
    source = open_dataset(to_zarr(in_memory(tmp_path / "x", arrays, (2, 3)), tmp_path / "reach.v2.zarr"))
    copy = open_dataset(to_lerobot(source.domains["reach.v2"].store, tmp_path / "copy", fps=5))
    assert source.episode(0)["obs"]["language"] == copy.episode(0)["obs"]["language"] == ["reach.v2"] * 2


def test_pictures_of_another_type_are_refused(tmp_path):
    store = in_memory(tmp_path / "x", {"obs/images/eye": np.zeros((5, 8, 8, 3), np.float32)}, (2, 3))
    with pytest.raises(
        UserError, match=r"obs/images/eye is float32 of shape \(8, 8, 3\); LeRobot's pictures are uint8"
    ):
        to_lerobot(store, tmp_path / "out", fps=5)


@pytest.mark.parametrize("codec", ["av1", "h264", "hevc"])
def test_a_film_may_be_one_frame_long(tmp_path, codec):
    store = in_memory(tmp_path / "x", {"obs/images/eye": picture(300)[None]}, (1,))
    for number in range(4):  # what decides is in memory nobody set: the first in a process failed most often
        back = open_store(to_lerobot(store, tmp_path / f"out{number}", fps=5, codec=codec), cache_gb=0)
        assert number_in(back.read("obs/images/eye", np.array([0]))[0]) == 300


def test_odd_sizes_are_refused_as_video_and_kept_as_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), dtype=np.uint8)
    store = in_memory(tmp_path / "x", {"obs/images/eye": images}, (2, 3))
    with pytest.raises(UserError, match=r"obs/images/eye is 7x9: .*video=false"):
        to_lerobot(store, tmp_path / "out", fps=5)
    back = open_store(to_lerobot(store, tmp_path / "out", fps=5, video=False), cache_gb=0)
    np.testing.assert_array_equal(back.read("obs/images/eye", np.arange(5)), images)


# ---------------------------------------------------------------------------------------------------- the script


SCRIPT = str(ROOT / "scripts/convert_dataset.py")


def test_the_script_converts_both_ways(made, tmp_path):
    done = run_script(SCRIPT, f"source={made.path}", "target=a.zarr", "to=zarr", "filter_key=train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.zarr: 2 episodes, 63 steps, ")
    assert len(done.stdout.splitlines()) == 1
    done = run_script(
        SCRIPT, "source=a.zarr", "target=b", "to=lerobot", "codec=h264", "keys=actions,obs/images/front", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    _, episodes, rows = read_lerobot(tmp_path / "b")
    assert [episode["length"] for episode in episodes] == [23, 40]
    np.testing.assert_array_equal(rows["action"], made.values["action"][:63])
    assert [number_in(frame) for frame in rows["observation.images.front"]] == list(range(63))


def test_help_lists_the_keys_and_runs_nothing(tmp_path):
    done = run_script(SCRIPT, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "usage: python" in done.stdout
    assert "overwrite" in done.stdout
    assert not list(tmp_path.iterdir())


MISTAKES = [
    ([], "source=<a dataset>"),
    (["source=nowhere", "target=x"], "no such dataset"),
    (["source={made}", "target=here"], "overwrite=true"),
    (["source={made}", "target=x", "to=hdf5"], "zarr, lerobot"),
    (["source={made}", "target=x", "to=lerobot", "fps=0"], "at least"),
    (["source={made}", "target=x", "filter_key=tset"], "it has train, rest"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_a_mistake_in_the_script_is_one_line(made, tmp_path, words, says, run_here):
    assert_one_line(made, tmp_path, words, says, run_here)


def test_a_mistake_in_a_process_of_its_own_is_no_longer(made, tmp_path):
    assert_one_line(made, tmp_path, *MISTAKES[-1], run_script)


def assert_one_line(made, folder, words, says, run):
    (folder / "here").mkdir()
    done = run(SCRIPT, *(word.format(made=made.path) for word in words), cwd=folder)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [entry.name for entry in folder.iterdir()] == ["here"]


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path):
    # long enough that a busy machine has seen its first file before the last is written
    images = {"actions": np.zeros((15_000, 2), np.float32), "obs/images/eye": np.zeros((15_000, 64, 64, 3), np.uint8)}
    to_zarr(in_memory(tmp_path / "x", images, (7_500, 7_500)), tmp_path / "a.zarr")
    words = [sys.executable, SCRIPT, "source=a.zarr", "target=b", "to=lerobot", "codec=h264", "fps=10"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as script:
        while not list(tmp_path.glob(".b.writing-*/new/videos/**/*.mp4")):
            assert script.poll() is None
            time.sleep(0.02)
        script.send_signal(signal.SIGINT)
        errors = script.communicate(timeout=60)[1]
    assert script.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "stopped by Ctrl-C"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
