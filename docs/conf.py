"""The site: its source is the repository's root, so that links between docs/, README.md and the others hold in both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# beside docs/, the pages that lie in the root
PAGES_OF_THE_ROOT = {"README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md"}
# <!-- toctree Guides: guides/* --> is a sidebar's section on the site, and nothing to a reader of Markdown
# (a page may have another name there: README=../README)
SECTION = re.compile(r"^<!-- toctree ([^:]*): (.*?) -->$", re.MULTILINE)

project = "ppt_kit"
author = "the authors of ppt_kit"
html_title = "ppt_kit"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/**/*.md", *sorted(PAGES_OF_THE_ROOT)]
# or all of the root would be walked, data and outputs too
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in {"docs", "notebooks", *PAGES_OF_THE_ROOT}]
nitpicky = True

# as GitHub makes them; deeper headings are reached through the page
myst_heading_anchors = 4

# what is typed keeps its quotes
smartquotes = False
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e8a", "color-brand-content": "#0b6e8a"},
    "dark_css_variables": {"color-brand-primary": "#5cc3dd", "color-brand-content": "#5cc3dd"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def sections(app: Any, docname: str, source: list[str]) -> None:
    """Comments that name a section become Sphinx's own directive; a section of pages that are not there yet is none."""

    def directive(found: re.Match) -> str:
        pages = found[2].split()
        there = [page for page in pages if any((ROOT / docname).parent.glob(f"{page.partition('=')[2] or page}.md"))]
        entries = [re.sub(r"^(.*)=(.*)$", r"\1 <\2>", page) for page in there]
        lines = ["```{toctree}", ":hidden:", f":caption: {found[1]}", ":glob:", "", *entries, "```"]
        return "\n".join(lines) if there else ""

    source[0] = SECTION.sub(directive, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", sections)
