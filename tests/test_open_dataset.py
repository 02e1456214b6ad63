"""Any dataset by its path: what is recognised, how domains meet, clouds out of depth, looking, and the cache of decoded rows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from conftest import ROOT, dataset_of, write_store

import ppt_kit as ppt
from ppt_kit.cameras import intrinsics_from_fovy
from ppt_kit.data.disk.cache import CacheFolder, RowCache
from ppt_kit.data.formats import open_store
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.store import DecodedColumn
from ppt_kit.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PPT_KIT_CACHE", str(tmp_path / "cache"))


def write_flat(path, *, lengths=(6, 9), compressor="auto", chunk=1, extra=None):
    """A replay buffer as DP3 and Diffusion Policy write it: flat keys, compressed, `chunk` frames a chunk."""
    rng, total = np.random.default_rng(3), sum(lengths)
    arrays = {
        "img": rng.integers(0, 256, (total, 12, 10, 3), dtype=np.uint8), "depth": rng.random((total, 12, 10), dtype=np.float32),
        "point_cloud": rng.random((total, 20, 6), dtype=np.float32), "state": rng.normal(size=(total, 5)).astype(np.float32),
        "action": rng.normal(size=(total, 2)).astype(np.float32), **(extra or {}),
    }  # fmt: skip
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, values in arrays.items():
        chunks = (chunk, *values.shape[1:])
        group.create_array(
            f"data/{name}", shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=compressor
        )[:] = values
    group.create_array("meta/episode_ends", shape=(len(lengths),), dtype="i8")[:] = np.cumsum(lengths)
    return arrays


# ------------------------------------------------------------------ replay buffers of others


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_flat_buffers_have_the_contracts_names_and_values(tmp_path, zipped, chunk):
    truth, path = write_flat(tmp_path / "pusht.zarr", chunk=chunk), tmp_path / "pusht.zarr"
    if zipped:
        path = shutil.make_archive(str(path), "zip", path)
    for _ in ("cold", "warm"):
        data = ppt.open_dataset(path)
        episode = data.episode(1)
        assert data.num_episodes == 2
        assert np.array_equal(episode["action"], truth["action"][6:])
        assert np.array_equal(episode["obs"]["state"], truth["state"][6:])
        assert np.array_equal(episode["obs"]["rgb"]["camera"], truth["img"][6:])
        assert np.array_equal(episode["obs"]["depth"]["camera"], truth["depth"][6:, :, :, None])
        assert np.array_equal(episode["obs"]["pointcloud"], truth["point_cloud"][6:])
        batch = data.__getitems__([0, len(data) - 1])
        assert torch.equal(batch["obs"]["rgb"]["camera"][1, -1], torch.from_numpy(truth["img"][-1]))


def test_ppt_learnings_nested_buffer(tmp_path):
    rng, total = np.random.default_rng(0), 11
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w", zarr_format=2)
    arrays = {
        "actions": rng.normal(size=(total, 7)), "obs/eef_pos": rng.normal(size=(total, 3)), "obs/eef_quat": rng.normal(size=(total, 4)),
        "obs/images/wrist": rng.integers(0, 256, (total, 8, 8, 3), dtype=np.uint8), "obs/depths/wrist": rng.random((total, 8, 8, 1)),
        "obs/pointcloud/pos": rng.random((total, 16, 3)), "obs/pointcloud/color": rng.integers(0, 256, (total, 16, 3), dtype=np.uint8),
        "obs/pointcloud/seg": rng.integers(0, 4, (total, 16)), "initial_state/robot": rng.normal(size=(total, 2)),
    }  # fmt: skip
    for name, values in arrays.items():
        group.create_array(f"data/{name}", shape=values.shape, chunks=(3, *values.shape[1:]), dtype=values.dtype)[:] = (
            values
        )
    group.create_array("meta/episode_ends", shape=(2,), dtype="i8")[:] = [5, 11]
    group.create_array("meta/episode_descriptions", shape=(2,), dtype="<U100")[:] = ["open the door", "close it"]
    data = ppt.open_dataset(tmp_path / "x.zarr", point_channels=7)
    second = data.episode(1)
    assert second["obs"]["language"] == ["close it"] * 6
    assert np.allclose(second["obs"]["state"], np.concatenate([arrays["obs/eef_pos"], arrays["obs/eef_quat"]], 1)[5:])
    cloud = second["obs"]["pointcloud"]
    assert np.allclose(cloud[..., :3], arrays["obs/pointcloud/pos"][5:])
    assert np.allclose(cloud[..., 3:6], arrays["obs/pointcloud/color"][5:] / 255)
    assert "initial_state/robot" not in data.domains["x"].store.columns
    five = ppt.open_dataset(tmp_path / "x.zarr", point_channels=5).episode(0)["obs"]["pointcloud"]
    assert np.allclose(five[..., 3], arrays["obs/pointcloud/seg"][:5])


def test_a_nested_action_is_its_parts_or_the_one_asked_for(tmp_path):
    write_store(tmp_path / "x.zarr")
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="a", zarr_format=2)
    values = np.random.default_rng(0).normal(size=(43, 3))
    for name, part in (("arm", values[:, :2]), ("hand", values[:, 2:])):
        group.create_array(f"data/act/{name}", shape=part.shape, chunks=part.shape, dtype="f8")[:] = part
    both = dataset_of(tmp_path, "x", num_points=16, action_key="act")
    assert np.allclose(both.episode(0)["action"], values[:12])
    assert both.specs["x"].layout("action") == {"act/arm": (0, 2), "act/hand": (2, 3)}
    one = dataset_of(tmp_path, "x", num_points=16, action_key="act/hand", action_horizon=4)
    assert np.allclose(one.__getitems__([0])["action"][0, :, 0], values[:4, 2])


@pytest.mark.parametrize("content", ["nothing", "text", "folder"])
def test_what_no_format_knows_says_what_was_looked_for(tmp_path, content):
    path = tmp_path / "thing"
    if content == "text":
        path.write_text("hello world")
    elif content == "folder":
        (path / "inner").mkdir(parents=True)
    says = (
        "no such dataset" if content == "nothing" else r"no format .*Looked for .*episode_ends.*meta/info.json.*traj_"
    )
    with pytest.raises(UserError, match=says):
        ppt.open_dataset(path)


# ------------------------------------------------------------------ domains together


def test_domains_of_several_formats_in_one_batch(tmp_path):
    import h5py

    write_store(tmp_path / "a.zarr", state_dim=3, action_dim=2)
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        for number, length in enumerate((5, 7)):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = rng.normal(size=(length, 2))
            demo["obs/eef_pos"] = rng.normal(size=(length, 3))
            demo["obs/normalized_gripper_pos"] = rng.normal(size=(length, 1))
        last = file["data/demo_1/actions"][-1]
    data = dataset_of(tmp_path, {"a": 1, "b": 3}, modalities=["state", "language"])
    batch = data.__getitems__([0, len(data) - 1])
    assert batch["domain"].tolist() == [0, 1]
    assert np.allclose(batch["action"][1, 0], last, atol=1e-6)


def test_domains_that_do_not_fit_together_are_refused(tmp_path):
    steps = np.zeros((4, 1), np.float32)
    image = np.zeros((4, 8, 8, 3), np.uint8)
    common = {"actions": steps, "obs/eef_pos": steps, "obs/normalized_gripper_pos": steps}
    for name, more in (("a", {"obs/images/front": image}), ("b", {"obs/images/wrist": image}), ("c", {})):
        with ZarrWriter(tmp_path / f"{name}.zarr") as writer:
            writer.append({**common, **more})
    other_cameras = dataset_of(tmp_path, "a,b")
    assert {name: list(spec.rgb) for name, spec in other_cameras.specs.items()} == {"a": ["front"], "b": ["wrist"]}
    with pytest.raises(UserError, match=r"c.zarr has no rgb.*a has it: .*modalities"):
        dataset_of(tmp_path, "a,c")
    assert len(dataset_of(tmp_path, "a,c", modalities=["state"])) == 8
    assert len(dataset_of(tmp_path, "a,c", ignored_keys=["images/front"])) == 8


# ------------------------------------------------------------------ clouds out of depth


def depth_store(path, *, color=True, size=24):
    """One camera two metres above a table that a box of 0.4 m stands on, looking straight down."""
    depth = np.full((3, size, size, 1), 2.0, np.float32)
    depth[1:, 10:14, 10:14] = 1.6
    with ZarrWriter(path) as writer:
        arrays = {
            "actions": np.zeros((3, 2), np.float32),
            "obs/eef_pos": np.zeros((3, 3), np.float32),
            "obs/depths/top": depth,
        }
        if color:
            arrays["obs/images/top"] = np.full((3, size, size, 3), (255, 0, 51), np.uint8)
        writer.append(arrays)
        pose = np.eye(4)
        pose[2, 3] = 2.0
        intrinsics = intrinsics_from_fovy(60, height=size, width=size)
        writer.constants = {"camera_info/top/intrinsics": intrinsics, "camera_info/top/extrinsics": pose}
    return intrinsics


def test_a_store_without_clouds_gets_them_from_its_depth(tmp_path):
    intrinsics = depth_store(tmp_path / "x.zarr")
    data = ppt.open_dataset(tmp_path / "x.zarr", num_points=64, crop_box=[-9, -9, 0.1, 9, 9, 9])
    with pytest.raises(UserError, match=r"episode 0 \(row 0\) has no point inside dataset.crop_box"):
        data.episode(0)
    cloud = data.episode(0, steps=[1, 2])["obs"]["pointcloud"]
    assert cloud.shape == (2, 64, 6)
    assert np.allclose(cloud[..., 2], 0.4, atol=1e-6)  # the top of the box, in the world
    u, v = np.meshgrid(np.arange(10, 14), np.arange(10, 14))
    x, y = (u - intrinsics[0, 2]) / intrinsics[0, 0] * 1.6, -(v - intrinsics[1, 2]) / intrinsics[1, 1] * 1.6
    truth = {(round(float(a), 4), round(float(b), 4)) for a, b in zip(x.ravel(), y.ravel())}
    assert {(round(float(a), 4), round(float(b), 4)) for a, b in cloud[0, :, :2]} == truth
    assert np.allclose(cloud[..., 3:], [1, 0, 0.2])
    again = ppt.open_dataset(tmp_path / "x.zarr", num_points=64, crop_box=[-9, -9, 0.1, 9, 9, 9])
    assert again.domains["x"].store.columns["obs/pointcloud/pos"].cache.share() == pytest.approx(2 / 3)
    assert np.array_equal(again.episode(0, steps=[1, 2])["obs"]["pointcloud"], cloud)


def test_another_crop_box_is_another_cloud(tmp_path):
    depth_store(tmp_path / "x.zarr", color=False)
    whole = ppt.open_dataset(tmp_path / "x.zarr", num_points=32).episode(0, steps=[1])["obs"]["pointcloud"]
    box = ppt.open_dataset(tmp_path / "x.zarr", num_points=32, crop_box=[-9, -9, 0.1, 9, 9, 9])
    assert whole[..., 2].min() < 0.1 < box.episode(0, steps=[1])["obs"]["pointcloud"][..., 2].min()
    assert whole.shape[-1] == 3


def test_a_policy_trains_on_clouds_made_from_depth(small_cfg, tmp_path):
    rng = np.random.default_rng(0)
    depth_store(tmp_path / "x.zarr")
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="r")
    with ZarrWriter(tmp_path / "data/a.zarr") as writer:
        writer.constants = {
            f"camera_info/top/{name}": group[f"meta/camera_info/top/{name}"][...]
            for name in ("intrinsics", "extrinsics")
        }
        for _ in range(3):
            low = {
                "actions": rng.normal(size=(6, 2)),
                "obs/eef_pos": rng.normal(size=(6, 3)),
                "obs/normalized_gripper_pos": rng.normal(size=(6, 1)),
            }
            writer.append({**low, "obs/depths/top": rng.uniform(1, 2, (6, 12, 12, 1)).astype(np.float32)})
    run = ppt.UnifiedTrainer(small_cfg(f"dataset_path={tmp_path / 'data'}"))
    assert run.run() == 0


# ------------------------------------------------------------------ looking


def sources(tmp_path):
    write_flat(tmp_path / "flat.zarr")
    write_store(tmp_path / "nested.zarr", colors=True)
    depth_store(tmp_path / "depth.zarr")
    return {name: tmp_path / f"{name}.zarr" for name in ("flat", "nested", "depth")}


def test_describe_tells_what_is_there(tmp_path):
    truth = write_flat(tmp_path / "flat.zarr")
    group = zarr.open_group(str(tmp_path / "flat.zarr"), mode="a")
    group["data/state"][2, 1] = np.nan
    group["data/state"][3, 1] = np.inf
    table = ppt.describe(tmp_path / "flat.zarr")
    state, image = table.loc[("flat", "obs/state")], table.loc[("flat", "obs/images/camera")]
    assert (state["episodes"], state["steps"], state["length_min"], state["length_max"]) == (2, 15, 6, 9)
    assert (state["nans"], state["infs"], state["rows_read"]) == (1, 1, 15)
    assert image["shape"] == (12, 10, 3)
    assert image["stored_as"] == "data/img"
    assert (image["min"], image["max"]) == (truth["img"].min(), truth["img"].max())
    finite = np.delete(truth["state"].ravel(), [2 * 5 + 1, 3 * 5 + 1])
    assert np.allclose([state["min"], state["max"]], [finite.min(), finite.max()])


def test_describe_and_plots_work_for_every_kind(tmp_path):
    for name, path in sources(tmp_path).items():
        assert len(ppt.describe(path).loc[name]) >= 4
        png = ppt.plot_episode(path, 0)._repr_png_()
        assert png[:4] == b"\x89PNG"
        assert len(png) > 10_000


def test_the_doctor_says_what_costs_and_what_to_change(tmp_path, capsys):
    write_flat(tmp_path / "flat.zarr", lengths=(60, 90))
    table = ppt.doctor(tmp_path / "flat.zarr", batch_size=16)
    said = capsys.readouterr().out
    assert set(table["stage"]) == {"action", "state", "pointcloud", "rgb", "depth"}
    assert "Blosc, 150 chunk(s) of 1 rows" in said
    assert "windows/s" in said
    ppt.doctor(ppt.open_dataset(tmp_path / "flat.zarr", cache_gb=0))
    assert "set dataset.cache_gb above" in capsys.readouterr().out
    ppt.doctor(ppt.open_dataset(tmp_path / "flat.zarr", cache_gb=1e-5))
    assert "set dataset.cache_gb=1" in capsys.readouterr().out


# ------------------------------------------------------------------ the cache of decoded rows


def column_of(values, folder=None, *, name="x", calls=None):
    def decode(rows):
        for row in rows.tolist():
            if calls is not None:
                calls.append(row)
            yield row, values[row : row + 1]

    column = DecodedColumn(values.shape, values.dtype, decode, stored_as=name, layout="test")
    if folder is not None:
        column.cache = RowCache(folder, name, kind="", shape=values.shape, dtype=values.dtype)
    return column


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(0, 256, (64, 100, 100), dtype=np.uint8)


def folder_for(tmp_path, *, name="source", limit=1e9):
    source = tmp_path / name
    if not source.exists():
        source.touch()
    return CacheFolder(tmp_path / "cache", source, limit_bytes=limit)


def test_a_row_is_decoded_once_by_whoever_comes_first(tmp_path, values):
    one, two = [], []
    first = column_of(values, folder_for(tmp_path), calls=one)
    second = column_of(values, folder_for(tmp_path), calls=two)
    rows = np.array([5, 3, 5, 63, 0])
    assert np.array_equal(first.read(rows), values[rows])
    assert np.array_equal(second.read(np.array([3, 4, 63])), values[[3, 4, 63]])
    assert (one, two) == ([0, 3, 5, 63], [4])


def test_the_cache_keeps_to_its_bound_and_rows_stay_right(tmp_path, values, caplog):
    column = column_of(values, folder_for(tmp_path, limit=200_000))
    for _ in range(2):
        assert np.array_equal(column.read(np.arange(64)), values)
    used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*"))
    assert 0 < used < 300_000
    assert 0 < column.cache.share() < 0.5
    assert caplog.text.count("takes no more") == 1


def test_room_is_made_where_another_datasets_cache_lies_unused(tmp_path, values):
    old = folder_for(tmp_path, name="old", limit=1e6)
    column_of(values, old).read(np.arange(64))
    os.utime(old.path, (0, 0))
    column = column_of(values, folder_for(tmp_path, name="new", limit=8e5))
    column.read(np.arange(64))
    assert not old.path.exists()
    assert column.cache.share() == 1


def test_a_dataset_that_changed_is_decoded_anew(tmp_path, values):
    truth = write_flat(tmp_path / "flat.zarr")
    read = lambda: open_store(tmp_path / "flat.zarr").read("obs/state", np.arange(15))
    assert np.array_equal(read(), truth["state"])
    group = zarr.open_group(str(tmp_path / "flat.zarr"), mode="a")
    group["data/state"][4] = 7
    assert np.array_equal(read()[4], np.full(5, 7))


def test_after_a_crash_of_the_machine_nothing_old_is_believed(tmp_path, values):
    folder = folder_for(tmp_path)
    column_of(values, folder).read(np.arange(64))
    (folder.path / "boot").write_text("another boot")
    assert column_of(values, folder_for(tmp_path)).cache.share() == 0


def mounted(tmp_path, options):
    target = tmp_path / "small"
    target.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    return target


def test_a_full_disk_costs_the_cache_not_the_rows(tmp_path, values, caplog):
    target = mounted(tmp_path, "size=300k")
    try:
        (tmp_path / "source").touch()
        column = column_of(values, CacheFolder(target, tmp_path / "source", limit_bytes=1e9))
        assert np.array_equal(column.read(np.arange(64)), values)
        assert np.array_equal(column.read(np.arange(64)), values)
        assert "the disk is full" in caplog.text
        del column
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_read_only_cache_folder_is_told_with_the_remedy(tmp_path):
    write_flat(tmp_path / "flat.zarr")
    target = mounted(tmp_path, "ro,size=1m")
    try:
        with pytest.raises(
            UserError, match=r"small: the cache of decoded rows cannot be written.*dataset.cache_dir.*cache_gb=0"
        ):
            ppt.open_dataset(tmp_path / "flat.zarr", cache_dir=target)
        assert len(ppt.open_dataset(tmp_path / "flat.zarr", cache_dir=target, cache_gb=0)) == 15
    finally:
        subprocess.run(["umount", str(target)], check=True)


# ------------------------------------------------------------------ memory


def test_resident_memory_does_not_grow_with_what_is_read(tmp_path):
    """1.3 GB of clouds and images under 1 GB of address space beyond the imports; measured growth, not a claim."""
    clouds = np.random.default_rng(0).random((100, 2048, 3), dtype=np.float32)
    images = np.random.default_rng(1).integers(0, 256, (100, 128, 128, 3), dtype=np.uint8)
    low = {"actions": clouds[:, 0], "obs/eef_pos": clouds[:, 1], "obs/normalized_gripper_pos": clouds[:, 2, :1]}
    with ZarrWriter(tmp_path / "big.zarr") as writer:
        for _ in range(170):
            writer.append({**low, "obs/pointcloud/pos": clouds, "obs/images/front": images})
    code = f"""
import numpy as np, psutil, resource
from ppt_kit.data.dataset import open_dataset
process = psutil.Process()
limit = process.memory_info().vms + 10**9
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
data = open_dataset({str(tmp_path / "big.zarr")!r})
rng = np.random.default_rng(0)
data.__getitems__(rng.integers(0, len(data), 64))
before = process.memory_info().rss
for _ in range(400):
    data.__getitems__(rng.integers(0, len(data), 64))
print((process.memory_info().rss - before) / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 100


def test_several_threads_fetch_decoded_batches_and_they_come_in_order(tmp_path):
    from ppt_kit.data.loader import BatchPlan, Loader

    truth = write_flat(tmp_path / "flat.zarr", lengths=(60, 90))
    data = ppt.open_dataset(tmp_path / "flat.zarr")
    plan = BatchPlan(len(data), 8, seed=3)
    assert data.has_to_decode()
    seen = []
    for step, (batch,) in Loader(data, plan, rank=0, first_step=0, last_step=40, pin=False):
        seen.append(step)
        rows = batch["index"].numpy()  # every step starts a window, so a window's number is its row
        assert np.array_equal(batch["obs"]["rgb"]["camera"][:, -1].numpy(), truth["img"][rows])
        assert np.array_equal(batch["index"], plan.micro_batch(step, rank=0, micro=0, order=plan.order(step // 19))[0])
    assert seen == list(range(40))


# ------------------------------------------------------------------ what is stored otherwise than the contract has it


def write_action_and(path, *, compressor=None, **arrays):
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    arrays["action"] = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    for name, values in arrays.items():
        chunks = (9, *values.shape[1:])
        array = group.create_array(
            f"data/{name}", shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=compressor
        )
        array[:] = values
    group.create_array("meta/episode_ends", shape=(2,), dtype="i8")[:] = [4, 9]
    return path


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (9, 6, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["floats to 255", "floats to 1", "channels first", "camera0_rgb"])
def test_pictures_are_uint8_with_channels_last_however_they_are_stored(tmp_path, pictures, kind):
    stored = {
        "floats to 255": {"img": pictures.astype(np.float32)}, "floats to 1": {"img": (pictures / 255).astype(np.float32)},
        "channels first": {"img": pictures.transpose(0, 3, 1, 2)}, "camera0_rgb": {"camera0_rgb": pictures},
    }[kind]  # fmt: skip
    data = ppt.open_dataset(write_action_and(tmp_path / "x.zarr", **stored))
    batch = data.__getitems__([0, 8])["obs"]["rgb"]
    camera = "camera0" if kind == "camera0_rgb" else "camera"
    assert list(batch) == [camera]
    assert batch[camera].dtype == torch.uint8
    assert np.array_equal(batch[camera][:, -1], pictures[[0, 8]])


def test_whole_numbers_of_depth_are_millimetres(tmp_path):
    path = write_action_and(tmp_path / "x.zarr", depth=np.full((9, 4, 5), 1500, np.uint16))
    depth = ppt.open_dataset(path).__getitems__([3])["obs"]["depth"]["camera"]
    assert depth.shape == (1, 2, 4, 5, 1)
    assert (depth == 1.5).all()
    from ppt_kit.data.convert import to_zarr

    to_zarr(open_store(path), tmp_path / "y.zarr")
    assert (ppt.open_dataset(tmp_path / "y.zarr").__getitems__([3])["obs"]["depth"]["camera"] == 1.5).all()


def test_a_points_colour_does_not_depend_on_what_else_is_read(tmp_path):
    cloud = np.random.default_rng(0).random((9, 5, 6)).astype(np.float32)
    cloud[:4, :, 3:], cloud[4:, :, 3:] = 1, 200
    data = ppt.open_dataset(write_action_and(tmp_path / "x.zarr", point_cloud=cloud))
    alone, both = data.__getitems__([0]), data.__getitems__([0, 8])
    assert torch.equal(alone["obs"]["pointcloud"][0], both["obs"]["pointcloud"][0])
    assert alone["obs"]["pointcloud"][0, 0, 0, 3] == pytest.approx(1 / 255)


def test_a_cut_blosc_chunk_is_refused_not_read_as_numbers(tmp_path):
    from numcodecs import Blosc

    path = write_action_and(tmp_path / "x.zarr", compressor=Blosc(cname="zstd"))
    chunk = path / "data/action/0.0"
    os.truncate(chunk, chunk.stat().st_size - 40)
    with pytest.raises(UserError, match=r"x.zarr: data/action of episode 0 .*not written to its end"):
        ppt.open_dataset(path).episode(0)


def test_a_zip_is_read_by_forked_workers(tmp_path):
    truth = write_flat(tmp_path / "flat.zarr", lengths=(60, 90))
    data = ppt.open_dataset(shutil.make_archive(str(tmp_path / "flat.zarr"), "zip", tmp_path / "flat.zarr"), cache_gb=0)
    loader = torch.utils.data.DataLoader(
        data, batch_size=8, num_workers=2, collate_fn=lambda batch: batch, multiprocessing_context="fork"
    )
    for _ in range(3):
        for batch in loader:
            rows = batch["index"].numpy()
            assert np.array_equal(batch["obs"]["rgb"]["camera"][:, -1].numpy(), truth["img"][rows])


@pytest.mark.parametrize("how", ["half a zip", "half of episode_ends"])
def test_a_damaged_container_is_told(tmp_path, how):
    write_flat(tmp_path / "flat.zarr")
    path = tmp_path / "flat.zarr"
    if how == "half a zip":
        path = tmp_path / "flat.zarr.zip"
        shutil.make_archive(str(tmp_path / "flat.zarr"), "zip", tmp_path / "flat.zarr")
        os.truncate(path, path.stat().st_size // 2)
    else:
        os.truncate(path / "meta/episode_ends/0", 6)
    with pytest.raises(UserError, match="not a replay buffer that can be read"):
        ppt.open_dataset(path)


def test_cameras_of_one_name_and_two_sizes_do_not_share_a_batch(tmp_path, pictures):
    write_action_and(tmp_path / "a.zarr", img=pictures)
    write_action_and(tmp_path / "b.zarr", img=pictures[:, :4])
    with pytest.raises(UserError, match=r"rgb camera camera: .*a.zarr has 6x8, .*b.zarr has 4x8 pixels"):
        ppt.open_dataset({"a": tmp_path / "a.zarr", "b": tmp_path / "b.zarr"})


def test_episodes_count_from_the_end_of_all_domains(tmp_path):
    write_action_and(tmp_path / "a.zarr")
    write_action_and(tmp_path / "b.zarr")
    data = ppt.open_dataset({"a": tmp_path / "a.zarr", "b": tmp_path / "b.zarr"})
    assert (data.episode(-1)["domain"], data.episode(-4)["domain"]) == ("b", "a")
    for outside in (4, -5):
        with pytest.raises(IndexError, match="a train split with 4"):
            data.episode(outside)


def test_ignored_keys_are_columns_groups_or_modalities_and_no_others(tmp_path):
    write_flat(tmp_path / "flat.zarr")
    kinds = lambda *ignored: ppt.open_dataset(tmp_path / "flat.zarr", ignored_keys=ignored).modalities
    assert kinds() == ["state", "pointcloud", "rgb", "depth", "language"]
    assert kinds("rgb", "pointcloud") == ["state", "depth", "language"]
    assert kinds("depths/camera") == ["state", "pointcloud", "rgb", "language"]
    with pytest.raises(UserError, match=r"no domain has imges/camera.*Did you mean images/camera"):
        kinds("imges/camera")


def test_one_list_of_ignored_keys_may_be_for_several_datasets(tmp_path):
    write_flat(tmp_path / "flat.zarr")
    words = {"ignored_keys": ["last_action", "camera_7", "rgb"]}
    data = ppt.open_dataset(tmp_path / "flat.zarr", **words, ignore_absent=True)
    assert data.modalities == ["state", "pointcloud", "depth", "language"]
    with pytest.raises(UserError, match="no domain has last_action"):
        ppt.open_dataset(tmp_path / "flat.zarr", **words)


def test_the_first_command_on_foreign_data_says_what_to_type(tmp_path):
    write_flat(tmp_path / "flat.zarr")
    with pytest.raises(UserError, match=r"no eef_pos.*Type dataset.state_keys=\[state\].*null takes them all"):
        dataset_of(tmp_path, "flat", state_keys=["eef_pos"])
    with pytest.raises(UserError, match=r"is a dataset itself. Type dataset_path=.* domains=flat"):
        dataset_of(tmp_path / "flat.zarr", "flat")
    with pytest.raises(UserError, match=r"holds flat\."):
        dataset_of(tmp_path, "flt")
    with pytest.raises(UserError, match="unknown option stat_keys. Did you mean state_keys"):
        ppt.open_dataset(tmp_path / "flat.zarr", stat_keys=["state"])
    with pytest.raises(UserError, match=r"has no pointcloud.*obs/pointcloud/pos \(N, P, 3\)"):
        ppt.open_dataset(write_action_and(tmp_path / "x.zarr"), state_keys=[], modalities=["pointcloud"])


def test_a_policy_trained_on_all_there_is_knows_what_that_was(small_cfg):
    words = ("dataset.state_keys=null", "dataset.num_points=null", "train.total_iters=1")
    run = ppt.UnifiedTrainer(small_cfg(*words))
    run.run()
    view = ppt.load_policy(run.run_dir).card["views"]["a"]
    assert view["state"] == {"obs/eef_pos": 3, "obs/normalized_gripper_pos": 1}
    assert (view["points"], view["channels"]) == (16, 3)
