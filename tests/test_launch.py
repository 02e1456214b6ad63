"""Jobs from a cell: launched, found again by another process, watched, stopped, killed, resumed, listed. Real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from conftest import ROOT, run_script
from omegaconf import OmegaConf
from test_jobs import ENDLESS, processes_of, wait_for

import ppt_kit as ppt
from ppt_kit.checkpoint import load_resume
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import Share
from ppt_kit.jobs.failures import failure_of, log_of
from ppt_kit.jobs.launcher import launcher_command, read_hostfile
from ppt_kit.jobs.record import Record

TWO = ("batch_size=4",)


@pytest.fixture
def launched(small_cfg, tmp_path, monkeypatch):
    """Launches a small run as a cell does; nothing of it is left after the test."""
    # a run in this kernel before has left one
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.chdir(ROOT)
    yield lambda *words, **how: ppt.launch(small_cfg(*TWO, *words), **{"num_gpus": 2, **how})
    run_dir, end = tmp_path / "models/a/run", time.monotonic() + 10
    # a queue's own processes leave after the job
    while processes_of(run_dir) and time.monotonic() < end:
        time.sleep(0.1)
    left = processes_of(run_dir)
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


BREAKER = """
import os
if os.environ.get("RANK") == "1":
    import ppt_kit.data.loader as loader
    real = loader.Loader.batches
    def batches(self, step, order):
        if step == 2:
            raise OSError("the disk of rank 1 is gone")
        return real(self, step, order)
    loader.Loader.batches = batches
"""


def test_a_rank_that_raises_is_shown_by_its_own_traceback(launched, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BREAKER)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    with monkeypatch.context() as within:
        within.setenv("PYTHONPATH", path)
        job = launched(*ENDLESS)
    assert job.wait(60) == 1
    assert job.state == ("failed", "rank 1: OSError: the disk of rank 1 is gone")
    failure = job.failure()
    assert failure.rank == 1
    assert failure.text.startswith("Traceback (most recent call last):")
    assert 'sitecustomize.py", line 8, in batches' in failure.text
    assert "OSError: the disk of rank 1 is gone" in job.log(1)
    assert repr(job) == f"<{job.run_dir}: failed (rank 1: OSError: the disk of rank 1 is gone), 2 ranks>"
    listed = run_script(sys.executable, "-m", "ppt_kit", "jobs", str(tmp_path))
    assert "models/a/run failed rank 1: OSError: the disk of rank 1 is gone" in listed.stdout, listed.stderr


def test_a_killed_job_goes_on_to_the_same_end(launched):
    words = ("train.total_iters=36", "train.total_epochs=99", "save_interval=1")
    job = launched(*words, num_gpus=1)
    # what it goes on from is written after the row of its checkpoint
    wait_for(lambda: sum(row["kind"] == "checkpoint" for row in job.rows()) > 1)
    assert job.kill() == 137
    assert job.state == ("killed", "as asked, without saving")
    assert job.rows()[-1]["kind"] != "end"
    at, earlier = job.record, ppt.attach(job.run_dir)
    assert job.resume() is job
    assert job.record.pid != at.pid
    earlier.follow()
    assert earlier.record == job.record
    with pytest.raises(UserError, match="a job trains there already"):
        job.resume()
    assert job.wait() == 0
    assert job.state == ("ended", "after step 36")
    assert "resumed after step" in job.log()
    alone = launched(*words, "suffix=alone", num_gpus=1)
    assert alone.wait() == 0
    of_job, of_one = (ppt.read_metrics(folder, "train") for folder in (job.run_dir, alone.run_dir))
    assert list(of_job["step"]) == list(of_one["step"]) == list(range(1, 37))
    assert (of_job["loss"] == of_one["loss"]).all()


@pytest.mark.long
def test_a_job_that_is_not_detached_ends_with_its_kernel(small_cfg, tmp_path):
    OmegaConf.save(small_cfg(*TWO, *ENDLESS), tmp_path / "given.yaml")
    cell = CELL.replace("num_gpus=2", "num_gpus=1, detached=False")
    kernel = subprocess.Popen(
        [sys.executable, "-c", cell, tmp_path / "given.yaml"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    kernel.stdout.readline()
    job = ppt.attach(tmp_path / "models/a/run")
    wait_for(lambda: len(job.rows()) > 2)
    kernel.kill()
    kernel.wait()
    assert job.wait(60) == 143
    assert job.state.word == "stopped"
    assert "stopped by SIGTERM" in job.log()


# ------------------------------------------------------------------ what is refused before anything starts


def test_bad_launches_are_refused_and_leave_nothing(small_cfg, tmp_path):
    for wrong in (0, -1, 2.0, True, "2"):
        with pytest.raises(UserError, match=r"num_gpus=.*give a number"):
            ppt.launch(small_cfg(), num_gpus=wrong)
    with pytest.raises(UserError, match="no_such_domain"):
        ppt.launch(small_cfg("domains=no_such_domain"), num_gpus=2)
    with pytest.raises(UserError, match="both choose the nodes"):
        ppt.launch(small_cfg(), hostfile="hosts", slurm={"timeout_min": 5})
    with pytest.raises(UserError, match="nothing was launched there"):
        ppt.attach(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        ppt.jobs(tmp_path / "nowhere")
    assert not (tmp_path / "models").exists()
    assert len(ppt.jobs(tmp_path)) == 0
    assert "nothing was launched here" in ppt.jobs(tmp_path)._repr_html_()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read"),
        ("", "names no host"),
        ("# node1 slots=4\n", "names no host"),
        ("node1\n", "line 1: 'node1' is no host"),
        ("node1 slots=4\nnode2 slots=x\n", "line 2: 'node2 slots=x' is no host"),
        ("node1 slots=4\nnode1 slots=4\n", "line 2: node1 is named twice"),
        ("node1 slots=0\n", "node1 has 0 slots, 2 are asked for"),
        ("node1 slots=4\nnode2 slots=1\n", "node2 has 1 slots, 2 are asked for"),
    ],
)
def test_bad_files_of_hosts_are_refused(small_cfg, tmp_path, text, told):
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=told):
        ppt.launch(small_cfg(), num_gpus=2, hostfile=path)
    assert not (tmp_path / "models").exists()


def test_other_hosts_need_what_reaches_them(small_cfg, tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pdsh is not installed here"):
        ppt.launch(small_cfg(), hostfile=tmp_path / "hosts")


# ------------------------------------------------------------------ several nodes


def test_the_command_for_hosts_is_deepspeeds(tmp_path):
    """Read by its own parser."""
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    path = tmp_path / "hosts"
    path.write_text("# ours\nnode1 slots=4\nnode2 slots=2\n")
    assert read_hostfile(path) == dict(fetch_hostfile(path)) == {"node1": 4, "node2": 2}
    every = parse_args(launcher_command(tmp_path / "c.yaml", share=Share(0, 4, 6), hostfile=str(path))[1:])
    assert (every.hostfile, every.num_gpus, every.module) == (str(path), -1, True)
    assert (every.user_script, every.user_args) == ("ppt_kit", [str(tmp_path / "c.yaml")])
    two = parse_args(launcher_command(tmp_path / "c.yaml", share=Share(0, 2, 4), hostfile=str(path))[1:])
    assert (two.num_gpus, two.no_ssh_check, two.master_addr) == (2, False, "")
    here = parse_args(launcher_command(tmp_path / "c.yaml", share=Share(0, 2, 2), hostfile=None)[1:])
    assert (here.num_gpus, here.module, here.user_script) == (2, True, "ppt_kit")


def test_the_command_line_works_where_it_is_pasted(launched):
    """In a shell that knows nothing of this environment, after a job that was stopped."""
    job = launched("train.total_iters=6")
    assert job.stop() == 143
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    pasted = subprocess.run(job.command_line, shell=True, env=env, capture_output=True, text=True, timeout=300)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert "x 2 process(es)" in pasted.stdout + pasted.stderr
    assert (job.rows()[-1]["reason"], job.rows()[-1]["step"]) == ("finished", 6)


@pytest.mark.long
def test_deepspeeds_launcher_starts_the_ranks_where_it_is_chosen(launched):
    job = launched(*ENDLESS, launcher="deepspeed")
    wait_for(lambda: len(job.rows()) > 2)
    above = [" ".join(each.cmdline()) for each in psutil.Process(job.record.pid).children(recursive=True)]
    assert any("deepspeed.launcher.launch" in line for line in above)
    again = subprocess.run(job.command_line, shell=True, capture_output=True, text=True, timeout=300)
    assert again.returncode
    assert "a job trains there already" in again.stdout + again.stderr
    assert job.stop() == 143
    with pytest.raises(UserError, match="Give one of ppt_kit, deepspeed"):
        launched(launcher="torchrun")


def test_a_hostfile_of_this_machine_runs_under_the_deepspeed_launcher(launched, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    job = launched(*ENDLESS, hostfile=tmp_path / "hosts")
    assert job.stop() == 143
    assert job.state == ("stopped", "before its first step")
    job.resume()
    wait_for(lambda: len(job.rows()) > 2)
    above = [" ".join(each.cmdline()) for each in psutil.Process(job.record.pid).children(recursive=True)]
    assert any("deepspeed.launcher.launch" in line for line in above)
    assert "x 2 process(es)" in job.log(0)
    assert log_of(job.run_dir, 1).name.endswith("_rank1.log")
    assert job.stop() == 143
    assert job.state.detail == f"by SIGTERM after step {load_resume(job.run_dir)['engine']['step']}"


# ------------------------------------------------------------------ a queue


def test_a_job_of_a_queue_is_found_stopped_and_resumed(launched, tmp_path):
    """By submitit's own executor for one machine: what Slurm would start is started here."""
    job = launched(*ENDLESS, slurm={"cluster": "local", "timeout_min": 10})
    assert job.state == ("queued", f"as job {job.record.slurm['job_id']}")
    again = ppt.attach(job.run_dir)
    with pytest.raises(UserError, match="a job trains there already"):
        again.resume()
    wait_for(lambda: len(job.rows()) > 2)
    assert ppt.jobs(tmp_path).loc[0, "state"] == "running"
    assert "x 2 process(es)" in again.log()
    assert again.stop() == 143
    assert job.state.detail == f"by SIGTERM after step {load_resume(job.run_dir)['engine']['step']}"
    first = job.record.slurm["job_id"]
    job.resume()
    assert job.record.slurm["job_id"] != first
    assert job.stop() == 143
    assert job.state.word == "stopped"


SBATCH = """#!{python}
import shutil, sys
shutil.copy(sys.argv[1], {copy!r})
print("Submitted batch job 4711")
"""


def test_what_the_queue_is_given_is_what_was_asked_for(small_cfg, tmp_path, monkeypatch):
    """Stand-ins for Slurm's programs, which are not here: sbatch keeps the script, sacct says that the job waits."""
    programs = {
        "sbatch": SBATCH.format(python=sys.executable, copy=str(tmp_path / "script.sh")),
        "srun": "#!/bin/sh\n",
        "sacct": f"#!/bin/sh\ncat {tmp_path}/sacct\n",
        "scancel": f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    answer = "JobID|State|NodeList\n4711|PENDING|None\n"
    (tmp_path / "sacct").write_text(f"#!/bin/sh\nprintf '{answer}'\n".replace("\n4711", "\\n4711"))
    asked = {"timeout_min": 90, "nodes": 2, "cpus_per_task": 6, "slurm_partition": "gpu", "slurm_account": "lab"}
    job = ppt.launch(small_cfg(), num_gpus=4, slurm=asked)
    script = (tmp_path / "script.sh").read_text()
    for line in (
        "time=90",
        "nodes=2",
        "ntasks-per-node=1",
        "gpus-per-node=4",
        "cpus-per-task=6",
        "partition=gpu",
        "account=lab",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert job.record.ranks == (0, 4, 8)
    assert job.state == ("queued", "as job 4711")
    assert job.command_line == ""
    # a job that still waits is taken out, and is not started if the queue was quicker
    assert job.stop() == 143
    assert (tmp_path / "cancelled").read_text() == "4711\n"
    assert job.state == ("stopped", "before its first step")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "timeout_min is missing"),
        ({"timeout_min": 5, "nodes": 0}, "nodes=0. Give a number"),
        ({"timeout_min": 5, "cluster": "pbs"}, "cluster='pbs'. Give one of slurm, local"),
        ({"timeout_min": 5, "cluster": "local", "no_such_word": 1}, "no_such_word"),
        ({"timeout_min": 5, "tasks_per_node": 4}, "Leave it out"),
        ({"timeout_min": 5, "gpus_per_node": 1}, "num_gpus=2"),
        ({"timeout_min": 5}, "srun"),
    ],
)
def test_what_a_queue_cannot_take_is_refused(small_cfg, tmp_path, asked, told):
    with pytest.raises(UserError, match=told):
        ppt.launch(small_cfg(), num_gpus=2, slurm=asked)
    assert not (tmp_path / "models/a/run/launch/job.json").exists()


# ------------------------------------------------------------------ how a launch ended, from what it left


RECORD = Record(pid=2**22 + 1, started=time.time() - 60, host=os.uname().nodename, ranks=Share(0, 2, 2), command=["x"])


def left_behind(run_dir, record, *, rows=(), logs=()):
    """A run folder as a launch leaves it."""
    (run_dir / "launch/logs").mkdir(parents=True)
    record.write(run_dir / "launch")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rank, text in enumerate(logs):
        (run_dir / f"launch/logs/rank{rank}.log").write_text(text)
    return run_dir


def test_the_table_says_what_ended_how(tmp_path):
    row = {"kind": "train", "step": 7, "epoch": 2, "loss": 0.5, "lr": 0.1}
    stop = {"kind": "end", "step": 7, "reason": "SIGTERM"}
    ended = {"ended": RECORD.started + 60}
    cases = {
        "ended": (replace(RECORD, exit_code=0, **ended), [row, {**stop, "reason": "finished"}], "after step 7"),
        "stopped": (replace(RECORD, exit_code=143, **ended), [row, stop], "by SIGTERM after step 7"),
        "killed": (replace(RECORD, exit_code=137, failed_rank=1, **ended), [row], "rank 1 was ended by SIGKILL (kill -9, or out of memory)"),
        "vanished": (RECORD, [row], "its supervising process is gone"),
        "failed": (replace(RECORD, exit_code=1, failed_rank=1, **ended), [row], "rank 1: ValueError: bad"),
        "unknown": (replace(RECORD, host="another"), [row], "launched on another: only there it is known whether it runs"),
    }  # fmt: skip
    logs = ["", "starting\nTraceback (most recent call last):\n  File x\nValueError: bad\nsomething later\n"]
    for name, (record, rows, _) in cases.items():
        left_behind(tmp_path / "models/deep" / name, record, rows=rows, logs=logs if name == "failed" else ())
    reboot = replace(RECORD, started=psutil.boot_time() - 1000)
    left_behind(tmp_path / "models/rebooted", reboot, rows=[row])
    table = ppt.jobs(tmp_path).set_index("run")
    for name, (_, _, detail) in cases.items():
        assert tuple(table.loc[f"models/deep/{name}", ["state", "detail", "step"]]) == (name, detail, 7)
    assert table.loc["models/rebooted", "detail"] == "the machine was started anew"
    assert table.loc["models/deep/ended", "minutes"] == 1.0
    shown = ppt.jobs(tmp_path)._repr_html_()
    assert "rank 1: ValueError: bad" in shown
    assert "--jp-error-color1" in shown
    assert list(ppt.jobs(tmp_path / "models/deep/ended")["run"]) == ["ended"]


def test_a_failure_is_read_from_the_logs_with_all_that_led_to_it(tmp_path):
    """Where no rank could write it down: the data was gone before the ranks met."""
    chained = (
        "Traceback (most recent call last):\n  File a\nKeyError: 'x'\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  File b\nmy.Error: second\n"
    )
    older = "Traceback (most recent call last):\n  File z\nOSError: of another matter\nall is well\n"
    record = replace(RECORD, exit_code=1, failed_rank=1)
    run_dir = left_behind(tmp_path / "one", record, logs=["nothing wrong here\n", f"{older}{chained}goodbye\n"])
    found = failure_of(run_dir, record)
    assert (found.rank, found.text, found.line) == (1, chained.strip(), "my.Error: second")
    run_dir = left_behind(tmp_path / "two", record, logs=["error: no such dataset. Type …\n", ""])
    assert failure_of(run_dir, record) == (0, "error: no such dataset. Type …")
    assert failure_of(left_behind(tmp_path / "three", record, logs=["", ""]), record) is None


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
    steps = lambda: [row["step"] for row in ppt.attach(run_dir).rows()]
    lab.wait(lambda: len(steps()) > 2 and page.get_by_text("samples/s").count() == 1, timeout_s=60)
    assert shown.locator(".ppt-job-command").input_value() == lab.ask("job.command_line")
    # one header: the job's
    assert page.locator(".ppt-live .head").count() == 0
    assert page.get_by_text("a/run", exact=True).count() == 1
    assert page.get_by_role("button", name="Save now").is_enabled()
    shown.locator(".ppt-job-rank").select_option("1")
    lab.wait(lambda: lab.ask("job.panel.children[0].rank") == 1 and "global batch" not in log.inner_text())
    assert shown.locator(".ppt-job-resume").is_disabled()
    shown.locator(".ppt-job-stop").click()
    lab.wait(lambda: word.inner_text() == "stopped", timeout_s=60)
    saved = load_resume(run_dir)["engine"]["step"]
    assert shown.locator(".ppt-job-detail").inner_text() == f"by SIGTERM after step {saved}"
    assert processes_of(run_dir) == []
    shown.locator(".ppt-job-resume").click()
    lab.wait(lambda: any(row["step"] > saved for row in ppt.attach(run_dir).rows()), timeout_s=60)
    page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.shutdown()")
    lab.open([f"import ppt_kit as ppt; job = ppt.attach({str(run_dir)!r})", "job"])
    lab.wait(lambda: word.inner_text() == "running")
    # the first click asks whether it is meant
    shown.locator(".ppt-job-kill").click()
    page.wait_for_timeout(1500)
    assert word.inner_text() == "running"
    assert shown.locator(".ppt-job-kill").inner_text() == "Kill now?"
    shown.locator(".ppt-job-kill").click()
    lab.wait(lambda: word.inner_text() == "killed", timeout_s=60)
    assert not lab.elsewhere
    assert not [line for line in lab.complaints if "ppt" in line]
