"""Plain text and docstrings as Markdown that GitHub and Sphinx read alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# what a docstring's sections are called, as they begin a line
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Source):[ ]?(.*)$")
CODE = re.compile(r"(`[^`]*`)")


def escaped(text: str) -> str:
    """Text whose signs stand for themselves; what is `code` in it stays code."""
    parts = CODE.split(text)
    plain = [re.sub(r"([\\*<>|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", part) for part in parts[::2]]
    code = [part.replace("|", "\\|") for part in parts[1::2]]
    return "".join(text for pair in zip(plain, [*code, ""]) for text in pair)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """In a cell or a line: a value as it is typed."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def from_docstring(text: str) -> str:
    """A docstring of the house's form: paragraphs, then sections of `name: what it is`."""
    blocks, title = [""], ""
    out: list[str] = []

    def close() -> None:
        body = blocks.pop()
        if body.strip():
            out.append(_section(title, body) if title else _paragraphs(body))
        blocks.append("")

    for line in text.splitlines():
        begun = SECTION.match(line)
        if begun:
            close()
            title = begun[1]
            blocks[-1] = f"    {begun[2]}\n" if begun[2] else ""
        else:
            blocks[-1] += line + "\n"
    close()
    return "\n\n".join(out)


def _paragraphs(body: str) -> str:
    paragraphs = [" ".join(part.split()) for part in body.strip().split("\n\n")]
    return "\n\n".join(escaped(part) for part in paragraphs)


def _section(title: str, body: str) -> str:
    """A list of items where it has names, else a sentence behind the title."""
    items = _items(body)
    if title in ("Returns", "Yields", "Source") or not items:
        return f"**{title}** " + escaped(" ".join(body.split()))
    told = [(", ".join(code(name.strip()) for name in names.split(",")), escaped(said)) for names, said in items]
    lines = [f"- {names}: {said}" for names, said in told]
    return "\n".join([f"**{title}**", "", *lines])


def _items(body: str) -> list[tuple[str, str]]:
    """(names, what they are) of lines that begin with names and a colon; deeper lines go on."""
    items: list[tuple[str, str]] = []
    for line in body.splitlines():
        begun = re.match(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)$", line)
        if begun:
            items.append((begun[1], begun[2]))
        elif items and line.strip():
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        elif line.strip():
            return []
    return items
