"""Datasets of others, written here with their own libraries or byte by byte, against what the formats read out of them."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import struct
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from ppt_kit.data.clouds import CloudSource
from ppt_kit.data.convert import to_zarr
from ppt_kit.data.disk.rows import MOST_OPEN, PlainRows, Segment
from ppt_kit.data.formats import open_store
from ppt_kit.data.store import DecodedColumn, PlainColumn
from ppt_kit.errors import UserError


def rows_to_ask(ends):
    """Both edges of every episode, repeats, and the rest in no order."""
    edges = np.concatenate([[0], ends[:-1], ends - 1, ends - 1])
    return np.random.default_rng(0).permutation(np.concatenate([edges, np.arange(ends[-1])]))


def check(path, tmp_path, expected, lengths, **options):
    """The store has just these columns and values, without a cache, with a cold one and with a warm one."""
    ends = np.cumsum(lengths)
    rows = rows_to_ask(ends)
    for cache, gb in (("none", 0), ("cold", 1), ("warm", 1)):
        store = open_store(path, cache_dir=tmp_path / "cache", cache_gb=gb, **options)
        assert set(store.keys()) == set(expected)
        assert store.episode_ends.tolist() == ends.tolist()
        for key, values in expected.items():
            column = store.columns[key]
            if cache == "warm" and isinstance(column, DecodedColumn):
                column.decode = None  # a row that is not in the cache would call it
            assert (column.shape, column.dtype) == (values.shape, values.dtype), key
            np.testing.assert_array_equal(store.read(key, rows), values[rows], err_msg=f"{key}, {cache} cache")
            assert store.read(key, np.arange(0)).shape == (0, *values.shape[1:])
    return store


def refuses(path, *said, **options):
    with pytest.raises(UserError) as caught:
        open_store(path, cache_gb=0, **options)
    for text in said:
        assert str(text) in str(caught.value)


def cut(path, num_bytes):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - num_bytes)


def joined(episodes, name):
    return np.concatenate([episode[name] for episode in episodes])


# ---- robomimic


def robomimic_episodes(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "actions": rng.normal(size=(length, 7)),
            "rewards": rng.normal(size=length),
            "dones": rng.integers(0, 2, length),
            "states": rng.normal(size=(length, 11)),
            "obs/robot0_eef_pos": rng.normal(size=(length, 3)).astype(np.float32),
            "obs/grasped": rng.integers(0, 2, (length, 1)).astype(bool),
            "obs/agentview_image": rng.integers(0, 256, (length, 12, 10, 3), dtype=np.uint8),
            "obs/wrist_rgb": rng.integers(0, 256, (length, 3, 12, 10), dtype=np.uint8),
            "obs/agentview_depth": rng.random((length, 12, 10, 1), dtype=np.float32),
            "obs/heat": rng.random((length, 4, 5)).astype(">f8"),
        }
        for length in lengths
    ]


def write_robomimic(path, episodes, *, names=None, masks=None, attrs=None, demo_attrs=None, **storage):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(episode["actions"]) for episode in episodes)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"robots": "Panda"}})
        data.attrs.update(attrs or {})
        for number, episode in enumerate(episodes):
            demo = data.create_group(names[number] if names else f"demo_{number}")
            demo.attrs["num_samples"] = len(episode["actions"])
            demo.attrs.update((demo_attrs or {}).get(number, {}))
            for name, values in episode.items():
                demo.create_dataset(name, data=values, **storage)
                if name.startswith("obs/"):
                    demo.create_dataset(f"next_{name}", data=values)
            demo["note"] = "not numbers"
        for name, demos in (masks or {}).items():
            file[f"mask/{name}"] = np.array([demo.encode() for demo in demos])
    return path


def robomimic_columns(episodes):
    renamed = {
        "obs/agentview_image": "obs/images/agentview",
        "obs/wrist_rgb": "obs/images/wrist",
        "obs/agentview_depth": "obs/depths/agentview",
    }
    columns = {renamed.get(name, name): joined(episodes, name) for name in episodes[0]}
    columns["obs/images/wrist"] = columns["obs/images/wrist"].transpose(0, 2, 3, 1)
    columns["obs/heat"] = columns["obs/heat"].astype(np.float64)
    return columns


LENGTHS = (9, 4, 13, 6)


@pytest.mark.parametrize(
    "storage",
    [{}, {"compression": "gzip"}, {"chunks": True, "shuffle": True, "fletcher32": True}],
    ids=["contiguous", "gzip", "checksums"],
)
def test_robomimic_columns_hold_what_h5py_wrote(tmp_path, storage):
    episodes = robomimic_episodes(LENGTHS)
    path = write_robomimic(tmp_path / "lift.hdf5", episodes, **storage)
    store = check(path, tmp_path, robomimic_columns(episodes), LENGTHS)
    plain = {key for key, column in store.columns.items() if isinstance(column, PlainColumn)}
    converted = {"obs/images/wrist", "obs/heat"}  # channels first; the other byte order
    assert plain == (set() if storage else set(store.keys()) - converted)
    assert store.attrs["env_args"]["env_kwargs"] == {"robots": "Panda"}
    assert store.attrs["total"] == sum(LENGTHS)
    assert store.sentences is None


def test_chunked_rows_are_decoded_once_for_all_rows_of_their_chunk(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = np.zeros((50, 2))
        file["data/demo_0/obs"] = h5py.SoftLink("/elsewhere")
        file.create_dataset("elsewhere/a_image", data=images, chunks=(8, 32, 64, 1), compression="gzip")
    column = open_store(path, cache_gb=0).columns["obs/images/a"]
    runs = list(column.decode(np.array([3, 17, 19, 49])))
    assert [(first, len(values)) for first, values in runs] == [(0, 8), (16, 8), (48, 2)]
    for first, values in runs:
        np.testing.assert_array_equal(values, images[first : first + len(values)])


def test_demos_are_in_the_order_of_their_numbers(tmp_path):
    names = ["demo_10", "demo_2", "demo_1", "demo_33"]
    episodes = robomimic_episodes(LENGTHS)
    path = write_robomimic(tmp_path / "lift.hdf5", episodes, names=names)
    order = [2, 1, 0, 3]
    store = check(path, tmp_path, robomimic_columns([episodes[i] for i in order]), [LENGTHS[i] for i in order])
    assert list(store.episode_names) == ["demo_1", "demo_2", "demo_10", "demo_33"]
    assert "demo_10" in store.episode_name(2)


def test_a_mask_selects_demos_and_has_a_cache_of_its_own(tmp_path):
    masks = {"train": ["demo_10", "demo_1"], "valid": ["demo_2", "demo_33"], "none": []}
    episodes = robomimic_episodes((5, 5, 5, 5))
    path = write_robomimic(
        tmp_path / "lift.hdf5",
        episodes,
        names=["demo_10", "demo_2", "demo_1", "demo_33"],
        masks=masks,
        compression="gzip",
    )
    check(path, tmp_path, robomimic_columns([episodes[2], episodes[0]]), (5, 5), filter_key="train")
    check(path, tmp_path, robomimic_columns([episodes[1], episodes[3]]), (5, 5), filter_key="valid")
    refuses(path, path, "filter_key=20_percent", "none, train, valid", filter_key="20_percent")
    refuses(path, path, "filter_key=none", "holds no demo", filter_key="none")
    refuses(write_robomimic(tmp_path / "plain.hdf5", episodes), "has no masks", filter_key="train")


def test_a_mask_that_names_absent_demos_is_refused(tmp_path):
    masks = {"part": ["demo_1", "demo_99", "demo_98"], "none_there": ["demo_7"]}
    path = write_robomimic(tmp_path / "lift.hdf5", robomimic_episodes((5, 5)), masks=masks)
    refuses(path, path, "filter_key=part", "names demo_99,", "holds demo_1, demo_99, demo_98", filter_key="part")
    refuses(path, path, "filter_key=none_there", "names demo_7,", filter_key="none_there")


def test_every_robomimic_column_is_there_after_a_conversion(tmp_path):
    source = open_store(write_robomimic(tmp_path / "a.hdf5", robomimic_episodes(LENGTHS)), cache_gb=0)
    copy = open_store(to_zarr(source, tmp_path / "a.zarr"))
    assert "states" in copy.columns
    assert set(copy.columns) == set(source.columns)
    for key in source.columns:
        np.testing.assert_array_equal(copy.read(key, np.arange(32)), source.read(key, np.arange(32)), err_msg=key)


def test_sentences_come_from_where_each_project_keeps_them(tmp_path):
    episodes = robomimic_episodes((3, 3))
    robocasa = {number: {"ep_meta": json.dumps({"lang": f"open drawer {number}"})} for number in range(2)}
    path = write_robomimic(tmp_path / "robocasa.hdf5", episodes, demo_attrs=robocasa)
    assert open_store(path, cache_gb=0).sentences == ["open drawer 0", "open drawer 1"]
    own = {1: {"language_instruction": "lift it"}}
    assert open_store(write_robomimic(tmp_path / "own.hdf5", episodes, demo_attrs=own), cache_gb=0).sentences == [
        "",
        "lift it",
    ]
    libero = {"problem_info": json.dumps({"language_instruction": "turn on the stove"})}
    path = write_robomimic(tmp_path / "libero.hdf5", episodes, attrs=libero)
    assert open_store(path, cache_gb=0).sentences == ["turn on the stove"] * 2
    path = write_robomimic(tmp_path / "env.hdf5", episodes, attrs={"env_args": json.dumps({"lang": "pour"})})
    assert open_store(path, cache_gb=0).sentences == ["pour"] * 2


def test_two_keys_of_one_camera_are_both_there(tmp_path):
    episode = {
        "actions": np.zeros((4, 2)),
        "obs/front_image": np.full((4, 8, 8, 3), 1, np.uint8),
        "obs/front_rgb": np.full((4, 8, 8, 3), 2, np.uint8),
    }
    store = open_store(write_robomimic(tmp_path / "a.hdf5", [episode]), cache_gb=0)
    assert store.read("obs/images/front", [0]).max() == 1
    assert store.read("obs/images/front_rgb", [0]).max() == 2


def broken(number, **changes):
    """Episodes of which one has other datasets; None takes one away."""
    episodes = robomimic_episodes(LENGTHS)
    for name, values in changes.items():
        name = name.replace("__", "/")
        if values is None:
            del episodes[number][name]
        else:
            episodes[number][name] = values
    return episodes


def test_a_demo_that_differs_is_named(tmp_path):
    path = tmp_path / "lift.hdf5"
    write_robomimic(path, broken(2, obs__grasped=None))
    refuses(path, path, "data/demo_2 has no obs/grasped", "data/demo_0")
    write_robomimic(path, broken(3, obs__extra=np.zeros((6, 2))))
    refuses(path, path, "data/demo_0 has no obs/extra", "data/demo_3")
    write_robomimic(path, broken(1, actions=np.zeros((4, 6))))
    refuses(path, path, "data/demo_1/actions", "(6,)", "(7,)")
    write_robomimic(path, broken(1, obs__robot0_eef_pos=np.zeros((4, 3))))
    refuses(path, path, "data/demo_1/obs/robot0_eef_pos", "float64", "float32")
    write_robomimic(path, broken(1, obs__robot0_eef_pos=np.zeros((3, 3), np.float32)))
    refuses(path, path, "data/demo_1/obs/robot0_eef_pos has 3 rows, expected 4")
    write_robomimic(path, robomimic_episodes(LENGTHS), demo_attrs={3: {"num_samples": 7}})
    refuses(path, path, "data/demo_3/actions has 6 rows, expected 7")
    write_robomimic(path, [{"actions": np.zeros((3, 2))}], names=["demo_first"])
    refuses(path, path, "no episode")


@pytest.mark.parametrize("lost", [1, 2000])
def test_a_truncated_hdf5_file_is_named(tmp_path, lost):
    path = write_robomimic(tmp_path / "lift.hdf5", robomimic_episodes(LENGTHS))
    cut(path, lost)
    refuses(path, path, "cannot be opened")


def test_damaged_chunks_are_told_by_file_and_demo(tmp_path):
    episodes = robomimic_episodes(LENGTHS)
    path = write_robomimic(tmp_path / "lift.hdf5", episodes, chunks=True, fletcher32=True)
    with h5py.File(path) as file:
        place = file["data/demo_2/obs/agentview_image"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"damage")
    store = open_store(path, cache_gb=0)
    store.read("obs/images/agentview", [0])
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*demo_2/obs/agentview_image"):
        store.read("obs/images/agentview", [LENGTHS[0] + LENGTHS[1]])


def test_a_forked_process_opens_the_file_itself(tmp_path):
    episodes, others = robomimic_episodes(LENGTHS), robomimic_episodes(LENGTHS, seed=1)
    path = write_robomimic(tmp_path / "lift.hdf5", episodes, compression="gzip")
    store = open_store(path, cache_gb=0)
    store.read("actions", [0, 20])
    # whoever opens the file from now on finds another one
    os.replace(write_robomimic(tmp_path / "other.hdf5", others, compression="gzip"), path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(store.read("actions", [31, 2])))
    child.start()
    theirs = queue.get(timeout=60)
    child.join()
    np.testing.assert_array_equal(theirs, joined(others, "actions")[[31, 2]])
    np.testing.assert_array_equal(store.read("actions", [30]), joined(episodes, "actions")[[30]])


# ---- ManiSkill


def maniskill_episodes(lengths, seed=0):
    """Of each: arrays as RecordEpisode writes them, T + 1 observations for T actions."""
    rng = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        more = length + 1
        xyzw = rng.normal(size=(more, 6, 4)).astype(np.float32)
        xyzw[..., 3] = rng.integers(0, 2, (more, 6))
        xyzw[0, :, 3], xyzw[1, :, 3] = 0, 1  # no point at all; every point
        pose = np.tile(np.eye(4, dtype=np.float32), (more, 1, 1))
        pose[:, :3, 3] = rng.normal(size=(more, 3))
        lens = rng.random((more, 3, 3), dtype=np.float32)
        lens[:, 2] = 0, 0, 1
        episodes.append(
            {
                "actions": rng.normal(size=(length, 8)).astype(np.float32),
                "success": np.arange(length) == length - 1,
                "terminated": np.zeros(length, bool),
                "truncated": np.ones(length, bool),
                "obs/agent/qpos": rng.normal(size=(more, 9)).astype(np.float32),
                "obs/extra/tcp_pose": rng.normal(size=(more, 7)).astype(np.float32),
                "obs/sensor_data/base/rgb": rng.integers(0, 256, (more, 8, 6, 3), dtype=np.uint8),
                "obs/sensor_data/base/depth": rng.integers(0, 3000, (more, 8, 6, 1)).astype(np.int16),
                "obs/sensor_data/hand/depth": rng.random((more, 8, 6, 1), dtype=np.float32),
                "obs/sensor_param/base/intrinsic_cv": lens,
                "obs/sensor_param/base/extrinsic_cv": rng.random((more, 3, 4), dtype=np.float32),
                "obs/sensor_param/base/cam2world_gl": pose,
                "obs/pointcloud/xyzw": xyzw,
                "obs/pointcloud/rgb": rng.integers(0, 256, (more, 6, 3), dtype=np.uint8),
                "obs/pointcloud/segmentation": rng.integers(0, 9, (more, 6, 1)).astype(np.int16),
                "env_states/actors/cube": rng.normal(size=(more, 13)).astype(np.float32),
            }
        )
    return episodes


def write_maniskill(path, episodes, *, names=None, notes=True):
    with h5py.File(path, "w") as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(names[number] if names else f"traj_{number}", track_order=True)
            for name, values in episode.items():
                packed = name.rsplit("/", 1)[-1] in ("rgb", "depth") and "sensor_data" in name
                group.create_dataset(
                    name, data=values, **({"compression": "gzip", "compression_opts": 5} if packed else {})
                )
    if notes:
        told = {
            "env_info": {"env_id": "PickCube-v1", "max_episode_steps": 50},
            "episodes": [{"episode_id": i, "success": i != 1, "episode_seed": 7 + i} for i in range(len(episodes))],
        }
        path.with_suffix(".json").write_text(json.dumps(told))
    return path


def only_points(values, xyzw):
    """The rule once more, a point at a time: those of no point take the row's points in turn."""
    out = values.copy()
    for row in range(len(values)):
        there = [point for point in range(xyzw.shape[1]) if xyzw[row, point, 3] != 0]
        turn = 0
        for point in range(xyzw.shape[1]):
            if there and xyzw[row, point, 3] == 0:
                out[row, point] = values[row, there[turn % len(there)]]
                turn += 1
    return out


def maniskill_columns(episodes):
    cut_off = [
        {name: values[:-1] if name.startswith("obs/") else values for name, values in episode.items()}
        for episode in episodes
    ]
    raw = {name: joined(cut_off, name) for name in episodes[0]}
    xyzw = raw["obs/pointcloud/xyzw"]
    columns = {
        name: raw[name]
        for name in ("actions", "success", "terminated", "truncated", "obs/agent/qpos", "obs/extra/tcp_pose")
    }
    columns["obs/images/base"] = raw["obs/sensor_data/base/rgb"]
    columns["obs/depths/base"] = np.array([[[[mm / 1000] for (mm,) in line] for line in row] for row in raw["obs/sensor_data/base/depth"].tolist()], np.float32)  # fmt: skip
    columns["obs/depths/hand"] = raw["obs/sensor_data/hand/depth"]
    columns["obs/pointcloud/pos"] = only_points(xyzw[..., :3], xyzw)
    columns["obs/pointcloud/colors"] = only_points(raw["obs/pointcloud/rgb"], xyzw)
    columns["obs/pointcloud/seg"] = only_points(raw["obs/pointcloud/segmentation"], xyzw)
    return columns, raw


def test_maniskill_columns_hold_what_was_recorded_less_the_last_observation(tmp_path):
    names = ["traj_10", "traj_0", "traj_2"]
    episodes = maniskill_episodes((5, 8, 3))
    path = write_maniskill(tmp_path / "trajectory.pointcloud.h5", episodes, names=names, notes=False)
    order = [1, 2, 0]
    columns, raw = maniskill_columns([episodes[i] for i in order])
    store = check(path, tmp_path, columns, (8, 3, 5))
    assert list(store.episode_names) == ["traj_0", "traj_2", "traj_10"]
    assert isinstance(store.columns["obs/agent/qpos"], PlainColumn)
    assert store.attrs["env_info"] == {}
    (camera,) = store.cameras.values()
    for row in (0, 7, 8, 15):
        intrinsics, pose = camera.at(row)
        np.testing.assert_array_equal(intrinsics, raw["obs/sensor_param/base/intrinsic_cv"][row])
        np.testing.assert_array_equal(pose, raw["obs/sensor_param/base/cam2world_gl"][row])


def test_clouds_from_a_camera_that_moves_are_the_same_after_a_conversion(tmp_path):
    episodes = maniskill_episodes((5, 8))
    for episode in episodes:
        episode["obs/sensor_param/base/intrinsic_cv"] += np.diag([10, 10, 0]).astype(np.float32)
        for name in ("xyzw", "rgb", "segmentation"):
            del episode[f"obs/pointcloud/{name}"]
    source = open_store(write_maniskill(tmp_path / "a.h5", episodes), cache_gb=0)
    copy = open_store(to_zarr(source, tmp_path / "a.zarr"))
    assert copy.cameras["base"].extrinsics.shape == (13, 4, 4)
    clouds = [
        CloudSource(["base"], with_color=True).column(store, num_points=9).read(np.arange(13))
        for store in (source, copy)
    ]
    assert (clouds[0][0] != clouds[0][7]).any()
    np.testing.assert_array_equal(*clouds)


def test_maniskill_notes_and_its_successful_episodes(tmp_path):
    episodes = maniskill_episodes((5, 8, 3))
    episodes[2]["success"][:] = False
    path = write_maniskill(tmp_path / "a.h5", episodes)
    store = open_store(path, cache_gb=0)
    assert store.attrs["env_info"] == {"env_id": "PickCube-v1", "max_episode_steps": 50}
    assert [note["episode_seed"] for note in store.attrs["episodes"]] == [7, 8, 9]
    columns, _ = maniskill_columns(episodes[:2])
    check(path, tmp_path, columns, (5, 8), filter_key="success")
    for episode in episodes:
        episode["success"][:] = False
    refuses(write_maniskill(path, episodes), path, "filter_key=success", "no episode", filter_key="success")
    for episode in episodes:
        del episode["success"]
    columns, _ = maniskill_columns([{**episode, "success": np.zeros(1)} for episode in (episodes[0], episodes[2])])
    del columns["success"]
    write_maniskill(path, episodes)  # then the JSON tells
    store = check(path, tmp_path, columns, (5, 3), filter_key="success")
    assert [note["episode_seed"] for note in store.attrs["episodes"]] == [7, 9]
    path.with_suffix(".json").unlink()
    refuses(path, path, "traj_0", filter_key="success")
    refuses(path, 'knows "success" alone', filter_key="train")


def test_maniskill_states_and_parts_of_actions(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [
        {
            "actions/arm": rng.random((length, 7), dtype=np.float32),
            "actions/gripper": rng.random((length, 1), dtype=np.float32),
            "obs": rng.random((length + 1, 42), dtype=np.float32),
        }
        for length in (4, 6)
    ]
    path = write_maniskill(tmp_path / "a.h5", episodes, notes=False)
    expected = {name: joined(episodes, name) for name in ("actions/arm", "actions/gripper")}
    expected["obs/state"] = np.concatenate([episode["obs"][:-1] for episode in episodes])
    check(path, tmp_path, expected, (4, 6))


def test_maniskill_files_that_cannot_be_read_are_told(tmp_path):
    episodes = maniskill_episodes((5, 8, 3))
    bare = [{name: values for name, values in episode.items() if not name.startswith("obs")} for episode in episodes]
    path = write_maniskill(tmp_path / "a.h5", bare)
    refuses(
        path, path, 'obs mode "none"', f"mani_skill.trajectory.replay_trajectory --traj-path {path}", "-o pointcloud"
    )
    short = maniskill_episodes((5, 8, 3))
    short[1]["obs/agent/qpos"] = short[1]["obs/agent/qpos"][:-1]
    write_maniskill(path, short)
    refuses(path, path, "traj_1/obs/agent/qpos has 8 rows, expected 9")
    write_maniskill(path, episodes)
    path.with_suffix(".json").write_text("{")
    refuses(path, path.with_suffix(".json"))
    path.with_suffix(".json").unlink()
    cut(path, 100)
    refuses(path, path, "cannot be opened")


# ---- RLDS: the framing, the Example and the checksum once more, by the books


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value):
    value %= 1 << 64
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def message(number, data):
    return varint(number * 8 + 2) + varint(len(data)) + data


def feature(values, *, packed=True):
    if isinstance(values, list):
        return message(1, b"".join(message(1, value) for value in values))
    values = values.reshape(-1)
    if values.dtype.kind == "f":
        parts = [struct.pack("<f", value) for value in values.tolist()]
        return message(2, message(1, b"".join(parts)) if packed else b"".join(b"\x0d" + part for part in parts))
    parts = [varint(int(value)) for value in values.tolist()]
    return message(3, message(1, b"".join(parts)) if packed else b"".join(b"\x08" + part for part in parts))


def example(arrays, *, packed=True):
    entries = [
        message(1, message(1, name.encode()) + message(2, feature(values, packed=packed)))
        for name, values in arrays.items()
    ]
    return message(1, b"".join(entries))


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def picture(values, how="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(values).save(out, how, **options)
    return out.getvalue()


def rlds_episodes(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "action": rng.normal(size=(length, 7)).astype(np.float32),
            "reward": np.float32(np.arange(length) == length - 1),
            "is_first": np.arange(length) == 0,
            "is_last": np.arange(length) == length - 1,
            "observation/state": rng.normal(size=(length, 4)).astype(np.float32),
            "observation/count": rng.integers(-(2**31), 2**31 - 1, (length, 2)).astype(np.int32),
            "observation/bytes": rng.integers(0, 256, (length, 2, 3)).astype(np.uint8),
            "observation/image": rng.integers(0, 256, (length, 10, 12, 3), dtype=np.uint8),
            "observation/wrist_image": rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8),
            "observation/wrist_depth": rng.integers(0, 5000, (length, 16, 16, 1)).astype(np.uint16),
            "observation/side_depth": rng.random((length, 8, 8, 1), dtype=np.float32),
            "observation/coded_depth": rng.random((length, 8, 8, 1), dtype=np.float32),
        }
        for length in lengths
    ]


def jpegs(frames):
    return [picture(frame, "JPEG", quality=90) for frame in frames]


def rlds_record(episode, sentence="pick up the cup", *, packed=True):
    arrays = {f"steps/{name}": values for name, values in episode.items()}
    arrays["steps/observation/image"] = jpegs(episode["observation/image"])
    arrays["steps/observation/wrist_image"] = [picture(frame) for frame in episode["observation/wrist_image"]]
    arrays["steps/observation/wrist_depth"] = [picture(frame[..., 0]) for frame in episode["observation/wrist_depth"]]
    arrays["steps/observation/coded_depth"] = [
        picture(frame.view(np.uint8)) for frame in episode["observation/coded_depth"]
    ]
    arrays["steps/language_instruction"] = [sentence.encode()] * len(episode["action"])
    arrays["episode_metadata/file_path"] = [b"/somewhere"]
    return example(arrays, packed=packed)


def tensor(dtype, *shape, encoding="none"):
    return {"Tensor": (shape, dtype, encoding)}


def image(dtype, *shape):
    return {"Image": (shape, dtype, "png")}


RLDS_STEP = {
    "action": tensor("float64", 7), "reward": tensor("float32"), "is_first": tensor("bool"), "is_last": tensor("bool"),
    "language_instruction": {"Text": ((), "string", "none")},
    "observation": {
        "state": tensor("float32", 4), "count": tensor("int32", 2), "bytes": tensor("uint8", 2, 3),
        "image": image("uint8", None, None, 3), "wrist_image": image("uint8", 16, 16, 3),
        "wrist_depth": image("uint16", 16, 16, 1), "side_depth": tensor("float32", 8, 8, 1),
        "coded_depth": image("float32", 8, 8, 1),
    },
}  # fmt: skip
MODULES = {
    "Tensor": "tensor_feature", "Image": "image_feature", "Text": "text_feature", "FeaturesDict": "features_dict",
    "Dataset": "dataset_feature",
}  # fmt: skip


def as_written_now(node):
    """features.json as TFDS writes it since 4.7."""
    (kind, about), *more = node.items()
    name = lambda kind: f"tensorflow_datasets.core.features.{MODULES[kind]}.{kind}"
    if more or isinstance(about, dict):
        inside = {key: as_written_now(child) for key, child in node.items()}
        return {"pythonClassName": name("FeaturesDict"), "featuresDict": {"features": inside}}
    shape, dtype, encoding = about
    if kind == "Text":
        return {"pythonClassName": name(kind), "text": {}, "description": "what to do"}
    told = {
        "shape": {"dimensions": [str(-1 if size is None else size) for size in shape]} if shape else {},
        "dtype": dtype,
    }
    told["encodingFormat" if kind == "Image" else "encoding"] = encoding
    return {"pythonClassName": name(kind), kind.lower(): told}


def as_written_before(node):
    """features.json as TFDS wrote it up to 4.4."""
    (kind, about), *more = node.items()
    name = lambda kind: f"tensorflow_datasets.core.features.{MODULES[kind]}.{kind}"
    if more or isinstance(about, dict):
        return {"type": name("FeaturesDict"), "content": {key: as_written_before(child) for key, child in node.items()}}
    shape, dtype, encoding = about
    if kind == "Text":
        return {"type": name(kind), "content": {}}
    told = {"shape": list(shape), "dtype": dtype, "encoding_format" if kind == "Image" else "encoding": encoding}
    return {"type": name(kind), "content": told}


def features_now(step):
    steps = {"pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset"}
    steps["sequence"] = {"feature": as_written_now(step), "length": "-1"}
    path = {"featuresDict": {"features": {"file_path": as_written_now({"Text": ((), "string", "none")})}}}
    return {"featuresDict": {"features": {"steps": steps, "episode_metadata": path}}}


def features_before(step):
    steps = {"type": "tensorflow_datasets.core.features.dataset_feature.Dataset"}
    steps["content"] = {"feature": as_written_before(step), "length": None}
    return {"type": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "content": {"steps": steps}}


def write_rlds(folder, splits, *, features=None, told_lengths=None):
    """splits: {name: [[record, …] of each shard]}."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = []
    for split, shards in splits.items():
        for number, records in enumerate(shards):
            path = folder / f"my_robot-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            path.write_bytes(b"".join(record(data) for data in records))
        lengths = told_lengths or [len(records) for records in shards]
        notes.append({"name": split, "shardLengths": [str(length) for length in lengths]})
    info = {"name": "my_robot", "version": "1.0.0", "splits": notes, "fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features or features_now(RLDS_STEP)))
    return folder


def rlds_columns(episodes):
    raw = {name: joined(episodes, name) for name in episodes[0]}
    columns = {name: raw[name] for name in ("reward", "is_first", "is_last")}
    columns["actions"] = raw["action"].astype(np.float64)
    columns |= {f"obs/{name}": raw[f"observation/{name}"] for name in ("state", "count", "bytes")}
    columns["obs/images/image"] = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in jpegs(raw["observation/image"])])  # fmt: skip
    columns["obs/images/wrist_image"] = raw["observation/wrist_image"]
    columns["obs/depths/wrist_image"] = (raw["observation/wrist_depth"].astype(np.float64) / 1000).astype(np.float32)
    columns["obs/depths/side"] = raw["observation/side_depth"]
    columns["obs/depths/coded"] = raw["observation/coded_depth"]
    return columns


def test_the_checksum_of_this_file_is_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of its catalogue


@pytest.mark.parametrize("features", [features_now, features_before])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_rlds_columns_hold_what_the_records_hold(tmp_path, features, packed):
    lengths = (3, 6, 1, 4)
    episodes = rlds_episodes(lengths)
    records = [rlds_record(episode, f" task {i}\n", packed=packed) for i, episode in enumerate(episodes)]
    folder = tmp_path / "my_robot"
    write_rlds(folder / "1.0.0", {"train": [records[:3], records[3:]]}, features=features(RLDS_STEP))
    store = check(folder, tmp_path, rlds_columns(episodes), lengths)
    assert store.sentences == ["task 0", "task 1", "task 2", "task 3"]
    assert store.attrs["name"] == "my_robot"
    assert open_store(folder / "1.0.0", cache_gb=0).episode_ends.tolist() == store.episode_ends.tolist()


def test_rlds_encoded_tensors_parts_of_actions_and_what_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 2, 3))
    arm, grip = rng.random((5, 6), dtype=np.float32), rng.integers(0, 2, 5)
    step = {
        "action": {"arm": tensor("float32", 6), "grip": tensor("bool")},
        "observation": {
            "raw": tensor("float64", 2, 3, encoding="bytes"),
            "packed": tensor("float64", 2, 3, encoding="zlib"),
            "ragged": tensor("float32", None),
            "natural_language_instruction": {"Text": ((), "string", "none")},
            "frames": tensor("uint8", 2, 2, 3),
        },
        "action_dict": {"arm": tensor("float32", 6)},
    }
    frames = rng.integers(0, 256, (5, 2, 2, 3))
    data = example(
        {
            "steps/action/arm": arm, "steps/action/grip": grip, "steps/action_dict/arm": arm,
            "steps/observation/raw": [row.tobytes() for row in values],
            "steps/observation/packed": [zlib.compress(row.tobytes()) for row in values],
            "steps/observation/ragged/ragged_flat_values": arm, "steps/observation/frames": frames,
            "steps/observation/natural_language_instruction": ["schließe die Tür".encode()] * 5,
        }
    )  # fmt: skip
    folder = write_rlds(tmp_path / "d", {"train": [[data]]}, features=features_now(step))
    expected = {
        "actions/arm": arm, "actions/grip": grip.astype(bool), "action_dict/arm": arm, "obs/raw": values, "obs/packed": values,
        "obs/images/frames": frames.astype(np.uint8),
    }  # fmt: skip
    assert check(folder, tmp_path, expected, (5,)).sentences == ["schließe die Tür"]


def test_rlds_splits(tmp_path):
    short, long = ([rlds_record(episode) for episode in rlds_episodes(lengths)] for lengths in ((2, 2), (3, 3)))
    both = write_rlds(tmp_path / "both", {"val": [short], "train": [long]})
    assert open_store(both, cache_gb=0).episode_ends.tolist() == [3, 6, 8, 10]
    assert open_store(both, cache_gb=0, filter_key="train").episode_ends.tolist() == [3, 6]
    assert open_store(both, cache_gb=0, filter_key="val").episode_ends.tolist() == [2, 4]
    refuses(both, both, "filter_key=test", "train, val", filter_key="test")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/features.json").write_text((both / "features.json").read_text())
    refuses(tmp_path / "none", "has no shards of any split")
    assert open_store(write_rlds(tmp_path / "one", {"demos": [short]}), cache_gb=0).episode_ends.tolist() == [2, 4]


def test_a_split_has_a_cache_of_its_own(tmp_path):
    one, other = rlds_episodes((2, 2), seed=1), rlds_episodes((2, 2), seed=2)
    records = {
        split: [[rlds_record(episode) for episode in episodes]] for split, episodes in (("train", one), ("val", other))
    }
    folder = write_rlds(tmp_path / "d", records)
    check(folder, tmp_path, rlds_columns(one), (2, 2), filter_key="train")
    check(folder, tmp_path, rlds_columns(other), (2, 2), filter_key="val")
    check(folder, tmp_path, rlds_columns([*one, *other]), (2, 2, 2, 2))


def rlds_dataset(tmp_path):
    episodes = rlds_episodes((2, 3, 2))
    records = [rlds_record(episode) for episode in episodes]
    folder = write_rlds(tmp_path / "d", {"train": [records[:1], records[1:]]})
    return folder, folder / "my_robot-train.tfrecord-00001-of-00002", [len(data) for data in records]


@pytest.mark.parametrize("lost", [1, 4, 5, 1000])
def test_a_truncated_shard_is_named_with_its_episode(tmp_path, lost):
    folder, shard, _ = rlds_dataset(tmp_path)
    cut(shard, lost)
    refuses(folder, shard, "episode 2 (record 1 of the shard)", "ends")


def test_a_shard_cut_between_two_records_is_named(tmp_path):
    folder, shard, sizes = rlds_dataset(tmp_path)
    cut(shard, sizes[2] + 16)
    refuses(folder, shard, "holds 1 episodes", "says 2")


def test_a_damaged_length_is_named_with_its_episode(tmp_path):
    folder, shard, sizes = rlds_dataset(tmp_path)
    with shard.open("r+b") as file:
        file.seek(sizes[1] + 16)
        file.write(b"\xff")
    refuses(folder, shard, "episode 2 (record 1 of the shard)", "crc32c")


@pytest.mark.parametrize("key", ["actions", "obs/images/wrist_image"])
def test_damaged_data_is_named_with_its_episode_when_it_is_read(tmp_path, key):
    folder, shard, sizes = rlds_dataset(tmp_path)
    whole = bytearray(shard.read_bytes())
    place = whole.rindex(b"IDAT") + 8  # within the last picture of episode 2
    whole[place] ^= 1
    shard.write_bytes(whole)
    store = open_store(folder, cache_gb=0)
    store.read(key, [0, 1, 2, 3, 4])
    with pytest.raises(UserError, match=re.escape(f"{shard}: episode 2 (record 1 of the shard)") + ".*crc32c"):
        store.read(key, [5])


def test_a_picture_that_is_none_is_named(tmp_path):
    episodes = rlds_episodes((2, 3))
    good, bad = (rlds_record(episode) for episode in episodes)
    last = picture(episodes[1]["observation/wrist_image"][2])
    assert bad.count(last) == 1
    folder = write_rlds(tmp_path / "d", {"train": [[good, bad.replace(last, b"x" * len(last))]]})
    store = open_store(folder, cache_gb=0)
    store.read("obs/images/wrist_image", [3, 0])
    with pytest.raises(UserError, match="episode 1 .*wrist_image of step 2 cannot be decoded"):
        store.read("obs/images/wrist_image", [4])
    small = picture(np.zeros((4, 4, 3), np.uint8))
    record_of_small = example({"steps/action": np.zeros((2, 7), np.float32), "steps/observation/image": [last, small]})
    step = {"action": tensor("float32", 7), "observation": {"image": image("uint8", None, None, 3)}}
    folder = write_rlds(tmp_path / "e", {"train": [[record_of_small]]}, features=features_now(step))
    with pytest.raises(UserError, match=r"step 1 is \(4, 4, 3\), the first \(16, 16, 3\)"):
        open_store(folder, cache_gb=0).read("obs/images/image", [0, 1])


def test_an_rlds_folder_that_is_not_whole_is_told(tmp_path):
    folder, shard, _ = rlds_dataset(tmp_path)
    whole = shard.read_bytes()
    shard.write_bytes(b"")
    refuses(folder, shard)
    shard.unlink()
    refuses(folder, folder, "shard 1 of 2", "missing")
    shard.write_bytes(whole)
    features = folder / "features.json"
    text = features.read_text()
    features.write_text(text.replace('"state"', '"stage"'))
    refuses(folder, "episode 0", "steps/observation/stage")
    features.write_text(text[:-5])
    refuses(folder, features)
    features.write_text(json.dumps(as_written_now({"image": image("uint8", 8, 8, 3)})))
    refuses(folder, features, "no RLDS dataset")
    features.unlink()
    refuses(folder, features, "missing")
    two = tmp_path / "two"
    for version in ("1.0.0", "1.1.0"):
        write_rlds(two / version, {"train": [[rlds_record(episode) for episode in rlds_episodes((2,))]]})
    refuses(two, two, "1.0.0, 1.1.0")


def test_rows_of_wrong_number_in_a_record_are_told(tmp_path):
    step = {"action": tensor("float32", 2), "is_first": tensor("bool")}
    data = example({"steps/action": np.zeros(7, np.float32), "steps/is_first": np.arange(4) == 0})
    store = open_store(write_rlds(tmp_path / "d", {"train": [[data]]}, features=features_now(step)), cache_gb=0)
    with pytest.raises(UserError, match="steps/action has 7 values"):
        store.read("actions", [0])


# ---- what is none of them, and rows in many pieces


def test_a_dataset_of_no_known_format_is_told_what_was_looked_for(tmp_path):
    looked_for = ("zarr replay buffer", "robomimic HDF5", "ManiSkill h5", "RLDS")
    empty = tmp_path / "empty"
    empty.mkdir()
    refuses(empty, empty, "nothing", *looked_for)
    (empty / "readme.txt").write_text("hello")
    (empty / "pictures").mkdir()
    refuses(empty, "pictures, readme.txt", *looked_for)
    refuses(empty / "readme.txt", "b'hello'", *looked_for)
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["action"] = np.zeros((3, 2))
    refuses(tmp_path / "other.hdf5", "HDF", *looked_for)


def test_many_pieces_of_one_file_hold_one_descriptor(tmp_path):
    values = np.random.default_rng(0).random((900, 3), dtype=np.float32)
    file = tmp_path / "rows"
    file.write_bytes(b"odd" + values.tobytes())
    rows = PlainRows([Segment(file, 3 + first * 12, 3) for first in range(0, 900, 3)], row_shape=(3,), dtype="f4")
    before, wanted = len(os.listdir("/proc/self/fd")), np.random.default_rng(1).integers(0, 900, 2000)
    out = np.empty((2000, 3), np.float32)
    rows.read_into(out, wanted)
    np.testing.assert_array_equal(out, values[wanted])
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_many_files_hold_no_descriptor(tmp_path):
    values = np.random.default_rng(0).random((2 * MOST_OPEN + 10, 3), dtype=np.float32)
    segments = []
    for first in range(0, len(values), 2):
        (tmp_path / str(first)).write_bytes(values[first : first + 2].tobytes())
        segments.append(Segment(tmp_path / str(first), 0, 2))
    rows = PlainRows(segments, row_shape=(3,), dtype="f4")
    before, wanted = len(os.listdir("/proc/self/fd")), np.random.default_rng(1).integers(0, len(values), 500)
    out = np.empty((500, 3), np.float32)
    rows.read_into(out, wanted)
    np.testing.assert_array_equal(out, values[wanted])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_became_shorter_is_told(tmp_path):
    file = tmp_path / "rows"
    file.write_bytes(bytes(100))
    with pytest.raises(OSError, match="shorter"):
        PlainRows([Segment(file, 0, 10)], row_shape=(3,), dtype="f4").read_into(
            np.empty((1, 3), np.float32), np.array([0])
        )
