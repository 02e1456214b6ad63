"""LeRobot datasets as they come: partly downloaded, damaged, recorded by others. What can be read is, the rest is named."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_store
from test_lerobot import FPS, SIZE, Made, change_info, number_in, picture, png, write_video

from ppt_kit.config import load_config
from ppt_kit.data.convert import to_lerobot, to_zarr
from ppt_kit.data.dataset import load_dataset, open_dataset
from ppt_kit.data.describe import describe
from ppt_kit.data.formats import open_store
from ppt_kit.data.normalizer import fit_normalizer
from ppt_kit.errors import UserError
from ppt_kit.schema import NormalizerConfig

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture(scope="module", params=["v2.1", "v3.0"])
def whole(request, tmp_path_factory) -> Made:
    """Four episodes, two a file in v3.0."""
    return Made(tmp_path_factory.mktemp("whole") / "set", request.param, (12, 9, 11, 8), codec="h264-2")


@pytest.fixture
def made(whole, tmp_path) -> Made:
    """A copy to damage."""
    return whole.copied(tmp_path / "set")


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def frames_of(dataset) -> list[int]:
    """What the frames of all its episodes show."""
    shown = []
    for index in range(dataset.num_episodes):
        (frames,) = [value for name, value in dataset.episode(index)["obs"]["rgb"].items() if name == "front"]
        shown += [number_in(np.asarray(frame)) for frame in frames]
    return shown


# ---------------------------------------------------------------------------------------------------- partly there


def damage(kind: str, file: Path) -> None:
    data = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes({"empty": b"", "cut off": data[: len(data) // 2], "Git LFS": POINTER.encode()}[kind])


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off", "Git LFS", "folder"])
@pytest.mark.parametrize("part", ["video", "data"])
def test_what_the_line_says_to_type_does(made, tmp_path, kind, part, caplog):
    """Episodes 2 and 3 have lost their videos or their numbers: each choice that is offered opens, with the right rows."""
    for file in {getattr(made, part)(e) for e in (2, 3)}:
        damage(kind, file)
    with pytest.raises(UserError) as caught:
        open_dataset(made.path)
    line = one_line(caught)
    assert line.startswith(str(getattr(made, part)(2)))
    assert {"missing": "No such file", "folder": "cannot be read"}.get(kind, kind) in line
    assert "episodes 2-3 (2 of 4)" in line
    assert ("`git lfs pull`" in line) == (kind == "Git LFS")
    offered = dict(re.findall(r"dataset\.(\w+)=(\S+?)[;.]? ", line + " "))
    assert set(offered) == {"episode_cnt", "whole_episodes_only"} | ({"ignored_keys"} if part == "video" else set())
    rows = made.ends[1]
    for name, value in offered.items():
        cfg = load_config(
            "quickstart", f"dataset.{name}={value}", f"dataset_path={tmp_path}", "domains=set", "dataset.val_ratio=0",
            "dataset.state_keys=null", "dataset.cache_gb=0",
        )  # fmt: skip
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = load_dataset(cfg)
        assert found.num_episodes == (4 if name == "ignored_keys" else 2)
        assert ("2 of 4 episodes are left out" in caplog.text) == (name == "whole_episodes_only")
        if name == "ignored_keys":
            assert set(found.specs["set"].rgb) == {"image"}
            rows = made.ends[-1]
        else:
            assert frames_of(found) == list(range(made.ends[1]))
            rows = made.ends[1]
        actions = np.concatenate([found.episode(e)["action"] for e in range(found.num_episodes)])
        np.testing.assert_array_equal(actions, made.values["action"][:rows])


def test_files_of_what_is_not_read_are_not_asked_for(made):
    for e in (2, 3):
        made.video(e).unlink(missing_ok=True)
    for options in (
        {"ignored_keys": ["rgb"]}, {"ignored_keys": ["images/front"]}, {"ignored_keys": ["observation.images.front"]},
        {"modalities": ["state"]}, {"modalities": ["state", "language"]}, {"filter_key": "train"}, {"episode_cnt": 2},
        {"episode_cnt": 1, "filter_key": "train"},
    ):  # fmt: skip
        found = open_dataset(made.path, cache_gb=0, **options)
        assert len(found[len(found) - 1]["action"])
        table = describe(found)
        assert set(table.loc["set", "stored_as"]) >= {"action", "observation.images.front"}
    for options in ({"filter_key": "rest"}, {"episode_cnt": 3}, {"ignored_keys": ["state"]}, {"modalities": ["rgb"]}):
        with pytest.raises(UserError, match=r"needed by episodes? 2"):
            open_dataset(made.path, cache_gb=0, **options)


def test_an_ignored_camera_is_offered_beside_those_that_were_ignored_before(made):
    made.video(2).unlink()
    with pytest.raises(UserError, match=r"dataset.ignored_keys=\[state,images/front\]"):
        open_dataset(made.path, ignored_keys=["state"])


def test_where_nothing_is_whole_no_choice_is_offered(made):
    for e in range(4):
        made.data(e).unlink(missing_ok=True)
    for options in ({}, {"whole_episodes_only": True}):
        with pytest.raises(UserError, match=r"needed by episodes 0-3 \(4 of 4\). Copy or download what is missing\.$"):
            open_dataset(made.path, **options)


def test_the_cache_knows_which_episodes_its_rows_are_of(made, tmp_path, monkeypatch):
    """Two selections of as many episodes: rows that were decoded of the one are not taken for the other's."""
    monkeypatch.setattr("ppt_kit.data.disk.cache.state_of", lambda source: "same")
    keep = tmp_path / "kept.mp4"
    for lost, kept in ((0, 2), (2, 0)):
        shutil.move(made.video(lost), keep)
        found = open_dataset(made.path, whole_episodes_only=True, cache_dir=tmp_path / "cache")
        assert made.starts[kept] in frames_of(found)
        assert made.starts[lost] not in frames_of(found)
        shutil.move(keep, made.video(lost))


def test_other_formats_say_that_they_have_no_episodes_in_part(tmp_path, caplog):
    path = write_store(tmp_path / "a.zarr")
    with caplog.at_level(logging.WARNING):
        assert open_dataset(path, whole_episodes_only=True).num_episodes == 4
    assert "whole_episodes_only=true changes nothing" in caplog.text


def test_a_conversion_asks_for_the_files_of_its_columns_alone(made, tmp_path, caplog):
    made.video(2).unlink()
    with pytest.raises(UserError, match=r"or go without: keys=\[actions,.*\]; or whole_episodes_only=true for"):
        to_zarr(made.path, tmp_path / "a.zarr")
    store = open_store(to_zarr(made.path, tmp_path / "a.zarr", keys=["actions", "obs/state"]))
    np.testing.assert_array_equal(store.read("actions", np.arange(made.ends[-1])), made.values["action"])
    path = to_lerobot(made.path, tmp_path / "b", whole_episodes_only=True, codec="h264")
    assert "episodes are left out" in caplog.text
    assert number_in(open_store(path, cache_gb=0).read("obs/images/front", [made.ends[1] - 1])[0]) == made.ends[1] - 1


@pytest.mark.parametrize("name", ["meta/info.json", "episodes", "tasks", "data", "video"])
def test_a_note_of_git_lfs_is_named_as_such(made, name):
    listed = {"v2.1": "meta/{}.jsonl", "v3.0": "meta/{}.parquet"}[made.version].format(name)
    listed = listed if (made.path / listed).exists() else "meta/episodes/chunk-000/file-000.parquet"
    file = {"meta/info.json": made.path / name, "data": made.data(0), "video": made.video(0)}.get(
        name, made.path / listed
    )
    file.write_text(POINTER)
    with pytest.raises(UserError, match=f"{re.escape(str(file))}.*Git LFS.*git lfs pull"):
        open_store(made.path)


# ---------------------------------------------------------------------------------------------------- rows


def change(name: str, edit, *, kind=lambda value: value):
    """Changes the numbers of one column of episode 1, which are given as a list.

    Args:
        kind: what the column's other numbers become.
    """

    def damage(made: Made) -> None:
        table = pq.read_table(made.data(1))
        first = int(made.starts[1]) if made.version == "v3.0" else 0
        values = table[name].to_pylist()
        values[first : first + made.lengths[1]] = edit(values[first : first + made.lengths[1]])
        same = kind(0) == 0 and type(kind(0)) is int
        column = pa.array(list(map(kind, values)), table[name].type if same else None)
        pq.write_table(table.set_column(table.column_names.index(name), name, column), made.data(1))

    return damage


def put(step: int, value):
    return lambda values: [*values[:step], value, *values[step + 1 :]]


def add(step: int, more: float):
    return lambda values: [value + more if at >= step else value for at, value in enumerate(values)]


def swapped(values: list) -> list:
    return [*values[:3], values[4], values[3], *values[5:]]


def swap_rows(made: Made) -> None:
    table = pq.read_table(made.data(1))
    first = int(made.starts[1]) if made.version == "v3.0" else 0
    order = np.arange(len(table))
    order[[first + 3, first + 4]] = order[[first + 4, first + 3]]
    pq.write_table(table.take(pa.array(order)), made.data(1))


NAN = float("nan")
ROWS = {
    "episode_index of another": (change("episode_index", put(4, 3)), r"episode_index of episode 1 is 3 in row {4}"),
    "episode_index missing": (change("episode_index", put(4, None)), r"episode_index: 1 values are missing.*row {4}"),
    "episode_index as text": (change("episode_index", list, kind=str), "episode_index: holds object"),
    "index doubled": (change("index", put(4, 15)), r"index of episode 1 is 15 in row {4}"),
    "index swapped": (change("index", swapped), r"index of episode 1 is 16 in row {3}"),
    "rows swapped": (swap_rows, r"index of episode 1 is 16 in row {3}"),
    "index falls": (change("index", lambda values: values[::-1]), r"index of episode 1 is 19 in row {1}"),
    "index as fractions": (change("index", list, kind=lambda x: x + 0.5), "index: holds float64"),
    "frame_index with a gap": (change("frame_index", add(5, 1)), r"frame_index of episode 1 is 6 in row {5} .*\(step 5\)"),
    "frame_index stands still": (change("frame_index", put(4, 3)), r"frame_index of episode 1 is 3 in row {4}"),
    "timestamp stands still": (change("timestamp", put(4, 0.3)), r"timestamp of episode 1 is 0.3 in row {4}"),
    "timestamp falls": (change("timestamp", put(4, 0.05)), r"timestamp of episode 1 is 0.05 in row {4}"),
    "timestamp NaN": (change("timestamp", put(4, NAN)), r"timestamp of episode 1 is nan in row {4}"),
    "timestamp inf": (change("timestamp", put(4, np.inf)), r"timestamp of episode 1 is inf in row {4}"),
    "timestamp missing": (change("timestamp", put(4, None)), r"timestamp: 1 values are missing.*row {4}"),
    "a task that is none": (change("task_index", put(4, 7)), r"task_index of episode 1 is 7 in row {4}"),
    "a task missing": (change("task_index", put(4, None)), r"task_index: 1 values are missing"),
    "an action missing": (change("action", put(4, None)), r"action: 1 values are missing, the first in episode 1, step 4"),
    "a part of an action missing": (
        change("observation.environment_state", put(4, [[1.0, None, 1.0], [1.0, 1.0, 1.0]])),
        "environment_state: 1 values are missing, the first in episode 1, step 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_does_not_fit_is_named_by_file_episode_and_row(made, case):
    damage, says = ROWS[case]
    damage(made)
    first = int(made.starts[1]) if made.version == "v3.0" else 0
    says = re.sub(r"\{(\d)\}", lambda match: str(first + int(match[1])), says)
    store = open_store(made.path, cache_gb=0)
    key = "obs/environment_state" if "part of an action" in case else "actions"
    with pytest.raises(UserError) as caught:
        store.read(key, np.arange(made.ends[-1]))
    line = one_line(caught)
    assert line.startswith(str(made.data(1)))
    assert re.search(says, line), line
    if "an action" not in case:
        with pytest.raises(UserError, match=re.escape(str(made.data(1)))):
            open_store(made.path, cache_gb=0).read("obs/images/front", np.arange(made.ends[-1]))
        # it is the file of others alone
        if made.version == "v2.1":
            store.read("actions", np.arange(made.starts[1]))


@pytest.mark.parametrize(("name", "more"), [("index", 100), ("frame_index", 4)])
def test_numbers_that_begin_elsewhere_are_told_once_and_read(made, caplog, name, more):
    """Datasets that were put together or shortened by hand: the rows and their order are right."""
    change(name, add(0, more))(made)
    store = open_store(made.path, cache_gb=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = store.read("actions", np.arange(made.ends[-1]))
    np.testing.assert_array_equal(got, made.values["action"])
    assert caplog.text.count(f"{name} of episode 1 begins at") == 1


@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["action", "observation.state"])
def test_values_that_are_no_numbers_are_refused_when_statistics_are_made(made, name, value):
    change(name, put(4, [value] * (4 if name == "action" else 3)))(made)
    found = open_dataset(made.path, cache_gb=0, modalities=["state"], state_keys=["state"])
    with pytest.raises(UserError, match=rf"{name} of episode 1 \(row {made.starts[1] + 4}\) is not finite"):
        fit_normalizer(found, NormalizerConfig())


# ---------------------------------------------------------------------------------------------------- lists


def listed(edit):
    """Changes the list of episodes, which is given as one dictionary an episode, in order."""

    def damage(made: Made) -> None:
        lines = made.path / "meta/episodes.jsonl"
        if made.version == "v2.1":
            episodes = edit([json.loads(line) for line in lines.read_text().splitlines()])
            lines.write_text("".join(json.dumps(each) + "\n" for each in episodes))
            return
        file = made.path / "meta/episodes/chunk-000/file-000.parquet"
        episodes = edit(sorted(pq.read_table(file).to_pylist(), key=lambda each: each["episode_index"]))
        names = dict.fromkeys(name for each in episodes for name in each)
        pq.write_table(pa.table({name: pa.array([each.get(name) for each in episodes]) for name in names}), file)

    return damage


def setting(**values):
    def edit(episodes: list[dict]) -> list[dict]:
        episodes[1] |= {name.replace("__", "/"): value for name, value in values.items()}
        return episodes

    return listed(edit)


def of_all(name: str, kind):
    return listed(lambda episodes: [{**each, name: kind(each[name])} for each in episodes])


FRONT = "videos__observation.images.front__"
LISTS = {
    "twice": ("both", listed(lambda episodes: [*episodes, episodes[1]]), "episode 1 is listed 2 times"),
    "none": ("v2.1", listed(lambda episodes: []), "lists no episode"),
    "one too few": ("both", listed(lambda episodes: episodes[:-1]), "lists total_episodes=3, info.json says 4"),
    "no length": ("v2.1", setting(length=None), "entry 2: length=null: takes whole numbers from 1 on"),
    "a length of 0": ("both", setting(length=0), "entry 2: length=0: takes whole numbers from 1 on"),
    "a negative length": ("both", setting(length=-9), "entry 2: length=-9: takes"),
    "lengths with a fraction": ("both", of_all("length", lambda n: n + 0.5), r"entry 1: length=12\.5: takes"),
    "lengths as text": ("both", of_all("length", str), "entry 1: length='12': takes"),
    "a length of true": ("v2.1", setting(length=True), "entry 2: length=True: takes"),
    "another length": ("both", setting(length=10), "lists total_frames=41|has length 10, but rows"),
    "no number": ("v2.1", setting(episode_index=None), "entry 2: episode_index=null: takes"),
    "a negative number": ("both", setting(episode_index=-1), "entry 2: episode_index=-1: takes"),
    "a task that is none": ("v2.1", setting(tasks=[9]), "episode 1 has task 9, which is not among the tasks"),
    "a task of another kind": ("v2.1", setting(tasks=[{"a": 1}]), "episode 1 has the task {'a': 1}, which is no"),
    "tasks of another kind": ("v2.1", setting(tasks=True), "episode 1 has the task True, which is no"),
    "rows of another": (
        "v3.0", setting(dataset_from_index=3, dataset_to_index=12), "episodes 0 and 1 both have rows 3 to 12 of one file",
    ),
    "rows and length": ("v3.0", setting(dataset_to_index=22), "episode 1 has length 9, but rows 12 to 22"),
    "no file": ("v3.0", setting(data__file_index=None), "entry 2: data/file_index=null"),
    "a time of NaN": ("v3.0", setting(**{f"{FRONT}from_timestamp": NAN}), "from_timestamp=nan: takes times from 0"),
    "a time below 0": ("v3.0", setting(**{f"{FRONT}from_timestamp": -1.0}), "from_timestamp=-1.0: takes times from 0"),
    "no time": ("v3.0", setting(**{f"{FRONT}from_timestamp": None}), "from_timestamp=null: takes times from 0"),
    "times that go back": ("v3.0", setting(**{f"{FRONT}to_timestamp": 0.5}), "episode 1 goes from 1.200 to 0.500 s"),
    "seconds of another": (
        "v3.0", setting(**{f"{FRONT}from_timestamp": 0.6, f"{FRONT}to_timestamp": 1.5}), "episodes 0 and 1 both have 0.6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_a_list_of_episodes_that_cannot_be_is_one_line(made, case):
    version, damage, says = LISTS[case]
    if version not in ("both", made.version):
        pytest.skip(f"{version} alone has it")
    damage(made)
    with pytest.raises(UserError, match=says) as caught:
        open_store(made.path)
    assert f"{made.path}/meta/episodes" in one_line(caught)
    assert "Copy it again" in str(caught.value)


def test_seconds_beyond_the_video_are_named(whole, tmp_path):
    if whole.version != "v3.0":
        pytest.skip("v2.1 has a video an episode")
    shutil.copytree(whole.path, tmp_path / "set")
    made = object.__new__(Made)
    made.__dict__.update(whole.__dict__, path=tmp_path / "set")
    setting(**{f"{FRONT}from_timestamp": 50.0, f"{FRONT}to_timestamp": 50.9})(made)
    with pytest.raises(
        UserError, match=rf"{made.video(0).name}: no frame .* 50.000 s, where episode 1 has its frame 0"
    ):
        open_store(made.path, cache_gb=0).read("obs/images/front", [made.starts[1]])


BROKEN = [
    ("v2.1", "meta/episodes.jsonl", lambda data: data[:-7], "line 4 is not JSON"),
    ("v2.1", "meta/episodes.jsonl", lambda data: b"[]\n" + data, r"line 1 is \[\], not an object"),
    ("v2.1", "meta/episodes.jsonl", lambda data: b"\xff\xfe" + data, "no text"),
    ("v2.1", "meta/tasks.jsonl", lambda data: data[:-3], "line 2 is not JSON"),
    (
        "v2.1",
        "meta/tasks.jsonl",
        lambda data: data.replace(b'_index": 1', b'_index": 0'),
        "task_index=0 is listed twice",
    ),
    ("v2.1", "meta/tasks.jsonl", lambda data: data.replace(b'_index": 1', b'_index": "b"'), "task_index='b': takes"),
    (
        "v2.1",
        "meta/tasks.jsonl",
        lambda data: data.replace(b'"pick the cube"', b"4.5"),
        "task 0 is 4.5, not a sentence",
    ),
    ("v3.0", "meta/episodes/chunk-000/file-000.parquet", lambda data: data[:-40], "cannot be read"),
    ("v3.0", "meta/tasks.parquet", lambda data: data[: len(data) // 2], "cannot be read"),
    ("both", "meta/info.json", lambda data: data[:-1], "damaged"),
    ("both", "meta/info.json", lambda data: b"\xff\xfe" + data, "no text"),
    ("both", "meta/info.json", lambda data: data[:1] * 100_000, "damaged"),
]


@pytest.mark.parametrize(("version", "name", "damage", "says"), BROKEN)
def test_a_broken_file_of_meta_is_named(made, version, name, damage, says):
    if version not in ("both", made.version):
        pytest.skip(f"{version} alone has it")
    (made.path / name).write_bytes(damage((made.path / name).read_bytes()))
    with pytest.raises(UserError, match=f"{name}: .*{says}.*Copy it again") as caught:
        open_store(made.path)
    one_line(caught)


INFOS = [
    ({"codebase_version": "v4.0"}, "version v4.0"),
    ({"codebase_version": None}, "version None"),
    ({"codebase_version": 2.1}, "version 2.1"),
    ({"fps": "10"}, "fps='10'"),
    ({"fps": True}, "fps=True"),
    ({"fps": None}, "fps=None"),
    ({"fps": -3}, "fps=-3"),
    ({"total_episodes": "4"}, "total_episodes=4, info.json says '4'"),
    ({"total_frames": 41}, "total_frames=40, info.json says 41"),
    ({"features": []}, "holds no episode|damaged|no column"),
    ({"features": {"action": None}}, "damaged"),
    ({"features": {"action": {"dtype": "float32"}}}, "feature action: shape=None"),
    ({"features": {"action": {"dtype": "float32", "shape": 4}}}, "feature action: shape=4"),
    ({"features": {"action": {"dtype": "float32", "shape": [4.5]}}}, r"feature action: shape=\[4.5\]"),
    ({"features": {"action": {"dtype": "float32", "shape": [-4]}}}, r"feature action: shape=\[-4\]"),
    ({"data_path": "data/all.parquet"}, r"several would be in all.parquet"),
    ({"video_path": "videos/{video_key}.mp4"}, r"several would be in observation.images.front.mp4"),
    ({"data_path": None}, "do not say where the episodes are"),
    ({"data_path": "data/{nothing}.parquet"}, "do not say where the episodes are"),
    ({"video_path": None}, "do not say where the episodes are"),
    ({"video_path": "{"}, "do not say where the episodes are"),
]


@pytest.mark.parametrize(("changes", "says"), INFOS)
def test_an_info_that_cannot_be_is_one_line(made, changes, says):
    change_info(made, **changes)
    with pytest.raises(UserError, match=says) as caught:
        open_store(made.path)
    assert str(made.path) in one_line(caught)


@pytest.mark.parametrize("size", [0, None, "x", -1.5])
def test_chunks_of_no_size_are_refused(whole, tmp_path, size):
    if whole.version != "v2.1":
        pytest.skip("v3.0 lists its chunks")
    shutil.copytree(whole.path, tmp_path / "set")
    file = tmp_path / "set/meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chunks_size": size}))
    with pytest.raises(UserError) as caught:
        open_store(tmp_path / "set")
    assert str(tmp_path) in one_line(caught)


@pytest.mark.parametrize(
    "splits", [None, [], "train", {"train": None}, {"train": [0, 2]}, {"train": "a:b"}, {"train": "9:"}]
)
def test_splits_that_are_none_are_one_line(made, splits):
    change_info(made, splits=splits)
    assert len(open_store(made.path, cache_gb=0).episode_ends) == 4
    with pytest.raises(UserError, match="split|none of them") as caught:
        open_store(made.path, filter_key="train")
    one_line(caught)


# ---------------------------------------------------------------------------------------------------- others' recordings


NAMES = [
    (["a", "b", "c", "d"], list("abcd")),
    ([["a", "b", "c", "d"]], list("abcd")),
    ({"motors": ["a", "b", "c", "d"]}, list("abcd")),
    ({"left": ["a", "b"], "right": ["c", "d"]}, list("abcd")),
    ({"a": 0, "b": 1, "c": 2, "d": 3}, list("abcd")),
    (None, None),
    ("abcd", None),
    ([], None),
    (["only one"], None),
]


@pytest.mark.parametrize(("names", "found"), NAMES)
def test_names_of_numbers_come_in_many_forms(made, names, found):
    features = json.loads((made.path / "meta/info.json").read_text())["features"]
    change_info(made, features={**features, "action": {**features["action"], "names": names}})
    assert open_store(made.path, cache_gb=0).attrs["names"].get("actions") == found


SHAPES = [
    ([*SIZE, 3], ["height", "width", "channels"], {}),
    ([*SIZE, 3], ["height", "width", "channel"], {}),
    ([*SIZE, 3], None, {}),
    ([3, *SIZE], ["channels", "height", "width"], {}),
    ([3, *SIZE], ["height", "width", "channels"], {}),
    ([3, *SIZE], None, {}),
    ([*SIZE[::-1], 3], ["width", "height", "channels"], {"video.height": SIZE[0], "video.width": SIZE[1]}),
    ([3, *SIZE[::-1]], None, {"video.height": SIZE[0], "video.width": SIZE[1]}),
    ([*SIZE, 3], {"axes": ["height", "width", "channels"]}, {"video.height": SIZE[0], "video.width": SIZE[1]}),
]


@pytest.mark.parametrize(("shape", "names", "details"), SHAPES)
def test_the_shape_of_a_video_is_said_in_many_ways(made, shape, names, details):
    features = json.loads((made.path / "meta/info.json").read_text())["features"]
    features["observation.images.front"] = {"dtype": "video", "shape": shape, "names": names, "info": details}
    change_info(made, features=features)
    store = open_store(made.path, cache_gb=0)
    assert store.shape("obs/images/front")[1:] == (*SIZE, 3)
    assert number_in(store.read("obs/images/front", [made.ends[0]])[0]) == made.ends[0]


def recording(path: Path, version: str, *, fps: float, stored: str) -> np.ndarray:
    """A dataset as an SO-101 or a G1 gives it: two cameras, texts, subtasks, episodes of several lengths.

    Returns:
        its actions.
    """
    lengths = (7, 3, 12, 5, 9)
    rng, total = np.random.default_rng(0), sum(lengths)
    actions = rng.normal(size=(total, 6)).astype(np.float32)
    ends = np.cumsum(lengths)
    step, episode = np.concatenate([np.arange(n) for n in lengths]), np.repeat(np.arange(5), lengths)
    joints = [f"{joint}.pos" for joint in ("pan", "lift", "elbow", "flex", "roll", "gripper")]
    camera = {"dtype": stored, "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    number = lambda kind: {"dtype": kind, "shape": [1], "names": None}
    features = {
        "action": {"dtype": "float32", "shape": [6], "names": joints},
        "observation.state": {"dtype": "float32", "shape": [6], "names": {"motors": joints}},
        "observation.images.front": camera, "observation.images.wrist.left": camera,
        "next.done": number("bool"), "next.reward": number("float32"), "subtask_index": number("int64"),
        "instruction": number("string"), "observation.caption": {"dtype": "string", "shape": None},
        "observation.sound": {"dtype": "audio", "shape": [1]}, "meta": {"dtype": None, "shape": []},
        "timestamp": number("float32"), "frame_index": number("int64"), "episode_index": number("int64"),
        "index": number("int64"), "task_index": number("int64"),
    }  # fmt: skip
    columns = {
        "action": pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 6),
        "observation.state": pa.array(actions.tolist(), pa.list_(pa.float32())),
        "next.done": pa.array(np.isin(np.arange(total), ends - 1)),
        "next.reward": pa.array(np.zeros(total, np.float32)), "subtask_index": pa.array(step // 3),
        "instruction": pa.array(["go"] * total), "observation.caption": pa.array([None] * total, pa.string()),
        "timestamp": pa.array((step / fps).astype(np.float32)), "frame_index": pa.array(step),
        "episode_index": pa.array(episode), "index": pa.array(np.arange(total)), "task_index": pa.array(episode % 2),
    }  # fmt: skip
    for name in [name for name in features if name.startswith("observation.images") and stored == "image"]:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns[name] = pa.array([{"bytes": png(picture(i)), "path": None} for i in range(total)], kind)
    table, places = pa.table(columns), {"v2.1": [[e] for e in range(5)], "v3.0": [[0, 1, 2], [3, 4]]}[version]
    (path / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "fps": fps, "features": features, "chunks_size": 1000, "robot_type": "so101"}
    old = "chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}"
    new = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info["data_path"] = f"data/{new if version == 'v3.0' else old.replace('{video_key}/', '')}.parquet"
    info["video_path"] = f"videos/{'{video_key}/' + new if version == 'v3.0' else old}.mp4"
    rows = []
    for number_, group in enumerate(places):
        begin, end = int(ends[group[0]] - lengths[group[0]]), int(ends[group[-1]])
        for kind in ("data_path", *(name for name in features if features[name] is camera and stored == "video")):
            keys = {
                "video_key": kind,
                "episode_chunk": 0,
                "episode_index": number_,
                "chunk_index": 0,
                "file_index": number_,
            }
            file = path / info["data_path" if kind == "data_path" else "video_path"].format(**keys)
            file.parent.mkdir(parents=True, exist_ok=True)
            if kind == "data_path":
                pq.write_table(table.slice(begin, end - begin), file, row_group_size=5)
            else:
                write_video(file, range(begin, end), "h264-2", fps=fps)
        for e in group:
            first = int(ends[e] - lengths[e])
            row = {"episode_index": e, "tasks": [["grasp", "place"][e % 2]], "length": lengths[e]}
            row |= {"dataset_from_index": first, "dataset_to_index": int(ends[e])}
            row |= {"data/chunk_index": 0, "data/file_index": number_}
            for name in (name for name in features if features[name] is camera):
                times = {"from_timestamp": (first - begin) / fps, "to_timestamp": (ends[e] - begin) / fps}
                place = {"chunk_index": 0, "file_index": number_, **times}
                row |= {f"videos/{name}/{part}": value for part, value in place.items()}
            rows.append(row)
    if version == "v3.0":
        (path / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path / "meta/episodes/chunk-000/file-000.parquet")
        pd.DataFrame({"task_index": [0, 1]}, index=["grasp", "place"]).to_parquet(path / "meta/tasks.parquet")
    else:
        short = [{name: row[name] for name in ("episode_index", "tasks", "length")} for row in rows]
        (path / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, short)))
        tasks = [{"task_index": i, "task": task} for i, task in enumerate(["grasp", "place"])]
        (path / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    (path / "meta/info.json").write_text(json.dumps(info))
    return actions


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(("fps", "stored"), [(30, "video"), (29.97, "video"), (30.0, "image"), (12.5, "image")])
def test_recordings_of_others_open_with_what_batches_hold(tmp_path, version, fps, stored):
    actions = recording(tmp_path / "so101", version, fps=fps, stored=stored)
    found = open_dataset(tmp_path / "so101", cache_gb=0)
    store = found.domains["so101"].store
    assert set(found.specs["so101"].rgb) == {"front", "wrist_left"}
    assert set(found.specs["so101"].state) == {"state"}
    assert set(store.attrs["skipped"]) == {"instruction", "observation.caption", "observation.sound", "meta"}
    np.testing.assert_array_equal(np.concatenate([found.episode(e)["action"] for e in range(5)]), actions)
    for e in range(5):
        begin, end = store.bounds(e)
        frames = np.asarray(found.episode(e)["obs"]["rgb"]["wrist_left"])
        assert [number_in(frame) for frame in frames] == list(range(begin, end))
    assert store.sentences == ["grasp", "place", "grasp", "place", "grasp"]
    assert store.read("next.done", [6, 7, 9])[:, 0].tolist() == [True, False, True]
    assert store.read("subtask_index", [6])[0] == 2


@pytest.mark.parametrize("cell", [[1, 2], "no such picture", 3])
def test_a_picture_that_is_something_else_is_named(tmp_path, cell):
    recording(tmp_path / "so101", "v3.0", fps=FPS, stored="image")
    file = tmp_path / "so101/data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    name = "observation.images.front"
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array([cell] * len(table))), file)
    store = open_store(tmp_path / "so101", cache_gb=0)
    with pytest.raises(UserError, match=rf"{name} of episode 0, frame 2,") as caught:
        store.read("obs/images/front", [2])
    one_line(caught)


# ---------------------------------------------------------------------------------------------------- writing


def test_of_our_own_collection_lerobot_gets_what_it_has_features_for(tmp_path, caplog):
    """State, actions, pictures and sentences; what was left out is said in one line."""
    store = open_store(write_store(tmp_path / "a.zarr", colors=True))
    with caplog.at_level(logging.WARNING):
        path = to_lerobot(tmp_path / "a.zarr", tmp_path / "b", fps=20)
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "obs/pointcloud/colors, obs/pointcloud/pos: left out" in line
    back = open_store(path, cache_gb=0)
    rows = np.arange(store.episode_ends[-1])
    for key in ("actions", "obs/eef_pos", "obs/normalized_gripper_pos"):
        np.testing.assert_array_equal(back.read(key, rows), store.read(key, rows))
    assert back.sentences == store.sentences
    assert not [key for key in back.columns if "pointcloud" in key]


def test_a_path_may_be_converted_in_a_part_and_by_a_named_format(whole, tmp_path):
    path = to_zarr(whole.path, tmp_path / "a.zarr", filter_key="train", format="lerobot", keys=["actions"])
    assert open_store(path).episode_ends.tolist() == whole.ends[:2].tolist()
    path = to_lerobot(whole.path, tmp_path / "b", filter_key="rest", format="lerobot", keys=["actions"])
    assert len(open_store(path, cache_gb=0).episode_ends) == 1
    with pytest.raises(UserError, match="dataset.format=robomimic does not recognise it"):
        to_zarr(whole.path, tmp_path / "c.zarr", format="robomimic")
    store = open_store(whole.path, cache_gb=0)
    for given in ({"format": "lerobot"}, {"filter_key": "train"}, {"whole_episodes_only": True}):
        with pytest.raises(UserError, match=f"{next(iter(given))}=.*is opened already"):
            to_zarr(store, tmp_path / "c.zarr", **given)
    assert not (tmp_path / "c.zarr").exists()
