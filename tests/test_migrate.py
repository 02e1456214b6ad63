"""A folder that looks like ppt_learning: its scripts are backed up and hand over, and all of it can be taken back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

from ppt_kit.errors import UserError
from ppt_kit.migration.folder import RECORD
from ppt_kit.migration.handover import todays_words

MIGRATE = str(ROOT / "scripts/migrate_train_scripts.py")
OLD_RUN = "import hydra  # the old one\n"
# of every old configuration of the tests: a policy of hundreds of numbers, two steps
SMALL = """
output_dir: outputs/models
suffix: ""
wb_tag: ${{suffix}}
domains: {domains}
dataset_path: data
batch_size: 4
defaults:
  - env: isaacsim
  - network: {network}
  - _self_
optimizer: {{_target_: torch.optim.AdamW, lr: 1e-3}}
warmup_lr: {{lr: 1.0e-6, step: 1}}
train: {{total_epochs: 5, total_iters: 2, epoch_iters: 1, pretrained_dir: "", freeze_trunk: False}}
wandb: {{mode: disabled}}
"""
ENV = """# @package _global_
dataset:
  _target_: ppt_learning.dataset.multi_sim_traj_dataset.MultiTrajDataset
  val_ratio: 0.
  pad_after: ${eval:'${dataset.action_horizon} - 1'}
  action_horizon: 4
  observation_horizon: 1
"""
NETWORK = """# @package _global_
network: {_target_: ppt_learning.models.policy.Policy, embed_dim: 16, num_blocks: 1, num_heads: 2}
head: {_target_: ppt_learning.models.policy_head.MLP, widths: [32], token_postprocessing: mean}
stem:
  modalities: [%s]
  state: {_target_: ppt_learning.models.policy_stem.MLP}
  depth: {_target_: ppt_learning.models.policy_stem.DepthCNN}
"""
KITCHENS = "ur5_put_bowl.001, ur5_put_bowl.002"
CONFIGS = {
    "configs/config_unified.yaml": SMALL.format(domains="place_crayon_phase2", network="state"),
    "configs/config_ddp_depth_ur5_microwave.yaml": SMALL.format(domains=KITCHENS, network="depth"),
    "configs/env/isaacsim.yaml": ENV,
    "configs/network/state.yaml": NETWORK % "state",
    "configs/network/depth.yaml": NETWORK % "state, depth",
    "my_configs/custom_train.yaml": "defaults: [config_unified, _self_]\ntrain_mode: single\nsuffix: mine\n",
}  # fmt: skip
# where config.yaml and config_ddp_depth.yaml of ppt_learning lay
BEFORE = "ppt_learning/experiments/configs"
CONFIGS |= {
    f"{BEFORE}/config.yaml": CONFIGS["configs/config_unified.yaml"],
    f"{BEFORE}/config_ddp_depth.yaml": CONFIGS["configs/config_ddp_depth_ur5_microwave.yaml"],
    **{f"{BEFORE}/{name}": CONFIGS[f"configs/{name}"] for name in ("env/isaacsim.yaml", "network/state.yaml", "network/depth.yaml")},
    **{f"my_configs/{name}": CONFIGS[f"configs/{name}"] for name in ("env/isaacsim.yaml", "network/state.yaml", "config_unified.yaml")},
}  # fmt: skip


@pytest.fixture(scope="module")
def old_repository(tmp_path_factory):
    """The folder, migrated: demonstrations in data/, old scripts backed up, wrappers in their place."""
    import ppt_kit as ppt
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    folder = tmp_path_factory.mktemp("ppt_learning")
    for name, text in CONFIGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "run.py").write_text(OLD_RUN)
    (folder / "run_ddp.py").write_text(OLD_RUN)
    ppt.collect(
        simulator="planar", task="detour", episodes=3, domain="place_crayon_phase2", dataset_path=folder / "data"
    )
    rng = np.random.default_rng(0)
    for name in KITCHENS.split(", "):
        with ZarrWriter(folder / f"data/{name}.zarr") as writer:
            for length in (6, 7):
                arrays = {
                    "actions": rng.normal(size=(length, 4)), "obs/eef_pos": rng.normal(size=(length, 3)),
                    "obs/depths/front": rng.uniform(0.5, 1, (length, 40, 40, 1)),
                }  # fmt: skip
                writer.append({key: array.astype(np.float32) for key, array in arrays.items()})
    done = run_script(MIGRATE, f"--project={folder}", "--backup", "--create-wrappers")
    assert done.returncode == 0, done.stderr
    return folder


def ran(folder, *command: str, env: dict | None = None) -> subprocess.CompletedProcess:
    """An old command, to its end."""
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    done = run_script(*command, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{Path(command[0] if command[0].endswith('.py') else command[2]).name} is deprecated" in done.stderr
    return done


def trained(folder, domain: str, suffix: str) -> dict:
    """What a run left, its configuration; model.pth is there and finite."""
    content = torch.load(folder / f"outputs/models/{domain}/{suffix}/model.pth", weights_only=True)
    assert content["step"] == 2
    assert all(value.isfinite().all() for value in content["policy"].values() if value.is_floating_point())
    return content["config"]


def only_run(folder, domain: str, before: set[str]) -> str:
    (suffix,) = {path.name for path in (folder / "outputs/models" / domain).iterdir()} - before
    return suffix


def suffixes(folder, domain: str) -> set[str]:
    place = folder / "outputs/models" / domain
    return {path.name for path in place.iterdir()} if place.is_dir() else set()


# ---------------------------------------------------------------- the document's commands, as they are typed


@pytest.mark.parametrize(
    "command",
    [("run.py", "--config-name=config"), ("run_train.py",), ("run_train.py", "train_mode=single")],
    ids=" ".join,
)
def test_commands_that_train_in_one_process(old_repository, command):
    before = suffixes(old_repository, "place_crayon_phase2")
    ran(old_repository, *command)
    config = trained(old_repository, "place_crayon_phase2", only_run(old_repository, "place_crayon_phase2", before))
    assert config["policy"]["width"] == 16
    assert config["train_mode"] == ("auto" if command == ("run_train.py",) else "single")


@pytest.mark.long
def test_run_ddp_with_its_model_and_suffix(old_repository):
    ran(old_repository, "run_ddp.py", "--model=depth", "--suffix=experiment1")
    config = trained(old_repository, KITCHENS.replace(", ", "+"), "experiment1")
    assert (config["train_mode"], config["policy"]["modalities"]) == ("distributed", ["state", "depth"])


@pytest.mark.long
def test_torchrun_with_two_processes(old_repository):
    domain = KITCHENS.replace(", ", "+")
    before = suffixes(old_repository, domain)
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node=2", "run_train.py")
    done = ran(old_repository, *torchrun, "--config-name=config_ddp_depth_ur5_microwave")
    assert done.stderr.count("is deprecated") == 1
    (suffix,) = suffixes(old_repository, domain) - before
    trained(old_repository, domain, suffix)


def test_a_folder_of_configurations_of_ones_own(old_repository):
    ran(old_repository, "run_train.py", "--config-path=my_configs", "--config-name=custom_train")
    assert trained(old_repository, "place_crayon_phase2", "mine")["train_mode"] == "single"


@pytest.mark.long
def test_four_processes(old_repository):
    ran(old_repository, "run_train.py", "train_mode=distributed", "world_size=4", "suffix=experiment4")
    assert trained(old_repository, "place_crayon_phase2", "experiment4")["world_size"] == 4


@pytest.mark.long
def test_eight_processes_with_every_word_of_the_document(old_repository):
    words = (
        "train_mode=distributed",
        "world_size=8",
        "train.total_epochs=200",
        "seed=123",
        "suffix=large_scale_experiment",
    )
    ran(old_repository, "run_train.py", *words)
    config = trained(old_repository, "place_crayon_phase2", "large_scale_experiment")
    assert (config["world_size"], config["train"]["total_epochs"], config["seed"]) == (8, 200, 123)


@pytest.mark.long
def test_two_nodes_by_their_variables(old_repository):
    """Each starts four of the eight: on a machine without GPUs LOCAL_WORLD_SIZE says how many, with them their number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = suffixes(old_repository, "place_crayon_phase2")
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    command, nodes = [sys.executable, "run_train.py", "train_mode=distributed", "world_size=8"], []
    for first in ("0", "4"):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **common, "RANK": first}
        nodes.append(subprocess.Popen(command, cwd=old_repository, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))  # fmt: skip
        # on one host: two launches of one second would be one folder's
        time.sleep(2)
    try:
        told = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], told
    trained(old_repository, "place_crayon_phase2", only_run(old_repository, "place_crayon_phase2", before))


@pytest.mark.long
def test_evaluation_of_a_run_in_parallel(old_repository):
    ran(old_repository, "run_train.py", "suffix=experiment1")
    words = ("eval_mode=parallel", "n_procs=4", "train.pretrained_dir=outputs/models/place_crayon_phase2/experiment1")
    done = ran(old_repository, "run_eval_sim.py", *words)
    rows = (old_repository / "outputs/models/place_crayon_phase2/experiment1/eval/eval.jsonl").read_text().splitlines()
    assert len(rows) == 20
    assert all(json.loads(row)["error"] is None for row in rows)
    assert "planar" in done.stdout or "detour" in done.stdout


# ---------------------------------------------------------------- what the words become


WORDS = [
    ("run.py", [], ["--config-name=config", f"--config-path={BEFORE}", "train_mode=single"]),
    ("run.py", ["--config_name", "config_unified"], ["--config-name=config_unified", "--config-path=configs", "train_mode=single"]),
    ("run_ddp.py", ["--model=depth", "--local_rank=0"], ["--config-name=config_ddp_depth", f"--config-path={BEFORE}", "train_mode=distributed"]),
    ("run_train.py", ["--config-name=quickstart"], ["--config-name=quickstart"]),
    ("run_train.py", ["--config-name=quickstart", "network.embed_dim=64", "dataloader.batch_size=8"], ["--config-name=quickstart", "policy.width=64", "batch_size=8"]),
    ("run_train.py", ["train_mode=single", "--seed=3"], ["--config-name=config_unified", "--config-path=configs", "train_mode=single", "seed=3"]),
    ("run_train.py", ["--help"], ["--help"]),
    ("run_eval_sim.py", ["rollout_runner.episode_num=3"], ["episodes=3"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "todays"), WORDS, ids=[f"{name} {' '.join(words)}" for name, words, _ in WORDS]
)
def test_words_of_old_commands_are_words_of_ours(name, words, todays, old_repository, monkeypatch):
    monkeypatch.chdir(old_repository)
    assert todays_words(name, words, project=old_repository) == todays


MISTAKES = [
    ("run_train.py", "--model=depth", "Type --config-name=config_ddp_depth"),
    ("run_train.py", "network=rgb", "with - network: rgb in its defaults, and type --config-name=<its name>"),
    ("run.py", "network.drop_path=0.1", "policy.dropout"),
    ("run_eval_sim.py", "network.temporal_agg=true", "temporal_ensembling=true"),
    ("run_train.py", "train.total_epoch=3", "Did you mean train.total_epochs"),
    ("run_train.py", "dataset.augment_depth=true", "set augment.shift_px, crop_ratio, depth_shift_m"),
    ("run_train.py", "+dataset.hist_action_cond=true", "are not needed here. Type 'dataset.hist_action_cond=true'"),
    ("run.py", "--config-name=nothing", "no file nothing.yaml"),
    ("run_eval_sim.py", "--config-name=config_eval", "evaluation has no configuration file"),
]


@pytest.mark.parametrize(("name", "word", "says"), MISTAKES, ids=[" ".join(each[:2]) for each in MISTAKES])
def test_a_mistake_in_an_old_command_is_one_line(name, word, says, old_repository):
    done = run_script(name, word, cwd=old_repository, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith(f"{name} is deprecated")]
    assert says in error


def test_two_names_of_a_configuration_are_one_too_many(tmp_path):
    with pytest.raises(UserError, match="name two files"):
        todays_words("run_ddp.py", ["--model=depth", "--config-name=mine"], project=tmp_path)


def test_without_ppt_kit_a_wrapper_says_what_to_install(old_repository):
    bare = run_script(sys.executable, "-I", "-S", "run.py", cwd=old_repository)
    assert bare.returncode == 1
    assert "pip install -e" in bare.stderr
    assert len(bare.stderr.strip().splitlines()) == 1


# ---------------------------------------------------------------- the folder, there and back


@pytest.fixture
def repository(tmp_path):
    for name in ("run.py", "run_ddp.py"):
        (tmp_path / name).write_text(f"{OLD_RUN}# {name}\n")
    (tmp_path / "run.py").chmod(0o755)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(repository, run_here):
    first = files(repository)
    done = run_here(MIGRATE, "--create-wrappers", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "write    run_eval_sim.py" in done.stdout
    assert b"hand_over" in files(repository)["run.py"]
    assert run_here(MIGRATE, "--undo", cwd=repository).returncode == 0
    (kept,) = repository.glob("old_scripts_*")
    assert files(kept) == first
    shutil.rmtree(kept)
    assert files(repository) == first
    assert os.access(repository / "run.py", os.X_OK)


@pytest.mark.parametrize(
    "words", [("--backup",), ("--create-wrappers",), ("--backup", "--create-wrappers")], ids=" ".join
)
def test_a_dry_run_lists_all_and_changes_nothing(words, repository, run_here):
    first = files(repository)
    listed = run_here(MIGRATE, *words, "--dry-run", cwd=repository).stdout.splitlines()
    assert files(repository) == first
    assert listed.pop() == "nothing was changed (--dry-run)"
    made = run_here(MIGRATE, *words, cwd=repository).stdout.splitlines()
    shorn = [line.split("old_scripts_")[0] for line in listed]
    assert shorn == [line.split("old_scripts_")[0] for line in made[:-1]]
    assert any(line.startswith("back up  run.py -> ") for line in listed)


def test_no_backup_takes_the_place_of_another(repository, run_here):
    for _ in range(3):
        assert run_here(MIGRATE, "--backup", cwd=repository).returncode == 0
    kept = sorted(repository.glob("old_scripts_*"))
    assert len(kept) == 3
    assert all(files(folder).keys() == {"run.py", "run_ddp.py"} for folder in kept)


def test_a_second_time_changes_nothing_and_the_first_scripts_come_back(repository, run_here):
    first = (repository / "run.py").read_bytes()
    run_here(MIGRATE, "--create-wrappers", cwd=repository)
    again = run_here(MIGRATE, "--create-wrappers", cwd=repository)
    assert again.stdout == "nothing is to be changed\n"
    # a wrapper of another version of ours: what stood there at first stays what is put back
    record = json.loads((repository / RECORD).read_text())
    (repository / "run.py").write_text("older wrapper\n")
    for entry in record["writes"]:
        if entry["path"] == "run.py":
            entry["sha256"] = hashlib.sha256(b"older wrapper\n").hexdigest()
    (repository / RECORD).write_text(json.dumps(record))
    renewed = run_here(MIGRATE, "--create-wrappers", cwd=repository).stdout
    assert "back up" not in renewed
    assert "write    run.py" in renewed
    run_here(MIGRATE, "--undo", cwd=repository)
    assert (repository / "run.py").read_bytes() == first


def test_what_the_user_changed_since_is_left_alone(repository, run_here):
    run_here(MIGRATE, "--create-wrappers", cwd=repository)
    (repository / "run.py").write_text("mine\n")
    done = run_here(MIGRATE, "--undo", cwd=repository)
    assert done.returncode == 1
    assert "leave    run.py: it was changed" in done.stdout
    assert (repository / "run.py").read_text() == "mine\n"
    assert not (repository / "run_train.py").exists()
    (repository / "run.py").unlink()
    assert run_here(MIGRATE, "--undo", cwd=repository).returncode == 0
    assert (repository / "run.py").read_text().startswith(OLD_RUN)


def test_a_backup_that_is_gone_is_told_and_the_wrapper_stays(repository, run_here):
    run_here(MIGRATE, "--create-wrappers", cwd=repository)
    (kept,) = repository.glob("old_scripts_*")
    shutil.rmtree(kept)
    done = run_here(MIGRATE, "--undo", cwd=repository)
    assert done.returncode == 1
    assert "is gone" in done.stdout
    assert (repository / "run.py").exists()


REFUSED = [
    ([], "nothing is asked for"), (["--undo"], "nothing to undo"), (["--undo", "--backup"], "Type it alone"),
    (["--backup", "--project=nowhere"], "no such folder"), (["--backup", f"--project={ROOT}"], "ppt_kit itself"),
    (["--convert-config=none.yaml"], "no such file"), (["--create-wrapper"], "Did you mean create_wrappers"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[" ".join(words) or "nothing" for words, _ in REFUSED])
def test_a_mistake_is_one_line_and_changes_nothing(words, says, repository, run_here):
    first = files(repository)
    done = run_here(MIGRATE, *words, cwd=repository)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert files(repository) == first


# ------------------------------------------------------------------ what a record says, and who wrote it


def test_undo_touches_nothing_outside_of_the_project_and_no_record_of_a_strangers(repository, run_here):
    """A folder may have come from somebody else, record and all."""
    outside = repository.parent / "outside.txt"
    outside.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    (repository / "payload").write_text("theirs")
    for entry, code in (
        ({"path": str(outside), "sha256": digest, "backup": None}, 1),
        ({"path": "../outside.txt", "sha256": digest, "backup": None}, 1),
        ({"path": "../outside.txt", "sha256": digest, "backup": "payload"}, 2),
        ({"path": "run.py", "sha256": digest, "backup": "../outside.txt"}, 2),
        ({"path": 5, "sha256": 1, "backup": 3}, 2),
        (1, 2),
    ):
        (repository / RECORD).write_text(json.dumps({"writes": [entry]}))
        done = run_here(MIGRATE, "--undo", cwd=repository)
        assert done.returncode == code, done.stdout + done.stderr
        assert outside.read_text() == "mine"
        assert "Traceback" not in done.stderr
        assert ("lies outside" in done.stdout) == (code == 1)


def test_it_is_one_folder_however_it_is_typed(repository, run_here):
    (repository / "configs").mkdir(exist_ok=True)
    (repository / "configs/mine.yaml").write_text(
        CONFIGS["my_configs/custom_train.yaml"].replace(
            "defaults: [config_unified, _self_]",
            "use_lru_cache: true\ndataset: {_target_: ppt_learning.dataset.multi_sim_traj_dataset.MultiTrajDataset}",
        )
    )
    target = repository / "configs/mine_ppt_kit.yaml"
    target.write_text("what: stood there\n")
    convert = run_here(MIGRATE, f"--project={repository}", f"--convert-config={repository.name}/configs/mine.yaml", cwd=repository.parent)  # fmt: skip
    assert convert.returncode == 0, convert.stderr
    assert target.read_text() != "what: stood there\n"
    assert run_here(MIGRATE, "--project=..", "--undo", cwd=repository / "configs").returncode == 0
    assert target.read_text() == "what: stood there\n"


def test_what_lies_behind_a_link_or_outside_is_said(repository, run_here, tmp_path_factory):
    disk, beside = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("beside")
    (repository / "configs").symlink_to(disk)
    text = "use_lru_cache: true\ndataset: {_target_: ppt_learning.dataset.multi_sim_traj_dataset.MultiTrajDataset}\n"
    for folder in (disk, beside):
        (folder / "mine.yaml").write_text(text)
    run_here(MIGRATE, "--convert-config=configs/mine.yaml", cwd=repository)
    assert (disk / "mine_ppt_kit.yaml").is_file()
    assert run_here(MIGRATE, "--undo", cwd=repository).returncode == 0
    assert not (disk / "mine_ppt_kit.yaml").exists()
    done = run_here(MIGRATE, f"--convert-config={beside / 'mine.yaml'}", cwd=repository)
    assert "it lies outside of the project, so --undo leaves it" in done.stdout
    assert run_here(MIGRATE, "--undo", cwd=repository).returncode == 1
    assert (beside / "mine_ppt_kit.yaml").is_file()
    assert "there is nothing to undo" in run_here(MIGRATE, "--undo", cwd=repository).stderr


def test_an_edited_wrapper_is_kept_and_the_first_script_comes_back(repository, run_here):
    first = (repository / "run.py").read_text()
    run_here(MIGRATE, "--create-wrappers", cwd=repository)
    with open(repository / "run.py", "a") as file:
        file.write("# my edit\n")
    run_here(MIGRATE, "--create-wrappers", cwd=repository)
    run_here(MIGRATE, "--undo", cwd=repository)
    assert (repository / "run.py").read_text() == first
    kept = [path.read_text() for path in repository.glob("old_scripts_*/run.py")]
    assert any(text.endswith("# my edit\n") for text in kept)


def test_links_come_back_as_links(repository, run_here):
    (repository / "run.py").rename(repository / "real.py")
    (repository / "run.py").symlink_to("real.py")
    (repository / "run_train.py").symlink_to("/not/mounted/run_train.py")
    before = (repository / "real.py").read_text()
    done = run_here(MIGRATE, "--backup", "--create-wrappers", cwd=repository)
    assert "in the place of the link to real.py" in done.stdout
    assert "Deprecated" in (repository / "run.py").read_text()
    assert run_here(MIGRATE, "--create-wrappers", cwd=repository).stdout == "nothing is to be changed\n"
    run_here(MIGRATE, "--undo", cwd=repository)
    assert [os.readlink(repository / name) for name in ("run.py", "run_train.py")] == ["real.py", "/not/mounted/run_train.py"]  # fmt: skip
    assert (repository / "real.py").read_text() == before


def test_two_at_once_are_one_after_the_other(repository, run_here):
    from ppt_kit.migration.folder import alone

    with alone(repository):
        done = run_here(MIGRATE, "--create-wrappers", cwd=repository)
    assert (done.returncode, done.stderr) == (2, "error: project=.: another process is migrating it. Wait for it.\n")


def test_modules_beside_a_wrapper_are_not_ours(repository, run_here):
    run_here(MIGRATE, "--create-wrappers", cwd=repository)
    (repository / "omegaconf.py").write_text("raise SystemExit('of the old folder')\n")
    ran(repository, "run.py", "--help")
