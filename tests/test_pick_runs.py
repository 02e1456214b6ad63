"""The list of runs in a real JupyterLab: ticked, sorted, filtered, a checkpoint chosen, read again."""

from __future__ import annotations

import itertools
import json

import pytest
from test_compare_many_runs import HEADS, LEARNING_RATES, rows_of_a_run, write_run

import ppt_kit as ppt
from ppt_kit.errors import UserError


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models/press"
    for lr, head in itertools.product(LEARNING_RATES, HEADS):
        words = (f"optimizer.lr={lr}", f"policy.head.kind={head}")
        run, epochs = folder / f"{head}-lr-{lr}", (4, 6)
        saved = [("checkpoint", {"step": 10 * n, "epoch": n, "loss": 0.1, "path": f"model_{n}.pth"}) for n in epochs]
        write_run(run, *words, rows=[*rows_of_a_run(lr, head, 0), *saved])
        for epoch in epochs:
            # what is in it is read by load_policy alone
            (run / f"model_{epoch}.pth").write_bytes(b"weights")
    return folder


def test_what_is_ticked_can_be_compared(models):
    picker = ppt.pick_runs(f"{models}/*")
    with pytest.raises(UserError, match="no run is ticked"):
        _ = picker.runs
    picker.picked = ["mlp-lr-0.001", "flow-lr-0.001"]
    assert picker.runs.keys == ["policy.head.kind"]
    assert [column["name"] for column in picker.columns] == ["run", "kind", "lr", "state", "epoch", "loss", "val loss", "success"]  # fmt: skip
    json.dumps(picker.rows, allow_nan=False)
    row = next(row for row in picker.rows if row["cells"]["run"]["text"] == "mlp-lr-0.001")
    assert [file["epoch"] for file in row["checkpoints"]] == [4, 6]
    write_run(models / "late", rows=rows_of_a_run(1e-3, "mlp", 0))
    picker.read()
    assert len(picker.rows) == 7
    assert picker.picked == ["mlp-lr-0.001", "flow-lr-0.001"]


@pytest.mark.parametrize("theme", [None, pytest.param("JupyterLab Dark", marks=pytest.mark.long)])
def test_runs_are_picked_with_the_mouse_and_the_keyboard(theme, lab, models, tmp_path):
    page = lab.open(["import ppt_kit as ppt", f"picker = ppt.pick_runs('{models}/*')\npicker"], theme=theme)
    page.wait_for_selector(".ppt-picker tbody tr")
    page.click("tr[data-run='mlp-lr-0.001']")
    page.focus("tr[data-run='flow-lr-0.0003'] input")
    page.keyboard.press("Space")
    lab.wait(lambda: lab.ask("picker.picked") == ["mlp-lr-0.001", "flow-lr-0.0003"])
    first = lambda: page.get_attribute(".ppt-picker tbody tr", "data-run")
    page.click(".ppt-picker th button:has-text('val loss')")
    assert first() == "regression-lr-0.001"
    page.click(".ppt-picker th button:has-text('val loss')")
    assert first() == "flow-lr-0.0003"
    page.click("tr[data-run='flow-lr-0.0003'] .ppt-files button")
    page.click("tr.ppt-checkpoints button:has-text('epoch 6')")
    lab.wait(lambda: lab.ask("picker.checkpoint") == str(models / "flow-lr-0.0003/model_6.pth"))
    lab.screenshot(tmp_path / "picker.png", ".ppt-picker")
    page.fill(".ppt-picker input[type=search]", "kind=mlp lr=0.001")
    assert page.locator(".ppt-picker tbody tr[data-run]").count() == 1
    assert "1 of 6 runs shown, 2 ticked" in page.inner_text(".ppt-foot")
    page.fill(".ppt-picker input[type=search]", "")
    write_run(models / "late", rows=rows_of_a_run(1e-3, "mlp", 0))
    page.click("button:has-text('Read again')")
    page.wait_for_selector("tr[data-run='late']")
    assert lab.ask("len(picker.runs)") == 2
    # where the table is wider than its cell, what unfolds a run stays in sight
    page.set_viewport_size({"width": 640, "height": 1000})
    scroll = page.locator(".ppt-picker .ppt-scroll")
    lab.wait(lambda: scroll.evaluate("each => each.scrollWidth > each.clientWidth"))
    edge, button = scroll.bounding_box(), page.locator("tr[data-run='late'] .ppt-files").bounding_box()
    assert button["x"] + button["width"] <= edge["x"] + edge["width"]
    assert lab.elsewhere == []
    assert lab.complaints == []
