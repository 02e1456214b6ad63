"""ManiSkill's trajectories: an .h5 with a group `traj_i` an episode, and a .json of the same name beside it.

Observations have one row more than there are actions; the last, after the last action, is not read. Of `obs`,
    sensor_data/<camera>/rgb      -> obs/images/<camera>
    sensor_data/<camera>/depth    -> obs/depths/<camera>, float32 metres (whole numbers are millimetres)
    pointcloud/xyzw               -> obs/pointcloud/pos (N, P, 3) metres; /rgb -> /colors, /segmentation -> /seg
    sensor_param/<camera>/…       -> the store's cameras, one pose a row
    an array instead of a group   -> obs/state (obs mode "state")
    anything else                 -> obs/<name>: obs/agent/qpos
Where w is 0 a cloud has no point (the camera saw nothing there). So that P stays, its place is taken by a point that is
one: the cloud's own, over and over in order, and position, colour and segmentation alike. A cloud without any stays as
it is. `env_states` are the simulator's and left out. filter_key="success" reads the successful episodes alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ppt_kit.cameras import Camera
from ppt_kit.data.calibration import checked_camera
from ppt_kit.data.formats.hdf5 import Episodes, is_hdf5, numbered, open_file, reading, warn_of_unnumbered
from ppt_kit.data.store import Column, EpisodeStore
from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer

NAME = "ManiSkill h5"
LOOKED_FOR = "traj_<number> in a file"

WANTED = ("actions", "obs", "rewards", "success", "fail", "terminated", "truncated")
CLOUD = {"xyzw": "pos", "rgb": "colors", "segmentation": "seg"}


def recognises(path: Path) -> bool:
    if not is_hdf5(path):
        return False
    with open_file(path) as file:
        return any(name.startswith("traj_") for name in file)


def open_store(path: Path, *, filter_key: str | None = None) -> EpisodeStore:
    if filter_key not in (None, "success"):
        raise UserError(f'dataset.filter_key={filter_key}: {path} is a ManiSkill file, which knows "success" alone.')
    with open_file(path) as file:
        names = numbered(file, "traj_")
        unnumbered = warn_of_unnumbered(path, file, names, prefix="traj_")
        notes = _notes(path)
        if filter_key == "success":
            names = [name for name in names if _succeeded(path, file, name, notes.get(name, {}))]
            if not names:
                raise UserError(f"dataset.filter_key=success: no episode of {path} was successful. Leave it null.")
        episodes = Episodes(path, file, names, wanted=WANTED)
    if not any(name.split("/")[0] == "obs" for name in episodes.names):
        raise UserError(
            f'{path}: holds no observations (obs mode "none"). Make them with '
            f"`python -m mani_skill.trajectory.replay_trajectory --traj-path {path} --save-traj --use-first-env-state "
            "-o pointcloud` (or -o rgbd, -o state), and open what that writes."
        )
    action = next((name for name in episodes.names if name.split("/")[0] == "actions"), None)
    if action is None:
        raise UserError(f"{path}: {names[0]} holds no actions.")
    episodes.set_lengths([found[action].shape[0] for found in episodes.found], one_more=_is_observation)
    attrs = {"env_info": notes.get("env_info", {}), "episodes": [notes.get(name, {}) for name in names]}
    if filter_key is not None:
        attrs["filter_key"] = filter_key
    return EpisodeStore(
        path=path, format=NAME, episode_ends=episodes.ends, columns=_columns(episodes), attrs=attrs,
        cameras=_cameras(episodes), episode_names=names, left_out={**episodes.left_out, **unnumbered},
        read_by=episodes.read_by,
    )  # fmt: skip


def _is_observation(name: str) -> bool:
    return name.split("/")[0] == "obs"


def _columns(episodes: Episodes) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name in episodes.names:
        match name.split("/"):
            case ["obs"]:
                columns["obs/state"] = episodes.column(name)
            case ["obs", "sensor_param", *_]:
                continue
            case ["obs", "sensor_data", camera, "rgb"]:
                columns[f"obs/images/{camera}"] = episodes.column(name)
            case ["obs", "sensor_data", camera, "depth"]:
                whole = episodes.found[0][name].dtype.kind in "iu"
                columns[f"obs/depths/{camera}"] = (
                    episodes.column(name, convert=_metres, dtype=np.float32) if whole else episodes.column(name)
                )
            case ["obs", "pointcloud", part] if part in CLOUD and "obs/pointcloud/xyzw" in episodes.names:
                columns[f"obs/pointcloud/{CLOUD[part]}"] = _cloud(episodes, name)
            case _:
                columns[name] = episodes.column(name)
    return columns


def _cloud(episodes: Episodes, name: str) -> Column:
    points = episodes.found[0]["obs/pointcloud/xyzw"].shape[1]
    if name.endswith("/xyzw"):
        return episodes.column(name, convert=_positions, row_shape=(points, 3))
    return episodes.column(name, "obs/pointcloud/xyzw", convert=_only_points)


def _positions(xyzw: np.ndarray) -> np.ndarray:
    return _only_points(xyzw[..., :3], xyzw)


def _only_points(values: np.ndarray, xyzw: np.ndarray) -> np.ndarray:
    """(n, P, C) values with those of no point replaced by those of points."""
    values = values.copy()
    for row, is_point in enumerate(xyzw[..., 3] != 0):
        there = np.flatnonzero(is_point)
        if 0 < len(there) < len(is_point):
            values[row, ~is_point] = values[row, np.resize(there, len(is_point) - len(there))]
    return values


def _metres(depth: np.ndarray) -> np.ndarray:
    return depth.astype(np.float32) / np.float32(1000)


def _cameras(episodes: Episodes) -> dict[str, Camera]:
    found = {}
    rows = np.arange(episodes.ends[-1])
    for name in episodes.names:
        match name.split("/"):
            case ["obs", "sensor_param", camera, "intrinsic_cv"]:
                folder = name.rsplit("/", 1)[0]
                for stored, convention in (("cam2world_gl", "opengl"), ("extrinsic_cv", "opencv_extrinsic")):
                    if f"{folder}/{stored}" in episodes.names:
                        pose = episodes.column(f"{folder}/{stored}").read(rows)
                        found[camera] = checked_camera(
                            f"{episodes.path}: {folder}", episodes.column(name).read(rows), pose, convention=convention
                        )
                        break
    return found


def _notes(path: Path) -> dict[str, Any]:
    """What the JSON says: env_info, and of each episode under its group's name. Nothing, when there is no JSON."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    refuse_lfs_pointer(beside)
    try:
        told = json.loads(beside.read_text())
        episodes = {f"traj_{note['episode_id']}": note for note in told.get("episodes", [])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{beside}: not ManiSkill's JSON ({error}). Copy it again, or take it away.") from None
    if not all(isinstance(note, dict) for note in (told.get("env_info") or {}, *episodes.values())):
        raise UserError(f"{beside}: env_info and each of its episodes take mappings. Copy it again, or take it away.")
    return {"env_info": told.get("env_info") or {}, **episodes}


def _succeeded(path: Path, file: h5py.File, name: str, note: dict) -> bool:
    with reading(path, name):
        if "success" in file[name] and file[name]["success"].shape[0]:
            return bool(file[name]["success"][-1])
    if "success" in note:
        return bool(note["success"])
    raise UserError(f"dataset.filter_key=success: {path} does not say whether {name} was successful.")
