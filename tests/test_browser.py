"""The browser that other tests use: what it says of a notebook is what the kernel did."""

from __future__ import annotations

import pytest
from conftest import ROOT, run_script

SLIDER = """import ipywidgets
slider = ipywidgets.IntSlider(value=3, max=10, layout={'width': '400px'})
slider"""


def test_a_notebook_runs_in_jupyterlab_and_its_slider_moves_the_kernels_value(lab, tmp_path):
    lab.open(["import ppt_kit; print(ppt_kit.__file__)", SLIDER])
    assert lab.text(0).strip() == str(ROOT / "ppt_kit/__init__.py")
    assert "application/vnd.jupyter.widget-view+json" in lab.outputs(1)[0]["data"]
    before = lab.pixels(".widget-slider")
    lab.page.locator(".noUi-handle").focus()
    for _ in range(4):
        lab.page.keyboard.press("ArrowUp")
    lab.wait(lambda: lab.ask("slider.value") == 7)
    assert (lab.pixels(".widget-slider") != before).any()
    lab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert not lab.elsewhere


def test_a_cell_that_raises_is_told(lab):
    with pytest.raises(AssertionError, match="division by zero"):
        lab.open(["1 / 0"])


@pytest.mark.parametrize("words", [[], ["launch"]])
def test_screenshots_without_a_browser_are_one_line(words, tmp_path):
    done = run_script(str(ROOT / "scripts/draw_screens.py"), *words, env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no browser: none of chromium")
    unknown = run_script(str(ROOT / "scripts/draw_screens.py"), "lunch", env={"PATH": str(tmp_path)})
    assert unknown.stderr == "error: lunch: takes inspect, live, launch, runs.\n"
