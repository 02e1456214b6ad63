"""Folders that plain DeepSpeed wrote, stages 0-3, one rank and two: what is whole, and the model's own weights."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from safetensors.torch import load_file

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.jobs.ranks import free_port

SCRIPT = str(ROOT / "scripts/ds_checkpoint.py")
NAMES = [
    f"{kind}x{ranks}" for ranks in (1, 2) for kind in ("zero0", "zero1", "zero2", "zero3", "half0", "half1", "half3")
]
SHARD, MODEL, MODEL_3 = (
    "zero_pp_rank_{}_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_model_states.pt"
)  # fmt: skip


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Folders by name, each with the steps 1 and 2 and expected.pt: written once, by one rank and by two."""
    folder = tmp_path_factory.mktemp("deepspeed")
    done = run_script(
        str(ROOT / "tests/ds_writer.py"), str(folder), str(free_port()), str(free_port()), env={"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


@pytest.fixture
def copied(written, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(written / name, tmp_path / name))

    return copy


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_the_models_own_to_the_bit(written, tmp_path, name):
    weights = load_file(ppt.ds_to_weights(written / name, out=tmp_path / "w.safetensors"))
    expected = torch.load(written / name / "expected.pt", weights_only=True)
    assert weights.keys() == expected.keys()
    assert all(weights[each].dtype == expected[each].dtype for each in expected)
    assert all(torch.equal(weights[each], expected[each]) for each in expected)


@pytest.mark.parametrize("name", ["zero1x2", "zero2x1", "zero3x2", "half1x2", "half3x2"])
def test_an_earlier_step_has_the_trained_weights_that_deepspeeds_own_script_gives(written, tmp_path, name):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(str(written / name), tag="global_step1")
    ours = load_file(ppt.ds_to_weights(written / name, tag="global_step1", out=tmp_path / "w.safetensors"))
    # at stages 1 and 2 it leaves out what was frozen
    assert {"first.weight", "first.bias", "second.weight", "tied.weight"} <= theirs.keys() <= ours.keys()
    assert all(torch.equal(ours[each], theirs[each].to(ours[each].dtype)) for each in theirs)
    assert not torch.equal(ours["first.weight"], torch.load(written / name / "expected.pt")["first.weight"])


def test_a_table_says_what_is_there(written):
    for name in NAMES:
        found = ppt.ds_checkpoints(written / name)
        assert found.loads
        assert found.newest_whole == found.latest == "global_step2"
        assert list(found.table["step"]) == [1, 2]
        assert set(found.table["ranks"]) == {int(name[-1])}
        assert set(found.table["stage"]) == {int(name[4])}
        # 15 + 5 trained, 25 + 5 frozen, 15 that have two names; at stage 0 in half precision nothing says they are one
        assert set(found.table["parameters"]) == {65}
    assert "latest names global_step2, which is whole." in found._repr_html_()


def damaged(folder: Path, what: str) -> str:
    """Damages step 2, and gives the name of the file that is to be named."""
    step, before = folder / "global_step2", folder / "global_step1"
    model = MODEL if (step / MODEL).exists() else MODEL_3.format(1)
    if what == "no folder":
        shutil.rmtree(step)
        return f"{step}: no such folder"
    file = step / (SHARD.format(1) if "shard" in what else model)
    if what.startswith("no "):
        file.unlink()
    elif what.startswith("cut "):
        file.write_bytes(file.read_bytes()[:-200])
    elif what.startswith("empty "):
        file.write_bytes(b"")
    elif what.startswith("flipped "):
        # of numbers: between them an archive has bytes that mean nothing
        with zipfile.ZipFile(file) as archive:
            stored = max((archive.read(name) for name in archive.namelist() if "/data/" in name), key=len)
        content = bytearray(file.read_bytes())
        content[content.index(stored)] ^= 4
        file.write_bytes(content)
    elif what.startswith("older "):
        shutil.copy(before / file.name, file)
        return "of two saves"
    elif what == "stray shard":
        shutil.copy(file, step / SHARD.format(2))
        return SHARD.format(2)
    return file.name


DAMAGES = [f"{how} {file}" for file in ("shard", "model") for how in ("no", "cut", "empty", "flipped", "older")]
# the model's file is all there is at stage 0
TORN = [("zero0x2", f"{how} model") for how in ("no", "cut", "empty", "flipped")]
TORN += [(f"zero{stage}x2", what) for stage in (1, 2, 3) for what in [*DAMAGES, "stray shard", "no folder"]]


@pytest.mark.parametrize(("name", "what"), TORN)
def test_a_torn_step_is_named_with_its_file_and_the_newest_whole_one_too(copied, name, what):
    folder = copied(name)
    named = damaged(folder, what)
    found = ppt.ds_checkpoints(folder)
    assert (found.loads, found.latest, found.newest_whole) == (False, "global_step2", "global_step1")
    assert named in found.table["problem"].iloc[-1]
    with pytest.raises(UserError, match="Whole is tag=global_step1") as refused:
        ppt.ds_to_weights(folder)
    assert named in str(refused.value)
    assert not list(folder.glob("*.safetensors"))
    assert ppt.ds_to_weights(folder, tag="global_step1").is_file()


def test_in_a_terminal_a_whole_folder_is_0_a_torn_one_1_and_a_mistake_2(copied, run_here, tmp_path):
    folder = copied("zero2x2")
    done = run_here(SCRIPT, "inspect", str(folder), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "latest names global_step2, which is whole." in done.stdout
    done = run_here(SCRIPT, "to-weights", str(folder), "out=w.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_file(tmp_path / "w.safetensors").keys() == torch.load(folder / "expected.pt").keys()
    (folder / "latest").write_text("global_step3")
    done = run_here(SCRIPT, "inspect", str(folder), cwd=tmp_path)
    assert done.returncode == 1
    assert "global_step3: no such folder" in done.stdout
    assert "The newest whole step is global_step2." in done.stdout
    for words, said in [
        (["to-weights", str(folder)], "Whole is tag=global_step2."),
        (["to-weights", str(folder), "tag=global_step2", "out=w.safetensors"], "is there already"),
        (["to-weights", str(folder), "tag=global_step2", f"out={tmp_path}"], "a folder. Name the file"),
        (["inspect", str(tmp_path)], "holds no checkpoint of DeepSpeed"),
        (["inspect", "nowhere"], "no such folder"), (["inspect", str(folder / "latest")], "a file"),
        (["inspekt", str(folder)], "Did you mean inspect?"), ([], "folder is empty"),
        (["inspect", str(folder), "out=w"], "inspect writes nothing"),
    ]:  # fmt: skip
        done = run_here(SCRIPT, *words, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert said in done.stderr


def test_a_step_is_read_from_its_own_folder_and_without_a_file_latest(copied):
    folder = copied("zero3x2")
    (folder / "latest").unlink()
    found = ppt.ds_checkpoints(folder / "global_step1")
    assert (found.loads, list(found.table["tag"])) == (True, ["global_step1"])
    assert not ppt.ds_checkpoints(folder).loads
    with pytest.raises(UserError, match="no file latest. Name a step, as tag=global_step2"):
        ppt.ds_to_weights(folder)
    shutil.copy(folder / "global_step1" / MODEL_3.format(0), folder / "global_step1" / MODEL)
    with pytest.raises(UserError, match="of two saves at different stages"):
        ppt.ds_to_weights(folder / "global_step1")


@pytest.mark.parametrize("file", ["mp_rank_01_model_states.pt", "layer_03-model_00-model_states.pt"])
def test_a_model_that_is_cut_otherwise_is_refused(copied, file):
    folder = copied("zero1x1")
    (folder / "global_step2" / file).touch()
    with pytest.raises(UserError, match=f"{file}: of a .*Have the program that trained it"):
        ppt.ds_to_weights(folder)


class Trap:
    """Runs when it is unpickled."""

    def __init__(self, call, *words):
        self.call, self.words = call, words

    def __reduce__(self):
        return self.call, self.words


def test_no_code_of_a_file_runs(copied, tmp_path):
    folder, sprung = copied("zero1x2"), tmp_path / "sprung"
    file = folder / "global_step2" / MODEL
    content = torch.load(file, weights_only=False)
    expected = load_file(ppt.ds_to_weights(folder))
    # what a function would give is left out, and the rest is read
    torch.save({**content, "args": Trap(exec, f"open({str(sprung)!r}, 'w')")}, file)
    weights = load_file(ppt.ds_to_weights(folder, overwrite=True))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    for trap, said in [
        (Trap(os.system, f"touch {sprung}"), "posix.system"),
        (Trap(Path.touch, sprung), "unrecognized function"),
    ]:
        torch.save({**content, "args": trap}, file)
        with pytest.raises(UserError, match=f"{MODEL}: cannot be read without running code of it.* {said}"):
            ppt.ds_to_weights(folder, overwrite=True)
    assert not sprung.exists()
    # the same file springs it when it is trusted
    torch.load(file, weights_only=False)
    assert sprung.exists()


def test_reading_imports_no_deepspeed(written):
    code = (
        f"import sys, ppt_kit; ppt_kit.ds_checkpoints({str(written / 'zero1x1')!r}); print('deepspeed' in sys.modules)"
    )
    assert run_script(sys.executable, "-c", code).stdout.strip() == "False"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"not/a/name"])
def test_a_torn_latest_hides_no_step_and_is_not_needed_where_one_is_named(copied, content, run_here, tmp_path):
    folder = copied("zero1x2")
    (folder / "latest").write_bytes(content)
    found = ppt.ds_checkpoints(folder)
    assert list(found.table["whole"]) == [True, True]
    assert not found.loads
    assert "DeepSpeed would load nothing" in str(found)
    assert run_here(str(ROOT / "scripts/ds_checkpoint.py"), "inspect", str(folder), cwd=tmp_path).returncode == 1
    assert ppt.ds_checkpoints(folder, tag="global_step1").loads
    assert ppt.ds_to_weights(folder, tag="global_step1", out=tmp_path / "w.safetensors").is_file()
    with pytest.raises(UserError, match="latest: .*tag="):
        ppt.ds_to_weights(folder)


def test_a_place_that_takes_no_weights_is_one_line(copied):
    with pytest.raises(UserError, match="out=/proc/w.safetensors: cannot be written"):
        ppt.ds_to_weights(copied("zero1x2"), out="/proc/w.safetensors")
