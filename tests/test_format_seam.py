"""A dataset format of the user's own: a module beside the notebook, found by its name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, forget_my_lab

from ppt_kit.data.formats import find_domain, name_of, open_store
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.store import ArrayColumn
from ppt_kit.errors import UserError

CSV_EPISODES = '''"""Episodes as one CSV: episode, x, y, dx, dy."""

import numpy as np

from ppt_kit.data.store import ArrayColumn, EpisodeStore

NAME = "CSV of my lab"
LOOKED_FOR = "a file that ends in .csv"
ENDINGS = (".csv",)


def recognises(path):
    return path.suffix == ".csv"


def open_store(path, *, filter_key=None):
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    ends = [*(np.flatnonzero(np.diff(table[:, 0])) + 1), len(table)]
    columns = {
        "obs/state": ArrayColumn(table[:, 1:3], stored_as="x, y"),
        "actions": ArrayColumn(table[:, 3:5], stored_as="dx, dy"),
    }
    return EpisodeStore(path=path, format=NAME, episode_ends=ends, columns=columns)
'''
FORMAT = "my_lab.csv_episodes"
LENGTHS = (4, 2, 3)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with my_lab/ and data/lift.csv in it, where the user starts from."""
    before = list(sys.path)
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "my_lab/csv_episodes.py").write_text(CSV_EPISODES)
    rows = [f"{episode},{table_row(row)}" for row, episode in enumerate(np.repeat([0, 1, 2], LENGTHS))]
    (tmp_path / "data/lift.csv").write_text("episode,x,y,dx,dy\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = before
    forget_my_lab()


def table_row(row):
    return f"{row},{row + 0.5},{-row},{row / 4}"


def edited(lab, old, new):
    """The format with one thing changed."""
    assert old in CSV_EPISODES
    (lab / "my_lab/csv_episodes.py").write_text(CSV_EPISODES.replace(old, new))


def write_store(path):
    with ZarrWriter(path) as writer:
        for length in (3, 2):
            writer.append({"actions": np.zeros((length, 2), np.float32)})


def refusal(format=FORMAT, path="data/lift.csv"):
    with pytest.raises(UserError) as caught:
        open_store(path, format=format)
    return str(caught.value)


def test_a_format_beside_the_user_opens_by_its_module(lab):
    store = open_store("data/lift.csv", format=FORMAT)
    assert store.format == "CSV of my lab"
    assert store.episode_ends.tolist() == [4, 6, 9]
    rows = np.array([8, 0, 0, 5])
    assert np.array_equal(store.read("obs/state", rows), np.stack([rows, rows + 0.5], axis=1))
    assert np.array_equal(store.read("actions", rows), np.stack([-rows, rows / 4], axis=1))


def test_a_domain_is_found_by_the_formats_own_ending(lab):
    # one that is called as ours are, in the way
    (lab / "data/lift.zarr").mkdir()
    assert find_domain("data", "lift", format=FORMAT).name == "lift.csv"
    assert find_domain("data", "lift").name == "lift.zarr"
    assert name_of(lab / "data/lift.csv", format=FORMAT) == "lift"
    with pytest.raises(UserError, match=r"no data/push\.csv\. data holds lift\. Set"):
        find_domain("data", "push", format=FORMAT)


def test_one_of_ours_can_be_named_where_two_are_called_alike(tmp_path):
    write_store(tmp_path / "b.zarr")
    # an empty file, whose ending comes before a folder's that has none
    (tmp_path / "b.zarr").rename(tmp_path / "b")
    (tmp_path / "b.h5").touch()
    assert find_domain(tmp_path, "b").name == "b.h5"
    assert find_domain(tmp_path, "b", format="replay_buffer").name == "b"
    assert open_store(tmp_path / "b", format="replay_buffer").episode_ends.tolist() == [3, 5]


def test_a_class_or_an_object_serves_as_well_as_a_module(lab):
    text = """
from my_lab import csv_episodes

class Csv:
    NAME, LOOKED_FOR, ENDINGS = "Csv", "a .csv", [".csv"]

    def recognises(self, path):
        return csv_episodes.recognises(path)

    def open_store(self, path, *, filter_key):
        return csv_episodes.open_store(path, filter_key=filter_key)

CSV = Csv()

class Needy(Csv):
    def __init__(self, separator):
        pass
"""
    (lab / "my_lab/classes.py").write_text(text)
    for name in ("Csv", "CSV"):
        assert open_store("data/lift.csv", format=f"my_lab.classes:{name}").episode_ends.tolist() == [4, 6, 9]
    assert find_domain("data", "lift", format="my_lab.classes:Csv").name == "lift.csv"
    assert "Needy() is called without arguments" in refusal("my_lab.classes:Needy")


def test_a_format_that_is_not_there_is_told_with_where_it_was_looked_for(lab):
    line = refusal("my_lab.cvs_episodes")
    assert "dataset.format=my_lab.cvs_episodes: no module my_lab.cvs_episodes." in line
    assert str(lab) in line
    line = refusal("lerobt")
    assert "Ours are replay_buffer, lerobot, robomimic, maniskill, rlds. Did you mean lerobot?" in line
    assert "has no CSV" in refusal(f"{FORMAT}:CSV")


def test_a_format_that_breaks_at_its_import_names_the_line(lab):
    (lab / "my_lab/csv_episodes.py").write_text("import numpy\n\n1 / 0\n")
    assert "ZeroDivisionError: division by zero" in refusal()
    assert "csv_episodes.py, line 3" in refusal()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("NAME =", "TITLE =", "has no NAME. Write NAME ="),
        ("LOOKED_FOR", "looked_for", "has no LOOKED_FOR. Write LOOKED_FOR = "),
        ("def recognises", "def recognizes", "has no recognises. Write def recognises(path): …; it has recognizes."),
        ("def open_store", "def open", "has no open_store. Write def open_store(path, *, filter_key=None)"),
        ('NAME = "CSV of my lab"', "NAME = 3", "NAME is 3, not a text."),
        ("def recognises(path)", "def recognises()", "recognises() cannot be called"),
        ("(path, *, filter_key=None)", "(path)", "open_store(path) cannot be called"),
        ('(".csv",)', '".csv"', "ENDINGS is '.csv'. Write them with their dots"),
        ('(".csv",)', '("csv",)', "ENDINGS is ('csv',)"),
        ('ArrayColumn(table[:, 1:3], stored_as="x, y")', "table[:, 1:3]", "ndarray as the column obs/state. Wrap it:"),
        ("return EpisodeStore(", "return dict(", "gave dict, not an EpisodeStore"),
        ("table[:, 1:3]", "table[:, 1:3].astype(str)", "a column is (N, ...) numbers"),
        ("return path.suffix", "path.suffix", "does not recognise it. It holds"),
    ],
)  # fmt: skip
def test_what_a_format_lacks_is_named(lab, old, new, told):
    edited(lab, old, new)
    assert told in refusal()


def test_a_path_of_another_kind_is_refused_with_what_was_looked_for(lab):
    (lab / "data/notes.txt").write_text("hello")
    assert "Looked for CSV of my lab: a file that ends in .csv." in refusal(path="data/notes.txt")
    assert "no such dataset" in refusal(path="data/absent.csv")
    with pytest.raises(UserError, match="dataset.format=lerobot does not recognise it"):
        open_store("data/lift.csv", format="lerobot")


def test_rows_that_a_format_decoded_before_it_was_edited_are_decoded_anew(lab):
    decoding = "DecodedColumn(({n}, 1), np.float32, lambda rows: ((int(r), np.full((1, 1), {v})) for r in rows)"
    old = 'ArrayColumn(table[:, 3:5], stored_as="dx, dy")'
    with_cache = {"format": FORMAT, "cache_dir": lab / "cache", "cache_gb": 1}
    for value in (1, 2):
        column = decoding.format(n=9, v=f"np.float32({value})") + ', stored_as="dx", layout="csv")'
        text = CSV_EPISODES.replace(old, column).replace("import ArrayColumn", "import ArrayColumn, DecodedColumn")
        (lab / "my_lab/csv_episodes.py").write_text(text)
        sys.modules.pop(FORMAT, None)
        for _ in range(2):
            assert open_store("data/lift.csv", **with_cache).read("actions", [0, 8]).tolist() == [[value], [value]]


def test_the_converter_takes_a_format_of_ones_own(lab):
    command = [
        sys.executable,
        str(ROOT / "scripts/convert_dataset.py"),
        "source=data/lift.csv",
        "target=data/lift.zarr",
    ]
    run = subprocess.run([*command, f"format={FORMAT}"], capture_output=True, text=True, cwd=lab)
    assert run.returncode == 0, run.stderr
    ours, theirs = open_store("data/lift.zarr"), open_store("data/lift.csv", format=FORMAT)
    assert ours.episode_ends.tolist() == [4, 6, 9]
    for key in ("obs/state", "actions"):
        assert np.array_equal(ours.read(key, np.arange(9)), theirs.read(key, np.arange(9)))
    run = subprocess.run([*command, "format=my_lab.absent"], capture_output=True, text=True, cwd=lab)
    assert run.returncode == 2
    assert "no module my_lab.absent" in run.stderr


def test_a_column_in_memory_gives_rows_in_any_order():
    values = np.arange(12, dtype=np.int16).reshape(6, 2)
    column = ArrayColumn(values, stored_as="joints")
    assert (column.shape, column.dtype, column.stored_as) == ((6, 2), np.dtype(np.int16), "joints")
    assert column.read(np.array([5, 0, 5])).tolist() == [[10, 11], [0, 1], [10, 11]]
