"""Jobs from a cell: launched, found again by another process, watched, stopped, killed, resumed, listed. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from test_jobs import ENDLESS, processes_of, wait_for

import ppt_kit as ppt
from ppt_kit.checkpoint import load_resume
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import Share
from ppt_kit.jobs.failures import failure_of, log_of
from ppt_kit.jobs.launcher import launcher_command, read_hostfile
from ppt_kit.jobs.record import Record, read_record

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
