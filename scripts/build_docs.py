"""The documentation as a site: python scripts/build_docs.py [--pages] [--pictures [NAME …]]

Pages that are written from the code (docs/reference, docs/tutorials, the list of guides) are written anew, then Sphinx
builds build/site, where a warning is an error; the last line is the path of its first page. --pages writes those pages
and builds nothing. --pictures runs the notebooks too (minutes) and keeps what their cells show.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build/site"


def main(words: list[str]) -> int:
    flags, names = {word for word in words if word.startswith("--")}, [word for word in words if word[:2] != "--"]
    if flags - {"--pages", "--pictures"} or (names and "--pictures" not in flags):
        print(f"error: {' '.join(words)}: takes --pages, --pictures or --pictures NAME ….", file=sys.stderr)
        return 2
    if "--pictures" in flags:
        from pages.tutorials import take_pictures

        take_pictures(ROOT, names)
    write_pages()
    return 0 if "--pages" in flags else build(SITE)


def written_pages() -> dict[Path, str]:
    """What each page that is written from the code has to say."""
    from pages import keys, names, start, tutorials

    reference = ROOT / "docs/reference"
    found = {
        reference / "configuration.md": keys.configuration_page(),
        reference / "scripts.md": keys.scripts_page(ROOT / "scripts"),
        **{reference / f"{file}.md": text for file, text in names.pages().items()},
        **tutorials.pages(ROOT),
    }
    return found | {ROOT / "docs/index.md": start.page(ROOT / "docs", found)}


def write_pages() -> None:
    """Those that say something else are written anew, and named."""
    for path, text in written_pages().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"{path.relative_to(ROOT)}: written")


def build(into: Path) -> int:
    """Sphinx's exit code."""
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-b", "html", "-W", "--keep-going", "-q", "-j", "auto"]
    done = subprocess.run([*command, "-d", str(into.parent / "doctrees"), str(ROOT), str(into)], cwd=ROOT)
    if done.returncode == 0:
        print(into / "docs/index.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
