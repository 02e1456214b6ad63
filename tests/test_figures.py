"""Figures of success: n and interval in numbers beside each bar, no two texts on one another, no control like a policy."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import ppt_kit as ppt
from ppt_kit.notebook.success import _in_lines, short_names


def texts_of(figure):
    """(text, box in pixels) of everything that is written."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, hidden = canvas.get_renderer(), set()
    for axis in [each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        # matplotlib keeps ticks beyond the axis, and does not draw them
        hidden |= {
            label
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
            if not low <= tick.get_loc() <= high
            for label in (tick.label1, tick.label2)
        }
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in hidden
    ]


def assert_readable(figure):
    """Nothing that is written lies on other writing, or beyond the edge."""
    written = texts_of(figure)
    width, height = figure.canvas.get_width_height()
    for (one, a), (other, b) in itertools.combinations(written, 2):
        across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 1 or up < 1, f"{one!r} lies on {other!r}"
    for text, box in written:
        assert box.x0 > -1, text
        assert box.y0 > -1, text
        assert box.x1 < width + 1, text
        assert box.y1 < height + 1, text


def episodes(checkpoint, task, wins, n, *, control=None, zero_keys=(), errors=0, epoch=1):
    common = {"checkpoint": checkpoint, "task": task, "control": control, "zero_keys": list(zero_keys), "epoch": epoch}
    return [
        {**common, "seed": seed, "steps": 5, "success": seed < wins if seed < n else None, "error": None if seed < n else "x"}
        for seed in range(n + errors)
    ]  # fmt: skip


LONG = "outputs/models/press/a-run-with-a-rather-long-name-lr-0.001_seed-"
FEW = [*episodes("out/a/exp1", "press", 18, 20), *episodes("out/a/exp1", "press", 2, 20, zero_keys=["pointcloud"])]
MANY = [
    *(row for run in range(12) for row in episodes(f"{LONG}{run}", "button-press-topdown-wall", run, 20, errors=run % 2)),
    *episodes("-", "button-press-topdown-wall", 20, 20, control="expert"),
    *episodes("-", "button-press-topdown-wall", 0, 0, control="replay 0123ab", errors=20),
    *episodes(f"{LONG}3", "button-press-topdown-wall", 9, 20, control="blind"),
]  # fmt: skip
TASKS = [
    row
    for task in ("door-open", "drawer-close", "reach")
    for control, wins in ((None, 44), ("hold", 0), ("no_pointcloud", 7), ("expert", 50))
    for row in episodes("out/a/exp1", task, wins, 50, control=control)
]


@pytest.mark.parametrize("width", [6.4, 3.3])
@pytest.mark.parametrize("rows", [FEW, MANY, TASKS], ids=["few", "many", "tasks"])
def test_bars_of_success_can_be_read(rows, width):
    figure = ppt.plot_success(pd.DataFrame(rows), width=width)
    assert figure.get_size_inches()[0] == width
    assert_readable(figure)
    table = ppt.success_table(pd.DataFrame(rows))
    written = [text for text, _ in texts_of(figure)]
    for line in table[table["episodes"] > 0].to_dict("records"):
        counted, interval = (
            f"{line['successes']}/{line['episodes']}",
            f"[{100 * line['low_95']:.0f}, {100 * line['high_95']:.0f}]",
        )
        assert any(counted in text and interval in text for text in written)


@pytest.mark.parametrize("rows", [FEW, MANY, TASKS], ids=["few", "many", "tasks"])
def test_a_control_is_grey_hatched_and_called_one(rows):
    figure = ppt.plot_success(pd.DataFrame(rows))
    table = ppt.success_table(pd.DataFrame(rows))
    axes = figure.axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    drawn = table[table["episodes"] > 0]
    assert len(bars) == len(drawn)
    for bar, control in zip(bars, drawn["control"]):
        red, green, blue = to_rgb(bar.get_facecolor())
        assert bool(bar.get_hatch()) == (red == green == blue) == (control != "-")
    named = ["".join(label.get_text().splitlines()).startswith("control: ") for label in axes.get_yticklabels()]
    assert named == list(table["control"] != "-")


def test_the_report_of_a_run_can_be_read(tmp_path):
    from ppt_kit.notebook.plots import plot_report
    from ppt_kit.sim.results import Evaluation

    rows = [f'{{"kind": "train", "step": {step}, "loss": {1 / step}}}\n' for step in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    assert_readable(plot_report(tmp_path, Evaluation(FEW)))
    frames, cloud = [np.full((32, 40, 3), shade, np.uint8) for shade in (10, 90, 200)], np.random.rand(50, 3)
    full = plot_report(tmp_path, Evaluation(FEW), frames=frames, cloud=cloud)
    shown = [image.get_array() for part in full.subfigs for axes in part.axes for image in axes.images]
    assert all(np.array_equal(image, frame) for image, frame in zip(shown, frames, strict=True))
    assert "a demonstration's cloud: 50 points" in [axes.get_title() for part in full.subfigs for axes in part.axes]


def test_the_pictures_of_a_film_are_its_first_middle_and_last_without_what_is_written_below(tmp_path):
    from ppt_kit.sim.watch import BAR, pictures_of, write_video

    shades = [0, 60, 120, 180, 240]
    write_video(tmp_path / "film.mp4", [np.full((64 + BAR, 48, 3), shade, np.uint8) for shade in shades])
    pictures = pictures_of(tmp_path / "film.mp4", count=3)
    assert [picture.shape for picture in pictures] == [(64, 48, 3)] * 3
    assert [picture.mean() for picture in pictures] == pytest.approx([0, 120, 240], abs=6)


def test_bars_are_named_by_what_tells_them_apart():
    assert short_names(["o/a/exp1", "o/a/exp2"]) == ["exp1", "exp2"]
    assert short_names(["o/a/exp1", "o/b/exp1"]) == ["a/exp1", "b/exp1"]
    assert short_names(["o/a/exp1/model_10.pth", "o/a/exp1/model_20.pth"]) == ["exp1/model_10", "exp1/model_20"]
    assert _in_lines("a-run-with-a-name_lr-0.001_seed-0", 18) == "a-run-with-a-name_\nlr-0.001_seed-0"
    assert _in_lines("x" * 30, 12) == "\n".join(["x" * 12, "x" * 12, "x" * 6])


@pytest.mark.parametrize(
    ("given", "says"),
    [("runs/a", "not str"), (None, "not NoneType"), (3, "not int"), ([], "an empty list"), (pd.DataFrame({"a": [1]}), "no checkpoint, task")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("draws", [ppt.success_table, ppt.checkpoint_table, ppt.plot_success, ppt.show_videos])
def test_what_no_evaluation_gave_is_one_line(draws, given, says):
    if draws is ppt.show_videos and isinstance(given, pd.DataFrame):
        says = "not str"
    with pytest.raises(ppt.UserError, match=says):
        draws(given)
