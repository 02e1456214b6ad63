"""Configurations of ppt_learning: they load with their groups, and what they cannot say here is listed."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf

from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.migration.ancestor import translated
from ppt_kit.migration.arithmetic import arithmetic

MAIN = """
seed: 7
output_dir: outputs/depth/${now:%Y-%m-%d}
suffix: ""
wb_tag: ${suffix}
batch_size: 48
env_names: ${rollout_runner.env_names}
defaults:
  - env: kitchen
  - network: cloud
  - datasetsize: all
  - _self_
hydra: {run: {dir: outputs}}
domains: bowl.001, bowl.002
dataset:
  _target_: ppt_learning.dataset.multi_sim_traj_dataset.MultiTrajDataset
  ignored_keys: [images, abs_gripper_pos, camera_1]
  action_horizon: 12
  observation_horizon: 3
dataloader: {batch_size: "${batch_size}", num_workers: 15}
optimizer: {_target_: torch.optim.AdamW, lr: 1e-4, betas: [0.9, 0.99]}
warmup_lr: {lr: 1.0e-03, step: 70}
lr_scheduler: cosine
train: {total_epochs: 9, total_iters: 1000000000, epoch_iters: 50, pretrained_dir: "", last_k_checkpoints: 5}
"""
ENV = """# @package _global_
dataset:
  horizon: -1
  pad_before: ${eval:'${dataset.observation_horizon} - 1'}
  pad_after: ${eval:'${dataset.action_horizon} - 1'}
  pcd_channels: 4
  use_disk: True
  normalize_state: ${stem.normalize_state}
rollout_runner: {_target_: ppt_learning.utils.rollout_runner.Runner, episode_num: 100}
"""
NETWORK = """# @package _global_
network:
  _target_: ppt_learning.models.policy.Policy
  embed_dim: 64
  num_blocks: 2
  num_heads: 4
  drop_path: 0.1
  openloop_steps: 5
  token_postprocessing: ${head.token_postprocessing}
head:
  _target_: ppt_learning.models.policy_head.Diffusion
  input_dim: ${eval:'2 * ${network.embed_dim}'}
  down_dims: [32, 64]
  noise_scheduler_type: DDIM
  num_inference_steps: 6
  token_postprocessing: mean
stem:
  modalities: [state, pointcloud]
  normalize_state: True
  crossattn_latent: {pointcloud: 3, state: 1, image: 2}
  pointcloud: {_target_: ppt_learning.models.policy_stem.PointNet, finetune: True, output_dim: "${network.embed_dim}"}
  state: {_target_: ppt_learning.models.policy_stem.MLP, widths: [128, 256]}
"""


@pytest.fixture
def old_configs(tmp_path):
    folder = tmp_path / "configs"
    for name, text in {"config.yaml": MAIN, "env/kitchen.yaml": ENV, "network/cloud.yaml": NETWORK}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


# what the file above means, written down by hand
MEANS = {
    "seed": 7, "output_dir": "outputs/depth", "suffix": None, "batch_size": 48, "domains": "bowl.001,bowl.002",
    "dataset.action_horizon": 12, "dataset.observation_horizon": 3, "dataset.pad_before": 2, "dataset.pad_after": 11,
    "dataset.point_channels": 4, "dataset.ignored_keys": ["abs_gripper_pos", "camera_1"], "dataset.ignore_absent": True, "optimizer.lr": 1e-4,
    "optimizer.betas": [0.9, 0.99], "optimizer.warmup_steps": 70, "train.total_epochs": 9,
    "train.total_iters": 1_000_000_000, "train.epoch_iters": 50, "train.pretrained_dir": None,
    "train.last_k_checkpoints": 5, "train.eval_execute_steps": 5, "policy.width": 64, "policy.depth": 2,
    "policy.num_heads": 4, "policy.pooling": "mean", "policy.head.kind": "diffusion",
    "policy.head.options": {"network": "unet", "prediction": "epsilon", "num_steps": 6, "sampler": "ddim", "widths": [32, 64]},
    "policy.modalities": ["state", "pointcloud"], "policy.stems.pointcloud.kind": "pointnext",
    "policy.stems.pointcloud.num_latents": 3, "policy.stems.state.kind": "mlp", "policy.stems.state.num_latents": 1,
}  # fmt: skip


def test_a_configuration_with_its_groups_loads_in_todays_keys(old_configs):
    cfg = load_config("config", config_path=old_configs)
    assert {
        name: OmegaConf.to_container(cfg)[name] if "." not in name else _plain(cfg, name) for name in MEANS
    } == MEANS


def _plain(cfg, dotted):
    value = OmegaConf.select(cfg, dotted)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def test_every_key_is_taken_over_or_listed_with_a_reason(old_configs, caplog):
    """None is dropped: the leaves of the composed file are those that hold and those that are left out."""
    from ppt_kit.config import compose_file
    from ppt_kit.migration.ancestor import _leaves
    from ppt_kit.migration.reading import read_old

    read = compose_file("config", old_configs, [])
    done = read_old(read)
    told = {old.split("[")[0] for old, *_ in (*done.moved, *done.left)}
    assert {dotted for dotted, _ in _leaves(read.tree)} <= told
    assert all(reason for *_, reason in done.left)
    with caplog.at_level(logging.WARNING):
        load_config("config", config_path=old_configs)
    for old in (
        "dataloader.num_workers",
        "network.drop_path",
        "datasetsize: all",
        "hydra",
        "wb_tag",
        "env_names",
        "image",
    ):
        assert old in caplog.text, old


def test_words_change_an_old_configuration(old_configs):
    cfg = load_config("config", "policy/head=flow", "policy.width=32", "seed=1", config_path=old_configs)
    assert (cfg.policy.head.kind, cfg.policy.width, cfg.seed) == ("flow", 32, 1)
    assert cfg.policy.head.options == load_config("quickstart", "policy/head=flow").policy.head.options


def test_the_policy_of_an_old_configuration_can_be_built(old_configs, small_data, tmp_path):
    """Each option that is set is one that its part takes."""
    from ppt_kit.train.assemble import new_policy, open_sources, statistics

    words = [f"dataset_path={small_data}", "domains=a", "dataset.ignored_keys=[]", "dataset.num_points=16"]
    cfg = load_config("config", *words, "dataset.point_channels=3", "policy.stems.pointcloud.kind=points", config_path=old_configs)  # fmt: skip
    sources = open_sources(cfg, tmp_path / "run")
    policy, _ = new_policy(sources, statistics(sources))
    assert sum(weights.numel() for weights in policy.parameters()) > 1000


def told_of(values):
    done = translated(values, origin="x")
    return done, {old: reason for old, _, reason in done.left}


def test_another_run_is_taken_whole_as_it_was():
    done, _ = told_of({"network": {"no_trunk": False}, "train": {"pretrained_dir": "outputs/a"}})
    assert done.config["train"]["pretrained_parts"] == ["trunk", "stems", "heads", "encoders"]
    done, _ = told_of({"network": {"no_trunk": True}, "train": {"pretrained_dir": "outputs/a"}})
    assert done.config["train"]["pretrained_parts"] == ["stems", "heads", "encoders"]
    done, _ = told_of({"network": {"no_trunk": True}, "train": {"pretrained_dir": ""}})
    assert "pretrained_parts" not in done.config["train"]


def test_what_holds_and_comes_to_something_else_is_said():
    _, told = told_of({"dataset": {"action_horizon": 4}, "train": {"epoch_iters": 500}, "network": {"embed_dim": 16}})
    assert "null is as before" in told["train.epoch_iters"]
    assert "ppt_learning saw eef_pos, eef_quat, joint_pos and normalized_gripper_pos" in told["dataset.state_keys"]
    _, told = told_of({"dataset": {"state_keys": ["eef_pos"]}, "network": {"embed_dim": 16}})
    assert "dataset.state_keys" not in told


def test_the_folder_of_the_data_is_the_datasets_where_nothing_else_says_it():
    done, _ = told_of({"network": {"embed_dim": 16}, "dataset": {"dataset_path": "/data/close"}})
    assert done.config["dataset_path"] == "/data/close"
    done, told = told_of({"network": {}, "dataset_path": "/all", "dataset": {"dataset_path": "/data/close"}})
    assert done.config["dataset_path"] == "/all"
    assert "dataset_path" in told["dataset.dataset_path"]


def test_what_defaults_name_and_nobody_has_is_listed_with_what_it_said_of_the_policy(tmp_path, caplog):
    (tmp_path / "old.yaml").write_text("defaults: [base_config, {network: cloud}, _self_]\nwb_tag: x\nseed: 3\n")
    with caplog.at_level(logging.WARNING):
        assert load_config("old", config_path=tmp_path).seed == 3
    assert "defaults: base_config: there is no file base_config.yaml" in caplog.text
    assert "there is no file network/cloud.yaml" in caplog.text
    assert "of the policy what it said is today's default" in caplog.text


HEADS = {"MLP": "mlp", "Diffusion": "diffusion", "FlowMatching": "flow", "TransformerDecoder": "decoder"}


@pytest.mark.parametrize(("old", "new"), HEADS.items())
def test_heads_by_their_target(old, new):
    done = translated(
        {"head": {"_target_": f"ppt_learning.models.policy_head.{old}", "widths": [512, 256]}}, origin="x"
    )
    assert done.config["policy"]["head"]["kind"] == new


STEMS = [
    ("image", {"_target_": "a.ResNet", "resnet_model": "resnet18", "weights": "DEFAULT", "finetune": False},
     {"stems": {"rgb": {"kind": "maps"}}, "encoders": {"rgb": {"kind": "resnet18", "options": {"weights": "microsoft/resnet-18"}, "frozen": True}}}),
    ("depth", {"_target_": "a.ViT", "model_name": "dinov2_vits14", "finetune": True},
     {"stems": {"depth": {"kind": "maps"}}, "encoders": {"depth": {"kind": "dinov2", "options": {"weights": "facebook/dinov2-small"}, "frozen": False}}}),
    ("depth", {"_target_": "a.DepthCNN"}, {"stems": {"depth": {"kind": "cnn"}}}),
    ("pointcloud", {"_target_": "a.DP3PointNetEncoderXYZ"}, {"stems": {"pointcloud": {"kind": "dp3"}}}),
    ("language", {"_target_": "a.TextEncoder"}, {"stems": {"language": {"kind": "sentence"}}, "encoders": {"language": {"kind": "minilm"}}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "stem", "means"), STEMS, ids=[stem["_target_"] for _, stem, _ in STEMS])
def test_stems_by_their_target(name, stem, means):
    policy = translated({"stem": {"modalities": [name], name: stem}}, origin="x").config["policy"]
    assert {group: policy[group] for group in means} == means


def test_a_class_that_is_not_here_is_listed():
    old = {
        "head": {"_target_": "lab.heads.Spline"},
        "dataset": {"_target_": "lab.Dataset"},
        "optimizer": {"_target_": "torch.optim.SGD"},
    }
    left = {old: reason for old, _, reason in translated(old, origin="x").left}
    assert "policy/head=NAME" in left["head._target_"]
    assert "dataset.format" in left["dataset._target_"]
    assert "AdamW" in left["optimizer._target_"]


def test_two_old_keys_for_one_of_today_do_not_overwrite_each_other():
    done = translated({"batch_size": 8, "dataloader": {"batch_size": 16}}, origin="x")
    assert done.config == {"batch_size": 8}
    assert done.left == [("dataloader.batch_size", 16, "batch_size is 8 already")]


@pytest.mark.parametrize(
    ("text", "value"),
    [("16 - 1", 15), ("2 * (3 + 4)", 14), ("7 // 2", 3), ("-2 ** 2", -4), ("1 / 4", 0.25), ("9 % 4", 1)],
)
def test_arithmetic_is_that_of_python(text, value):
    assert arithmetic(text) == value


EVIL = [
    "__import__('os').system('touch gone')", "open('gone', 'w')", "print", "a", "(1).bit_length()", "[1][0]", "'a' * 3",
    "1 if 1 else 2", "lambda: 1", "1 and 2", "f'{1}'", "True + 1", "1 < 2", "9 ** 9 ** 9", "1 / 0", "1e308 * 10",
    "(-8) ** 0.5", "", "1 +", "(" * 150 + "1", "1" * 500, "1;2", "x := 1", "1j",
]  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_no_name_call_or_attribute_is_ever_evaluated(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        arithmetic(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [True, False], ids=["of ppt_learning", "of ours"])
def test_an_interpolation_that_is_more_than_arithmetic_is_refused(old, tmp_path):
    """Also where Python's own eval is registered under that name, as ppt_learning does."""
    target = tmp_path / "gone"
    values = {"seed": f"${{eval:\"open('{target}', 'w')\"}}"} | ({"wb_tag": "x"} if old else {})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    OmegaConf.register_new_resolver("eval", eval)
    try:
        with pytest.raises(UserError, match="arithmetic"):
            load_config("mine", config_path=tmp_path)
    finally:
        OmegaConf.clear_resolver("eval")
    assert not target.exists()


def test_arithmetic_holds_in_configurations_of_ours_too(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "batch_size: ${eval:'2 * ${dataset.action_horizon}'}\ndataset: {action_horizon: 6}\n"
    )
    assert load_config("mine", config_path=tmp_path).batch_size == 12


def test_every_key_of_the_unified_configuration_is_there():
    text = yaml.safe_load((ROOT / "ppt_kit/configs/config_unified.yaml").read_text())
    top = {"train_mode", "world_size", "seed", "debug", "train", "domains", "dataset_path", "log_interval", "save_interval", "output_dir"}  # fmt: skip
    assert set(text) == top
    assert set(text["train"]) == {"total_epochs", "total_iters", "epoch_iters", "freeze_trunk", "pretrained_dir", "last_k_checkpoints"}  # fmt: skip
    assert load_config("config_unified").domains == "place_crayon_phase2"
    load_config("config_ddp_depth_ur5_microwave")


def test_a_converted_file_means_what_the_old_one_means(old_configs, run_here, tmp_path):
    done = run_here(
        str(ROOT / "scripts/migrate_train_scripts.py"), "--convert-config=configs/config.yaml", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "network.embed_dim -> policy.width=64" in done.stdout
    assert "dataloader.num_workers=15: " in done.stdout
    text = (old_configs / "config_ppt_kit.yaml").read_text()
    assert "#  dataloader.num_workers=15: " in text
    assert load_config("config_ppt_kit", config_path=old_configs) == load_config("config", config_path=old_configs)


def test_a_file_of_ours_is_not_converted(run_here, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    done = run_here(str(ROOT / "scripts/migrate_train_scripts.py"), "--convert-config", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not of ppt_learning" in done.stderr


def test_one_rank_of_several_tells_what_is_left_out(old_configs, monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    load_config("config", config_path=old_configs)
    assert "ppt_learning" not in caplog.text


def test_reading_a_configuration_starts_nothing_heavy():
    code = "import sys, ppt_kit.migration.handover, ppt_kit.config; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
