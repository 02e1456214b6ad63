"""What is found on a machine: this one, which works, and this one with something in its way."""

from __future__ import annotations

import os
import socket
import sys

import psutil
import pytest
from conftest import ROOT, run_script

from ppt_kit.installation import Report
from ppt_kit.installation.probes import BAD, GOOD, NOTE, PROBES, Found
from ppt_kit.installation.report import look


@pytest.fixture
def in_the_way(tmp_path, monkeypatch):
    """Puts a file where Python looks first."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    return put


@pytest.mark.long
def test_here_nothing_fails_and_each_look_is_a_line(tmp_path):
    done = run_script(sys.executable, "-m", "ppt_kit", "doctor", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [line for line in done.stdout.splitlines() if line[0] != " "]
    assert [line[2:16].strip() for line in lines[:-1]] == list(PROBES)
    assert lines[-1] == "Nothing here will fail."
    assert not list(tmp_path.iterdir())


def test_where_every_look_crashes_each_is_told_and_the_exit_code_is_1(in_the_way, tmp_path):
    in_the_way("sitecustomize.py", "import os, sys\nif '-c' in sys.orig_argv: os.kill(os.getpid(), 11)")
    done = run_script(sys.executable, "-m", "ppt_kit", "doctor", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("ended by SIGSEGV") == done.stdout.count("✗") == len(PROBES)
    assert done.stdout.splitlines()[-1].startswith("Something will fail: Python, packages, ")


def test_a_look_that_hangs_ends_with_all_that_it_started(in_the_way):
    in_the_way(
        "torch/__init__.py",
        "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(417)'])\ntime.sleep(60)",
    )
    assert look("GPU and NCCL", timeout_s=2)[:2] == (BAD, "no answer within 2 s")
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline", "status"])
                if process.info["status"] != psutil.STATUS_ZOMBIE]  # fmt: skip
    assert not [command for command in commands if "import time; time.sleep(417)" in command]


def test_what_does_not_import_is_bad_with_what_to_type(in_the_way):
    in_the_way("torch/__init__.py", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    for name in ("GPU and NCCL", "DeepSpeed"):
        found = look(name, timeout_s=60)
        assert (found.state, found.said.partition(":")[0]) == (BAD, "ImportError")
        assert found.cure


def test_packages_of_other_versions_are_named_with_the_line_that_installs_them(in_the_way):
    in_the_way("zarr-2.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zarr\nVersion: 2.0.0\n")
    found = look("packages", timeout_s=60)
    assert (found.state, found.said) == (BAD, "zarr is 2.0.0, not <3.2,>=3.1")
    assert found.cure == "pip install -c constraints.txt 'zarr<3.2,>=3.1'"


@pytest.mark.parametrize("name", ["Python", "ports", "disk", "shared memory", "two ranks"])
def test_what_works_here_is_good(name):
    assert look(name, timeout_s=60).state == GOOD


def test_what_is_optional_is_a_note(in_the_way, monkeypatch):
    in_the_way("mujoco-2.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: mujoco\nVersion: 2.0.0\n")
    found = look("packages", timeout_s=60)
    assert found.state == NOTE
    assert "mujoco is 2.0.0" in found.said
    assert "sim" in found.cure
    monkeypatch.setenv("WANDB_MODE", "offline")
    in_the_way("wandb.py", "raise ImportError('broken')")
    found = look("W&B", timeout_s=60)
    assert (found.state, "broken" in found.said) == (NOTE, True)


def test_a_taken_port_is_bad_and_another_one_good(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        found = look("ports", timeout_s=60)
    assert (found.state, found.cure) == (BAD, "unset MASTER_PORT, or give a free one")
    assert look("ports", timeout_s=60).state == GOOD
    monkeypatch.setenv("MASTER_PORT", "a port")
    assert look("ports", timeout_s=60).state == BAD


def test_a_place_that_cannot_be_written_to_is_bad(tmp_path, monkeypatch):
    (tmp_path / "outputs").touch()
    monkeypatch.chdir(tmp_path)
    found = look("disk", timeout_s=60)
    assert (found.state, found.cure) == (BAD, "Set output_dir to a folder of yours that can be written to.")
    (tmp_path / "outputs").unlink()
    assert look("disk", timeout_s=60).state in (GOOD, NOTE)
    assert not list(tmp_path.iterdir())


def test_what_cannot_render_is_bad(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "eg")
    found = look("rendering", timeout_s=60)
    assert (found.state, found.cure) == (BAD, "Type MUJOCO_GL=egl, or unset it.")


def test_ranks_that_do_not_meet_are_bad(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "no-such-interface")
    found = look("two ranks", timeout_s=60)
    assert found.state == BAD
    assert found.said.startswith("RuntimeError: rank ")
    assert "GLOO_SOCKET_IFNAME" in found.cure


def test_a_report_fails_by_what_is_bad_alone():
    report = Report({"disk": Found(GOOD, "room"), "GPU": Found(NOTE, "none <here>", "buy one")})
    assert report.works
    assert "none &lt;here&gt;" in report._repr_html_()
    assert list(report.table["state"]) == [GOOD, NOTE]
    report = Report({**report.found, "ports": Found(BAD, "taken")})
    assert not report.works
    assert report.told() == "Something will fail: ports."
