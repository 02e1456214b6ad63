"""`bench.py all`: real parts at their tiniest, one report, killed and failing parts among them."""

from __future__ import annotations

import csv
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_script

BENCH = str(ROOT / "scripts/bench.py")
QUICK = ("all", "size=tiny", "parts=[engine,compare,plan]")


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benches import machine, parts, policy, report

    return {"machine": machine, "parts": parts, "policy": policy, "report": report}


def test_a_killed_report_goes_on_and_a_part_that_fails_is_named_while_the_others_are_measured(tmp_path):
    killed = subprocess.Popen(
        [sys.executable, BENCH, *QUICK], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, "RANK": "not a number"},
    )  # fmt: skip
    until = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/bench/*/compare/result.json")) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (folder,) = tmp_path.glob("outputs/bench/*")
    # the engine alone reads the launcher's variables
    failing = run_script(BENCH, *QUICK, cwd=tmp_path, env={"RANK": "not a number"})
    assert failing.returncode == 1
    assert "compare: measured already" in failing.stdout
    assert "engine: failed with exit code 1: ValueError" in failing.stdout
    assert failing.stdout.splitlines()[-1].endswith("failed: engine")
    report = (folder / "report.md").read_text()
    assert "| **failed**, exit code 1 |" in report
    assert "ValueError: invalid literal for int() with base 10: 'not a number'" in report
    assert "pairs until it is seen" in report
    whole = run_script(BENCH, *QUICK, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("measured already") == 2
    assert list(tmp_path.glob("outputs/bench/*")) == [folder]
    check_report(folder)


def check_report(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert "failed" not in report
    for name in ("| processor ", f"python {platform.python_version()}", "| commit ", "| memory ", "| engine "):
        assert name in report
    for secret in (socket.gethostname(), str(Path.home()), str(ROOT), str(folder.parents[2])):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", report)
    command = "python scripts/bench.py engine num_points=16 batch_size=2 block=1 rounds=2 stages=[0]"
    assert f"```bash\n{command}\n```" in report
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", report):
        assert (folder / picture).stat().st_size > 5_000
    with open(folder / "report.csv", newline="") as file:
        rows = {(row["part"], row["row"], row["column"]): row["value"] for row in csv.DictReader(file)}
    assert float(rows["engine", "", "load_mean"]) >= 0
    assert float(rows["engine", "zero0, 1 rank(s)", "ratio"]) > 0
    # the same number stands in the report
    assert rows["engine", "zero0, 1 rank(s)", "bare ms"] in report
    assert rows["engine", "", "code"] == "0"


@pytest.mark.long
def test_every_part_runs(tmp_path):
    done = run_script(BENCH, "all", "size=tiny", cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:]
    (folder,) = tmp_path.glob("outputs/bench/*")
    assert (folder / "planar/planar.png").is_file()
    check_report(folder)


def test_a_part_that_is_not_there_is_one_line(tmp_path, run_here):
    done = run_here(BENCH, "all", "parts=[engin]", cwd=tmp_path)
    assert done.returncode == 2
    assert "parts=engin: size=small has engine, " in done.stderr
    assert not list(tmp_path.iterdir())


def test_every_stem_and_head_is_measured(benches):
    from ppt_kit.models.stems import STEMS

    assert set(benches["policy"].STEM_WORDS) == set(STEMS)


def test_every_command_of_the_results_is_a_part_of_the_full_size(benches):
    commands = [
        command.format(here="outputs/HERE", data="data")
        for part in benches["parts"].PARTS.values()
        for command in part.commands.get("full", [])
    ]
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", (ROOT / "RESULTS.md").read_text(), re.MULTILINE | re.DOTALL)
    typed = [line for block in blocks for line in block.splitlines() if line.startswith("python ")]
    assert len(typed) >= 9
    for line in typed:
        words = set(line.replace('"', "").replace("outputs/models", "outputs/HERE/models").split()[1:])
        assert any(words <= set(command.split()) for command in commands), line


def test_tables_are_read_as_they_were_printed(benches):
    text = (
        "what was measured, on 1 thread\n"
        "way                     bare ms  ours ms   ratio\n"
        "zero0, 1 rank(s)           12.0     13.5    1.12\n"
        "zero1, 1 rank(s)           12.0     15.0    1.25   at most 2: yes\n"
        "ratio: of ours.\n\n"
        "| task | success [95 %] | goals |\n| ---  | ---            | ---   |\n| reach | 95 % [76, 99] | 20 |\n"
    )
    assert benches["report"].tables_of(text) == [
        (["way", "bare ms", "ours ms", "ratio"], [["zero0, 1 rank(s)", "12.0", "13.5", "1.12"], ["zero1, 1 rank(s)", "12.0", "15.0", "1.25"]]),
        (["task", "success [95 %]", "goals"], [["reach", "95 % [76, 99]", "20"]]),
    ]  # fmt: skip
