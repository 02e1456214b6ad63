"""Every public plot has the line of pandas that gives its numbers: the line is run, and its numbers are those drawn."""

from __future__ import annotations

import html
import json

import numpy as np
import pandas as pd
import pytest
from conftest import write_store
from test_figures import episodes

import ppt_kit as ppt
from ppt_kit.sim.compare.result import Comparison, Pair
from ppt_kit.sim.compare.several import MethodComparison
from ppt_kit.sim.results import Evaluation


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """{what: (the plot, the name that its argument has in the line, the argument)} of every public plot."""
    folder = tmp_path_factory.mktemp("plots")
    for name in ("one", "other"):
        (folder / name).mkdir()
        rows = [{"kind": "train", "step": step, "loss": 1 / step, "lr": 0.1} for step in range(1, 9)]
        rows += [{"kind": "val", "step": 8, "loss": 0.5}, {"kind": "checkpoint", "step": 8, "path": "model_1.pth"}]
        rows += [{"kind": "eval", "step": 8, "domain": "press", "success": 0.25}]
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = [Evaluation(episodes("out/a/exp1", "press", 18, 20)), Evaluation(episodes("out/a/exp2", "press", 2, 20))]
    tables = (np.eye(2, 6), np.ones((1, 6)))
    pairs = tuple(Pair(seed, seed % 3 > 0, seed % 5 == 0) for seed in range(30))
    store = write_store(folder / "press.zarr")
    return {
        "a run": (ppt.plot_metrics, "metrics", folder / "one"),
        "runs": (ppt.plot_metrics, "metrics", [folder / "one", str(folder / "other")]),
        "rows": (ppt.plot_metrics, "metrics", ppt.read_metrics(folder / "one")),
        "rates": (ppt.plot_success, "results", results),
        "checkpoints": (ppt.plot_checkpoints, "results", results),
        "two policies": (ppt.plot_comparison, "result", Comparison("a", "b", "press", pairs)),
        "two methods": (
            ppt.plot_comparison, "result", MethodComparison((("a1", "a2"), ("b1",)), "press", tuple(range(6)), tables),
        ),
        "a path": (ppt.plot_episode, "dataset", store),
        "a dataset": (ppt.plot_episode, "dataset", ppt.open_dataset(store)),
    }  # fmt: skip


EACH = ["a run", "runs", "rows", "rates", "checkpoints", "two policies", "two methods", "a path", "a dataset"]


def test_no_public_plot_is_left_out_here(given):
    plots = {getattr(ppt, name) for name in ppt.__all__ if name.startswith("plot_")}
    assert plots == {plot for plot, _, _ in given.values()}
    assert list(given) == EACH


@pytest.mark.parametrize("what", EACH)
def test_the_line_of_a_plot_gives_its_data(what, given):
    plot, name, argument = given[what]
    figure = plot(argument)
    assert len(figure.data)
    assert "\n" not in figure.code
    pd.testing.assert_frame_equal(eval(figure.code, {"pd": pd, "ppt": ppt, name: argument}), figure.data)
    assert html.escape(figure.code) in figure._repr_html_()


def test_what_is_drawn_is_the_data(given):
    def drawn(what):
        plot, _, argument = given[what]
        figure = plot(argument)
        return figure, [line.get_ydata() for axes in figure.axes for line in axes.lines]

    for what in ("a path", "a dataset"):
        figure, lines = drawn(what)
        assert len(lines) == 8
        assert np.array_equal(np.stack(lines, axis=1), figure.data)
    figure, lines = drawn("runs")
    for run, (train, val) in zip(figure.data["run"].unique(), [lines[:2], lines[2:4]]):
        rows = figure.data[figure.data["run"] == run]
        assert list(rows[rows["kind"] == "train"]["loss"]) == list(train)
        assert list(rows[rows["kind"] == "val"]["loss"]) == list(val)
    figure, _ = drawn("rates")
    assert [bar.get_width() for bar in figure.axes[0].patches] == list(figure.data["rate"]) == [0.9, 0.1]
    figure, (course, _, _) = drawn("two policies")
    assert np.array_equal(course, 100 * figure.data["difference"])
    figure, _ = drawn("two methods")
    points = [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert np.concatenate(points) == pytest.approx(100 * figure.data["rate"])
