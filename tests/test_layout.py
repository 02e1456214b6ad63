"""The house: imports run one way, each outside power has one owner, names are complete, the code is clean."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

import ppt_kit

# the lines of the map at the top of the package: rooms, with a | between strangers
MAP = re.findall(r"^    (\w+) {2,}(\S.*?)(?: {2,}.*)?$", ppt_kit.__doc__ or "", re.MULTILINE)
LAYERS = {room: number for number, (_, rooms) in enumerate(MAP) for room in rooms.replace("|", " ").split()}
STRANGERS = {
    room: {other for group in rooms.split("|") for other in group.split() if room not in group.split()}
    for _, rooms in MAP
    for room in rooms.replace("|", " ").split()
}
OWNERS = {
    "deepspeed": {"engine/"}, "torch.distributed": {"engine/"}, "wandb": {"tracking/"},
    "mujoco": {"sim/"}, "metaworld": {"sim/"}, "gymnasium": {"sim/"},
    "ipywidgets": {"notebook/"}, "IPython": {"notebook/"},
    "submitit": {"jobs/"}, "fire": {"commands/"}, "zarr": {"data/"}, "h5py": {"data/"}, "pyarrow": {"data/"},
}  # fmt: skip


def modules():
    for path in sorted((ROOT / "ppt_kit").rglob("*.py")):
        yield path, path.relative_to(ROOT / "ppt_kit")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(relative):
    return relative.parts[0].removesuffix(".py")


def test_the_map_has_every_room_and_ten_lines_suffice():
    rooms = {room_of(relative) for _, relative in modules()} - {"configs"}
    assert rooms == set(LAYERS)
    assert len((ppt_kit.__doc__ or "").strip().splitlines()) <= 15


def test_imports_run_one_way():
    backwards = []
    for path, relative in modules():
        room = room_of(relative)
        if room == "configs":
            continue
        for name in imports_of(path):
            other = name.split(".")[1] if name.startswith("ppt_kit.") else ""
            if other in LAYERS and (LAYERS[other] > LAYERS[room] or other in STRANGERS[room]):
                backwards.append(f"{relative} imports {name}")
    assert not backwards


def test_the_picture_of_the_house_names_every_room(tmp_path):
    drawn = tmp_path / "structure.svg"
    subprocess.run([sys.executable, str(ROOT / "scripts/draw_structure.py"), str(drawn)], check=True)
    assert set(LAYERS) <= set(re.findall(r">(\w+)</text>", drawn.read_text()))


def test_the_house_keeps_its_measures():
    """Files of a few screens, functions of one: a reader finds what a room is for."""
    sizes, lengths, crowded, broad = {}, {}, [], []
    for path in sorted([*(ROOT / "ppt_kit").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]):
        name, text = str(path.relative_to(ROOT)), path.read_text()
        sizes[name] = text.count("\n")
        broad += [f"{name}:{number}" for number, line in enumerate(text.splitlines(), 1) if len(line) > 120]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{name}:{node.name}"
                lengths[f"{where}:{node.lineno}"] = (node.end_lineno or 0) - node.lineno + 1
                arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([a for a in arguments if a not in ("self", "cls")]) > 8 and node.name not in ppt_kit.__all__:
                    crowded.append(where)
    assert not [name for name, size in sizes.items() if size > 400]
    assert statistics.median(size for size in sizes.values() if size > 1) < 160
    assert not [name for name, length in lengths.items() if length > 45]
    assert statistics.median(lengths.values()) <= 8
    assert not crowded
    assert not broad


def test_every_package_is_installed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in (ROOT / "ppt_kit").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == listed - {"ppt_kit.ds_configs"}


def test_each_outside_power_has_one_owner():
    trespassers = []
    for path, relative in modules():
        for name in imports_of(path):
            for power, owners in OWNERS.items():
                inside = any(
                    str(relative) == owner or (owner.endswith("/") and str(relative).startswith(owner))
                    for owner in owners
                )
                if (name == power or name.startswith(f"{power}.")) and not inside:
                    trespassers.append(f"{relative} imports {name}")
    assert not trespassers


def test_weights_are_read_and_written_in_one_file():
    for path, relative in modules():
        if str(relative) != "torch_file.py":
            calls = {
                ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
            }
            assert not calls & {"torch.load", "torch.save"}, relative


def test_every_module_that_is_imported_exists():
    """Also those that a function imports when it runs: the type checker takes an unknown module for a missing stub."""
    gone = []
    for folder in ("ppt_kit", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ppt_kit":
                    place = ROOT / node.module.replace(".", "/")
                    if not place.is_dir() and not place.with_suffix(".py").is_file():
                        gone.append(f"{path.relative_to(ROOT)}: {node.module}")
    assert not gone


def test_importing_the_package_starts_none_of_the_heavy_ones():
    code = (
        "import sys, ppt_kit; print([m for m in ('deepspeed', 'wandb', 'mujoco', 'torch', 'zarr') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_is_there():
    import ppt_kit

    assert all(callable(getattr(ppt_kit, name)) for name in ppt_kit.__all__)
    with pytest.raises(AttributeError, match="it has"):
        ppt_kit.no_such_name  # noqa: B018


def test_every_configuration_key_has_a_reader():
    from ppt_kit import schema
    from ppt_kit.keys import leaves_of

    source = "\n".join(
        path.read_text()
        for folder in ("ppt_kit", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "schema.py"
    )
    groups_passed_whole = ("dataset", "policy")  # as keyword arguments: an unknown one raises, so each is read
    unread = []
    schemas = (
        schema.Config, schema.CollectConfig, schema.EvaluateConfig, schema.ConvertConfig, schema.VerifyConfig,
        schema.DeepSpeedFolderConfig,
    )  # fmt: skip
    for each in schemas:
        for dotted in leaves_of(each):
            if dotted.split(".")[0] not in groups_passed_whole and f".{dotted.split('.')[-1]}" not in source:
                unread.append(dotted)
    assert not unread


def test_pins_ranges_and_conda_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        Requirement(text) for text in project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    ]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    assert pins["deepspeed"] == "0.19.8"
    for requirement in wanted:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
        assert metadata.version(requirement.name).split("+")[0] == pins[requirement.name], requirement.name
    conda = (ROOT / "environment.yml").read_text()
    assert "-c constraints.txt" in conda
    assert set(project["optional-dependencies"]) == set(conda.split("-e .[")[1].split("]")[0].split(","))
    for line in conda.splitlines():
        if "==" in line:
            name, version = line.strip(" -").split("==")
            assert pins[name] == version
    assert f"python={project['requires-python'].removeprefix('>=')}" in conda


def test_the_version_is_the_same_wherever_it_stands():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == ppt_kit.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_settings_files_of_deepspeed_leave_our_numbers_alone():
    from ppt_kit.config import load_config
    from ppt_kit.engine import check_settings

    for path in (ROOT / "ds_configs").glob("*.json"):
        settings = check_settings(load_config("quickstart", f"deepspeed={path.stem}"))
        assert settings["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero")[0])


def test_notebooks_are_committed_without_outputs():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), path


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_the_code_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
