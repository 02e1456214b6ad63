"""The lists in docs/index.md: what there is in the folders of docs/, by the title and first sentence of each page."""

from __future__ import annotations

import re
from pathlib import Path

# <!-- pages guides/* --> … <!-- end --> holds a line a page
LIST = re.compile(r"(<!-- pages (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(docs: Path, written: dict[Path, str]) -> str:
    """docs/index.md with its lists as they are now.

    Args:
        written: text of pages that may not be on the disk yet.
    """

    def listed(found: re.Match) -> str:
        paths = sorted({*docs.glob(f"{found[2]}.md"), *(path for path in written if path.match(f"docs/{found[2]}.md"))})
        lines = [_line(path, written[path] if path in written else path.read_text(), docs) for path in paths]
        return "".join([found[1], *lines, found[3]])

    return LIST.sub(listed, (docs / "index.md").read_text())


def _line(path: Path, text: str, docs: Path) -> str:
    title, _, rest = text.lstrip().partition("\n")
    paragraphs = [part for part in rest.strip().split("\n\n") if part and part[0] not in "*<`|!#"]
    first = re.split(r"(?<=[.?])\s", " ".join(paragraphs[0].split()))[0] if paragraphs else ""
    # links of the page would not hold here
    said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", first)
    return f"- [{title.removeprefix('# ')}]({path.relative_to(docs)}): {said}\n"
