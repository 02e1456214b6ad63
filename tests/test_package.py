"""What pip installs is all of the package, and does its work in a folder with no repository around."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_WORDS, latest
from omegaconf import OmegaConf

import ppt_kit
from ppt_kit.jobs.ranks import free_port

# what the packaging reads, beside the package
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "ds_configs")
TINY = latest(*SMALL_WORDS, "domains=detour", "train.total_epochs=1", "train.total_iters=3", "policy/head=regression")
PROGRAMS = (
    "ppt", "ppt-collect", "ppt-convert", "ppt-doctor", "ppt-ds-checkpoint", "ppt-eval", "ppt-migrate", "ppt-quickstart",
    "ppt-sweep", "ppt-train", "ppt-verify-card",
)  # fmt: skip


def ours(folder: Path, *, within: Path) -> set[str]:
    """Files of the working tree, less what Python and editors leave."""
    found = {path.relative_to(within) for path in folder.rglob("*") if path.is_file()}
    left = {"__pycache__", ".ipynb_checkpoints"}
    return {path.as_posix() for path in found if not left & set(path.parts)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of the source distribution, as pip does with what lies on an index."""
    folder = tmp_path_factory.mktemp("source")
    # elsewhere: a build leaves folders, and metadata that would be taken for an installation's
    shutil.copytree(ROOT / "ppt_kit", folder / "ppt_kit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "tests").mkdir()
    shutil.copy(__file__, folder / "tests")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    # setuptools: a folder that is no package today may be left out tomorrow
    assert "would be ignored" not in done.stdout + done.stderr
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    wanted = ours(ROOT / "ppt_kit", within=ROOT)
    wanted |= {f"ppt_kit/{name}" for name in ours(ROOT / "ds_configs", within=ROOT)}
    with zipfile.ZipFile(wheel) as archive:
        held = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert len(held) == len(set(held))
    assert set(held) == wanted


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the wheel, and the suite's own heavy packages behind it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    command = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-compile", str(wheel)], check=True)
    # a path alone: what an editable installation adds by files of its own there stays out
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    launcher = Path(sysconfig.get_path("scripts"), "deepspeed").read_text().splitlines(keepends=True)
    (folder / "bin/deepspeed").write_text("".join([f"#!{python}\n", *launcher[1:]]))
    (folder / "bin/deepspeed").chmod(0o755)
    # as in a project of somebody's, whose revision is not of ours
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=theirs"], check=True)
    return folder / "bin"


def run(programs: Path, folder: Path, program: str, *words: str, code: int | None = 0) -> str:
    """What a program of the installation printed, in a folder without a repository around."""
    env = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [programs / program, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=500
    )
    assert code in (None, done.returncode), done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{ROOT}/ppt_kit" not in done.stdout + done.stderr
    return done.stdout + done.stderr


HELP = """
import contextlib, io, json, sys
from importlib.metadata import entry_points
import ppt_kit
told = {"file": ppt_kit.__file__}
for entry in entry_points(group="console_scripts"):
    if entry.value.startswith("ppt_kit") and entry.name != "ppt-doctor":
        sys.argv = [f"/bin/{entry.name}", "--help"]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            try:
                code = entry.load()()
            except SystemExit as ended:
                code = ended.code
        told[entry.name] = [code, out.getvalue()]
    elif entry.value.startswith("ppt_kit"):
        told[entry.name] = [int(not callable(entry.load())), ""]
print(json.dumps(told))
"""


def test_every_program_of_an_installation_tells_its_words_and_names_no_script(programs, tmp_path):
    told = json.loads(run(programs, tmp_path, "python", "-c", HELP).splitlines()[-1])
    assert Path(told.pop("file")).is_relative_to(programs.parent)
    assert sorted(told) == sorted(PROGRAMS)
    assert all((programs / name).is_file() for name in PROGRAMS)
    for name, (code, text) in told.items():
        assert code == 0, text
        assert "scripts/" not in text
        assert f"usage: {name} " in text or name in ("ppt", "ppt-doctor")
    assert not list(tmp_path.iterdir())


def test_an_installation_trains_and_says_what_to_type_there(programs, tmp_path):
    assert run(programs, tmp_path, "ppt", "--version").strip() == f"ppt_kit {ppt_kit.__version__}"
    said = run(programs, tmp_path, "ppt-train", "domains=detour", code=2)
    assert "`ppt-collect task=detour`" in said
    run(programs, tmp_path, "ppt-collect", "simulator=planar", "task=detour", "episodes=4")
    run(programs, tmp_path, "ppt-train", *TINY, "deepspeed=zero1", "suffix=one")
    run_dir = tmp_path / "outputs/models/detour/one"
    assert (run_dir / "model.pth").is_file()
    assert OmegaConf.load(run_dir / "provenance.yaml").git_revision is None


@pytest.mark.long
def test_every_launcher_starts_two_ranks_of_an_installation(programs, tmp_path):
    begin = partial(run, programs, tmp_path)
    begin("ppt-collect", "simulator=planar", "task=detour", "episodes=4")
    two = ("deepspeed", "--num_gpus=2", f"--master_port={free_port()}")
    python = ("python", "-m", "torch.distributed.run")
    launched = {
        "own": ("ppt-train", "train_mode=distributed", "world_size=2"),
        "module": (*two, "--module", "ppt_kit.commands.train"),
        "program": (*two, str(programs / "ppt-train")),
        "torchrun": (*python, "--standalone", "--nproc_per_node=2", "-m", "ppt_kit.commands.train"),
    }
    for name, command in launched.items():
        begin(*command, *TINY, "deepspeed=zero2", f"suffix={name}")
        assert "batch_size 8 x 2 process(es)" in (tmp_path / f"outputs/models/detour/{name}/train.log").read_text()


@pytest.mark.long
def test_an_installation_measures_replays_converts_sweeps_and_migrates(programs, tmp_path):
    begin = partial(run, programs, tmp_path)
    assert "packages" in begin("ppt-doctor", code=None)
    begin("ppt-collect", "simulator=planar", "task=detour", "episodes=4")
    begin("ppt-train", *TINY, "suffix=one")
    run_dir = "outputs/models/detour/one"
    begin("ppt-eval", f"train.pretrained_dir={run_dir}", "episodes=2", "eval_mode=parallel", "n_procs=2")
    begin("ppt-verify-card", run_dir, "episodes=1")
    assert "ppt-eval train.pretrained_dir=" in begin("ppt-verify-card", "outputs/models/detour", code=2)
    begin("python", str(ROOT / "tests/ds_writer.py"), "written", str(free_port()), str(free_port()))
    begin("ppt-ds-checkpoint", "inspect", "written/zero2x2")
    begin("ppt-convert", "source=data/detour.zarr", "target=converted", "to=lerobot", "fps=10")
    begin("ppt-sweep", *TINY, "sweep.seed=[0,1]", "suffix=sweep")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.py").write_text("print('old')\n")
    begin("ppt-migrate", "--project=old", "--backup", "--create-wrappers", "--dry-run")
    begin("ppt-migrate", "--project=old", "--backup", "--create-wrappers")
    said = begin("python", "old/run_train.py", "--config-name=quickstart", *TINY, "train_mode=single", "suffix=old")
    assert "This is now: ppt-train --config-name=quickstart" in said
    assert (tmp_path / "outputs/models/detour/old/model.pth").is_file()
