"""Files of a run that are not what a run wrote: one line says which, why, and what to do; and what goes on after it."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import SMALL_WORDS

from ppt_kit.checkpoint import load_model, load_policy, resume_files, save_model
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.files import write_text, write_whole
from ppt_kit.jobs.record import read_record
from ppt_kit.tracking import read_metrics
from ppt_kit.train.trainer import UnifiedTrainer


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory) -> Path:
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("models")
    words = (f"dataset_path={small_data}", "domains=a", f"output_dir={folder}", "suffix=run", "train.total_iters=4")
    run = UnifiedTrainer(load_config("quickstart", *SMALL_WORDS, *words, "save_interval=1"), mode="single")
    assert run.run() == 0
    return run.run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy of it, to be damaged, at its place in an output folder."""
    return Path(shutil.copytree(trained, tmp_path / "models/a/run"))


def changed(file: Path, **values) -> None:
    """Parts of a file of weights replaced; None takes one away."""
    content = torch.load(file, weights_only=True) | values
    torch.save({name: value for name, value in content.items() if value is not None}, file)


def flipped(file: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 4
    file.write_bytes(data)


def code(file: Path) -> None:
    torch.save({"policy": print, "config": {}}, file)


def zip_of_others(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")


def with_nan(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    first = next(name for name, value in content["policy"].items() if value.is_floating_point())
    for part in ("policy", "ema"):
        content[part][first] = torch.full_like(content[part][first], float("nan"))
    torch.save(content, file)


DAMAGES = {
    "nothing in it": (lambda file: file.write_bytes(b""), "empty"),
    "text": (lambda file: file.write_text("see the other folder"), "not a checkpoint"),
    "a pointer of Git LFS": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "another program's pickle": (lambda file: file.write_bytes(pickle.dumps({"policy": 1})), "pickle of another"),
    "code": (code, "can run anything"),
    "cut in half": (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "damaged"),
    "another zip": (zip_of_others, "not written by ppt_kit"),
    "a list": (lambda file: torch.save([1, 2], file), "holds a list"),
    "a tensor": (lambda file: torch.save(torch.zeros(3), file), "holds a Tensor"),
    "a newer format": (lambda file: changed(file, format=99), "format 99"),
    "a format that is a word": (lambda file: changed(file, format="two"), "format 'two'"),
    "no configuration": (lambda file: changed(file, config=None), "config"),
    "a configuration that is a list": (lambda file: changed(file, config=[1]), "config"),
}  # fmt: skip
FLIPS = {
    f"a bit flipped at {place}": (lambda file, at=place: flipped(file, at), "damaged") for place in (0.2, 0.5, 0.8)
}
OF_MODEL = {
    "no views": (lambda file: changed(file, views=None), "views"),
    "views that are numbers": (lambda file: changed(file, views={"a": 3}), "does not describe a policy"),
    "a view without a size": (lambda file: changed(file, views={"a": {"state": {}}}), "does not describe a policy"),
    "sources that are a list": (lambda file: changed(file, sources=[]), "sources"),
    "statistics of no domain": (lambda file: changed(file, normalizer={}), "missing"),
    "statistics that are numbers": (lambda file: changed(file, normalizer={"a": 3}), "3"),
    "no weights of the head": (lambda file: changed(file, policy={}, ema=None), "do not fit"),
    "weights that are numbers": (lambda file: changed(file, policy={"trunk": 3}, ema=None), "do not fit"),
    "a width no machine has": (
        lambda file: changed(file, config=torch.load(file)["config"] | {"policy": {"width": 10**9}}), "policy.width",
    ),
    "an unknown key": (lambda file: changed(file, config={"polcy": 1}), "polcy"),
    "values that are not finite": (with_nan, "not finite"),
}  # fmt: skip
OF_RESUME = {
    "no engine": (lambda file: changed(file, engine=None), "engine"),
    "no moments": (lambda file: changed(file, engine={"step": 4, "weights": {}}), "engine.moments"),
    "no generator": (lambda file: changed(file, generators={}), "generators.torch"),
    "another policy's weights": (
        lambda file: changed(file, engine=torch.load(file)["engine"] | {"weights": {}}), "in the checkpoint",
    ),
    "progress that is a word": (lambda file: changed(file, progress="far"), "progress"),
    "no progress": (lambda file: changed(file, progress=None), "progress"),
}  # fmt: skip


def the_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("damage", [*DAMAGES, *FLIPS, *OF_MODEL])
def test_a_model_that_is_none_is_told_in_one_line_that_names_the_file(damage, run_dir):
    damage_it, says = {**DAMAGES, **FLIPS, **OF_MODEL}[damage]
    damage_it(run_dir / "model.pth")
    with pytest.raises(UserError, match=says) as error:
        load_policy(run_dir)
    assert str(run_dir) in the_line(error)


def test_a_run_with_names_that_are_refused_today_still_loads(run_dir):
    config = torch.load(run_dir / "model.pth", weights_only=True)["config"]
    changed(run_dir / "model.pth", config=config | {"suffix": "of/mine", "seed": 2**40, "job_name": "x.log"})
    assert list(load_policy(run_dir).domains) == ["a"]


@pytest.mark.parametrize("damage", [*DAMAGES, *FLIPS, *OF_RESUME])
def test_a_state_that_is_none_is_told_in_one_line_and_the_run_is_as_it_was(damage, run_dir, small_data):
    damage_it, says = {**DAMAGES, **FLIPS, **OF_RESUME}[damage]
    newest = resume_files(run_dir)[-1]
    damage_it(newest)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    cfg = load_config("config", "train.resume=auto", "train.total_iters=6", config_path=run_dir)
    cfg.output_dir = str(run_dir.parents[1])
    with pytest.raises(UserError, match=says) as error:
        UnifiedTrainer(cfg, mode="single").run()
    assert str(run_dir) in the_line(error)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_every_flipped_bit_of_a_checkpoint_that_matters_is_noticed(tmp_path):
    """One bit in each of 60 places: what still loads is what was written."""
    file = tmp_path / "model.pth"
    content = {
        "policy": {"x": torch.arange(500.0)}, "config": {}, "step": 1, "epoch": 1, "normalizer": {}, "sources": {},
        "views": {},
    }  # fmt: skip
    save_model(tmp_path, content, epoch=None, keep_last=0)
    whole, noticed = file.read_bytes(), 0
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            assert torch.equal(load_model(file)["policy"]["x"], content["policy"]["x"])
            continue
        noticed += 1
    assert noticed > 30


def test_half_written_files_of_killed_saves_go_with_the_next_one(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    left = [tmp_path / f".model_{epoch}.pth.writing-{dead.pid}@{host}" for epoch in (10, 20)]
    others = [tmp_path / f".model_30.pth.writing-{os.getppid()}@{host}", tmp_path / ".model_40.pth.writing-1@elsewhere"]
    for file in (*left, *others):
        file.write_text("half")
    write_text(tmp_path / "config.yaml", "seed: 1\n")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "config.yaml"])


def test_what_another_thread_is_writing_is_no_leftover(tmp_path):
    begun, may_end = threading.Event(), threading.Event()

    def slowly(beside):
        beside.write_text("whole")
        begun.set()
        assert may_end.wait(30)

    thread = threading.Thread(target=write_whole, args=(tmp_path / "model.pth", slowly))
    thread.start()
    assert begun.wait(30)
    write_text(tmp_path / "config.yaml", "seed: 1\n")
    may_end.set()
    thread.join()
    assert (tmp_path / "model.pth").read_text() == "whole"


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"pid": 1}', "\udcff"])
def test_a_record_of_a_launch_that_is_none_is_told_in_one_line(text, tmp_path):
    (tmp_path / "job.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="delete the file") as error:
        read_record(tmp_path)
    assert "job.json" in the_line(error)


def test_lines_that_are_no_rows_are_counted_and_the_others_read(tmp_path, caplog):
    lines = [
        b'{"kind": "train", "step": 1}',
        b"[1, 2]",
        b"\xff\xfe",
        b'"text"',
        b'{"kind": "train", "step": 2}',
        b'{"ki',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert list(read_metrics(tmp_path, "train")["step"]) == [1, 2]
    assert "4 of 6 lines are no rows, the first is line 2" in caplog.text
