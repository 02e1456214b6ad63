"""report.md, report.csv and time_and_load.png of the parts that `bench.py all` has measured so far."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.trial import markdown
from ppt_kit.files import write_text, write_whole

HOW = (
    "Each section can be measured again by the command above it. Load is what the system counts as running or wanting "
    "to, a mean over a minute, what is measured included: above the number of cores, times are longer than on a "
    "machine with nothing else to do, and ratios, whose sides were measured in turn, are what to read."
)
FIGURE = "time_and_load.png"
Table = tuple[list[str], list[list[str]]]


def write_report(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes all three anew; each is finished or absent.

    Args:
        results: rows of result.json, with the part's `output`.
    """
    write_whole(folder / FIGURE, lambda beside: _figure(results).savefig(beside, format="png", dpi=120))
    write_text(folder / "report.csv", _csv(results))
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    write_text(folder / "report.md", "\n".join(_lines(folder, about, results)))


def tables_of(text: str) -> list[Table]:
    """(columns, lines) of every table in what was printed: Markdown's, and columns that two blanks part."""
    found: list[Table] = []
    lines = [_cells(line) for line in text.splitlines()]
    for at, cells in enumerate(lines):
        body = lines[at + 1 :]
        if len(cells) < 3 or not any(re.search("[a-z]", cell) for cell in cells) or not body:
            continue
        rows = []
        for row in body[1:] if set("".join(body[0])) <= set("-: ") else body:
            if len(row) < len(cells) or not any(re.search(r"\d", cell) for cell in row):
                break
            rows.append(row[: len(cells)])
        if rows and not (found and cells in found[-1][1]):
            found.append((cells, rows))
    return found


def _cells(line: str) -> list[str]:
    if line.startswith("|"):
        return [cell.strip() for cell in line.strip().strip("|").split("|")]
    return re.split(r" {2,}", line.strip())


def _csv(results: Sequence[Mapping[str, Any]]) -> str:
    """A line a number: what it is of, and where it stood."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["part", "table", "row", "column", "value"])
    for result in results:
        for name in ("seconds", "code", "load_before", "load_mean", "load_most"):
            writer.writerow([result["part"], "", "", name, result[name]])
        for number, (columns, rows) in enumerate(tables_of(result["output"]), 1):
            for row in rows:
                writer.writerows([result["part"], number, row[0], *pair] for pair in zip(columns[1:], row[1:]))
    return text.getvalue()


def _lines(folder: Path, about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    commits = list(dict.fromkeys(result["commit"] for result in results))
    began = [result["began"] for result in results]
    told = about["machine"] | {"measured": f"{min(began)} to {max(began)} UTC", "size": about["size"]}
    told |= {"commit": "; ".join(commits), "versions": ", ".join(" ".join(pair) for pair in about["versions"].items())}
    yield f"# What ppt_kit measures\n\n{HOW}\n"
    yield markdown(["", ""], list(told.items()))
    left = [name for name in about["parts"] if name not in {result["part"] for result in results}]
    columns = ["part", "seconds", "load before", "mean", "most", "ended"]
    numbers = ("part", "seconds", "load_before", "load_mean", "load_most")
    rows = [[*(str(result[name]) for name in numbers), _ended(result)] for result in results]
    rows += [[name, "", "", "", "", "not measured yet"] for name in left]
    yield "\n" + markdown(columns, rows)
    yield f"\n![seconds and load of each part]({FIGURE})"
    for result in results:
        yield from _section(folder, result)


def _ended(result: Mapping[str, Any]) -> str:
    return f"**failed**, exit code {result['code']}" if result["code"] else "done"


def _section(folder: Path, result: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n## {result['part']}: {result['about']}\n"
    yield "\n".join(["```bash", *result["commands"], "```", ""])
    if result["code"]:
        yield f"**Failed** with exit code {result['code']}: `{result['error']}` ({result['part']}/log.txt)\n"
    plain: list[str] = []
    # a table of Markdown is one here too, all else is as it was printed
    for line in [*result["output"].rstrip().splitlines(), "|"]:
        if not line.startswith("|"):
            plain.append(line)
            continue
        if any(plain):
            yield "\n".join(["```text", *plain, "```", ""])
        plain = []
        if line != "|":
            yield line
    for path in sorted((folder / result["part"]).glob("*.png")):
        yield f"\n![{path.stem}]({path.relative_to(folder).as_posix()})"


def _figure(results: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.3 * len(results)), layout="constrained")
    time, load = figure.subplots(1, 2, sharey=True)
    names = [result["part"] for result in results]
    time.barh(names, [result["seconds"] for result in results], color="#4f81bd")
    load.barh(names, [result["load_most"] for result in results], color="#d9d9d9", label="most")
    load.barh(names, [result["load_mean"] for result in results], color="#8064a2", label="mean")
    load.plot([result["load_before"] for result in results], names, "k|", markersize=10, label="before")
    time.invert_yaxis()
    time.set_xlabel("seconds")
    load.set_xlabel("load")
    load.legend(fontsize=8)
    return figure
