"""Jobs from a cell: launched, found again by another process, watched, stopped, killed, resumed, listed. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from test_jobs import ENDLESS, processes_of, wait_for

import ppt_kit as ppt
from ppt_kit.checkpoint import load_resume
from ppt_kit.errors import UserError

TWO = ("batch_size=4",)


@pytest.fixture
def launched(small_cfg, tmp_path, monkeypatch):
    """Launches a small run as a cell does; nothing of it is left after the test."""
    # a run in this kernel before has left one
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.chdir(ROOT)
    yield lambda *words, **how: ppt.launch(small_cfg(*TWO, *words), **{"num_gpus": 2, **how})
    left = processes_of(tmp_path / "models/a/run")
    for process in left:
        process.kill()
    assert left == []


CELL = """
import sys, time
import ppt_kit as ppt
from ppt_kit.config import from_file
job = ppt.launch(from_file(sys.argv[1]), num_gpus=2)
print(job, flush=True)
time.sleep(600)
"""


def test_a_killed_kernel_leaves_a_job_that_another_process_finds_and_stops(small_cfg, tmp_path):
    OmegaConf.save(small_cfg(*TWO, *ENDLESS), tmp_path / "given.yaml")
    (tmp_path / "kernel.py").write_text(CELL)
    kernel = subprocess.Popen(
        [sys.executable, tmp_path / "kernel.py", tmp_path / "given.yaml"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert "running, 2 ranks" in kernel.stdout.readline()
    run_dir = tmp_path / "models/a/run"
    job = ppt.attach(run_dir)
    wait_for(lambda: len(job.rows()) > 2)
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    step = job.rows()[-1]["step"]
    # the ranks look every second whether those that led to them live
    time.sleep(2.5)
    assert job.running
    assert job.rows()[-1]["step"] > step
    listed = ppt.jobs(tmp_path).iloc[0]
    assert (listed["state"], listed["ranks"], listed["run_dir"]) == ("running", 2, str(run_dir))
    with pytest.raises(UserError, match="a job trains there already"):
        ppt.launch(small_cfg(*TWO, *ENDLESS), num_gpus=2)
    with pytest.raises(UserError, match="a job trains there already"):
        job.resume()
    stopped = subprocess.run(
        [sys.executable, "-c", f"import ppt_kit as ppt; print(ppt.attach({str(run_dir)!r}).stop())"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert stopped.stdout.strip() == "143", stopped.stderr
    assert job.state.word == "stopped"
    assert job.state.detail == f"by SIGTERM after step {load_resume(run_dir)['engine']['step']}"
    assert processes_of(run_dir) == []


# ------------------------------------------------------------------ in a real JupyterLab

PANEL = """
import ppt_kit as ppt
from ppt_kit.config import from_file
job = ppt.launch(from_file({given!r}), num_gpus=2)
"""


def test_a_job_is_watched_and_stopped_from_its_panel(lab, small_cfg, tmp_path):
    """Two CPU ranks from a cell: the log streams, the other rank's can be chosen, Stop ends with a checkpoint."""
    OmegaConf.save(small_cfg(*TWO, *ENDLESS), tmp_path / "given.yaml")
    page = lab.open([PANEL.format(given=str(tmp_path / "given.yaml")), "job"])
    run_dir = tmp_path / "models/a/run"
    shown = page.locator(".ppt-job")
    word, log = shown.locator(".ppt-job-word"), shown.locator(".ppt-job-log")
    lab.wait(lambda: word.inner_text() == "running" and "global batch 8" in log.inner_text(), timeout_s=60)
    lab.wait(lambda: "loss" in shown.locator(".ppt-job-numbers").inner_text(), timeout_s=60)
    before = shown.locator(".ppt-job-numbers").inner_text()
    lab.wait(lambda: shown.locator(".ppt-job-numbers").inner_text() != before)
    assert shown.locator(".ppt-job-command").input_value() == lab.ask("job.command_line")
    shown.locator(".ppt-job-rank").select_option("1")
    lab.wait(lambda: lab.ask("job.panel.children[0].rank") == 1 and "global batch" not in log.inner_text())
    assert shown.locator(".ppt-job-resume").is_disabled()
    if os.environ.get("SHOTS"):
        lab.screenshot(os.environ["SHOTS"] + "/running.png")
    shown.locator(".ppt-job-stop").click()
    lab.wait(lambda: word.inner_text() == "stopped", timeout_s=60)
    assert f"step {load_resume(run_dir)['engine']['step']}" in shown.locator(".ppt-job-numbers").inner_text()
    assert processes_of(run_dir) == []
    assert not lab.elsewhere
    if os.environ.get("SHOTS"):
        lab.screenshot(os.environ["SHOTS"] + "/stopped.png")
