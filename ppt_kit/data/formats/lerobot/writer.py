"""Writes a LeRobotDataset v3.0 into an empty folder: tables, videos, and what meta/ says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ppt_kit.data.disk.blocks import blocks, row_bytes, values_of
from ppt_kit.data.formats import name_of
from ppt_kit.data.formats.lerobot import files
from ppt_kit.data.formats.lerobot.encoders import PIXELS
from ppt_kit.data.formats.lerobot.features import COUNTED, Feature
from ppt_kit.data.formats.lerobot.info import OURS, RECORDED
from ppt_kit.data.formats.lerobot.stats import Stats
from ppt_kit.data.store import EpisodeStore, plain

# called with the number of steps just written
Progress = Callable[[int], object]


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
        """All of it, once.

        Args:
            progress: called with the number of steps just written.
        Raises:
            OSError, av.FFmpegError: the disk is full, or a codec gave up.
        """
        rows: list[dict] = []
        totals: dict[str, Stats] = {}
        with ExitStack() as opened:
            tables = opened.enter_context(closing(files.Tables(self._folder, self._columns)))
            films = [
                opened.enter_context(closing(files.Films(self._folder, feature, self._fps, self._encoder)))
                for feature in self._films
            ]
            for episode in range(len(self._store.episode_ends)):
                rows.append(self._copy_episode(episode, tables, films, totals))
                if progress is not None:
                    progress(rows[-1]["length"])
        for film in films:
            film.check()
        self._write_meta(rows, totals)

    def _copy_episode(
        self, episode: int, tables: files.Tables, films: list[files.Films], totals: dict[str, Stats]
    ) -> dict:
        """Copies one, and gives its row of meta/episodes; its statistics go into `totals` too."""
        begin, end = self._store.bounds(episode)
        stats = {name: Stats() for name in [*(feature.name for feature in self._features), *COUNTED]}
        row = {"episode_index": episode, "tasks": [self._tasks[self._task_of[episode]]], "length": end - begin}
        row |= tables.begin_episode() | {"dataset_from_index": begin, "dataset_to_index": end}
        self._copy_table(tables, episode, stats)
        for film, feature in zip(films, self._films):
            row |= film.begin_episode(end - begin)
            self._copy_film(film, feature, episode, stats[feature.name])
        for name, found in stats.items():
            totals.setdefault(name, Stats()).merge(found)
            row |= {f"stats/{name}/{what}": value for what, value in found.as_lists().items()}
        return row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}

    def _copy_table(self, tables: files.Tables, episode: int, stats: Mapping[str, Stats]) -> None:
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
                "timestamp": (rows - begin) / self._fps, "frame_index": rows - begin,
                "episode_index": np.full(len(rows), episode), "index": rows,
                "task_index": np.full(len(rows), self._task_of[episode]),
            }  # fmt: skip
            for name, values in counted.items():
                stats[name].add(values)
                columns[name] = pa.array(values.astype(COUNTED[name]))
            tables.append(columns)

    def _copy_film(self, film: files.Films, feature: Feature, episode: int, stats: Stats) -> None:
        for rows in blocks(*self._store.bounds(episode), row_bytes=row_bytes(self._store, feature.key)):
            values = self._store.read(feature.key, rows)
            stats.add_pictures(values)
            film.append(values)

    def _write_meta(self, rows: list[dict], totals: Mapping[str, Stats]) -> None:
        meta = self._folder / "meta"
        (meta / "episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), meta / "episodes/chunk-000/file-000.parquet")
        index = pd.Index(self._tasks, name="task")
        pd.DataFrame({"task_index": range(len(self._tasks))}, index=index).to_parquet(meta / "tasks.parquet")
        stats = {name: found.as_lists() for name, found in totals.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4))
        (meta / "info.json").write_text(json.dumps(self._info(len(rows)), indent=4, default=plain))

    def _info(self, num_episodes: int) -> dict:
        recorded = {name: self._store.attrs[name] for name in RECORDED if name in self._store.attrs}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._store.attrs.get("robot_type"),
            "total_episodes": num_episodes,
            "total_frames": int(self._store.episode_ends[-1]),
            "total_tasks": len(self._tasks),
            "chunks_size": files.FILES_A_CHUNK,
            "data_files_size_in_mb": files.DATA_FILE_MB,
            "video_files_size_in_mb": files.VIDEO_FILE_MB,
            "fps": self._plain_fps(),
            "splits": {"train": f"0:{num_episodes}"},
            "data_path": files.DATA_PATH,
            "video_path": files.VIDEO_PATH if self._films else None,
            "features": self._feature_infos(),
            **({OURS: recorded} if recorded else {}),
        }

    def _feature_infos(self) -> dict[str, dict]:
        found: dict[str, dict] = {}
        for feature in self._features:
            dtype = str(feature.dtype) if feature.kind == "numbers" else feature.kind
            found[feature.name] = {"dtype": dtype, "shape": list(feature.shape), "names": feature.labels}
            if feature.kind == "video":
                found[feature.name]["info"] = self._film_info(feature)
        for name, kind in COUNTED.items():
            found[name] = {"dtype": np.dtype(kind).name, "shape": [1], "names": None}
        return found

    def _film_info(self, feature: Feature) -> dict:
        return {
            "video.height": feature.shape[0],
            "video.width": feature.shape[1],
            "video.codec": av.codec.Codec(self._encoder, "w").canonical_name,
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": self._plain_fps(),
            "video.channels": 3,
            "has_audio": False,
        }

    def _plain_fps(self) -> float:
        return int(self._fps) if float(self._fps).is_integer() else float(self._fps)
