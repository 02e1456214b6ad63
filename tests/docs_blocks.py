"""Pages of the documentation as blocks, commands and links, each with its line."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

FENCE = re.compile(r"^( *)(```+|~~~+)([^`\s]*)")
LANGUAGES = {"python", "bash", "yaml", "json", "text", "py"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its first line inside the fence, counted from 1.
    """

    page: Path
    line: int
    language: str
    text: str

    def where(self, offset: int = 0) -> str:
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}:{self.line + offset}"


@dataclass(frozen=True)
class Command:
    """A line of a bash block: words as the shell splits them, without the comment behind them."""

    where: str
    line: str
    env: dict[str, str]
    words: tuple[str, ...]


def pages() -> list[Path]:
    """README.md and every page under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """In order; a fence inside a longer fence is text of it."""
    blocks, inside = [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if inside is None and fence:
            inside = (fence[1], fence[2], fence[3], number + 1, [])
        elif inside and fence and fence[2].startswith(inside[1]) and not fence[3]:
            blocks.append(Block(page, inside[3], inside[2], "\n".join(inside[4]) + "\n"))
            inside = None
        elif inside:
            inside[4].append(line.removeprefix(inside[0]))
    assert inside is None, f"{page}:{inside[3]}: a block that does not end"
    return blocks


def commands_of(block: Block) -> list[Command]:
    """The lines of a bash block; one that ends in a backslash goes on."""
    found, lines, first = [], [], 0
    for offset, line in enumerate(block.text.splitlines()):
        if not lines:
            first = offset
        lines.append(line.removesuffix("\\"))
        if line.endswith("\\"):
            continue
        whole, lines = " ".join(lines), []
        words = shlex.split(whole, comments=True)
        env = {}
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        if words or env:
            found.append(Command(block.where(first), whole.strip(), env, tuple(words)))
    return found


def prose_of(page: Path) -> list[tuple[int, str]]:
    """(line, text) of what is no block; code in a line is left out."""
    kept, fence = [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        found = FENCE.match(line)
        if found and fence is None:
            fence = found[2]
        elif found and fence and found[2].startswith(fence) and not found[3]:
            fence = None
        elif fence is None:
            kept.append((number, re.sub(r"`[^`]*`", "`", line)))
    return kept


def links_of(page: Path) -> list[tuple[int, str]]:
    """(line, target) of links and pictures, of autolinks and of reference definitions."""
    found = []
    for number, line in prose_of(page):
        line = re.sub(r"<!--.*?-->", "", line)
        for pattern in (
            r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)",
            r"<(https?://[^>]+)>",
            r"^\s*\[[^\]]+\]:\s+(\S+)",
            r"(?:src|href)=\"([^\"]+)\"",
        ):
            found += [(number, target) for target in re.findall(pattern, line)]
    return found


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings: small letters, no signs, a hyphen for a space; a number behind a repeated one."""
    seen: dict[str, int] = {}
    anchors = set()
    fence = None
    for line in page.read_text().splitlines():
        found = FENCE.match(line)
        if found and (fence is None or (found[2].startswith(fence) and not found[3])):
            fence = found[2] if fence is None else None
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line) if fence is None else None
        if heading:
            text = (
                re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("\\", "").replace("`", "").replace("*", "")
            )
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            anchors.add(f"{slug}-{seen[slug]}" if slug in seen else slug)
            seen[slug] = seen.get(slug, 0) + 1
        anchors |= set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
    return anchors
