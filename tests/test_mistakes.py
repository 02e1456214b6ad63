"""Hundreds of mistakes and damaged files, each of them classified and counted: one line, the right name, nothing lost."""

from __future__ import annotations

import gzip
import io
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mistakes
import numpy as np
import pytest
import test_formats as formats
import test_lerobot as lerobot
from conftest import write_store

from ppt_kit.data.convert import to_zarr
from ppt_kit.data.formats import open_store
from ppt_kit.errors import UserError

pytestmark = pytest.mark.long

# what is not told as it should be, with the reason
KNOWN: dict[str, str] = {}


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    mistakes.build(folder)
    return folder


def test_at_least_two_hundred_mistakes_are_each_one_line_and_cost_nothing(house, capfd):
    results = []
    capfd.readouterr()
    for mistake in mistakes.mistakes():
        before = mistakes.tree(house)
        words = [*mistakes.without(mistakes.BASE[mistake.script], mistake.words), *mistake.words]
        code = mistakes.run(mistake.script, words, house, env=mistake.env)
        after = mistakes.tree(house)
        lost = [name for name, what in before.items() if after.get(name) != what]
        written = sorted(after.keys() - before.keys())
        said = mistakes.verdict(mistake, code, capfd.readouterr().err, written=written, lost=lost)
        results.append((mistake, said))
        mistakes.clear(house, before)
    with capfd.disabled():
        print(f"\n{mistakes.listed(results)}")
    assert len(results) >= 200
    assert [str(mistake) for mistake, said in results if said != "told" and str(mistake) not in KNOWN] == []


# ------------------------------------------------------------------ damaged files


def make_rlds(folder: Path) -> Path:
    episodes = formats.rlds_episodes((5, 4))
    records = [formats.rlds_record(episode, "pick") for episode in episodes]
    return formats.write_rlds(folder / "my_robot/1.0.0", {"train": [records[:1], records[1:]]})


# format: (how a small one is made, the files of it that are damaged in turn, whether a changed byte can be noticed)
DATASETS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "zarr of ours": (
        lambda folder: write_store(folder / "a.zarr"),
        ["data/actions/0.0", "data/actions/.zarray", "meta/episode_ends/0", "meta/episode_ends/.zarray", ".zattrs", ".zgroup", "data/obs/pointcloud/pos/0.0.0"],
    ),
    "zarr converted": (
        lambda folder: to_zarr(formats.write_robomimic(folder / "b.hdf5", formats.robomimic_episodes((5, 4))), folder / "b.zarr"),
        ["data/obs/images/agentview/0.0.0.0", "data/obs/images/agentview/.zarray", "meta/episode_ends/0"],
    ),
    "robomimic": (lambda folder: formats.write_robomimic(folder / "c.hdf5", formats.robomimic_episodes((5, 4)), chunks=True, fletcher32=True), ["."]),
    "maniskill": (lambda folder: formats.write_maniskill(folder / "d.h5", formats.maniskill_episodes((5, 4))), [".", "../d.json"]),
    "rlds": (
        make_rlds,
        ["dataset_info.json", "features.json", "my_robot-train.tfrecord-00000-of-00002", "my_robot-train.tfrecord-00001-of-00002"],
    ),
    "lerobot v2.1": (
        lambda folder: lerobot.Made(folder / "e", "v2.1").path,
        ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", "data/chunk-000/episode_000001.parquet", "videos/chunk-000/observation.images.front/episode_000001.mp4"],
    ),
    "lerobot v3.0": (
        lambda folder: lerobot.Made(folder / "f", "v3.0").path,
        ["meta/info.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet", "videos/observation.images.front/chunk-000/file-000.mp4"],
    ),
}  # fmt: skip
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "text": lambda data: b"see the other disk\n",
    "a pointer of Git LFS": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    "zeros": lambda data: bytes(len(data)),
    "packed": gzip.compress,
}
# nothing in these says what their bytes were: a changed value is a value
WITHOUT_CHECKSUM = ("data/actions/0.0", "data/obs/pointcloud/pos/0.0.0", "data/obs/images/agentview/0.0.0.0")


def read_whole(path: Path) -> dict[str, np.ndarray]:
    store = open_store(path, cache_gb=0)
    rows = np.arange(store.episode_ends[-1])
    told = {"ends": store.episode_ends, "sentences": np.array(store.sentences or [])}
    return {key: store.read(key, rows) for key in store.columns} | told


def outcome(path: Path, file: Path, whole: dict[str, np.ndarray]) -> str:
    """ "told", "harmless", or what went wrong."""
    try:
        found = read_whole(path)
    except UserError as error:
        line = str(error)
        if "\n" in line:
            return f"several lines: {line[:200]}"
        names = (path.name, file.name, file.parent.name, path.parent.name)
        return "told" if any(name in line for name in names) else f"does not name it: {line[:200]}"
    # what a person would see as a traceback
    except Exception as error:
        return f"traceback {type(error).__name__}: {str(error)[:160]}"
    same = found.keys() == whole.keys() and all(np.array_equal(found[key], whole[key]) for key in whole)
    return "harmless" if same else "SILENT"


def test_at_least_sixty_damaged_files_are_each_named_and_none_is_read_as_data(tmp_path, capfd):
    results, counts = [], Counter()
    for name, (make, files) in DATASETS.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        path = make(folder)
        whole = read_whole(path)
        for relative in files:
            file = (
                path
                if relative == "."
                else (path.parent / relative[3:] if relative.startswith("../") else path / relative)
            )
            data = file.read_bytes()
            for damage, change in {**DAMAGES, "gone": None, "a folder": None}.items():
                if damage == "zeros" and relative in WITHOUT_CHECKSUM:
                    continue
                file.unlink()
                if change is not None:
                    file.write_bytes(change(data))
                elif damage == "a folder":
                    file.mkdir()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    said = outcome(path, file, whole)
                counts[f"{name:<16} {'told' if said == 'told' else said.split()[0]}"] += 1
                results.append((f"{name}: {relative} {damage}", said))
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
                file.write_bytes(data)
        assert outcome(path, path, whole) == "harmless"
    with capfd.disabled():
        report = io.StringIO()
        for line, count in sorted(counts.items()):
            print(f"{line:<32} {count:>3}", file=report)
        told = sum(said in ("told", "harmless") for _, said in results)
        print(f"{'all':<32} {told:>3} of {len(results)} told or harmless", file=report)
        for what, said in results:
            if said != "told":
                print(f"  {what}\n      {said}", file=report)
        print(f"\n{report.getvalue()}")
    assert len(results) >= 60
    assert [what for what, said in results if said not in ("told", "harmless") and what not in KNOWN] == []
