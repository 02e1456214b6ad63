"""The commands as a user types them: help runs nothing, a mistake is one line, exit code 2, and leaves no file."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

SCRIPTS = ["train.py", "sweep.py", "eval_sim.py", "collect_demos.py", "quickstart.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_keys_and_runs_nothing(script, tmp_path):
    done = run_script(str(ROOT / "scripts" / script), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "usage: python" in done.stdout
    assert "seed" in done.stdout
    assert not list(tmp_path.iterdir())


MISTAKES = [
    ("train.py", ["train.total_epoch=3"], "Did you mean train.total_epochs"),
    ("train.py", ["--batch_size=many"], "whole number"),
    ("train.py", ["--config-name=quikstart"], "Did you mean quickstart"),
    ("train.py", ["domains=nowhere"], "collect_demos.py task=nowhere"),
    ("train.py", ["--deepspeed=zero9"], "ds_configs/ has"),
    ("train.py", ["precision=bf16"], "deepspeed=zero1"),
    ("train.py", ["train.pretrained_dir=absent"], "no such file"),
    ("train.py", ["train_mode=sometimes"], "single, distributed, auto"),
    ("eval_sim.py", [], "train.pretrained_dir=<run folder>"),
    ("eval_sim.py", ["train.pretrained_dir=absent"], "no such file"),
    ("eval_sim.py", ["episode=3"], "Did you mean episodes"),
    ("collect_demos.py", ["task=buton-press-topdown"], "Did you mean button-press-topdown"),
    ("collect_demos.py", ["task=reach", "camera=front"], "corner2"),
    ("quickstart.py", ["train_mode=distributed"], "scripts/train.py"),
]


@pytest.mark.parametrize(("script", "words", "says"), MISTAKES, ids=[f"{s}-{' '.join(w)}" for s, w, _ in MISTAKES])
def test_a_mistake_is_one_clear_line(script, words, says, tmp_path, run_here):
    assert_one_clear_line(run_here(str(ROOT / "scripts" / script), *words, cwd=tmp_path), says, tmp_path)


# of each script the one that is found last: what its imports say on the way would be further lines
IN_ITS_OWN_PROCESS = [MISTAKES[index] for index in (0, 6, 9, 12, 13)]


@pytest.mark.parametrize(("script", "words", "says"), IN_ITS_OWN_PROCESS, ids=[f"{s}-{' '.join(w)}" for s, w, _ in IN_ITS_OWN_PROCESS])  # fmt: skip
def test_a_mistake_in_a_process_of_its_own_is_no_longer(script, words, says, tmp_path):
    assert_one_clear_line(run_script(str(ROOT / "scripts" / script), *words, cwd=tmp_path), says, tmp_path)


def assert_one_clear_line(done, says, folder):
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(folder.iterdir())


def test_whoever_reads_the_first_lines_alone_is_shown_no_traceback(tmp_path):
    """As `… | head -1` does."""
    long = "import ppt_kit.commands.cli as cli, ppt_kit.schema as s\n"
    long += "def main(cfg):\n    print('line\\n' * 200_000)\ncli.run(main, schema=s.CollectConfig, about='x')\n"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(long)} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("line\n", "")
    assert done.returncode == 128 + signal.SIGPIPE
