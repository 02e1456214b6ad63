"""The committed notebooks run from top to bottom, with small parameters, in a real kernel."""

from __future__ import annotations

import json
import time

import nbformat
import pytest
from conftest import ROOT, SMALL_WORDS
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from ppt_kit.tracking import read_rows


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_runs_and_ends_in_a_picture_or_table(name, tmp_path, monkeypatch):
    for key, value in {"PPT_EPISODES": "3", "PPT_EPOCHS": "1", "PPT_TRIALS": "1", "PPT_FOLDER": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [output.get("data", {}) for output in cells[-1].outputs]
    assert any("image/png" in data or "text/html" in data for data in shown)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_an_interrupted_cell_has_saved_stops_what_follows_and_goes_on(small_data, tmp_path):
    words = [
        *SMALL_WORDS, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path}", "suffix=run",
        "train.total_iters=100000", "train.total_epochs=100000", "save_interval=100000",
    ]  # fmt: skip
    metrics = tmp_path / "a/run/metrics.jsonl"
    manager, client = start_new_kernel()
    try:
        train = f"import ppt_kit as ppt\nrun = ppt.UnifiedTrainer(ppt.load_config('quickstart', *{json.dumps(words)}))\nrun.run()"
        asked = client.execute(train)
        while not metrics.exists() or len(read_rows(metrics)) < 5:
            time.sleep(0.1)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        while reply["parent_header"].get("msg_id") != asked:
            reply = client.get_shell_msg(timeout=60)
        assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
        assert "run.resume()" in reply["content"]["evalue"]
        done = read_rows(metrics)[-1]["step"]
        client.execute_interactive(f"run.cfg.train.total_iters = {done + 3}\ncode = run.resume()", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    steps = [row["step"] for row in read_rows(metrics) if row["kind"] == "train"]
    assert steps == list(range(1, done + 4))
