"""What is given in the place of something else is one line; what is meant by it is taken."""

from __future__ import annotations

import pandas as pd
import pytest
from omegaconf.errors import OmegaConfBaseException

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.notebook.mistakes import explained

WRONG = [None, 3, [1], pd.DataFrame({"a": [1]})]
TAKES_A_PATH = {
    "attach": ppt.attach, "jobs": ppt.jobs, "live": ppt.live, "load_policy": ppt.load_policy,
    "checkpoints": ppt.checkpoints, "read_metrics": ppt.read_metrics, "plot_episode": ppt.plot_episode,
    "describe": ppt.describe, "doctor": ppt.doctor, "open_dataset": ppt.open_dataset, "verify_card": ppt.verify_card,
    "ds_checkpoints": ppt.ds_checkpoints, "to_zarr": lambda given: ppt.to_zarr(given, "new.zarr"),
    "to_lerobot": lambda given: ppt.to_lerobot(given, "new"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES_A_PATH)
def test_what_is_no_path_is_one_line(name):
    for wrong in WRONG:
        with pytest.raises(UserError, match="is no path. Give "):
            TAKES_A_PATH[name](wrong)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda cfg: ppt.tasks(["metaworld"]), "there is no table"),
        (lambda cfg: ppt.load_config(cfg), "is no word"),
        (lambda cfg: ppt.load_config("planar", ["seed=1"]), "is no word"),
        (lambda cfg: ppt.launch(cfg, slurm=True), "slurm=True: takes submitit's words"),
        (lambda cfg: ppt.launch(cfg, hostfile=3), "a file of hosts"),
        (lambda cfg: ppt.describe(cfg), "ppt.load_dataset"),
        (lambda cfg: ppt.plot_metrics(3), "is no path"),
        (lambda cfg: ppt.plot_metrics("nowhere"), "holds no metrics.jsonl"),
        (lambda cfg: ppt.read_metrics("nowhere"), "holds no metrics.jsonl"),
        (lambda cfg: ppt.checkpoints("nowhere"), "no such folder"),
        (lambda cfg: ppt.inspect(cfg.dataset_path + "/a.zarr", policy=3), "is no path"),
        (lambda cfg: ppt.plot_episode(cfg.dataset_path + "/a.zarr", 99), "index=99: there are"),
        (lambda cfg: ppt.live(cfg.dataset_path), "is no run folder"),
        (lambda cfg: ppt.collect("detour", simulator="planar", dataset_path=None), "dataset_path=None: takes text"),
        (lambda cfg: ppt.collect("detour", simulator="planar", episodes="two"), "episodes='two': takes whole number"),
    ],
)
def test_a_mistake_in_a_cell_is_one_line(call, says, small_cfg, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        call(small_cfg())
    assert {path.name for path in tmp_path.iterdir()} <= {"models"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda cfg: setattr(cfg.optimizer, "lrr", 3), "unknown key optimizer.lrr. Did you mean optimizer.lr?"),
        (lambda cfg: setattr(cfg.optimizer, "lr", "fast"), "optimizer.lr='fast': takes number."),
        (lambda cfg: setattr(cfg, "batch_size", 2.5), "batch_size=2.5: takes whole number."),
        (lambda cfg: cfg.suffx, "unknown key suffx. Did you mean suffix?"),
    ],
)
def test_what_a_cell_writes_into_a_configuration_is_told_as_a_word_is(change, says, small_cfg):
    with pytest.raises(OmegaConfBaseException) as caught:
        change(small_cfg())
    assert explained(caught.value) == says


def test_what_is_no_mistake_of_a_key_is_told_as_it_was(small_cfg):
    from omegaconf import OmegaConf

    fixed = small_cfg()
    OmegaConf.set_readonly(fixed, True)
    with pytest.raises(OmegaConfBaseException) as caught:
        fixed.optimizer.lr = 0.1
    assert explained(caught.value) is None
    other = OmegaConf.create({"lr": 1})
    OmegaConf.set_struct(other, True)
    with pytest.raises(OmegaConfBaseException) as caught:
        other.lrr = 2
    assert explained(caught.value) is None


def test_a_run_stands_for_its_folder(small_cfg):
    run = ppt.UnifiedTrainer(small_cfg())
    assert run.run() == 0
    assert list(ppt.checkpoints(run)["epoch"]) == list(ppt.checkpoints(run.run_dir)["epoch"])
    assert len(ppt.read_metrics(run, "train"))
    assert ppt.load_policy(run).card["path"] == str(run.run_dir)
    assert len(ppt.plot_metrics(run)._repr_png_()) > 1000
    with pytest.raises(UserError, match="kind='nope': takes train, val"):
        ppt.read_metrics(run, "nope")


def test_home_is_the_home_folder_wherever_it_is_typed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("output_dir: ~/runs\n")
    cfg = ppt.load_config("mine", "dataset_path=~/data", config_path=tmp_path)
    assert (cfg.output_dir, cfg.dataset_path) == (f"{tmp_path}/runs", f"{tmp_path}/data")
    assert ppt.UnifiedTrainer(cfg).run_dir.is_relative_to(tmp_path / "runs")


def test_aliases_of_aliases_are_refused(tmp_path):
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "mine.yaml").write_text("\n".join(levels) + "\n")
    with pytest.raises(UserError, match="aliases stand for more than"):
        ppt.load_config("mine", config_path=tmp_path)


def test_of_a_stopped_collection_nothing_is_thrown_away_unasked(tmp_path, monkeypatch, caplog):
    from ppt_kit.sim import collect

    kept, whole = [], collect._append

    def appended(*args, **more):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(1)
        return whole(*args, **more)

    monkeypatch.setattr(collect, "_append", appended)
    asked = {"simulator": "planar", "dataset_path": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        ppt.collect("detour", episodes=5, **asked)
    monkeypatch.setattr(collect, "_append", whole)
    with pytest.raises(
        UserError, match="stopped after 3 demonstrations, and this one wants 2. Type episodes=3 or more"
    ):
        ppt.collect("detour", episodes=2, **asked)
    assert len((tmp_path / ".detour.zarr.partial/episodes.jsonl").read_text().splitlines()) == 3
    ppt.collect("detour", episodes=2, overwrite=True, **asked)
    assert "stopped after 3 demonstrations; 1 of them are left out" in caplog.text


def test_a_launched_runs_own_files_are_no_second_run(tmp_path):
    run = tmp_path / "models/a/run"
    for folder, files in ((run, ("config.yaml", "metrics.jsonl")), (run / "launch", ("config.yaml", "job.json"))):
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).write_text("{}")
    from ppt_kit.runs.find import find_runs

    assert find_runs(f"{tmp_path}/models/**") == [run]
    (tmp_path / "models/b/launch").mkdir(parents=True)
    (tmp_path / "models/b/launch/job.json").write_text("")
    (run / "launch/job.json").unlink()
    listed = ppt.jobs(tmp_path)
    assert (list(listed["state"]), list(listed["run"])) == (["unknown"], ["models/b"])
    assert "damaged" in listed["detail"][0]
