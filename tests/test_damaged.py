"""Datasets with one thing wrong: one line names the file and the column, the episode or the row; nothing is read in its place."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import warnings

import h5py
import numpy as np
import pytest
import zarr
from conftest import dataset_of, write_store
from test_formats import (
    as_written_now,
    example,
    features_now,
    maniskill_episodes,
    rlds_columns,
    rlds_episodes,
    rlds_record,
    robomimic_episodes,
    tensor,
    write_maniskill,
    write_rlds,
    write_robomimic,
)

import ppt_kit as ppt
from ppt_kit.cameras import intrinsics_from_fovy
from ppt_kit.data.convert import to_zarr
from ppt_kit.data.formats import open_store
from ppt_kit.data.formats.replay_buffer.writer import WRITTEN_BY, ZarrWriter
from ppt_kit.data.normalizer import check_stats, fit_normalizer
from ppt_kit.errors import UserError
from ppt_kit.lfs import is_lfs_pointer, lfs_line

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


def refused(path, *said, **options):
    """Opening and converting are refused in one line that says all of this; nothing is written."""
    target = path.parent / "target.zarr"
    opening, converting = (lambda: open_store(path, cache_gb=0, **options)), (lambda: to_zarr(path, target))
    for call in (opening,) if options else (opening, converting):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)
        for text in (path.name, *said):
            assert text in str(caught.value)
    assert not target.exists()
    assert not [entry for entry in path.parent.iterdir() if entry.name.startswith(".")]


# ------------------------------------------------------------------ zarr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of ours: four episodes, 43 rows, a calibrated camera."""
    path = write_store(tmp_path_factory.mktemp("whole") / "x.zarr", colors=True)
    other = path.with_name("cameras.zarr")
    with ZarrWriter(other, attrs={"seeds": [1, 2]}) as writer:
        writer.constants = {"camera_info/top/intrinsics": np.eye(3), "camera_info/top/extrinsics": np.eye(4)}
        for _ in range(2):
            depth = np.full((3, 8, 8, 1), 1.0, np.float32)
            writer.append({"actions": np.ones((3, 2), np.float32), "obs/at": depth[:, 0, 0], "obs/depths/top": depth})
    return path


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "x.zarr")


def edited(file, **changes):
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, **changes}))


def unnoted(store):
    """As an earlier version wrote it."""
    told = json.loads((store / ".zattrs").read_text())
    del told[WRITTEN_BY]
    (store / ".zattrs").write_text(json.dumps(told))
    (store / "meta/.zattrs").unlink()


def cut(file, count):
    file.write_bytes(file.read_bytes()[:-count])


def folder_instead(file):
    file.unlink()
    file.mkdir()


EEF, POS = "data/obs/eef_pos", "data/obs/pointcloud/pos"
LOST = {
    "a chunk": (lambda s: (s / EEF / "0.0").unlink(), "eef_pos/0.0: the chunk with rows 0 to 42 is not there"),
    "a chunk of clouds": (lambda s: (s / POS / "0.0.0").unlink(), "pointcloud/pos/0.0.0: the chunk with rows 0 to 42"),
    "a chunk of meta": (lambda s: (s / "meta/episode_seeds/0").unlink(), "meta/episode_seeds/0: the chunk with rows 0 to 3"),
    "episode_ends": (lambda s: (s / "meta/episode_ends/0").unlink(), "meta/episode_ends/0: the chunk"),
    "the end of a chunk": (lambda s: cut(s / EEF / "0.0", 8), "eef_pos/0.0: 508 bytes, where rows 0 to 42"),
    "nothing, a chunk is longer": (lambda s: (s / EEF / "0.0").open("ab").write(b"1234"), "eef_pos/0.0: 520 bytes"),
    "a file, a folder stands there": (lambda s: folder_instead(s / EEF / "0.0"), "a folder stands where a chunk's file"),
    "a description": (lambda s: (s / EEF / ".zarray").unlink(), "obs/eef_pos"),
    "the description of a group": (lambda s: (s / "data/obs/pointcloud/.zgroup").unlink(), "obs/pointcloud"),
    "the element type": (lambda s: edited(s / EEF / ".zarray", dtype="<f8"), "eef_pos"),
    "rows": (lambda s: edited(s / EEF / ".zarray", shape=[40, 3]), "eef_pos"),
    "a row's width": (lambda s: edited(s / EEF / ".zarray", shape=[43, 2]), "eef_pos"),
    "the chunk's size": (lambda s: edited(s / EEF / ".zarray", chunks=[43, 1]), "eef_pos"),
    "the order": (lambda s: edited(s / EEF / ".zarray", order="F"), "eef_pos"),
    "JSON of a description": (lambda s: (s / EEF / ".zarray").write_text("{"), "obs/eef_pos/.zarray: no JSON"),
    "JSON of attributes": (lambda s: (s / ".zattrs").write_text('{"seeds": [1'), ".zattrs: no JSON"),
    "mappings of JSON": (lambda s: (s / ".zattrs").write_text("[1, 2]"), ".zattrs: [1, 2]"),
    "a chunk to Git LFS": (lambda s: (s / POS / "0.0.0").write_text(POINTER), "pos/0.0.0: a note of Git LFS"),
    "a description to Git LFS": (lambda s: (s / EEF / ".zarray").write_text(POINTER), ".zarray: a note of Git LFS"),
}  # fmt: skip


@pytest.mark.parametrize("noted", [True, False], ids=["now", "before"])
@pytest.mark.parametrize(("damage", "says"), LOST.values(), ids=LOST)
def test_a_store_of_ours_is_whole_or_refused(store, damage, says, noted):
    if not noted:
        unnoted(store)
    damage(store)
    refused(store, says)


NOTED = {
    "an array": (lambda s: shutil.rmtree(s / POS), "data/obs/pointcloud/pos is not there"),
    "an array of a group": (lambda s: shutil.rmtree(s / "data/obs/pointcloud/colors"), "pointcloud/colors is not there"),
    "the kind of number": (lambda s: edited(s / EEF / ".zarray", dtype="<i4"), "eef_pos/.zarray describes <i4"),
    "the order of bytes": (lambda s: edited(s / EEF / ".zarray", dtype=">f4"), "eef_pos/.zarray describes >f4"),
    "the attributes": (lambda s: (s / ".zattrs").unlink(), ".zattrs: lost"),
    "the note of the attributes": (lambda s: (s / ".zattrs").write_text("{}"), ".zattrs: lost"),
    "the note's form": (lambda s: edited(s / ".zattrs", **{WRITTEN_BY: "me"}), ".zattrs: written_by_ppt_kit is me"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), NOTED.values(), ids=NOTED)
def test_what_was_written_is_noted_and_compared(store, damage, says):
    damage(store)
    refused(store, says)


@pytest.mark.parametrize("described", [True, False], ids=["with attributes of ours", "laid out as we do"])
def test_a_store_of_ours_from_before_is_known_as_ours(store, described):
    (store / ".zattrs").write_text(json.dumps({"descriptions": ["a", "b", "c", "d"]} if described else {}))
    (store / "meta/.zattrs").unlink()
    assert open_store(store).episode_ends[-1] == 43
    (store / "data/actions/0.0").unlink()
    refused(store, "data/actions/0.0: the chunk with rows 0 to 42 is not there")


@pytest.mark.parametrize("noted", [True, False], ids=["now", "before"])
def test_a_zip_of_ours_is_whole_or_refused(store, noted):
    import zipfile

    if not noted:
        unnoted(store)
    path = store.with_name("z.zarr.zip")
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(store.rglob("*")):
            if file.is_file() and file != store / EEF / "0.0":
                packed.write(file, file.relative_to(store))
    refused(path, "eef_pos/0.0: the chunk with rows 0 to 42 is not there")
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(f"{EEF}/0.0", bytes(100))
    refused(path, "eef_pos/0.0: 100 bytes")


def test_a_damaged_store_is_refused_before_a_run_has_a_folder(small_cfg, store, tmp_path):
    (store / "data/obs/pointcloud/pos/0.0.0").unlink()
    cfg = small_cfg(f"dataset_path={store.parent}", "domains=x")
    with pytest.raises(UserError, match=r"pointcloud/pos/0\.0\.0: the chunk"):
        ppt.UnifiedTrainer(cfg).run()
    assert not (tmp_path / "models").exists()


def other_store(path, *, zarr_format=2, **options):
    """As another writer has it: compressed, 4 rows a chunk."""
    values = np.arange(48, dtype=np.float32).reshape(12, 4) + 1
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    for name in ("action", "state"):
        group.create_array(f"data/{name}", shape=(12, 4), chunks=(4, 4), dtype="f4", **options)[:] = values
    group.create_array("meta/episode_ends", shape=(2,), dtype="i8")[:] = [5, 12]
    return path, values


@pytest.mark.parametrize(("form", "chunk"), [(2, "1.0"), (3, "c/1/0")])
def test_a_chunk_that_another_writer_may_have_left_out_is_told_by_name(tmp_path, caplog, form, chunk):
    path, values = other_store(tmp_path / "o.zarr", zarr_format=form)
    open_store(path)
    assert not caplog.text
    (path / "data/state" / chunk).unlink()
    store = open_store(path, cache_gb=0)
    assert (
        caplog.text.count("data/state: 1 of 3 chunks are not there, their rows read as 0.0 (the first has rows 4 to 7)")
        == 1
    )
    assert np.array_equal(store.read("obs/state", [3, 8]), values[[3, 8]])
    assert not store.read("obs/state", [5]).any()
    assert "1 of 3 chunks are not there" in ppt.describe(path).loc[("o", "obs/state"), "layout"]


OTHERS = {
    "shorter": (lambda f: cut(f, 5), "data/state of episode 0 (rows 4 to 7) cannot be decoded"),
    "longer": (lambda f: f.open("ab").write(bytes(9)), "data/state of episode 0 (rows 4 to 7) cannot be decoded"),
    "empty": (lambda f: f.write_bytes(b""), "data/state of episode 0 (rows 4 to 7) cannot be decoded"),
    "a note": (lambda f: f.write_text(POINTER), "data/state/1.0: a note of Git LFS"),
}


@pytest.mark.parametrize("codec", ["blosc", "plain rows", "plain"])
@pytest.mark.parametrize(("damage", "says"), OTHERS.values(), ids=OTHERS)
def test_a_chunk_of_another_writer_is_whole_or_refused(tmp_path, codec, damage, says):
    options = {"blosc": {}, "plain rows": {"compressors": None}, "plain": {"compressors": None, "filters": None}}[codec]
    path, _ = other_store(tmp_path / "o.zarr", **options)
    damage(path / "data/state/1.0")
    with pytest.raises(UserError, match="data/state") as caught:
        open_store(path, cache_gb=0).read("obs/state", [0, 4])
    assert says in str(caught.value) or codec != "blosc" and "Git LFS" not in says


def ends_of(store, values):
    shutil.rmtree(store / "meta/episode_ends")
    unnoted(store)
    values = np.asarray(values)
    group = zarr.open_group(str(store), mode="a", zarr_format=2)
    group.create_array("meta/episode_ends", shape=values.shape, dtype=values.dtype)[...] = values


ENDS = {
    "decrease": ([12, 7, 28, 43], "episode 1 is empty: episode_ends goes from 12 to 7"),
    "stand still": ([12, 12, 28, 43], "episode 1 is empty"),
    "negative": ([-3, 12, 28, 43], "episode 0 is empty: episode_ends goes from 0 to -3"),
    "floats": ([12.0, 19.0, 28.0, 43.0], "meta/episode_ends is float64 of shape (4,)"),
    "not a number": ([12.0, np.nan, 28.0, 43.0], "meta/episode_ends is float64"),
    "a table": ([[12, 19], [28, 43]], "meta/episode_ends is int64 of shape (2, 2)"),
    "one number": (43, "meta/episode_ends is int64 of shape ()"),
    "too far": ([12, 19, 28, 50], "episode 3 ends at 50"),
    "not far enough": ([12, 19, 28, 40], "episode 3 ends at 40"),
    "texts": (["a", "b", "c", "d"], "meta/episode_ends is <U1"),
}


@pytest.mark.parametrize(("values", "says"), ENDS.values(), ids=ENDS)
def test_ends_of_episodes_are_whole_numbers_that_increase(store, values, says):
    ends_of(store, values)
    refused(store, says)


ATTRS = {
    "seeds are a text": ({"seeds": "1,2"}, "seeds is 1,2, not a list"),
    "seeds are texts": ({"seeds": ["1"]}, "seeds is ['1'], not a list of whole numbers"),
    "a seed is true": ({"seeds": [True]}, "seeds is [True], not"),
    "env is a list": ({"env": ["metaworld"]}, "env is ['metaworld'], not a mapping"),
    "env is a text": ({"env": "metaworld"}, "env is metaworld, not a mapping"),
    "descriptions are a text": ({"descriptions": "abcd"}, "descriptions in .zattrs is abcd, not a list"),
    "a description is a number": ({"descriptions": [1, 2, 3, 4]}, "descriptions in .zattrs is [1, 2, 3, 4]"),
    "too few descriptions": ({"descriptions": ["a"]}, "1 descriptions for 4 episodes"),
}


@pytest.mark.parametrize(("attrs", "says"), ATTRS.values(), ids=ATTRS)
def test_attributes_are_of_the_kinds_that_are_read(store, attrs, says):
    edited(store / ".zattrs", **attrs)
    refused(store, says)


# ------------------------------------------------------------------ values that are not finite


def poisoned(path, column, value):
    """Row 14, the third of episode 1, in one place."""
    group = zarr.open_group(str(path), mode="a", zarr_format=2)
    values = group[column][14]
    values.reshape(-1)[-1] = value
    group[column][14] = values


def everything(path):
    rng = np.random.default_rng(0)
    with ZarrWriter(path) as writer:
        for length in (12, 8):
            writer.append(
                {
                    "actions": rng.normal(size=(length, 2)).astype(np.float32),
                    "obs/eef_pos": rng.normal(size=(length, 3)),
                    "obs/pointcloud/pos": rng.normal(size=(length, 8, 3)).astype(np.float16),
                    "obs/pointcloud/colors": rng.random((length, 8, 3), dtype=np.float32),
                    "obs/images/top": rng.random((length, 8, 8, 3), dtype=np.float32),
                    "obs/depths/top": rng.random((length, 8, 8, 1), dtype=np.float32),
                }
            )
    return path


@pytest.fixture(scope="module")
def finite(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("finite") / "x.zarr")


COLUMNS = ("actions", "obs/eef_pos", "obs/pointcloud/pos", "obs/pointcloud/colors", "obs/images/top", "obs/depths/top")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("column", COLUMNS)
def test_no_batch_holds_a_value_that_is_not_finite(finite, tmp_path, column, value):
    path = shutil.copytree(finite, tmp_path / "x.zarr")
    poisoned(path, f"data/{column}", value)
    data = ppt.open_dataset(path)
    data.__getitems__([0, 5, 19])
    says = rf"x\.zarr: data/{column} of episode 1 \(row 14\) is not finite"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (lambda: data[14], lambda: data.episode(1), lambda: data.__getitems__([0, 14])):
            with pytest.raises(UserError, match=says):
                read()
    if column in ("actions", "obs/eef_pos"):
        with pytest.raises(UserError, match=says):
            fit_normalizer(data)
    assert [says.replace("\\", "") in line for line in data.not_finite([3, 14])] == [True]
    line = ppt.describe(path).loc[("x", column)]
    assert line["nans"] + line["infs"] == 1


def test_training_that_skips_such_batches_is_told_of_each_column_once(finite, tmp_path, caplog):
    path = shutil.copytree(finite, tmp_path / "x.zarr")
    poisoned(path, "data/obs/depths/top", np.nan)
    data = dataset_of(tmp_path, "x", state_keys=["eef_pos"], num_points=8)
    for domain in data.domains.values():
        domain.on_nan = "skip"
    assert not np.isfinite(data[14]["obs"]["depth"]["top"]).all()
    data.__getitems__([14, 15])
    assert caplog.text.count("data/obs/depths/top of episode 1 (row 14)") == 1


def test_states_of_hdf5_that_are_not_finite_are_named_with_their_demo(tmp_path):
    episodes = robomimic_episodes((5, 4))
    episodes[1]["obs/robot0_eef_pos"][2, 1] = np.nan
    path = write_robomimic(tmp_path / "a.hdf5", episodes, compression="gzip")
    data = ppt.open_dataset(path, state_keys=["robot0_eef_pos"])
    says = r"a\.hdf5: obs/robot0_eef_pos of episode 1 \(demo_1\) \(row 7\) is not finite"
    with pytest.raises(UserError, match=says):
        data[7]
    with pytest.raises(UserError, match=says):
        fit_normalizer(data)


# ------------------------------------------------------------------ Git LFS


@pytest.mark.parametrize("name", ["a.zarr.zip", "a.hdf5", "a.h5", "a", "a.bin"])
def test_a_file_that_is_a_note_of_git_lfs_is_told_as_such(tmp_path, name):
    path = tmp_path / name
    path.write_text(POINTER)
    assert is_lfs_pointer(path)
    with pytest.raises(UserError, match=r"a note of Git LFS, not the file itself.*git lfs pull"):
        ppt.open_dataset(path)
    assert lfs_line(path).startswith(str(path))


def test_files_that_are_no_notes_are_none(tmp_path):
    (tmp_path / "text").write_text("version 1")
    (tmp_path / "long").write_text(POINTER + "x" * 2000)
    assert not any(is_lfs_pointer(tmp_path / name) for name in ("text", "long", "absent", "."))


@pytest.mark.parametrize("name", ["my_robot-train.tfrecord-00000-of-00001", "features.json", "dataset_info.json"])
def test_files_of_rlds_that_are_notes_of_git_lfs_are_told_as_such(tmp_path, name):
    folder = write_rlds(tmp_path / "d", {"train": [[rlds_record(episode) for episode in rlds_episodes((2,))]]})
    (folder / name).write_text(POINTER)
    refused(folder, f"{name}: a note of Git LFS")


def test_the_json_of_maniskill_that_is_a_note_is_told_as_such(tmp_path):
    path = write_maniskill(tmp_path / "a.h5", maniskill_episodes((3,)))
    path.with_suffix(".json").write_text(POINTER)
    with pytest.raises(UserError, match=r"a\.json: a note of Git LFS"):
        open_store(path)


# ------------------------------------------------------------------ HDF5


def in_h5(change):
    def damage(path):
        with h5py.File(path, "a") as file:
            change(file)

    return damage


def put(name, *args, **options):
    def change(file):
        if name in file:
            del file[name]
        file.create_dataset(name, *args, **options)

    return in_h5(change)


def unknown_filter(file):
    """A chunk is stored raw and said to be compressed by a filter that nobody has."""
    values = np.zeros((5, 3), np.float32)
    del file["data/demo_0/obs/robot0_eef_pos"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((5, 3))
    plist.set_filter(32099, h5py.h5z.FLAG_OPTIONAL)
    where = h5py.h5g.open(file.id, b"data/demo_0/obs")
    made = h5py.h5d.create(where, b"robot0_eef_pos", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((5, 3)), plist)
    made.write_direct_chunk((0, 0), values.tobytes())


H5 = {
    "a key is not there": (in_h5(lambda f: f.__delitem__("data/demo_1/obs/heat")), "data/demo_1 has no obs/heat"),
    "a length differs": (put("data/demo_1/obs/heat", data=np.zeros((3, 4, 5), ">f8")), "data/demo_1/obs/heat has 3 rows"),
    "texts in one demo": (put("data/demo_1/obs/heat", data=["a"] * 4), "data/demo_1 has no obs/heat"),
    "a link to nowhere": (in_h5(lambda f: f.__setitem__("data/demo_0/obs/z", h5py.SoftLink("/gone"))), "data/demo_0 cannot be read"),
    "a link to itself": (in_h5(lambda f: f.__setitem__("data/demo_0/obs/z", h5py.SoftLink("z"))), "data/demo_0 cannot be read"),
    "a circle": (in_h5(lambda f: f.__setitem__("data/demo_0/obs/z", h5py.SoftLink("/data/demo_0/obs"))), "obs/z links to a group that it lies in"),
    "a wider circle": (in_h5(lambda f: f.__setitem__("data/demo_0/obs/z", f["data"])), "links to a group that it lies in"),
    "another file that is gone": (in_h5(lambda f: f.__setitem__("data/demo_1/obs/z", h5py.ExternalLink("gone.h5", "x"))), "data/demo_1 cannot be read"),
    "an unknown filter": (in_h5(unknown_filter), "the filter 32099, which is not installed"),
    "num_samples is a text": (in_h5(lambda f: f["data/demo_1"].attrs.__setitem__("num_samples", "many")), "data/demo_1 cannot be read"),
    "total is a text": (in_h5(lambda f: f["data"].attrs.__setitem__("total", "many")), "data cannot be read"),
    "cut off": (lambda p: cut(p, 100), "cannot be opened"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), H5.values(), ids=H5)
def test_a_robomimic_file_is_whole_or_refused(tmp_path, damage, says):
    path = write_robomimic(tmp_path / "a.hdf5", robomimic_episodes((5, 4)))
    damage(path)
    refused(path, says)


@pytest.mark.parametrize("name", ["demo_x", "demo_3_backup", "demo_", "episode_1"])
def test_a_demo_that_is_called_otherwise_is_told_by_name(tmp_path, caplog, name):
    path = write_robomimic(tmp_path / "a.hdf5", robomimic_episodes((5, 4, 3)), names=["demo_0", "demo_1", name])
    store = open_store(path)
    assert store.episode_ends.tolist() == [5, 9]
    assert caplog.text.count(f"a.hdf5: {name} is left out: an episode is called demo_<number>") == 1
    assert "call it demo_<number>" in ppt.describe(path).loc[("a", f"data/{name}"), "used"]


@pytest.mark.parametrize("name", ["traj_one", "traj_2_old", "episode"])
def test_a_trajectory_that_is_called_otherwise_is_told_by_name(tmp_path, caplog, name):
    path = write_maniskill(tmp_path / "a.h5", maniskill_episodes((5, 4)), names=["traj_0", name], notes=False)
    assert open_store(path).episode_ends.tolist() == [5]
    assert f"{name} is left out: an episode is called traj_<number>" in caplog.text


LEFT_OUT = {
    "texts": (put("data/demo_0/obs/z", data=["a", "b", "c"]), "texts, no numbers"),
    "one value": (put("data/demo_0/obs/z", data=3.0), "a single value, not one a row"),
    "references": (in_h5(lambda f: f["data/demo_0/obs"].create_dataset("z", data=[f["data"].ref] * 3, dtype=h5py.ref_dtype)), "references to objects, no numbers"),
    "rows of any length": (put("data/demo_0/obs/z", (3,), dtype=h5py.vlen_dtype(np.float32)), "rows of different lengths"),
    "nothing": (put("data/demo_0/obs/z", data=h5py.Empty("f4")), "a single value, not one a row"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_no_array_of_numbers_is_told(tmp_path, damage, says):
    path = write_robomimic(tmp_path / "a.hdf5", [{"actions": np.zeros((3, 2)), "obs/x": np.zeros((3, 1))}])
    damage(path)
    assert open_store(path).left_out["obs/z"] == says
    assert says in ppt.describe(path).loc[("a", "obs/z"), "used"]


@pytest.mark.parametrize("which", ["array", "demo"])
def test_a_link_into_another_file_reads_that_file(tmp_path, which):
    episodes = robomimic_episodes((5, 4))
    path = write_robomimic(tmp_path / "a.hdf5", episodes)
    name = {"array": "data/demo_1/obs/robot0_eef_pos", "demo": "data/demo_1"}[which]
    with h5py.File(path, "a") as file, h5py.File(tmp_path / "b.hdf5", "w") as other:
        other["padding"] = np.arange(100.0)
        file.copy(name, other, "moved")
        del file[name]
        file[name] = h5py.ExternalLink("b.hdf5", "/moved")
    store = open_store(path, cache_gb=0)
    assert np.array_equal(
        store.read("obs/robot0_eef_pos", [6, 0]),
        [episodes[1]["obs/robot0_eef_pos"][1], episodes[0]["obs/robot0_eef_pos"][0]],
    )
    assert "b.hdf5" in store.read_by


@pytest.mark.parametrize("chunks", [None, (2, 3)], ids=["in one piece", "in chunks"])
def test_room_that_was_never_written_is_told_by_name(tmp_path, caplog, chunks):
    path = write_robomimic(tmp_path / "a.hdf5", robomimic_episodes((5, 4)))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/robot0_eef_pos"]
        made = file.create_dataset("data/demo_1/obs/robot0_eef_pos", (4, 3), "f4", chunks=chunks)
        if chunks:
            made[:2] = 1
    store = open_store(path)
    told = f"1 of {'2 chunks' if chunks else '1 block'} of data/demo_1 were never written, their rows read as 0"
    assert caplog.text.count(told) == 1
    assert told in store.columns["obs/robot0_eef_pos"].layout


def test_a_mask_that_is_none_is_named(tmp_path):
    path = write_robomimic(tmp_path / "a.hdf5", robomimic_episodes((5, 4)), names=["demo_0", "demo_x"])
    with h5py.File(path, "a") as file:
        file["mask/a"] = np.array([b"demo_0", b"demo_x"])
        file.create_group("mask/b")
        file["mask/c"] = np.array([b"demo_7"])
    refused(path, "filter_key=a", "names demo_x", filter_key="a")
    refused(path, "mask/b cannot be read", filter_key="b")
    refused(path, "filter_key=c", "names demo_7, which is not among its demos", filter_key="c")


# ------------------------------------------------------------------ cameras, clouds, pictures


def turned(matrix, *, scale=1.0, last=(0, 0, 0, 1)):
    out = np.array(matrix, np.float64)
    out[:3, :3] *= scale
    out[3] = last
    return out


POSE, LENS = np.eye(4), intrinsics_from_fovy(60, height=8, width=8)
CAMERAS = {
    "a rotation alone": (LENS, np.eye(3), "camera_info/top/extrinsics: float64 of shape (3, 3); it takes (3, 4)"),
    "poses a row too few": (LENS, np.tile(POSE, (3, 1, 1)), "the camera top has 3 extrinsics for 6 rows"),
    "nan": (LENS, np.full((4, 4), np.nan), "camera_info/top/extrinsics holds a value that is not finite"),
    "infinite": (np.diag([np.inf, 1, 1]), POSE, "camera_info/top/intrinsics holds a value that is not finite"),
    "zeros": (np.zeros((3, 3)), POSE, "camera_info/top/intrinsics has a focal length of 0"),
    "transposed intrinsics": (LENS.T, POSE, "camera_info/top/intrinsics has another last row than 0, 0, 1"),
    "four by four": (np.eye(4), POSE, "camera_info/top/intrinsics: float64 of shape (4, 4)"),
    "singular": (LENS, np.diag([1.0, 1, 0, 1]), "camera_info/top/extrinsics is no rotation"),
    "scaled": (LENS, turned(POSE, scale=1000), "camera_info/top/extrinsics is no rotation"),
    "mirrored": (LENS, np.diag([1.0, 1, -1, 1]), "camera_info/top/extrinsics is no rotation"),
    "transposed pose": (LENS, turned(POSE, last=(1, 2, 3, 1)), "camera_info/top/extrinsics has another last row"),
    "texts": (np.full((3, 3), "a"), POSE, "camera_info/top/intrinsics: <U1"),
    "intrinsics alone": (LENS, None, "camera_info/top: has intrinsics and no extrinsics"),
    "extrinsics alone": (None, POSE, "camera_info/top: has extrinsics and no intrinsics"),
}


@pytest.mark.parametrize(("intrinsics", "extrinsics", "says"), CAMERAS.values(), ids=CAMERAS)
def test_a_calibration_that_no_camera_has_is_named(whole, tmp_path, intrinsics, extrinsics, says):
    path = shutil.copytree(whole.with_name("cameras.zarr"), tmp_path / "x.zarr")
    unnoted(path)
    group = zarr.open_group(str(path), mode="a", zarr_format=2)
    shutil.rmtree(path / "meta/camera_info/top")
    for name, values in (("intrinsics", intrinsics), ("extrinsics", extrinsics)):
        if values is not None:
            made = group.create_array(f"meta/camera_info/top/{name}", shape=values.shape, dtype=values.dtype)
            made[...] = values
    refused(path, says)


def test_an_unknown_convention_of_cameras_is_named(whole, tmp_path):
    path = shutil.copytree(whole.with_name("cameras.zarr"), tmp_path / "x.zarr")
    edited(path / ".zattrs", camera_convention="blender")
    refused(path, "camera_convention=blender: takes opengl, opencv, opencv_extrinsic")


def test_a_damaged_calibration_of_maniskill_is_named_with_its_row(tmp_path):
    episodes = maniskill_episodes((3, 4))
    episodes[1]["obs/sensor_param/base/cam2world_gl"][2, 0, 0] = np.nan
    path = write_maniskill(tmp_path / "a.h5", episodes)
    refused(path, "obs/sensor_param/base/extrinsics of row 5 holds a value that is not finite")


SHAPES = {
    "clouds of two numbers": ({"obs/pointcloud/pos": (5, 2)}, "pointcloud/pos has the shape (3, 5, 2); the positions"),
    "clouds of no axis": ({"obs/pointcloud/pos": (5,)}, "pointcloud/pos has the shape (3, 5); the positions"),
    "clouds of no point": ({"obs/pointcloud/pos": (0, 3)}, "pointcloud/pos has the shape (3, 0, 3)"),
    "grey colours": (
        {"obs/pointcloud/pos": (5, 3), "obs/pointcloud/colors": (5, 1)},
        "pointcloud/colors has the shape (3, 5, 1); colors of these clouds takes (3, 5, 3)",
    ),
    "colours of fewer points": (
        {"obs/pointcloud/pos": (5, 3), "obs/pointcloud/colors": (4, 3)}, "pointcloud/colors has the shape (3, 4, 3)",
    ),
    "segmentation of fewer points": (
        {"obs/pointcloud/pos": (5, 3), "obs/pointcloud/seg": (4,)}, "takes (3, 5) or (3, 5, 1)",
    ),
    "four colours": ({"obs/images/top": (8, 8, 4)}, "images/top has the shape (3, 8, 8, 4); rgb of the camera top"),
    "no colours": ({"obs/images/top": (8, 8)}, "images/top has the shape (3, 8, 8); rgb of the camera top takes"),
    "a line": ({"obs/images/top": (8,)}, "images/top has the shape (3, 8)"),
    "depth of colours": ({"obs/depths/top": (8, 8, 3)}, "depths/top has the shape (3, 8, 8, 3); depth of the camera top"),
    "depth of one axis": ({"obs/depths/top": (8,)}, "depths/top has the shape (3, 8); depth of the camera top"),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "says"), SHAPES.values(), ids=SHAPES)
def test_readings_of_another_shape_are_named(tmp_path, shapes, says):
    with ZarrWriter(tmp_path / "x.zarr") as writer:
        odd = {name: np.ones((3, *shape), np.float32) for name, shape in shapes.items()}
        writer.append({"actions": np.zeros((3, 2)), "obs/at": np.zeros((3, 1)), **odd})
    with pytest.raises(UserError) as caught:
        ppt.open_dataset(tmp_path / "x.zarr")
    assert says in str(caught.value)
    assert "ignored_keys" in str(caught.value)
    assert len(ppt.open_dataset(tmp_path / "x.zarr", modalities=["state"])) == 3


# ------------------------------------------------------------------ RLDS


def small_rlds(tmp_path, **options):
    episodes = rlds_episodes((2, 3, 2))
    records = [rlds_record(episode) for episode in episodes]
    return write_rlds(tmp_path / "d", {"train": [records[:2], records[2:]]}, **options), episodes


def test_without_a_key_all_splits_are_read(tmp_path, caplog):
    one, two = ([rlds_record(episode) for episode in rlds_episodes(lengths)] for lengths in ((2, 4), (3,)))
    folder = write_rlds(tmp_path / "d", {"a": [two], "train": [one]})
    store = open_store(folder, cache_gb=0)
    assert store.episode_ends.tolist() == [2, 6, 9]
    assert store.attrs["split"] == "train+a"
    assert open_store(folder, cache_gb=0, filter_key="a").episode_ends.tolist() == [3]
    for file in folder.glob("*-a.tfrecord-*"):
        file.unlink()
    assert open_store(folder, cache_gb=0).episode_ends.tolist() == [2, 6]
    assert "no shard of a, which dataset_info.json tells of" in caplog.text


def test_gzip_shards_hold_what_the_plain_ones_do(tmp_path):
    folder, episodes = small_rlds(tmp_path)
    (first, last) = sorted(folder.glob("*.tfrecord-*"))
    last.write_bytes(gzip.compress(last.read_bytes()))
    for store in (open_store(folder, cache_gb=0), None):
        if store is None:
            first.write_bytes(gzip.compress(first.read_bytes()))
            store = open_store(folder, cache_gb=0)
        for key, values in rlds_columns(episodes).items():
            np.testing.assert_array_equal(store.read(key, [6, 0, 4, 5]), values[[6, 0, 4, 5]], err_msg=key)


RLDS = {
    "GZIP that is cut off": (lambda f, s: s.write_bytes(gzip.compress(s.read_bytes())[:-20]), "its GZIP stream is damaged"),
    "GZIP of a shard that is cut off": (lambda f, s: s.write_bytes(gzip.compress(s.read_bytes()[:-9])), "episode 2"),
    "GZIP and damaged": (lambda f, s: s.write_bytes(b"\x1f\x8b" + bytes(90)), "GZIP stream is damaged"),
    "a shard too few": (lambda f, s: s.unlink(), "shard 1 of 2 of the split train is missing"),
    "shards of two datasets": (lambda f, s: shutil.copy(s, str(s).replace("00001-of-00002", "00002-of-00003")), "are of 2 and of 3"),
    "info is a list": (lambda f, s: (f / "dataset_info.json").write_text("[1]"), "dataset_info.json: [1], where TFDS writes a mapping"),
    "info is no JSON": (lambda f, s: (f / "dataset_info.json").write_text("{"), "dataset_info.json: cannot be read"),
    "splits are a text": (lambda f, s: edited(f / "dataset_info.json", splits="train"), "dataset_info.json: splits is train"),
    "splits are a number": (lambda f, s: edited(f / "dataset_info.json", splits=3), "dataset_info.json: splits is 3"),
    "a split has no name": (lambda f, s: edited(f / "dataset_info.json", splits=[{"shardLengths": ["2"]}]), "dataset_info.json: splits is"),
    "lengths are texts": (lambda f, s: edited(f / "dataset_info.json", splits=[{"name": "train", "shardLengths": ["a", "b"]}]), "splits is"),
    "lengths of more shards": (lambda f, s: edited(f / "dataset_info.json", splits=[{"name": "train", "shardLengths": ["1", "1", "1"]}]), "dataset_info.json says 3"),
    "lengths are others": (lambda f, s: edited(f / "dataset_info.json", splits=[{"name": "train", "shardLengths": ["2", "3"]}]), "holds 1 episodes, where dataset_info.json says 3"),
    "no features": (lambda f, s: (f / "features.json").unlink(), "features.json is missing"),
    "features are a list": (lambda f, s: (f / "features.json").write_text("[]"), "features.json: [], where TFDS"),
    "features are of other kinds": (lambda f, s: (f / "features.json").write_text('{"featuresDict": {"features": []}}'), "features.json: not as TFDS writes it"),
    "a shape is a text": (lambda f, s: (f / "features.json").write_text((f / "features.json").read_text().replace('"dimensions": ["7"]', '"dimensions": ["x"]')), "features.json: not as TFDS"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), RLDS.values(), ids=RLDS)
def test_an_rlds_folder_is_whole_or_refused(tmp_path, damage, says):
    folder, _ = small_rlds(tmp_path)
    damage(folder, folder / "my_robot-train.tfrecord-00001-of-00002")
    refused(folder, says)


def test_a_missing_info_is_told(tmp_path, caplog):
    folder, _ = small_rlds(tmp_path)
    (folder / "dataset_info.json").unlink()
    assert open_store(folder, cache_gb=0).episode_ends[-1] == 7
    assert "dataset_info.json is missing" in caplog.text


def sequence(node, length):
    name = "tensorflow_datasets.core.features.sequence_feature.Sequence"
    return {"pythonClassName": name, "sequence": {"feature": as_written_now(node), "length": str(length)}}


def ragged_rlds(tmp_path, lengths):
    """Two episodes of three steps: a sequence told to be 4 long, and one that is as long in each step as `lengths` says."""
    rng, records, truth = np.random.default_rng(0), [], {"told": [], "free": []}
    for mine in lengths:
        told = rng.normal(size=(len(mine), 4, 2)).astype(np.float32)
        free = [rng.normal(size=(count, 2)).astype(np.float32) for count in mine]
        truth["told"].append(told)
        truth["free"] += free
        records.append(
            example(
                {
                    "steps/action": np.zeros((len(mine), 7), np.float32), "steps/observation/told": told,
                    "steps/observation/free/ragged_flat_values": np.concatenate(free),
                    "steps/observation/free/ragged_row_lengths_0": np.asarray(mine),
                }
            )
        )  # fmt: skip
    features = features_now({"action": tensor("float32", 7), "observation": {"x": tensor("float32", 1)}})
    inside = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    inside["observation"]["featuresDict"]["features"] = {
        "told": sequence({"told": tensor("float32", 2)}["told"], 4),
        "free": sequence(tensor("float32", 2), -1),
    }
    return write_rlds(tmp_path / "d", {"train": [records]}, features=features), truth


def test_sequences_of_one_length_are_arrays(tmp_path):
    folder, truth = ragged_rlds(tmp_path, [(3, 3, 3), (3, 3)])
    store = open_store(folder, cache_gb=0)
    np.testing.assert_array_equal(store.read("obs/told", np.arange(5)), np.concatenate(truth["told"]))
    np.testing.assert_array_equal(store.read("obs/free", [4, 0, 2]), np.stack(truth["free"])[[4, 0, 2]])


@pytest.mark.parametrize("lengths", [[(3, 3, 3), (3, 2)], [(1, 2, 3)], [(0, 0)]])
def test_sequences_of_several_lengths_are_named_and_the_rest_is_read(tmp_path, lengths):
    folder, truth = ragged_rlds(tmp_path, lengths)
    store = open_store(folder, cache_gb=0)
    assert set(store.keys()) == {"actions", "obs/told"}
    every = [count for mine in lengths for count in mine]
    assert store.left_out["steps/observation/free"] == (
        f"float32 whose shape differs from step to step ({min(every)} to {max(every)} long)"
    )
    assert "differs from step to step" in ppt.describe(folder).loc[("d", "steps/observation/free"), "used"]


def test_what_rlds_leaves_out_is_told(tmp_path):
    folder, _ = small_rlds(tmp_path)
    assert open_store(folder).left_out == {"episode_metadata/file_path": "of the episode, not of its steps"}


# ------------------------------------------------------------------ what batches do not hold


def test_describe_says_what_batches_hold_of_each_column(tmp_path, capsys):
    rng = np.random.default_rng(0)
    with ZarrWriter(tmp_path / "x.zarr") as writer:
        writer.append(
            {
                "actions": rng.normal(size=(4, 2)), "rewards": rng.normal(size=4), "obs/eef_pos": rng.normal(size=(4, 3)),
                "obs/far": rng.random((4, 16, 16, 1), dtype=np.float32), "obs/heat": rng.random((4, 2, 2)),
                "obs/view": rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8),
                "obs/pointcloud/pos": rng.normal(size=(4, 9, 3)), "obs/pointcloud/seg": np.zeros((4, 9), np.int32),
                "obs/images/top": np.zeros((4, 8, 8, 3), np.uint8),
            }
        )  # fmt: skip
    used = ppt.describe(ppt.open_dataset(tmp_path / "x.zarr", ignored_keys=["images/top"])).loc["x"]["used"]
    assert used[["actions", "obs/eef_pos", "obs/pointcloud/pos"]].tolist() == ["action", "state", "pointcloud"]
    for key, says in {
        "rewards": "no: name rewards in dataset.state_keys", "obs/heat": "no: name heat in dataset.state_keys",
        "obs/far": "no: it looks like depth: a format of yours", "obs/view": "no: it looks like rgb",
        "obs/pointcloud/seg": "no: dataset.point_channels=5", "obs/images/top": "no: take images/top out of dataset.ignored_keys",
    }.items():  # fmt: skip
        assert used[key].startswith(says), key
    ppt.doctor(tmp_path / "x.zarr", batch_size=2)
    assert "x: not in batches: obs/far, obs/heat, obs/pointcloud/seg, obs/view, rewards" in capsys.readouterr().out
    assert ppt.open_dataset(tmp_path / "x.zarr", state_keys=["heat"])[0]["obs"]["state"].shape[-1] == 4


def test_a_depth_that_is_called_otherwise_is_seen_as_describe_says(tmp_path, monkeypatch):
    step = {"action": tensor("float32", 7), "observation": {"far": tensor("float32", 8, 8, 1)}}
    far = np.random.default_rng(0).random((3, 8, 8, 1), dtype=np.float32)
    data = example({"steps/action": np.zeros((3, 7), np.float32), "steps/observation/far": far})
    folder = write_rlds(tmp_path / "d", {"train": [[data]]}, features=features_now(step))
    says = ppt.describe(ppt.open_dataset(folder)).loc[("d", "obs/far"), "used"]
    assert "dataset.format" in says
    assert "obs/depths/far" in says
    (tmp_path / "renamed.py").write_text(
        "from ppt_kit.data.formats.rlds import reader\n"
        "NAME, LOOKED_FOR, recognises = reader.NAME, reader.LOOKED_FOR, reader.recognises\n"
        "def open_store(path, *, filter_key=None):\n"
        "    store = reader.open_store(path, filter_key=filter_key)\n"
        "    store.columns['obs/depths/far'] = store.columns.pop('obs/far')\n"
        "    return store\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    seen = ppt.open_dataset(folder, format="renamed").episode(0)["obs"]["depth"]["far"]
    assert np.array_equal(seen, far)


# ------------------------------------------------------------------ statistics


@pytest.fixture(scope="module")
def stats(whole):
    data = dataset_of(whole.parent, "x", num_points=16)
    return fit_normalizer(data), data.specs


def at(*path, value):
    def damage(stats):
        *way, last = path
        for name in way:
            stats = stats[name]
        if value is None:
            del stats[last]
        else:
            stats[last] = value

    return damage


STATS = {
    "a domain is missing": (at("x", value=None), "of x are missing; there are some for none"),
    "a domain is a list": (at("x", value=[1]), "of x are [1]"),
    "states are missing": (at("x", "state", value=None), "of x/state None, where offset, scale, mode and constant"),
    "no scale": (at("x", "action", "scale", value=None), "of x/action"),
    "a scale is a text": (at("x", "action", "scale", value="1"), "of x/action/scale are 1, where a list of 4 numbers"),
    "a scale is nan": (at("x", "action", "scale", 2, value=float("nan")), "of x/action/scale[2] are nan, where finite"),
    "a scale is negative": (at("x", "state", "scale", 0, value=-1.0), "of x/state/scale[0] are -1.0, where finite numbers above 0"),
    "a scale is zero": (at("x", "state", "scale", 0, value=0.0), "of x/state/scale[0] are 0.0"),
    "an offset is infinite": (at("x", "state", "offset", 1, value=float("inf")), "of x/state/offset[1] are inf"),
    "an offset is true": (at("x", "state", "offset", 1, value=True), "of x/state/offset are"),
    "another width": (at("x", "state", "offset", value=[0.0]), "of x/state/offset are 1 numbers, where a list of 4"),
    "a mode that is none": (at("x", "state", "mode", 0, value="log"), "of x/state/mode are"),
    "modes of another width": (at("x", "state", "mode", value=["limits"]), "of x/state/mode are ['limits'], where 4"),
    "a constant too far": (at("x", "state", "constant", value=[9]), "of x/state/constant are [9], where places below 4"),
    "no fingerprint": (at("x", "fingerprint", value=None), "of x/fingerprint are None"),
    "a fingerprint of another kind": (at("x", "fingerprint", "action", value="a"), "of x/fingerprint are"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), STATS.values(), ids=STATS)
def test_stored_statistics_are_checked_like_what_a_user_types(stats, damage, says):
    good, specs = stats
    check_stats(good, specs, source="model.pth")
    bad = json.loads(json.dumps(good))
    damage(bad)
    with pytest.raises(UserError, match=r"^model.pth: the normaliser's statistics ") as caught:
        check_stats(bad, specs, source="model.pth")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_statistics_that_are_no_mapping_are_refused(stats, value):
    with pytest.raises(UserError, match="where domain -> statistics is read"):
        check_stats(value, stats[1], source="model.pth")


@pytest.fixture(autouse=True)
def warnings_are_heard(caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.WARNING, "ppt_kit")
    monkeypatch.setenv("PPT_KIT_CACHE", str(tmp_path / "cache of its own"))
