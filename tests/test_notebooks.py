"""The committed notebooks run from top to bottom, with small parameters, in a real kernel."""

from __future__ import annotations

import json
import re
import time

import nbformat
import pytest
from conftest import ROOT, SMALL_WORDS
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

import ppt_kit as ppt
from ppt_kit.tracking import read_rows

# as small as the notebook still says something; what a cell shows is the last value of each, and demonstrations of one
# task are as many in all of them: notebooks share a folder
SMALL = {
    "01_quickstart": "episodes, epochs, trials = 3, 1, 1",
    "02_datasets": "episodes = 2",
    "03_train_and_understand": "episodes, epochs, trials = 3, 1, 1",
    "04_launch_deepspeed": "episodes, epochs, ranks = 8, 1, 2",
    "05_evaluate_and_compare": "episodes, epochs, goals = 3, 3, 2",
    "06_your_own_head": "episodes, epochs, trials = 8, 1, 2",
    "07_several_runs": "episodes, epochs = 8, 1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where those of one worker run, as all do in a user's checkout: one finds what another left."""
    return tmp_path_factory.mktemp("notebooks")


def parameters_of(book):
    (place,) = [at for at, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    return place, book.cells[place].source


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_a_notebook_runs_and_ends_in_a_picture_or_table(name, folder):
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    place, written = parameters_of(book)
    told = lambda text: [part.strip() for part in text.split("=")[0].split(",")]
    assert told(SMALL[name]) == told(written)
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL[name]))
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [output.get("data", {}) for output in cells[-1].outputs]
    assert any("image/png" in data or "text/html" in data for data in shown)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    said = [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    red = [line for output in said for line in output.text.splitlines() if line.strip() and "%|" not in line]
    assert not [line for line in red if "are there already" not in line], "what is red is for what is wrong"


def test_notebooks_collect_the_same_demonstrations_of_a_task_so_that_each_can_follow_any_other():
    """They share a folder, where a dataset of that name but of other episodes is refused."""
    asked = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        for kind, text in (("written", parameters_of(book)[1]), ("small", SMALL[path.stem])):
            values = {}
            exec(text, values)
            for call in re.findall(r"ppt\.collect\((.*)\)", "\n".join(cell.source for cell in book.cells)):
                asked.setdefault((kind, call), set()).add(values["episodes"])
    assert len({call for _, call in asked}) == 3
    assert all(len(episodes) == 1 for episodes in asked.values()), asked


def test_a_notebook_says_nothing_of_the_suite_and_has_public_names_only():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        assert "environ" not in source, path.name
        assert not re.search(r"from ppt_kit|import ppt_kit\.|\._[a-z]", source), path.name
        for name in set(re.findall(r"\bppt\.(\w+)", source)):
            assert name in ppt.__all__, f"{path.name}: {name}"
        assert path.stem in SMALL


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
        # the sentence alone, without a frame of ours
        assert reply["content"]["traceback"] == [reply["content"]["evalue"]]
        done = read_rows(metrics)[-1]["step"]
        client.execute_interactive(f"run.cfg.train.total_iters = {done + 3}\ncode = run.resume()", timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    steps = [row["step"] for row in read_rows(metrics) if row["kind"] == "train"]
    assert steps == list(range(1, done + 4))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("open_sources", "nothing had begun"),
        ("join_world", "nothing had begun"),
        ("train", "was about to begin or to end; run.resume"),
    ],
)
def test_an_interrupt_while_a_run_begins_is_its_sentence(small_cfg, monkeypatch, where, says):
    from ppt_kit.train import trainer

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, where, interrupted)
    with pytest.raises(KeyboardInterrupt, match=says) as caught:
        ppt.UnifiedTrainer(small_cfg()).run()
    assert caught.value._render_traceback_() == [str(caught.value)]


def test_a_cell_that_trains_may_be_run_again(small_data, tmp_path):
    words = [
        *SMALL_WORDS, f"dataset_path={small_data}", "domains=a", f"output_dir={tmp_path}", "suffix=run",
        "train.total_iters=4",
    ]  # fmt: skip
    made = f"import ppt_kit as ppt\nrun = ppt.UnifiedTrainer(ppt.load_config('quickstart', *{json.dumps(words)}))"
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in (made, "run.run()", "run.run()")]
    )
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [[each["data"]["text/plain"] for each in cell.outputs if "data" in each][-1] for cell in book.cells[1:]]
    assert said == [f"{tmp_path / 'a/run'}: finished"] * 2
    assert [row["step"] for row in read_rows(tmp_path / "a/run/metrics.jsonl") if row["kind"] == "train"] == [
        1,
        2,
        3,
        4,
    ]
