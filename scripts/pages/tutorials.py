"""docs/tutorials/*.md: each a notebook, cell by cell, with what its cells showed when they were last run."""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pages.markdown import escaped, table

# what a page shows in place of a live panel, whose first picture says nothing: those of scripts/draw_screens.py
PANELS = {
    "ppt.inspect(": ("inspect", "cameras, cloud, curves and a slider"),
    "run.run(": ("live", "a run's progress, curves and buttons"),
    "ppt.launch(": ("launch", "a job's ranks, log and buttons"),
}
LONGEST_TEXT = 30
# of a picture (pixels)
WIDEST = 1000


def pages(root: Path) -> dict[Path, str]:
    """Path -> Markdown of each tutorial."""
    folder = root / "docs/tutorials"
    return {folder / f"{path.stem}.md": _page(path, folder) for path in sorted((root / "notebooks").glob("*.ipynb"))}


def _page(book: Path, folder: Path) -> str:
    cells = json.loads(book.read_text())["cells"]
    shown = _read_shown(folder, book.stem)
    title, *parts = [_source(cell) if cell["cell_type"] == "markdown" else _code(cell, shown) for cell in cells]
    where = f"*This page is the notebook [{book.name}](../../notebooks/{book.name}); `make lab` opens it.*"
    title = title.replace("\n", f"\n\n{where}\n", 1)
    return "\n\n".join([title, *parts]) + "\n"


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"]).strip()


def _code(cell: dict[str, Any], shown: dict[str, list[str]]) -> str:
    """The cell as a block, and what it showed unless it was another one then."""
    source = _source(cell)
    file = re.match(r"%%writefile (\S+)\n", source)
    text = f"# {file[1]}\n{source[file.end() :]}" if file else source
    return "\n\n".join([f"```python\n{text}\n```", *shown.get(source, _panel(source))])


def _panel(source: str) -> list[str]:
    """The picture of the panel that a cell shows."""
    found = [said for call, said in PANELS.items() if call in source]
    return [f"![{what}](../../notebooks/images/{name}.png)" for name, what in found[:1]]


def _read_shown(folder: Path, name: str) -> dict[str, list[str]]:
    path = folder / f"shown/{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def take_pictures(root: Path, names: list[str]) -> None:
    """Runs notebooks (all, unless some are named) and keeps what their cells showed, for the pages.

    Raises:
        SystemExit: there is no such notebook.
    """
    books = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    strange = [name for name in names if name not in books]
    if strange:
        raise SystemExit(f"error: {strange[0]}: takes {', '.join(books)}.")
    for name in names or books:
        shown = _shown_by(books[name], root / "docs/tutorials")
        path = root / f"docs/tutorials/shown/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
        print(f"{path.relative_to(root)}: written", flush=True)


def _shown_by(path: Path, folder: Path) -> dict[str, list[str]]:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as elsewhere:
        NotebookClient(book, timeout=3600, resources={"metadata": {"path": elsewhere}}).execute()
    for old in (folder / "images").glob(f"{path.stem}-*.png"):
        old.unlink()
    shown = {}
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "code":
            told = [_told(output, cell.source, folder / f"images/{path.stem}-{number}.png") for output in cell.outputs]
            shown[cell.source.strip()] = list(dict.fromkeys(text for text in told if text))
    return shown


def _told(output: Any, source: str, picture: Path) -> str:
    """One output as Markdown; "" where it is nothing for a page."""
    data = output.get("data", {})
    if "image/png" in data:
        _write_picture(base64.b64decode(data["image/png"]), picture)
        return f"![what the cell shows](images/{picture.name})"
    if "application/vnd.jupyter.widget-view+json" in data:
        return "".join(_panel(source))
    rows, said = _rows(data.get("text/html", ""))
    if rows:
        return "\n\n".join(filter(None, (table(rows[0], rows[1 : LONGEST_TEXT + 1]), said)))
    text = output.get("text", "") if output.get("name") == "stdout" else data.get("text/plain", "")
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    if not lines or lines[0].startswith("<"):
        return ""
    return "\n".join(["```text", *lines[:LONGEST_TEXT], *["…"] * (len(lines) > LONGEST_TEXT), "```"])


class _Cells(HTMLParser):
    """The rows of a table, its cells as text, and what is said below it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.said = ""
        self._in_cell = self._ended = self._folded = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True
        self._folded = self._folded or tag == "details"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        self._ended = self._ended or tag == "table"
        self._folded = self._folded and tag != "details"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data
        elif self._ended and not self._folded:
            self.said += data


def _rows(html: str) -> tuple[list[list[str]], str]:
    """Of a page with one table, whose rows are equally long, and what it says below; else none."""
    cells = _Cells()
    cells.feed(html)
    if len({len(row) for row in cells.rows}) != 1 or html.count("<table") != 1:
        return [], ""
    return [[escaped(cell.strip()) for cell in row] for row in cells.rows], escaped(" ".join(cells.said.split()))


def _write_picture(png: bytes, path: Path) -> None:
    """No wider than a page, in as few colours as it needs."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((WIDEST, WIDEST * 2))
    picture.quantize(128).save(path, optimize=True)
