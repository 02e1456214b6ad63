"""What a cell shows: tables that fit it, a configuration by what differs, a mistake in one line."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd
import pytest
from conftest import write_store
from jupyter_client.manager import start_new_kernel

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.tables import Table, brief

LONG = "/a/very/long/way/to/the/folder/of/all/runs/button-press-topdown/exp1/model_45.pth"


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (0.123456789, "0.1235"), (np.float32(2), "2"), (np.nan, "–"), (None, "–"), (pd.NA, "–"), ((128, 128, 3), "128×128×3"), (120000.0, "120000"),
        (LONG, "…/button-press-topdown/exp1/model_45.pth"), ("a b" * 40, "a b" * 14 + "a…"), (7, "7"), (True, "True"),
    ],
)  # fmt: skip
def test_a_cell_is_short_and_says_what_matters(value, seen):
    assert brief(value) == seen


def test_a_table_has_the_whole_of_what_it_shortens_under_the_pointer_and_stays_a_dataframe():
    table = Table({"path": [LONG, "<b>"], "rate": [1 / 3, 1.0]})
    shown = table._repr_html_()
    assert f'title="{LONG}"' in shown
    assert "&lt;b&gt;" in shown
    assert "0.3333" in shown
    assert isinstance(table[table["rate"] < 1], Table)
    assert table["rate"].sum() == pytest.approx(4 / 3)
    assert "… 40 more …" in Table({"x": range(100)})._repr_html_()


def test_a_column_that_says_nothing_in_any_row_is_not_shown_and_is_there():
    table = Table([{"task": "a", "control": "-", "rate": 1.0}, {"task": "b", "control": "-", "rate": 0.5}])
    assert "control" not in table._repr_html_()
    assert list(table["control"]) == ["-", "-"]
    assert "control" in Table([{"task": "a", "control": "-"}, {"task": "a", "control": "blind"}])._repr_html_()


def test_a_run_says_where_it_is(small_cfg):
    run = ppt.UnifiedTrainer(small_cfg("suffix=one"))
    assert repr(run) == f"run of a in {run.run_dir}, train_mode=auto"


def test_a_description_says_what_is_of_a_whole_dataset_once(tmp_path):
    write_store(tmp_path / "a.zarr")
    table = ppt.describe(tmp_path / "a.zarr")
    shown = html.unescape(re.sub("<[^>]*>", " ", table._repr_html_()))
    assert "a: zarr replay buffer, 4 episodes, 43 steps (7 to 15, median 10.5 each); 4 sentence(s)" in shown
    assert shown.count("zarr replay buffer") == 1
    assert "nans infs" in " ".join(shown.split())
    assert table.loc[("a", "obs/eef_pos"), "steps"] == 43, "the table itself has everything"


def test_the_curves_of_an_episode_are_named(tmp_path):
    write_store(tmp_path / "a.zarr")
    figure = ppt.plot_episode(tmp_path / "a.zarr", 0)
    named = [[text.get_text() for text in axes.get_legend().texts] for axes in figure.axes if axes.get_legend()]
    assert named == [
        ["eef_pos 0", "eef_pos 1", "eef_pos 2", "normalized_gripper_pos"], [f"actions {i}" for i in range(4)]
    ]  # fmt: skip


def test_a_notebook_shows_configurations_and_mistakes_without_a_flood():
    cells = [
        "import ppt_kit as ppt\ncfg = ppt.load_config('quickstart', 'train.total_epochs=7')\ncfg",
        "ppt.load_config('quickstart', 'train.total_epoch=7')",
        "'total_epochs' in dir(cfg.train)",
        "import logging\nlogging.getLogger('ppt_kit.sim').warning('a sentence')",
    ]
    words = [
        "ppt.load_config('quickstart',\n    'train.total_e", 'ppt.load_config("quickstart", "optim', "ppt.sweep(cfg, {'optimizer.l",
        'ppt.load_config("quickstart"', 'print("train.total_e', "ppt.load_config('quickstart', 'nothing.begins_so",
    ]  # fmt: skip
    manager, client = start_new_kernel()
    said, completions = [], []
    try:
        for cell in cells:
            said.append([])
            client.execute_interactive(
                cell, timeout=60, output_hook=lambda message: said[-1].append(message["content"])
            )
        for text in words:
            completions.append(client.complete(text, reply=True, timeout=60)["content"])
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    # keys inside the words of a configuration; elsewhere what IPython has to say
    assert [each["matches"] for each in completions[:2]] == [["train.total_epochs="], ["optimizer."]]
    assert completions[0]["cursor_end"] - completions[0]["cursor_start"] == len("train.total_e")
    assert "optimizer.lr" in completions[2]["matches"]
    assert not [name for each in completions[3:] for name in each["matches"] if name.startswith(("train.", "optim"))]
    (shown,) = [each["data"] for each in said[0] if "data" in each]
    assert "train.total_epochs=7" in shown["text/plain"]
    assert len(shown["text/plain"].splitlines()) < 20
    assert "<b>train.total_epochs</b></td><td>7</td>" in shown["text/html"]
    assert "action_horizon" in shown["text/html"], "all keys are under the fold"
    (error,) = [each for each in said[1] if "traceback" in each]
    assert len(error["traceback"]) == 1
    assert error["traceback"][0].startswith("error: unknown key train.total_epoch.")
    assert "Did you mean train.total_epochs?" in error["traceback"][0]
    assert "--help" not in error["traceback"][0]
    (completed,) = [each["data"]["text/plain"] for each in said[2] if "data" in each]
    assert completed == "True"
    assert [(each["name"], each["text"].strip()) for each in said[3] if "name" in each] == [("stdout", "a sentence")]


def test_a_mistake_outside_a_notebook_is_what_it_was():
    with pytest.raises(UserError, match="total_epoch"):
        ppt.load_config("quickstart", "train.total_epoch=7")
