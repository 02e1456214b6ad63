"""The panel of a run in a real JupyterLab: what it shows moves, what its buttons ask is done."""

from __future__ import annotations

import json

import pytest
from conftest import SMALL_WORDS, latest

from ppt_kit.checkpoint import load_resume
from ppt_kit.tracking import read_metrics

PANEL = ".ppt-live"


def cells(small_data, tmp_path, *run: str, words=()):
    """Cells of a notebook that trains a tiny policy for a long time."""
    asked = latest(
        *SMALL_WORDS, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path / 'models'}", "suffix=run",
        "train.total_epochs=100000", "save_interval=100000", "train.val_interval=20", "optimizer.lr=0.001", *words,
    )  # fmt: skip
    made = f"import ppt_kit as ppt\nrun = ppt.UnifiedTrainer(ppt.load_config('quickstart', *{json.dumps(asked)}))"
    return [made, *run]


def of_kind(tmp_path, kind):
    path = tmp_path / "models/a/run"
    return read_metrics(path, kind) if (path / "metrics.jsonl").exists() else read_nothing()


def read_nothing():
    import pandas as pd

    return pd.DataFrame(columns=["kind", "step"])


def press(lab, text):
    lab.page.locator(f"{PANEL} button", has_text=text).click()


def put(lab, name, value):
    lab.page.locator(f"{PANEL} input[name={name}]").fill(value)
    lab.page.keyboard.press("Enter")


def said(lab):
    return lab.page.locator(f"{PANEL} .note").inner_text()


def test_a_run_in_the_background_is_seen_and_steered(lab, small_data, tmp_path):
    lab.open(cells(small_data, tmp_path, "run.run(background=True)", "6 * 7"))
    # the kernel is free: the cell behind has run
    assert lab.outputs(2)[0]["data"]["text/plain"] == "42"
    lab.wait(lambda: len(of_kind(tmp_path, "val")) > 0)
    before = lab.pixels(f"{PANEL} canvas")
    lab.wait(lambda: (lab.pixels(f"{PANEL} canvas") != before).any())
    assert "epoch" in lab.page.locator(f"{PANEL} .where").inner_text()
    lab.screenshot(tmp_path / "training.png")

    press(lab, "Save now")
    lab.wait(lambda: len(of_kind(tmp_path, "checkpoint")) == 1)
    lab.wait(lambda: "model.pth" in lab.page.locator(f"{PANEL} .saved").inner_text())
    put(lab, "lr", "-1")
    lab.wait(lambda: "above 0" in said(lab))
    put(lab, "lr", "0.005")
    lab.wait(lambda: "was 0.001" in said(lab))
    put(lab, "epochs", "1")
    lab.wait(lambda: "already" in said(lab))
    asked = of_kind(tmp_path, "steer").iloc[-1]
    assert (asked["asked"], asked["value"]) == ("lr", 0.005)
    rates = lab.wait(lambda: [r for r in of_kind(tmp_path, "train").itertuples() if r.step == asked["step"] + 1])
    assert rates[0].lr == pytest.approx(0.005, rel=1e-2)

    press(lab, "Stop")
    lab.wait(lambda: "stopped" in lab.page.locator(f"{PANEL} .state").inner_text())
    end = of_kind(tmp_path, "end").iloc[0]
    assert end["reason"] == "Stop"
    assert load_resume(tmp_path / "models/a/run")["engine"]["step"] == end["step"]
    assert lab.page.locator(f"{PANEL} button:enabled").count() == 0
    assert lab.ask("run.wait()") == 143
    assert lab.text(1) == ""
    assert not lab.elsewhere
    lab.screenshot(tmp_path / "stopped.png")


def test_a_cell_that_is_run_again_shows_what_trains(lab, small_data, tmp_path):
    begins = "run.run(background=True)"
    lab.open(cells(small_data, tmp_path, begins, begins))
    for cell in (1, 2):
        assert [each["output_type"] for each in lab.outputs(cell)] == ["display_data"]
    assert lab.page.locator(PANEL).count() == 2
    lab.wait(lambda: len(of_kind(tmp_path, "train")) > 0)
    lab.page.locator(f"{PANEL} button", has_text="Stop").last.click()
    for place in (0, 1):
        lab.wait(lambda place=place: "stopped" in lab.page.locator(f"{PANEL} .state").nth(place).inner_text())
    assert len(of_kind(tmp_path, "end")) == 1


def test_a_run_whose_process_is_gone_or_that_failed_is_said_to_be(lab, tmp_path):
    import platform

    from test_compare_many_runs import rows_of_a_run, write_run

    from ppt_kit.tracking import PROVENANCE, note_end

    run = write_run(tmp_path / "run", rows=rows_of_a_run(1e-3, "mlp", 0), end=False)
    (run / PROVENANCE).write_text(f"host: {platform.node()}\n")
    lab.open([f"import ppt_kit as ppt; ppt.live({str(run)!r})"])
    state = lambda: lab.page.locator(f"{PANEL} .state").inner_text()
    lab.wait(lambda: state() == "gone: no process trains here any more")
    assert lab.page.locator(f"{PANEL} button:enabled").count() == 0
    note_end(run, ValueError("unlucky"))
    lab.wait(lambda: state() == "failed" and "ValueError: unlucky" in said(lab))


def test_a_run_that_the_cell_waits_for_is_steered_too(lab, small_data, tmp_path):
    lab.open(cells(small_data, tmp_path, "code = run.run()"), run=False)
    lab.start()
    lab.wait(lambda: len(of_kind(tmp_path, "train")) > 5, timeout_s=60)
    before = lab.pixels(f"{PANEL} canvas")
    lab.wait(lambda: (lab.pixels(f"{PANEL} canvas") != before).any())
    put(lab, "lr", "0.005")
    lab.wait(lambda: "was 0.001" in said(lab))
    press(lab, "Stop")
    lab.wait(lambda: lab.page.evaluate("window.ran") == "done")
    assert lab.ask("code") == 143
    assert of_kind(tmp_path, "end").iloc[0]["reason"] == "Stop"
    assert [each["output_type"] for each in lab.outputs(1)] == ["display_data"]
