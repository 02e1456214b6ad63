"""The bench of evaluation: what its table says is what was run."""

from __future__ import annotations

from conftest import ROOT, run_script


def test_the_evaluation_bench_says_of_each_way_whether_its_episodes_are_the_same(tmp_path):
    words = (
        "simulator=planar", "task=detour", "episodes=4", "max_steps=8", "rounds=1", "procs=[1,2]", "batches=[1,2]",
    )  # fmt: skip
    done = run_script(str(ROOT / "scripts/bench.py"), "evaluation", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    assert [line[:2] for line in lines[2:]] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert {line[-1] for line in lines[2:]} == {"yes"}
    assert lines[2][3] == "1.00"
    assert "same episodes: as one process with as many environments together" in done.stdout
