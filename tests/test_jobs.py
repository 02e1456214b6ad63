"""Which mode and which processes: the truth table; a launched run as one object, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
from conftest import ROOT
from omegaconf import OmegaConf

import ppt_kit as ppt
from ppt_kit.checkpoint import load_model, load_resume
from ppt_kit.config import from_file
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import decide, local_share
from ppt_kit.jobs.job import Job
from ppt_kit.jobs.ranks import free_port
from ppt_kit.jobs.record import read_record
from ppt_kit.jobs.taken import held
from ppt_kit.tracking import read_metrics

ALONE: dict = {}
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
LAUNCHED_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("train_mode", "world_size", "env", "devices", "want"),
    [
        ("single", 1, ALONE, 0, "single"),
        ("single", 4, ALONE, 4, "single"),
        ("single", 1, LAUNCHED_ALONE, 1, "single"),
        ("auto", 1, ALONE, 0, "single"),
        ("auto", 1, ALONE, 8, "single"),
        ("auto", 2, ALONE, 0, "single"),
        ("auto", 4, ALONE, 2, "single"),
        ("auto", 2, ALONE, 2, "spawn"),
        ("auto", 1, LAUNCHED, 0, "rank"),
        ("auto", 2, LAUNCHED, 2, "rank"),
        ("auto", 1, LAUNCHED_ALONE, 1, "rank"),
        ("distributed", 2, ALONE, 0, "spawn"),
        ("distributed", 1, ALONE, 0, "spawn"),
        ("distributed", 1, LAUNCHED, 0, "rank"),
        ("distributed", 8, {"MASTER_ADDR": "h", "RANK": "4", "WORLD_SIZE": "8"}, 4, "spawn"),
    ],
)
def test_what_a_process_is_to_do(train_mode, world_size, env, devices, want):
    assert decide(train_mode, world_size=world_size, env=env, num_devices=devices) == want


def test_contradictions_are_refused():
    with pytest.raises(UserError, match="started 2 processes"):
        decide("single", world_size=1, env=LAUNCHED, num_devices=2)
    with pytest.raises(UserError, match="Leave world_size out"):
        decide("auto", world_size=3, env=LAUNCHED, num_devices=2)
    with pytest.raises(UserError, match=r"2 GPU\(s\) are visible"):
        local_share({}, world_size=4, num_devices=2)
    with pytest.raises(UserError, match="no rank for this node"):
        local_share({"MASTER_ADDR": "h", "RANK": "8", "WORLD_SIZE": "8"}, world_size=8, num_devices=4)


def test_a_node_starts_its_share():
    node = {"MASTER_ADDR": "h", "RANK": "4", "WORLD_SIZE": "8"}
    assert local_share(node, world_size=8, num_devices=4) == (4, 4, 8)
    assert local_share(node, world_size=8, num_devices=0) == (4, 1, 8)
    assert local_share({**node, "LOCAL_WORLD_SIZE": "2"}, world_size=8, num_devices=0) == (4, 2, 8)
    assert local_share({}, world_size=3, num_devices=0) == (0, 3, 3)


ENDLESS = ("train.total_iters=100000", "train.total_epochs=99999", "save_interval=99999", "train.val_interval=0")


def processes_of(run_dir):
    """The living processes of a launch in `run_dir`: what supervises, and the ranks."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(run_dir / "launch") in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for(condition, *, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def job_of(small_cfg, tmp_path, monkeypatch):
    """Starts two CPU ranks of a small run; whatever is left of them ends with the test."""
    # a run in this process before has left one, as a run in a notebook does
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.chdir(ROOT)
    run_dir = tmp_path / "models/a/run"
    yield lambda *words, **how: Job.start(
        small_cfg("train_mode=distributed", "world_size=2", "batch_size=4", *words),
        run_dir,
        world_size=2,
        num_devices=0,
        **how,
    )
    left = processes_of(run_dir)
    for process in left:
        process.kill()
    assert left == []


def test_a_job_started_and_waited_for_is_a_run(job_of, small_cfg):
    from ppt_kit.train.trainer import UnifiedTrainer

    job = job_of("train.total_iters=3")
    assert job.running
    given = small_cfg("train_mode=distributed", "world_size=2", "batch_size=4", "train.total_iters=3")
    assert from_file(job.run_dir / "launch/config.yaml") == given
    with pytest.raises(TimeoutError):
        job.wait(0)
    assert job.wait() == 0
    assert not job.running
    alone = UnifiedTrainer(small_cfg("train.total_iters=3", "suffix=alone"))
    assert alone.run() == 0
    of_job, of_one = (read_metrics(folder, "train")["loss"] for folder in (job.run_dir, alone.run_dir))
    assert (of_job / of_one - 1).abs().max() < 1e-5
    assert job.rows()[-1]["reason"] == "finished"
    assert "x 2 process(es)" in (job.run_dir / "train.log").read_text()
    assert job.output() == ""
    assert Job.attach(job.run_dir).wait() == 0


def test_a_stopped_job_has_saved_and_says_143(job_of, small_cfg):
    from ppt_kit.train.trainer import UnifiedTrainer

    job = job_of(*ENDLESS, detached=True)
    assert job.rows() == []
    wait_for(lambda: len(job.rows()) > 2)
    with pytest.raises(UserError, match="a job trains there already"):
        job_of(*ENDLESS)
    with pytest.raises(UserError, match="a job trains there already"):
        UnifiedTrainer(small_cfg("train.resume=auto", *ENDLESS)).run()
    assert job.stop() == 143
    assert job.rows()[-1]["reason"] == "SIGTERM"
    assert load_resume(job.run_dir)["engine"]["step"] == load_model(job.run_dir)["step"] == job.rows()[-1]["step"]
    assert "stopped by SIGTERM" in job.output()
    assert processes_of(job.run_dir) == []
    assert job.stop() == 143
    assert Job.attach(job.run_dir).stop() == 143


@pytest.mark.long
def test_ranks_that_do_not_leave_are_killed(job_of):
    job = job_of(*ENDLESS)
    wait_for(lambda: len(job.rows()) > 2)
    for rank in psutil.Process(job.record.pid).children():
        rank.suspend()
    assert job.stop(timeout_s=2) == 137
    assert Job.attach(job.run_dir).wait() == 137


def test_a_stop_before_the_ranks_are_there_is_not_lost(job_of):
    for delay in (0.0, 0.1, 0.3):
        job = job_of(*ENDLESS)
        time.sleep(delay)
        assert job.stop(timeout_s=30) == 143
        assert Job.attach(job.run_dir).state == ("stopped", "before its first step")


def test_of_two_launches_at_once_one_is_refused(job_of):
    def start():
        try:
            return job_of(*ENDLESS)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        first, second = [each.result() for each in [pool.submit(start), pool.submit(start)]]
    job, refused = (first, second) if isinstance(first, Job) else (second, first)
    assert "a job trains there already" in refused
    assert job.stop() == 143


def test_a_failed_rank_ends_the_others(job_of):
    job = job_of(*ENDLESS)
    wait_for(lambda: len(job.rows()) > 2)
    os.kill(psutil.Process(job.record.pid).children()[1].pid, signal.SIGKILL)
    assert job.wait(60) == 137


STARTER = """
import sys, time
from pathlib import Path
from ppt_kit.config import from_file
from ppt_kit.jobs.job import Job
job = Job.start(from_file(sys.argv[1]), sys.argv[2], world_size=2, num_devices=0, detached=sys.argv[3] == "detached")
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["detached", pytest.param("bound", marks=pytest.mark.long)])
def test_only_a_detached_job_outlives_what_started_it(small_cfg, tmp_path, how):
    """Started in a process that is killed, found again from here."""
    cfg = small_cfg("train_mode=distributed", "world_size=2", "batch_size=4", *ENDLESS)
    OmegaConf.save(cfg, tmp_path / "given.yaml")
    # on its command line a word by which ranks know launchers, as a kernel has it from where it is installed
    (tmp_path / "ppt_kit_kernel.py").write_text(STARTER)
    run_dir = tmp_path / "models/a/run"
    starter = subprocess.Popen(
        [sys.executable, tmp_path / "ppt_kit_kernel.py", tmp_path / "given.yaml", run_dir, how],
        cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: (run_dir / "launch/job.json").exists())
    job = Job.attach(run_dir)
    wait_for(lambda: len(job.rows()) > 2)
    assert job.running
    starter.kill()
    starter.wait()
    if how == "detached":
        step = job.rows()[-1]["step"]
        # the ranks look every second
        time.sleep(3)
        assert job.running
        assert job.rows()[-1]["step"] > step
        again = Job.attach(run_dir)
        assert again.running
        assert again.stop() == 143
        assert "stopped by SIGTERM" in again.output()
    assert job.wait(30) == 143
    assert load_resume(run_dir)["engine"]["step"] > 2
    assert processes_of(run_dir) == []


@pytest.mark.long
def test_a_number_that_another_process_has_now_is_not_the_job(job_of, tmp_path):
    with pytest.raises(UserError, match="nothing was launched there"):
        Job.attach(tmp_path)
    job = job_of("train.total_iters=1")
    job.wait()
    folder = job.run_dir / "launch"
    with subprocess.Popen(["sleep", "60"]) as other:
        replace(read_record(folder), pid=other.pid, exit_code=None).write(folder)
        found = Job.attach(job.run_dir)
        assert not found.running
        assert found.stop() == 137
        assert other.poll() is None
        other.kill()
    replace(job.record, host="another").write(folder)
    with pytest.raises(UserError, match="launched on another"):
        Job.attach(job.run_dir)


# ------------------------------------------------------------------ one run a folder


def launches(small_cfg, tmp_path, *envs):
    """(exit code, what it said) of launches of one configuration that begin at once."""
    path = tmp_path / "given.yaml"
    words = ("train_mode=distributed", "world_size=2", "batch_size=4", "train.total_iters=6")
    OmegaConf.save(small_cfg(*words), path)
    code = "import sys\nimport ppt_kit as ppt\nfrom ppt_kit.config import from_file\nsys.exit(ppt.UnifiedTrainer(from_file(sys.argv[1])).run())"
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", code, path], cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for env in envs
    ]  # fmt: skip
    said = [each.communicate(timeout=200)[0] for each in begun]
    return [(each.returncode, text) for each, text in zip(begun, said)]


@pytest.mark.long
def test_of_two_launches_at_once_one_trains_and_the_other_is_told_so(small_cfg, tmp_path):
    ended = sorted(launches(small_cfg, tmp_path, {}, {}))
    assert [code for code, _ in ended] == [0, 1], ended
    assert "run: a job trains there already" in ended[1][1].splitlines()[-1]
    assert read_metrics(tmp_path / "models/a/run", "train")["step"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_two_nodes_on_one_host_share_the_folder_of_their_job(small_cfg, tmp_path):
    node = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    ended = launches(small_cfg, tmp_path, node | {"RANK": "0"}, node | {"RANK": "1"})
    assert [code for code, _ in ended] == [0, 0], ended
    assert read_metrics(tmp_path / "models/a/run", "train")["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_run_that_nobody_launched_has_its_folder_for_itself_too(small_cfg, tmp_path):
    run_dir = tmp_path / "models/a/run"
    with held(run_dir), pytest.raises(UserError, match="a run trains there already"):
        ppt.UnifiedTrainer(small_cfg("train.total_iters=1")).run()
    assert not run_dir.exists()
    assert ppt.UnifiedTrainer(small_cfg("train.total_iters=1")).run() == 0
