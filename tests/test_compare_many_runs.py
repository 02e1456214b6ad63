"""Many runs as tables and figures: from run folders as they are written, checked against pandas and by hand."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from conftest import latest
from omegaconf import OmegaConf
from test_figures import assert_readable, episodes

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.notebook.runs.paper import looks
from ppt_kit.runs.effects import effect_table
from ppt_kit.sim.results import wilson_interval
from ppt_kit.tracking import Tracker

LEARNING_RATES, HEADS, SEEDS = (1e-3, 3e-4), ("regression", "mlp", "flow"), (0, 1, 2)
STEPS, EPOCHS = 60, (2, 4, 6)


def loss_at(step, lr, head, seed):
    return (1 + HEADS.index(head)) * math.exp(-lr * 30 * step) + 0.02 + 0.005 * seed


def write_run(folder, *words, rows=(), end=True):
    """A run folder as training leaves one."""
    cfg = ppt.load_config("quickstart", *latest(f"suffix={folder.name}", *words))
    tracker = Tracker(folder, active=True, job_name="train")
    OmegaConf.save(cfg, folder / "config.yaml")
    for kind, row in rows:
        tracker.row(kind, **row)
    if end:
        tracker.row("end", step=rows[-1][1]["step"], reason="finished")
    tracker.close()
    return folder


def rows_of_a_run(lr, head, seed):
    rows = []
    for step in range(1, STEPS + 1):
        epoch = (step - 1) // 10 + 1
        rows.append(("train", {"step": step, "epoch": epoch, "loss": loss_at(step, lr, head, seed), "lr": lr}))
        if step % 10 == 0:
            rows.append(("val", {"step": step, "epoch": epoch, "loss": 1.2 * loss_at(step, lr, head, seed)}))
        if step % 10 == 0 and epoch in EPOCHS:
            wins = min(20, epoch * 2 + 2 * HEADS.index(head) + seed + (3 if lr == 1e-3 else 0))
            low, high = wilson_interval(wins, 20)
            common = {
                "step": step,
                "epoch": epoch,
                "checkpoint": f"model_{epoch}.pth",
                "domain": "press",
                "task": "press",
            }
            rows.append(
                (
                    "eval",
                    {
                        **common,
                        "success": wins / 20,
                        "n": 20,
                        "low_95": low,
                        "high_95": high,
                        "errors": 0,
                        "error": None,
                    },
                )
            )
    return rows


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eighteen runs: two learning rates, three heads, three seeds."""
    folder = tmp_path_factory.mktemp("many") / "models/press"
    for lr, head, seed in itertools.product(LEARNING_RATES, HEADS, SEEDS):
        words = (f"optimizer.lr={lr}", f"policy.head.kind={head}", f"seed={seed}")
        write_run(folder / f"{head}-lr-{lr}-seed-{seed}", *words, rows=rows_of_a_run(lr, head, seed))
    return folder


@pytest.fixture(scope="module")
def runs(many):
    return ppt.compare_runs(f"{many}/*")


def test_names_of_runs_that_differ_in_much_stay_within_the_figure(tmp_path):
    for number in range(3):
        words = (
            f"optimizer.lr=1e-{number + 3}", f"policy.depth={number + 1}", f"policy.width={32 * (number + 1)}",
            f"train.total_epochs={number + 2}", f"batch_size={number + 4}", f"optimizer.warmup_steps={number + 5}",
        )  # fmt: skip
        write_run(tmp_path / f"models/press/run-{number}", *words, rows=rows_of_a_run(1e-3, HEADS[0], number))
    figure = ppt.compare_runs(f"{tmp_path}/models/press/*").curves("loss")
    assert_readable(figure)
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0
    assert box.x1 <= page.x1
    assert "warmup_steps=7" in legend.get_texts()[-1].get_text()


def test_what_differs_are_columns_seed_last(runs):
    assert runs.keys == ["policy.head.kind", "optimizer.lr", "seed"]
    assert len(runs.parameters) == 18
    assert set(runs.parameters["policy.head.kind"]) == set(HEADS)
    assert len(runs.metrics) == 18 * (STEPS + 6 + 3 + 1)
    one = runs.metrics[runs.metrics["run"] == "mlp-lr-0.0003-seed-2"]
    assert set(one["optimizer.lr"]) == {3e-4}
    train = one[one["kind"] == "train"]
    assert train["loss"].tolist() == [loss_at(step, 3e-4, "mlp", 2) for step in range(1, STEPS + 1)]
    line = runs.summary.set_index("run").loc["mlp-lr-0.0003-seed-2"]
    assert (line["state"], line["epoch"]) == ("finished", 6)
    assert line["val_loss"] == 1.2 * loss_at(STEPS, 3e-4, "mlp", 2)
    assert "18 runs, which differ in policy.head.kind, optimizer.lr, seed" in repr(runs)
    assert "<table" in runs._repr_html_()


def test_the_rates_beside_training_have_their_intervals(runs):
    line = runs.success.set_index(["run", "epoch"]).loc[("regression-lr-0.001-seed-1", 4)]
    assert (line["source"], line["episodes"], line["successes"], line["rate"]) == ("training", 20, 12, 0.6)
    assert (line["low_95"], line["high_95"]) == wilson_interval(12, 20)


@pytest.mark.parametrize(("y", "width"), [("loss", 3.3), ("val_loss", 6.4), ("success", 3.3), ("lr", 6.4)])
def test_curves_are_the_data_of_their_line_of_pandas(y, width, runs, tmp_path):
    figure = runs.curves(y, smooth=5, width=width)
    assert figure.get_size_inches()[0] == width
    assert_readable(figure)
    again = eval(figure.code, {"runs": runs})
    pd.testing.assert_frame_equal(again, figure.data)
    assert "\n" not in figure.code
    for ending in ("pdf", "svg"):
        figure.savefig(tmp_path / f"curves.{ending}")
    # words, not outlines: an editor finds them
    assert ">optimizer step<" in (tmp_path / "curves.svg").read_text() or y == "success"


def test_a_line_is_the_mean_over_seeds_and_its_band_their_range(runs):
    data = runs.curves("loss").data
    line = data[(data["optimizer.lr"] == 1e-3) & (data["policy.head.kind"] == "flow") & (data["step"] == 7)].iloc[0]
    of_seeds = [loss_at(7, 1e-3, "flow", seed) for seed in SEEDS]
    assert line[["mean", "min", "max", "count"]].tolist() == pytest.approx(
        [np.mean(of_seeds), min(of_seeds), max(of_seeds), 3]
    )
    assert len(runs.curves("loss", by="policy.head.kind").data) == 3 * STEPS
    assert len(runs.curves("loss", by=["run"]).data) == 18 * STEPS
    # the independent answer of a loop
    smoothed, weights = [], 0.0
    for step in range(1, 21):
        value = loss_at(step, 1e-3, "flow", 0)
        before = smoothed[-1] if smoothed else 0.0
        new = weights * (1 - 2 / 11) + 1
        smoothed.append((before * weights * (1 - 2 / 11) + value) / new)
        weights = new
    data = runs.curves("loss", by=["run"], smooth=10).data
    assert data[data["run"] == "flow-lr-0.001-seed-0"]["mean"].head(20).tolist() == pytest.approx(smoothed)


def test_a_single_run_s_success_has_its_wilson_interval(many):
    figure = ppt.compare_runs(many / "mlp-lr-0.001-seed-0").curves("success")
    assert figure.data["low_95"].tolist() == [wilson_interval(round(20 * rate), 20)[0] for rate in figure.data["mean"]]
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == figure.data["low_95"].min()


def test_effects_are_paired_over_the_other_keys(runs):
    effects = runs.effects("val_loss").set_index(["key", "value"])
    line = effects.loc[("optimizer.lr", 1e-3)]
    apart = [
        1.2 * (loss_at(STEPS, 1e-3, head, seed) - loss_at(STEPS, 3e-4, head, seed)) for head in HEADS for seed in SEEDS
    ]
    # Student's 97.5 % point of 8 degrees of freedom, from a table
    half = 2.306004 * np.std(apart, ddof=1) / 3
    assert (line["against"], line["pairs"], line["runs"]) == (3e-4, 9, 9)
    assert [line["difference"], line["low_95"], line["high_95"]] == pytest.approx(
        [np.mean(apart), np.mean(apart) - half, np.mean(apart) + half], rel=1e-5
    )
    assert math.isnan(effects.loc[("optimizer.lr", 3e-4), "difference"])
    assert runs.effects().equals(runs.effects("success"))
    for width in (3.3, 6.4):
        figure = runs.plot_effects("val_loss", width=width)
        assert_readable(figure)
        pd.testing.assert_frame_equal(eval(figure.code, {"runs": runs}), figure.data)


def test_an_effect_of_values_that_are_null_or_names(tmp_path):
    table = pd.DataFrame({"share": [None, None, "all", "all"], "seed": [0, 1, 0, 1], "loss": [1.0, 2.0, 2.0, 4.0]})
    lines = effect_table(table, ["share", "seed"], metric="loss")
    line = lines[lines["value"] == "all"].iloc[0]
    assert (line["difference"], line["pairs"]) == (1.5, 2)


def test_lines_differ_in_stroke_and_marker_as_in_colour():
    for count in (7, 28):
        chosen = looks(count)
        assert len({(look.stroke, look.colour) for look in chosen}) == count
    assert len({(look.stroke, look.marker) for look in looks(14)}) == 14
    with pytest.raises(UserError, match="can be told apart"):
        looks(29)


def test_two_runs_are_compared_on_the_goals_of_their_rows(tmp_path):
    for name, wins in (("one", 14), ("other", 6)):
        run = write_run(tmp_path / name, rows=rows_of_a_run(1e-3, "mlp", 0))
        rows = [*episodes(f"{run}/model_6.pth", "press", wins, 20, epoch=6), *episodes(f"{run}/model_2.pth", "press", 1, 20, epoch=2), *episodes("-", "press", 20, 20, control="expert", epoch=None)]  # fmt: skip
        common = {"weights": name, "domain": "press", "options": "x", "return": 0.0, "subtasks": {}}
        (run / "eval").mkdir()
        (run / "eval/eval.jsonl").write_text("".join(json.dumps({**row, **common}) + "\n" for row in rows))
    runs = ppt.compare_runs(tmp_path / "*")
    found = runs.compare("one", "other")
    assert (found.rate_a, found.rate_b, found.counts.goals) == (0.7, 0.3, 20)
    assert runs.compare("one", "other", epoch=2).rate_a == 0.05
    with pytest.raises(UserError, match="no checkpoint of epoch 3"):
        runs.compare("one", "other", epoch=3)
    # the expert is no checkpoint of a run, and no line
    assert set(runs.success["control"]) == {"-", "expert"}
    assert set(runs.curves("success").data["epoch"]) == {2, 4, 6}


def test_folders_patterns_and_lists_of_runs(many, tmp_path):
    assert len(ppt.compare_runs([many / "mlp-lr-0.001-seed-0", f"{many}/mlp-*"])) == 6
    (tmp_path / "models/empty").mkdir(parents=True)
    with pytest.raises(UserError, match=r"empty: is no run folder"):
        ppt.compare_runs(tmp_path / "models/empty")
    with pytest.raises(UserError, match=r"type .*/press/\* for all"):
        ppt.compare_runs(many)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        ppt.compare_runs(["nowhere"])
    with pytest.raises(UserError, match="matches 1 files and folders, and none is a run"):
        ppt.compare_runs(str(tmp_path / "models/*"))
    with pytest.raises(UserError, match="no run folders are given"):
        ppt.compare_runs([])


def test_a_run_that_is_being_written_can_be_read(tmp_path):
    run = write_run(tmp_path / "now", rows=rows_of_a_run(1e-3, "mlp", 0)[:15], end=False)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    begun = tmp_path / "begun"
    (begun / "launch").mkdir(parents=True)
    OmegaConf.save(ppt.load_config("quickstart", "seed=7"), begun / "launch/config.yaml")
    runs = ppt.compare_runs([run, begun])
    assert runs.summary["state"].tolist() == ["running", "stopped"]
    assert runs.parameters["seed"].tolist() == [0, 7]
    assert runs.curves("loss")
    with pytest.raises(UserError, match="no run has rows with it"):
        runs.curves("acuracy")
    with pytest.raises(UserError, match="no checkpoint of these runs was evaluated"):
        runs.curves("success")
    with pytest.raises(UserError, match="does not differ"):
        runs.curves("loss", by="optimizer.lr")
    with pytest.raises(UserError, match="smooth=0"):
        runs.curves("loss", smooth=0)
    # read anew, it has what was written since
    with open(run / "metrics.jsonl", "a") as file:
        file.write('ep": 15, "epoch": 2, "loss": 0.5}\n')
    assert len(runs.refreshed().metrics) == len(runs.metrics) + 1


# ------------------------------------------------------------------ how a run stands


def test_a_run_without_a_launch_fails_is_gone_or_trains(tmp_path):
    """By its last row, the lock of its folder, and the host that it says it began on."""
    import platform

    from ppt_kit.jobs.taken import held
    from ppt_kit.runs.state import FAILED, FINISHED, RUNNING, STOPPED, state_of
    from ppt_kit.tracking import PROVENANCE, note_end

    rows = rows_of_a_run(1e-3, "mlp", 0)
    assert state_of(write_run(tmp_path / "whole", rows=rows)) == (FINISHED, "")
    run = write_run(tmp_path / "run", rows=rows, end=False)
    # of another host its file is young
    (run / PROVENANCE).write_text("host: elsewhere\n")
    assert state_of(run) == (RUNNING, "")
    (run / PROVENANCE).write_text(f"host: {platform.node()}\n")
    assert state_of(run) == (FAILED, "the process that trained is gone")
    with held(run):
        assert state_of(run) == (RUNNING, "")
        assert ppt.live(run).news["gone"] is False
    note_end(run, ValueError("unlucky\nvalue"))
    note_end(run, ValueError("what follows from it"))
    assert state_of(run) == (FAILED, "ValueError: unlucky value")
    assert ppt.compare_runs([run]).summary["error"].tolist() == ["ValueError: unlucky value"]
    for reason in ("Stop", "SIGTERM"):
        path = write_run(tmp_path / reason, rows=[*rows, ("end", {"step": STEPS, "reason": reason})], end=False)
        assert state_of(path) == (STOPPED, "")


def test_validation_of_runs_with_other_numbers_of_steps_is_one_line(tmp_path):
    """Another seed has another split: what an epoch says is at another step."""
    for seed, lr in itertools.product((0, 1), LEARNING_RATES):
        rows = [("train", {"step": 1, "epoch": 1, "loss": 1.0})]
        rows += [("val", {"step": (10 + seed) * n, "epoch": n, "loss": 1.0 / n + seed}) for n in (1, 2, 3)]
        write_run(tmp_path / f"models/{seed}-{lr}", f"seed={seed}", f"optimizer.lr={lr}", rows=rows)
    runs = ppt.compare_runs(f"{tmp_path}/models/*")
    figure = runs.curves("val_loss")
    assert figure.data["count"].tolist() == [2] * 6
    assert figure.data["step"].tolist() == [10.5, 21, 31.5] * 2
    with pytest.raises(UserError, match="by is empty"):
        runs.curves("val_loss", by=[])
    assert figure.data["mean"].tolist() == pytest.approx([1.5, 1.0, 1 / 3 + 0.5] * 2)


def test_success_that_eval_sim_measured_is_in_the_table_too(tmp_path):
    runs = [
        write_run(tmp_path / f"models/{name}", rows=[("train", {"step": 1, "epoch": 1, "loss": 1.0})]) for name in "ab"
    ]
    for number, run in enumerate(runs):
        (run / "eval").mkdir()
        rows = [
            {"checkpoint": "model.pth", "epoch": 1, "task": "press", "domain": "press", "seed": seed,
             "success": seed < 2 + number, "control": None, "zero_keys": [], "error": None, "steps": 3, "weights": "w"}
            for seed in range(4)
        ]  # fmt: skip
        (run / "eval/eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ppt.compare_runs(runs).summary["success"].tolist() == [0.5, 0.75]
    # one that is being written says nothing yet
    (runs[1] / "eval/eval.jsonl").write_text('{"checkpoint": "mod')
    assert ppt.compare_runs(runs).summary["success"].fillna(-1).tolist() == [0.5, -1]
