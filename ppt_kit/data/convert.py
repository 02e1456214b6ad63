"""Any dataset that opens -> a zarr replay buffer, or a LeRobotDataset v3.0. Finished or not there at all.

Both are written beside their name and renamed once they are whole and on disk; episodes are copied in blocks, so that
the longest one need not fit into memory.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from ppt_kit.data.disk.blocks import blocks, row_bytes, values_of
from ppt_kit.data.formats import open_store
from ppt_kit.data.formats.lerobot.encoders import ENCODERS, encoder_of
from ppt_kit.data.formats.lerobot.features import features_of, fps_of
from ppt_kit.data.formats.lerobot.writer import LeRobotWriter, Progress
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.formats.wanted import Wanted
from ppt_kit.data.replaceable import check_replaceable
from ppt_kit.data.store import EpisodeStore, plain
from ppt_kit.errors import UserError
from ppt_kit.files import PROBE_BYTES, begin_folder, check_place, finish_folder, path_of

log = logging.getLogger(__name__)

# columns that LeRobot would have as arrays in its tables
NO_FEATURE = ("obs/depths/", "obs/pointcloud/")


def to_zarr(
    source: EpisodeStore | str | Path,
    path: str | Path,
    *,
    overwrite: bool = False,
    keys: Sequence[str] | None = None,
    progress: Progress | None = None,
    format: str | None = None,
    filter_key: str | None = None,
    whole_episodes_only: bool = False,
) -> Path:
    """Writes a replay buffer with the store's own column names.

    Values stay what they are; depths become float32 (N, H, W, 1).

    Args:
        source: an opened store, or the path of a dataset in any format.
        path: where to write.
        overwrite: replace the replay buffer that stands there; nothing else is ever replaced.
        keys: columns to write; None = all.
        progress: called with the number of steps just written.
        format, filter_key, whole_episodes_only: of a source that is a path, as `dataset` in a configuration has them.
    Raises:
        UserError: something stands there and `overwrite` is false, or it is no replay buffer alone; a key is unknown,
            the name ends as another format's does, the place cannot be written to, or the disk is full; nothing is left
            then, and what stood there stays.
    """
    store = _opened(source, keys, format=format, filter_key=filter_key, whole_episodes_only=whole_episodes_only)
    path, chosen = _target(path), _chosen(store, keys)
    _check_ending(path, to="zarr")
    inner = next((key for key in chosen for other in chosen if key.startswith(f"{other}/")), None)
    if inner:
        raise UserError(f"{store.path}: {inner} lies inside another column, which zarr has no room for. Leave one out.")
    needs = int(store.episode_ends[-1]) * sum(row_bytes(store, key) for key in chosen)
    with _all_or_nothing(store, path, kind="zarr", overwrite=overwrite, needs=needs):
        with ZarrWriter(path, attrs=_attrs(store), overwrite=overwrite, key="target") as writer:
            writer.constants |= _calibration(store)
            for episode in range(len(store.episode_ends)):
                _copy_episode(store, episode, chosen, writer)
                if progress is not None:
                    begin, end = store.bounds(episode)
                    progress(end - begin)
            # what stands there may be another thing by now
            check_replaceable(path, kind="zarr", overwrite=overwrite, key="target")
    return path


def to_lerobot(
    source: EpisodeStore | str | Path,
    path: str | Path,
    *,
    fps: float | None = None,
    video: bool = True,
    overwrite: bool = False,
    codec: str = "av1",
    keys: Sequence[str] | None = None,
    progress: Progress | None = None,
    format: str | None = None,
    filter_key: str | None = None,
    whole_episodes_only: bool = False,
) -> Path:
    """Writes a LeRobotDataset v3.0. Numbers stay what they are; pictures lose what the video codec loses.

    actions becomes `action`, obs/<name> `observation.<name>`, obs/images/<camera> `observation.images.<camera>`;
    LeRobot's own columns (timestamp, frame_index, episode_index, index, task_index) are counted anew.

    Args:
        source, path, overwrite, progress, format, filter_key, whole_episodes_only: as to_zarr has them.
        fps: control steps a second; None = what the dataset says of itself.
        video: false = pictures as PNG in the tables, which lose nothing.
        codec: "av1", "h264", "hevc", or the name of one of FFmpeg's encoders.
        keys: columns to write; None = all but depth and clouds, which LeRobot has no feature for: a line says what was
            left out. Those of them that are named become arrays in the tables.
    Raises:
        UserError: as to_zarr; or LeRobot has no feature for a column, or there is no fps or no such encoder.
    """
    store = _opened(source, keys, format=format, filter_key=filter_key, whole_episodes_only=whole_episodes_only)
    path, fps = _target(path), fps_of(store, fps)
    _check_ending(path, to="lerobot")
    left = [] if keys else [key for key in store.columns if key.startswith(NO_FEATURE)]
    features = features_of(store, [key for key in _chosen(store, keys) if key not in left], video=video)
    films = any(feature.kind == "video" for feature in features)
    # a word that is no codec is told also where there is nothing to encode
    encoder = encoder_of(codec) if films or codec not in ENCODERS else ""
    with _all_or_nothing(store, path, kind="lerobot", overwrite=overwrite):
        with _beside(path, kind="lerobot", overwrite=overwrite) as folder:
            _tell_left_out(store, path, left)
            LeRobotWriter(folder, store, features, fps=fps, encoder=encoder).write(progress)
    return path


def _opened(source: EpisodeStore | str | Path, keys: Sequence[str] | None, **of_a_path: Any) -> EpisodeStore:
    """Each row is read once, so none is kept in a cache."""
    if isinstance(source, EpisodeStore):
        given = next((f"{name}={value}" for name, value in of_a_path.items() if value), None)
        if given:
            raise UserError(f"{given}: {source.path} is opened already. Give its path, or open it with {given}.")
        return source
    whole = of_a_path.pop("whole_episodes_only")
    wanted = Wanted(keys=list(keys) if keys else None, whole_episodes_only=whole, converting=True)
    source = path_of(source, what="the path of a dataset, as data/door-open.zarr")
    return open_store(source, cache_gb=0, wanted=wanted, **of_a_path)


def _target(path: str | Path) -> Path:
    found = path_of(path, what="the path of a new dataset, as data/mine.zarr")
    if found.name in ("", ".."):
        raise UserError(f"target={path}: names a folder that is there, not one to be made. Type its name too.")
    return found


def _chosen(store: EpisodeStore, keys: Sequence[str] | None) -> list[str]:
    unknown = [key for key in keys or () if key not in store.columns]
    if unknown:
        raise UserError(f"keys={unknown[0]}: {store.path} has no such column; it has {', '.join(store.keys())}.")
    return list(dict.fromkeys(keys)) if keys else store.keys()


def _tell_left_out(store: EpisodeStore, path: Path, left: Sequence[str]) -> None:
    """One line of what LeRobot has no place for."""
    what = [*left, *(["the cameras' calibration"] if store.cameras else [])]
    if what:
        how = f" Type keys=[…,{left[0]}] to have such as arrays in the tables." if left else ""
        log.warning("%s: LeRobot has no place for %s: left out.%s", path, ", ".join(what), how)


def _attrs(store: EpisodeStore) -> dict:
    """What was recorded with the data, as a replay buffer's own attributes: plain JSON."""
    attrs = {name: value for name, value in store.attrs.items() if name not in ("filter_key", "skipped")}
    if store.sentences is not None:
        attrs["descriptions"] = list(store.sentences)
    attrs |= {"camera_convention": "opengl"} if store.cameras else {}
    return json.loads(json.dumps(attrs, default=plain))


def _copy_episode(store: EpisodeStore, episode: int, keys: list[str], writer: ZarrWriter) -> None:
    begin, end = store.bounds(episode)
    for key in keys:
        for rows in blocks(begin, end, row_bytes=row_bytes(store, key)):
            writer.append_rows(key, values_of(store, key, rows))
    sentence = {} if store.sentences is None else {"episode_descriptions": store.sentences[episode]}
    writer.end_episode(end - begin, meta=sentence)


def _calibration(store: EpisodeStore) -> dict[str, np.ndarray]:
    """The cameras as /meta of a replay buffer has them.

    One pose of those that stand still, one a row of those that move.
    """
    found = {}
    for name, camera in store.cameras.items():
        for what, values in (("intrinsics", camera.intrinsics), ("extrinsics", camera.extrinsics)):
            still = values.ndim == 3 and (values == values[0]).all()
            found[f"camera_info/{name}/{what}"] = values[0] if still else values
    return found


def _check_ending(path: Path, *, to: str) -> None:
    """Whether the target is not called what another format is called: it could not be opened then."""
    others = {".zip", ".hdf5", ".h5"} | ({".zarr"} if to == "lerobot" else set())
    if path.suffix.lower() not in others:
        return
    bare = path
    while bare.suffix.lower() in {*others, ".zarr"}:
        bare = bare.with_suffix("")
    right = bare.with_name(f"{bare.name}.zarr") if to == "zarr" else bare
    raise UserError(
        f"target={path}: to={to} writes a folder, and one called {path.suffix} would be taken for another format. "
        f"Type target={right}."
    )


@contextmanager
def _all_or_nothing(
    store: EpisodeStore, path: Path, *, kind: str, overwrite: bool, needs: int = PROBE_BYTES
) -> Iterator[None]:
    """Checks the target, tells what goes wrong with the disk in one line, and takes new parent folders away again."""
    # of a link that leads in a circle `resolve` gives nothing
    source, target = (Path(os.path.realpath(place)) for place in (store.path, path))
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"target={path}: lies in the source {store.path} or around it. Choose another place.")
    check_place(path.parent, key="target", needs=needs)
    check_replaceable(path, kind=kind, overwrite=overwrite, key="target")
    missing = [folder for folder in [*path.absolute().parents] if not folder.exists()]
    try:
        yield
    except BaseException as error:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, (OSError, av.FFmpegError)):
            why = error.strerror or error
            raise UserError(f"{path}: not written: {why}. What was begun is gone again.") from None
        raise


@contextmanager
def _beside(path: Path, *, kind: str, overwrite: bool) -> Iterator[Path]:
    """A folder to write in, which takes the name `path` when the block ends well and is gone when it does not."""
    folder = begin_folder(path, key="target")
    try:
        yield folder / "new"
        # what stands there may be another thing by now
        check_replaceable(path, kind=kind, overwrite=overwrite, key="target")
        finish_folder(folder, path, overwrite=overwrite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
