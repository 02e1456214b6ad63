"""Figures that fit into one column of a paper, told apart without colour, each with the line that gives its data."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ppt_kit.errors import UserError
from ppt_kit.files import show_short
from ppt_kit.notebook.figure import Plot

# inches: one column of a conference paper
COLUMN = 3.3
MOST_WIDE = 40
# Okabe and Ito's, which differ for colour-blind eyes: dark ones and light ones in turn, for grey print
COLOURS = ("#0072b2", "#e69f00", "#000000", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
STROKES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SMALL, PLAIN = 7, 8
# inches, about: of a small letter, and of the line beside a name
LETTER, BESIDE = 0.05, 0.55


class Look(NamedTuple):
    """Of one line among several."""

    colour: str
    stroke: str
    marker: str


class PaperFigure(Plot):
    """A figure in the size that it has on paper; `runs` in its line of pandas is what `compare_runs` gave."""

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """As matplotlib's; words stay words in PDF and SVG."""
        with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        return buffer.getvalue()

    def _shown_style(self) -> str:
        # at twice the width that it has on paper
        return f"width:{2 * 96 * self.get_size_inches()[0]:.0f}px;"


def check_width(width: Any) -> None:
    """Raises UserError where it is no number of inches."""
    if isinstance(width, bool) or not isinstance(width, Real) or not 1 <= float(width) <= MOST_WIDE:
        raise UserError(f"width={show_short(width)}: takes inches, from 1 to {MOST_WIDE}.")


def paper_figure(*, width: float, height: float, data: pd.DataFrame, code: str) -> PaperFigure:
    """An empty figure of `width` times `height` inches."""
    return PaperFigure(figsize=(width, height), layout="constrained", data=data, code=code)


def looks(count: int) -> list[Look]:
    """One for each of `count` lines, no two alike in stroke and marker, nor in colour and stroke.

    Raises:
        UserError: so many cannot be told apart.
    """
    most = len(COLOURS) * len(STROKES)
    if count > most:
        raise UserError(f"{count} lines: {most} can be told apart. Give fewer runs, or by=[…] with fewer keys.")
    return [
        Look(COLOURS[each % 7], STROKES[(each % 7 + each // 7) % len(STROKES)], MARKERS[each % 7])
        for each in range(count)
    ]


def plain_axes(axes: Any, *, x: str, y: str) -> None:
    """Small words, no box, a light grid."""
    axes.set_xlabel(x, fontsize=PLAIN)
    axes.set_ylabel(y, fontsize=PLAIN)
    axes.tick_params(labelsize=SMALL, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)


def logarithmic(axes: Any) -> None:
    """The y axis in powers of ten, with plain numbers at it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=1.5)


def in_lines(name: str, *, width: float) -> str:
    """A line's name in as many lines as a figure of that width has room for."""
    return textwrap.fill(name, max(10, int((width - BESIDE) / LETTER)))


def legend_below(figure: Any, handles: Sequence[Any], *, title: str, width: float) -> None:
    """The lines' names under the axes, in as many columns as fit; `title` says what a line and its band are."""
    names = [handle.get_label() for handle in handles]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(_columns(names, width=width), len(names)), frameon=False,
        fontsize=SMALL, handlelength=2.6, columnspacing=1.2, title=title or None, title_fontsize=SMALL,
    )  # fmt: skip


def legend_height(names: Sequence[str], *, width: float) -> float:
    """Inches that `legend_below` takes."""
    return 0.15 * -(-sum(len(name.splitlines()) for name in names) // _columns(names, width=width)) + 0.25


def _columns(names: Sequence[str], *, width: float) -> int:
    longest = max((len(line) for name in names for line in name.splitlines()), default=1)
    return max(1, int(width // (LETTER * longest + BESIDE)))
