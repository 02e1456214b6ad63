"""The committed notebooks run from top to bottom, with small parameters, in a real kernel."""

from __future__ import annotations

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


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
