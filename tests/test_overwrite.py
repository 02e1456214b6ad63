"""overwrite=true replaces a dataset of the kind that is written, once the new one is whole, and nothing else ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_store
from test_lerobot import everything, in_memory

from ppt_kit.data.convert import to_lerobot, to_zarr
from ppt_kit.data.formats import open_store
from ppt_kit.data.replaceable import check_replaceable
from ppt_kit.errors import UserError


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    """One of each kind, with other numbers than are written over it."""
    folder = tmp_path_factory.mktemp("datasets")
    arrays = {"actions": np.full((5, 2), 7, np.float32), "obs/images/eye": np.zeros((5, 8, 8, 3), np.uint8)}
    store = in_memory(folder / "source", arrays, (2, 3))
    return {"zarr": to_zarr(store, folder / "a.zarr"), "lerobot": to_lerobot(store, folder / "a", fps=5, codec="h264")}


def write(kind: str, target: Path, **more) -> Path:
    store = in_memory(target.parent / "source", {"actions": np.zeros((5, 2), np.float32)}, (2, 3))
    return to_zarr(store, target, **more) if kind == "zarr" else to_lerobot(store, target, fps=5, **more)


def everything_under(folder: Path) -> dict[str, bytes | str | None]:
    """What each name is: the bytes of a file, where a link leads, None of a folder."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def home(target: Path, dataset: Path) -> None:
    for name in ("data/holiday.jpg", "meta/diary.txt", ".zgroup", "meta/info.json", ".bashrc"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text('{"codebase_version": "mine"}')


def copied(name: str, kind_of_file: str = "file"):
    def make(target: Path, dataset: Path) -> None:
        subprocess.run(["cp", "-r", dataset, target], check=True)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if kind_of_file == "file":
            (target / name).write_text("mine")
        elif kind_of_file == "folder":
            (target / name).mkdir()
        elif kind_of_file == "link":
            (target / name).symlink_to(target.parent)
        elif kind_of_file == "gone":
            (target / name).unlink()

    return make


NOT_REPLACED = [
    ("both", home, "no part of one"),
    ("both", copied("README.md"), "holds README.md"),
    ("both", copied("data/notes.txt"), "holds data/notes.txt"),
    ("both", copied("meta/notes.json"), "holds meta/notes.json"),
    ("both", copied(".git/HEAD"), "holds .git/HEAD"),
    ("both", copied("photos", "folder"), "holds photos/"),
    ("both", copied("data/2024/05", "file"), "holds data/2024/05"),
    ("both", copied("data/mine", "link"), "holds data/mine"),
    ("zarr", copied("data/actions/thesis.tex"), "holds data/actions/thesis.tex"),
    ("zarr", copied("meta/episode_ends/.zarray", "gone"), "no part of one|has no meta/episode_ends"),
    ("zarr", copied(".zgroup", "gone"), "has no .zgroup"),
    ("lerobot", copied("videos/holiday.mp4"), "holds videos/holiday.mp4"),
    ("lerobot", copied("videos/x/chunk-000/wedding.mp4"), "holds videos/x/chunk-000/wedding.mp4"),
    ("lerobot", copied("data/chunk-000/file-000.csv"), "holds data/chunk-000/file-000.csv"),
    ("lerobot", copied("meta/info.json", "gone"), "has no meta/info.json"),
    ("lerobot", copied("meta/info.json", "file"), "without a codebase_version"),
    ("both", lambda target, dataset: target.symlink_to(dataset), "is a link to"),
    ("both", lambda target, dataset: target.symlink_to("nowhere"), "is a link to nowhere"),
    ("both", lambda target, dataset: target.symlink_to(target), "is a link to"),
    ("both", lambda target, dataset: target.write_text("letter"), "is a file"),
]
CASES = [
    (kind, make, says)
    for kinds, make, says in NOT_REPLACED
    for kind in (("zarr", "lerobot") if kinds == "both" else (kinds,))
]


@pytest.mark.parametrize(("kind", "make", "says"), CASES)
def test_what_is_no_dataset_of_the_kind_alone_stays_as_it_is(tmp_path, datasets, kind, make, says):
    target = tmp_path / "target"
    make(target, datasets[kind])
    before, beside = everything_under(tmp_path), everything_under(datasets[kind])
    with pytest.raises(UserError, match=says) as caught:
        write(kind, target, overwrite=True)
    assert "\n" not in str(caught.value)
    assert "overwrite=true replaces a" in str(caught.value)
    assert "target=" in str(caught.value)
    assert everything_under(tmp_path) == before
    assert everything_under(datasets[kind]) == beside
    with pytest.raises(UserError, match=r"exists already. Type overwrite=true"):
        write(kind, target)
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize(("kind", "other"), [("zarr", "lerobot"), ("lerobot", "zarr")])
def test_a_dataset_of_another_kind_is_not_replaced(tmp_path, datasets, kind, other):
    target = tmp_path / "target"
    subprocess.run(["cp", "-r", datasets[other], target], check=True)
    before = everything_under(target)
    with pytest.raises(UserError, match="overwrite=true replaces a .* and nothing else"):
        write(kind, target, overwrite=True)
    assert everything_under(target) == before


@pytest.mark.parametrize("kind", ["zarr", "lerobot"])
def test_a_dataset_of_the_kind_and_an_empty_folder_are_replaced(tmp_path, datasets, kind):
    (tmp_path / "empty").mkdir()
    subprocess.run(["cp", "-r", datasets[kind], tmp_path / "old"], check=True)
    for name in ("empty", "old"):
        with pytest.raises(UserError, match="exists already. Type overwrite=true"):
            write(kind, tmp_path / name)
        write(kind, tmp_path / name, overwrite=True)
        assert not open_store(tmp_path / name, cache_gb=0).read("actions", np.arange(5)).any()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "old"]


def test_what_our_writers_write_may_be_replaced(tmp_path):
    """Every name that they give a file: of nested columns, calibrations, several chunks, videos and pictures."""
    store, _ = everything(tmp_path)
    zarr, lerobot = to_zarr(store, tmp_path / "a.zarr"), to_lerobot(store, tmp_path / "a", codec="h264")
    check_replaceable(zarr, kind="zarr", overwrite=True, key="target")
    check_replaceable(lerobot, kind="lerobot", overwrite=True, key="target")
    check_replaceable(write_store(tmp_path / "b.zarr"), kind="zarr", overwrite=True, key="domain")
    for older in (ROOT / "tests/before/data").glob("*.zarr"):
        check_replaceable(older, kind="zarr", overwrite=True, key="domain")


@pytest.mark.parametrize("words", [".", "..", "/", "x/.."])
def test_a_target_without_a_name_of_its_own_is_refused(tmp_path, monkeypatch, words):
    (tmp_path / "here/x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    store = in_memory(tmp_path / "source", {"actions": np.zeros((5, 2), np.float32)}, (2, 3))
    with pytest.raises(UserError, match=r"target=.*: names a folder that is there"):
        to_zarr(store, words, overwrite=True)


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="is the folder you are in"):
        write("zarr", tmp_path / "here", overwrite=True)


PLACES = [
    (lambda folder: (folder / "way").write_text(""), "way/out", "a file is in the way"),
    (lambda folder: (folder / "way").symlink_to("gone"), "way/out", "a link that leads nowhere"),
    (lambda folder: (folder / "way").symlink_to("way"), "way/deep/out", "a link that leads nowhere"),
    (lambda folder: None, f"{'n' * 300}/out", "has 300 characters"),
    (lambda folder: None, "n" * 300, "name too long|has 300 characters"),
    (lambda folder: None, "/proc/out", "cannot be written to"),
]


@pytest.mark.parametrize("kind", ["zarr", "lerobot"])
@pytest.mark.parametrize(("make", "target", "says"), PLACES)
def test_a_place_that_cannot_be_written_to_is_told_before_a_row_is_read(tmp_path, kind, make, target, says):
    make(tmp_path)
    before = everything_under(tmp_path)
    store = in_memory(tmp_path / "source", {"actions": np.zeros((5, 2), np.float32)}, (2, 3))
    store.columns["actions"].decode = lambda rows: pytest.fail("a row was read")
    with pytest.raises(UserError, match=f"(?i){says}") as caught:
        to_zarr(store, tmp_path / target) if kind == "zarr" else to_lerobot(store, tmp_path / target, fps=5)
    assert "\n" not in str(caught.value)
    assert everything_under(tmp_path) == before


# where a process is killed: by the call of one of these, before it or after it
STEPS = [
    ("begun", ""),
    ("_exchange", "before"),
    ("_exchange", "after"),
    ("rename 1", "before"),
    ("rename 1", "after"),
    ("rename 2", "after"),
    ("rmtree", "before"),
]
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from ppt_kit import files

step, when, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

def stopping(function, number=1):
    calls = []
    def call(*args):
        calls.append(args)
        if len(calls) == number and when == "before":
            kill()
        done = function(*args)
        if len(calls) == number and when == "after":
            kill()
        return done
    return call

if step == "_exchange":
    files._exchange = stopping(files._exchange)
elif step.startswith("rename"):
    files._exchange = lambda one, other: False  # as on a disk that cannot
    os.rename = stopping(os.rename, int(step.split()[1]))
folder = files.begin_folder(path, key="target")
(folder / "new/what").write_text("new")
if step == "begun":
    kill()
files.finish_folder(folder, path, overwrite=True)
if step == "rmtree":
    kill()
shutil.rmtree(folder)
"""


def run(*words: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", KILLED, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}
    ).returncode


@pytest.mark.parametrize(("step", "when"), STEPS)
def test_killed_at_any_step_the_old_one_or_the_new_one_is_there(tmp_path, step, when, caplog):
    path = tmp_path / "a"
    path.mkdir()
    (path / "what").write_text("old")
    assert run(step, when, str(path)) == -9
    between = (step, when) == ("rename 1", "after")
    assert path.exists() != between
    # the door: what was moved aside is back, and is said to be
    with pytest.raises(UserError, match="exists already"):
        check_replaceable(path, kind="zarr", overwrite=False, key="target")
    assert ("what stood there before is back" in caplog.text) == between
    new = (step, when) in {("_exchange", "after"), ("rename 2", "after"), ("rmtree", "before")}
    assert (path / "what").read_text() == ("new" if new else "old")
    assert run("nowhere", "", str(path)) == 0
    assert (path / "what").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_names_change_places_at_once_on_this_disk(tmp_path):
    """Otherwise the steps above were not those of a usual disk."""
    from ppt_kit.files import _exchange

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    if not _exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this disk cannot exchange two names")
    assert (tmp_path / "a/b").is_file()
    assert (tmp_path / "b/a").is_file()
    assert not _exchange(tmp_path / "a", tmp_path / "c")
