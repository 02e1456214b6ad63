"""Our rows beside the published ones."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from conftest import ROOT, run_script

from ppt_kit.errors import UserError
from ppt_kit.sim.simulators.rendering import choose_renderer


@pytest.fixture
def bench(monkeypatch):
    """scripts/benches/published.py."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benches import published

    return published


def test_the_published_figures_have_the_published_means(bench):
    """Of DP3's Table I: easy 28 tasks, medium 11, hard 6, very hard 5."""
    means = bench.published().groupby("level", sort=False)[["dp3", "dp"]].agg(["size", "mean"])
    expected = {
        "easy": (28, 90.9, 83.6), "medium": (11, 61.6, 31.1), "hard": (6, 31.7, 9.0), "very-hard": (5, 49.0, 26.6)
    }  # fmt: skip
    for level, (size, dp3, dp) in expected.items():
        line = means.loc[level]
        assert line["dp3", "size"] == size
        assert line["dp3", "mean"] == pytest.approx(dp3, abs=0.06)
        assert line["dp", "mean"] == pytest.approx(dp, abs=0.06)


def test_the_published_tasks_are_the_simulators(bench):
    # imported first, it would leave the choice of a renderer to mujoco, for every test that follows
    choose_renderer()
    from metaworld import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in bench.published()["task"]} == set(ALL_V3_ENVIRONMENTS)


def test_tasks_are_named_by_level_or_name(bench):
    assert len(bench.task_names(["all"], simulator="metaworld")) == 50
    assert bench.task_names(["very-hard"], simulator="metaworld")[0] == "shelf-place"
    assert bench.task_names(["hammer", "hard", "push"], simulator="metaworld")[:2] == ["hammer", "assembly"]
    assert bench.task_names(["mine", "mine"], simulator="my_lab.sim:MyEnv") == ["mine"]
    with pytest.raises(UserError, match="tasks=hamer: takes all, easy.*Did you mean hammer"):
        bench.task_names(["hamer"], simulator="metaworld")


def test_seeds_are_a_number_or_a_list(bench):
    assert bench.seeds_of(3) == [0, 1, 2]
    assert bench.seeds_of([0, 7]) == [0, 7]
    for wrong in (0, "1,2", [], [-1], True, 2.5):
        with pytest.raises(UserError, match="takes how many"):
            bench.seeds_of(wrong)


def write_run(folder, rates, *, blind=0.0):
    """A run folder with rows of ten goals for each of its checkpoints, the last one model.pth."""
    (folder / "eval").mkdir(parents=True)
    lines = []
    for number, rate in enumerate(rates):
        last = number == len(rates) - 1
        for seed in range(10):
            common = {"weights": f"{folder.name}{number}", "domain": "d", "task": folder.parent.name, "seed": seed,
                      "options": "o", "error": None}  # fmt: skip
            place = str(folder if last else folder / f"model_{number}.pth")
            for zero_keys, wins in (([], rate), *([(["pointcloud"], blind)] if last else [])):
                won = seed < 10 * wins
                lines.append(common | {"checkpoint": place, "zero_keys": zero_keys, "success": won,
                                       "success_step": 50 if won else None, "steps": 50 if won else 200})  # fmt: skip
    (folder / "eval/eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_one_record_gives_both_counts_beside_the_published_ones(bench, tmp_path, capsys):
    runs = {
        "push": [write_run(tmp_path / "push/a", [0.1, 0.2, 0.5, 0.5, 0.4, 0.4, 0.3], blind=0.1),
                 write_run(tmp_path / "push/b", [0.0, 0.1, 0.6, 0.5, 0.5, 0.4, 0.5], blind=0.2)],
        "hammer": [write_run(tmp_path / "hammer/a", [0.9, 1.0])],
        "basketball": [write_run(tmp_path / "basketball/a", [0.2] * 6)],
    }  # fmt: skip
    table = bench.side_by_side(runs).set_index("task")
    assert list(table.index) == ["basketball", "hammer", "push", "mean of 2", "mean of 1", "mean of 3"]
    push = table.loc["push"]
    assert push["final"] == pytest.approx(40)
    # (50 + 50 + 40 + 40 + 30) / 5 and (60 + 50 + 50 + 50 + 40) / 5
    assert push["best"] == pytest.approx((42 + 50) / 2)
    assert push["control"] == pytest.approx(15)
    assert (push["dp3"], push["dp"], push["level"], push["runs"], push["goals"]) == (51, 30, "hard", 2, 10)
    assert 0 <= push["low"] < 40 < push["high"] <= 100
    assert math.isnan(table.loc["hammer", "best"])
    medium = table[(table["level"] == "medium") & table["runs"].isna()].iloc[0]
    assert medium["final"] == pytest.approx((20 + 100) / 2)
    assert math.isnan(medium["best"])
    assert medium["dp3"] == pytest.approx((98 + 76) / 2)

    bench.tell(bench.side_by_side(runs), tmp_path, name="published")
    assert "| push       | hard   | 2 x 10 " in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "published.csv")["final"].iloc[2] == pytest.approx(40)
    assert (tmp_path / "published.png").stat().st_size > 10_000


def test_the_success_bench_evaluates_checkpoints_for_the_literatures_count_once(tmp_path):
    words = (
        "success", "tasks=[detour]", "simulator=planar", "config=planar", "demos=2", "episodes=2", "seeds=2",
        "checkpoints=3", "words=[policy.width=16,policy.num_heads=2,train.total_epochs=6]", "output_dir=runs",
    )  # fmt: skip
    done = run_script(str(ROOT / "scripts/bench.py"), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "runs").rglob("eval.jsonl"))
    assert len(files) == 2
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    seeing = {row["checkpoint"].rpartition("/")[2] for row in rows if not row["zero_keys"]}
    assert {"model_2.pth", "model_4.pth"} < seeing
    assert len(seeing) == 3
    assert len(rows) == 3 * 2 + 2
    before = [file.read_bytes() for file in files]
    assert run_script(str(ROOT / "scripts/bench.py"), *words, cwd=tmp_path).returncode == 0
    assert [file.read_bytes() for file in files] == before
