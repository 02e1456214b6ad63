"""Mistakes around launching and loading: what was given, why it cannot work, and what to type, in one line."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
import torch
from conftest import ROOT, SMALL_WORDS, run_script, save_new_policy

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import local_share, why_on_cpu
from ppt_kit.torch_file import checkpoints_near

TRAIN = str(ROOT / "scripts/train.py")
# of another program
STRANGE = b"hello\n"


@pytest.fixture(scope="module")
def runs(small_data, tmp_path_factory):
    """A folder with two runs of ours, an empty folder beside them, and a file of another program."""
    folder = tmp_path_factory.mktemp("runs")
    cfg = ppt.load_config("quickstart", *SMALL_WORDS, f"dataset_path={small_data}", "domains=a")
    first = folder / "models/a/exp1"
    (first / "eval").mkdir(parents=True)
    save_new_policy(cfg, first)
    shutil.copytree(first, folder / "models/a/other")
    (folder / "models/a/empty").mkdir()
    (folder / "strange.pth").write_bytes(STRANGE)
    return folder


# what is given -> what the line says of it
PLACES = {
    "models/a/exp2": ["no such file or folder", "Did you mean models/a/exp1"],
    "modles/a/exp1": ["no such file or folder", "Did you mean models/a/exp1"],
    "models/a/exp1/model_99.pth": ["no such file or folder", "Did you mean models/a/exp1/model_1.pth"],
    "models/a/exp1/eval": ["holds no model.pth", "Did you mean models/a/exp1"],
    "models/a/empty": ["holds no model.pth", "Did you mean models/a/exp1 or models/a/other"],
    "models": ["holds no model.pth", "models/a/exp1"],
    "strange.pth": ["strange.pth: not a checkpoint of ppt_kit", "Did you mean models/a/exp1"],
}


@pytest.mark.parametrize(
    ("key", "place"), [*(("train.pretrained_dir", place) for place in PLACES), ("normalizer.path", "models/a/exp2")]
)
def test_a_wrong_checkpoint_is_named_with_its_key_and_with_those_that_lie_near(runs, run_here, small_data, place, key):
    words = (f"dataset_path={small_data}", "domains=a", f"{key}={place}", "suffix=new", "output_dir=out")
    done = run_here(TRAIN, *words, cwd=runs)
    assert (done.returncode, done.stderr.count("\n"), "Traceback" in done.stderr) == (2, 1, False), done.stderr
    assert done.stderr.startswith(f"error: {key}={place}: ")
    assert [said for said in PLACES[place] if said not in done.stderr] == []
    assert not (runs / "out").exists()


def test_a_cell_and_a_launch_say_the_same_of_a_wrong_checkpoint(runs, small_cfg, monkeypatch):
    monkeypatch.chdir(runs)
    cfg = small_cfg("train.pretrained_dir=models/a/exp2", "suffix=new")
    told = []
    for start in (lambda: ppt.UnifiedTrainer(cfg).run(), lambda: ppt.launch(cfg, num_gpus=2)):
        with pytest.raises(
            UserError, match=r"train\.pretrained_dir=models/a/exp2.*Did you mean models/a/exp1"
        ) as error:
            start()
        told.append(str(error.value))
    assert told[0] == told[1]
    assert not (runs / "models/a/new").exists()


def test_where_no_checkpoint_is_near_none_is_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep/er").mkdir(parents=True)
    assert checkpoints_near(tmp_path / "deep/er/gone") == []


def test_the_nearest_checkpoints_are_found_in_a_folder_of_thousands(tmp_path):
    for number in range(3000):
        (tmp_path / f"episode_{number}").mkdir()
    shutil.copytree(tmp_path / "episode_0", tmp_path / "run_7")
    (tmp_path / "run_7/model.pth").touch()
    assert checkpoints_near(tmp_path / "run_8") == [str(tmp_path / "run_7")]


# ------------------------------------------------------------------ devices

TWO_GPUS = """
import sys
if "torch" not in sys.modules:
    import torch
    torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 2)
"""


def test_more_ranks_than_gpus_are_refused_from_a_shell_with_what_to_type(small_data, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(TWO_GPUS)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = run_script(
        TRAIN, f"dataset_path={small_data}", "domains=a", "train_mode=distributed", "world_size=4", cwd=tmp_path,
        env={"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0,1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "world_size=4, but 2 GPU(s) are visible (CUDA_VISIBLE_DEVICES=0,1)" in done.stderr
    assert "Set world_size=2" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_more_ranks_than_gpus_are_refused_in_a_launch_in_its_own_words(small_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"num_gpus=4, but 2 GPU\(s\) are visible.*Type num_gpus=2"):
        ppt.launch(small_cfg(), num_gpus=4)
    with pytest.raises(UserError, match=r"world_size=4, but 2 GPU\(s\) are visible.*Set world_size=2"):
        ppt.UnifiedTrainer(small_cfg("train_mode=distributed", "world_size=4")).run()
    assert local_share({}, world_size=2, num_devices=2).here == 2
    assert not (tmp_path / "models").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_ranks_without_a_gpu_train_on_the_cpu_and_say_so_and_why(small_data, tmp_path):
    words = (
        f"dataset_path={small_data}", "domains=a", "train_mode=distributed", "world_size=2", "train.total_iters=1",
        "policy.width=32", "policy.depth=1", "policy.num_heads=2", "dataset.num_points=16", "batch_size=4",
        "suffix=run", "output_dir=models",
    )  # fmt: skip
    done = run_script(TRAIN, *words, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    said = [line for line in (done.stdout + done.stderr).splitlines() if "no GPU is visible" in line]
    assert done.returncode == 0, done.stderr
    assert len(said) == 1
    assert "2 rank(s) train on the CPU. CUDA_VISIBLE_DEVICES= hides every GPU: unset it" in said[0]


def test_why_there_is_no_gpu_names_what_hides_it():
    assert "CUDA_VISIBLE_DEVICES=-1 hides every GPU" in why_on_cpu({"CUDA_VISIBLE_DEVICES": "-1"})
    if not os.path.exists("/dev/nvidia0") and not shutil.which("nvidia-smi"):
        assert "This machine has none" in why_on_cpu({})


# words -> what the one line says
MISTAKES = {
    ("train_mode=distributed", "precision=fp16", "deepspeed=zero1"): "precision=fp16 needs a GPU. Set precision=fp32",
    ("train_mode=distributed", "deepspeed=zero9"): "ds_configs/ has zero0",
    ("train_mode=distributed", "deepspeed=zero0", "precision=bf16"): "Set deepspeed=zero1, or precision=fp32",
    ("train_mode=distributd",): "Did you mean distributed?",
    ("train_mode=distributed", "world_size=0"): "world_size=0",
    ("train.resume=always",): "never, auto",
    ("train.freeze_trunk=true",): "train.pretrained_dir is empty",
    ("train.pretrained_dir=.",): "holds no model.pth",
    ("train.pretrained_dir=",): "train.pretrained_dir",
    ("domains=aa",): "domains",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_of_launching_are_one_line_with_the_cure(words, small_data, tmp_path, run_here):
    given = [f"dataset_path={small_data}", *([] if "domains=aa" in words else ["domains=a"]), *words]
    done = run_here(TRAIN, *given, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), "Traceback" in done.stderr) == (2, 1, False), done.stderr
    assert MISTAKES[words] in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_evaluation_of_a_wrong_checkpoint_names_those_that_lie_near(runs, run_here):
    done = run_here(str(ROOT / "scripts/eval_sim.py"), "train.pretrained_dir=models/a/exp2", cwd=runs)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "models/a/exp2" in done.stderr
    assert "Did you mean models/a/exp1" in done.stderr


@pytest.mark.parametrize("num_gpus", [0, -1, 1.5, "2", True, 10**6])
def test_a_number_of_gpus_that_is_none_is_refused(small_cfg, num_gpus):
    for start in (ppt.launch, ppt.plan):
        with pytest.raises(UserError, match="num_gpus="):
            start(small_cfg(), num_gpus=num_gpus)


def test_python_has_a_command_for_a_plan_and_refuses_what_is_none(tmp_path, monkeypatch, capfd):
    from ppt_kit.__main__ import main

    monkeypatch.chdir(tmp_path)
    for words, says in {
        ("num_gpus=some",): "num_gpus='some'", ("gpu_gb=-1",): "gpu_gb=-1", ("gpu_gbs=3",): "gpu_gbs",
        ("config_name=nowhere",): "nowhere", ("domains=nowhere",): "nowhere",
    }.items():  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["ppt_kit", "plan", *words])
        with pytest.raises(SystemExit, match="2"):
            main()
        told = capfd.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert says in told
