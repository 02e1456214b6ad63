"""The mirrors: a real W&B without a network goes on with its run, and whatever happens to it stops nothing."""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT, SMALL_WORDS, latest

from ppt_kit.tracking import read_metrics
from ppt_kit.train.trainer import UnifiedTrainer


def wandb_records(path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):  # half written
            return
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(record)
            record = b""


def test_a_resumed_run_goes_on_with_its_wandb_run(small_cfg):
    """Offline, then a part without W&B, then offline again: one id, and each step in one of the two files."""
    words = ["train.resume=auto", "train.total_epochs=4"]
    parts = [("offline", 5), ("disabled", 9), ("offline", None)]
    for mode, stop in parts:
        run = UnifiedTrainer(small_cfg(*words, f"wandb.mode={mode}"))
        run.listeners.append(lambda row, stop=stop: row["step"] == stop and signal.raise_signal(signal.SIGTERM))
        assert run.run() == (128 + signal.SIGTERM if stop else 0)
    files = sorted((run.run_dir / "wandb").glob("offline-run-*/*.wandb"))
    told = [whole_file(path) for path in files]
    ids = {record.run.run_id for records in told for record in records if record.WhichOneof("record_type") == "run"}
    assert len(files) == 2
    assert len(ids) == 1
    before, after = ([step for record in records for step in train_steps(record)] for records in told)
    assert before == list(range(1, before[-1] + 1))
    assert after == list(range(after[0], 17))
    assert before[-1] in (5, 6)  # a stop comes after the step that was running
    assert after[0] in (10, 11)


def whole_file(path):
    """W&B's own process may still be writing it when the run has ended."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        records = list(wandb_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def train_steps(record):
    return [int(item.value_json) for item in record.history.item if "train/step" in (item.key, *item.nested_key)]


@pytest.mark.parametrize(
    "trouble",
    ["no folder", "nonsense", *(pytest.param(each, marks=pytest.mark.long) for each in ("no server", "killed"))],
)
def test_whatever_happens_to_wandb_training_goes_on(small_data, tmp_path, trouble):
    env, mode = {"WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}, "online"
    folder = tmp_path / "a/run"
    if trouble == "no folder":
        folder.mkdir(parents=True)
        (folder / "wandb").write_text("a file where W&B wants its folder")
    if trouble == "no server":
        env["WANDB_BASE_URL"] = "http://127.0.0.1:9"
    if trouble == "nonsense":
        env["WANDB_BASE_URL"] = "nonsense"
    if trouble in ("no folder", "killed"):
        mode = "offline"
    steps = 200 if trouble == "killed" else 3
    words = [
        *SMALL_WORDS, "domains=a", f"dataset_path={small_data}", f"output_dir={tmp_path}", "suffix=run",
        f"train.total_iters={steps}", "train.total_epochs=999", "train.val_interval=0", "save_interval=999",
        f"wandb.mode={mode}",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | env
    command = [sys.executable, str(ROOT / "scripts/train.py"), *latest(*words)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if trouble == "killed":
        end = time.monotonic() + 100
        while not (folder / "metrics.jsonl").exists() or len(read_metrics(folder)) < 3:
            assert time.monotonic() < end
            time.sleep(0.02)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output[-3000:]
    assert output.count("W&B failed") == 1, output[-3000:]
    assert list(read_metrics(folder, "train")["step"]) == list(range(1, steps + 1))


def test_a_run_killed_before_its_first_row_reads_as_an_empty_table(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    for kind in (None, "train"):
        table = read_metrics(tmp_path, kind)
        assert len(table) == 0
        assert not (table["kind"] == "end").any()


def test_two_runs_of_one_process_have_a_log_each(tmp_path):
    """As in a notebook, where one trains behind the other; what no run's thread says is in both."""
    from ppt_kit.tracking.logs import add_handlers, remove_handlers

    log, there = logging.getLogger("ppt_kit.some.part"), threading.Barrier(3)

    def run(name):
        handlers = add_handlers(tmp_path / name, on_screen=False)
        there.wait()
        log.info("of %s", name)
        there.wait()
        there.wait()
        remove_handlers(handlers)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    there.wait()
    there.wait()
    log.info("of the kernel")
    there.wait()
    for thread in threads:
        thread.join()
    log.info("of nobody")
    told = {name: [line.split("INFO ")[1] for line in (tmp_path / name).read_text().splitlines()] for name in ("one", "two")}  # fmt: skip
    assert told == {name: [f"of {name}", "of the kernel"] for name in ("one", "two")}


def test_a_run_that_was_left_without_an_end_hears_nothing_of_the_next(tmp_path):
    from ppt_kit.tracking.logs import add_handlers, remove_handlers

    add_handlers(tmp_path / "left", on_screen=False)
    handlers = add_handlers(tmp_path / "next", on_screen=False)
    logging.getLogger("ppt_kit").info("of the next")
    remove_handlers(handlers)
    assert (tmp_path / "left").read_text() == ""
    assert "of the next" in (tmp_path / "next").read_text()
