"""Tables that fit a notebook's cell: paths shortened, numbers rounded, the whole of each under the pointer."""

from __future__ import annotations

import html
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

LONGEST = 44  # characters of a cell
LARGEST_WHOLE = 1e9
ROWS = 60  # of a longer table the first and the last are shown
STYLE = (
    "<style>.ppt-table{max-width:100%;overflow-x:auto}.ppt-table table{font-size:90%}.ppt-table td,.ppt-table th"
    "{text-align:left!important;white-space:nowrap}.ppt-table td.n,.ppt-table th.n{text-align:right!important}"
    ".ppt-table p{margin:.3em 0}</style>"
)


class Table(pd.DataFrame):
    """A DataFrame; only what a notebook shows of it is another."""

    @property
    def _constructor(self) -> type[Table]:
        return Table

    def _repr_html_(self) -> str:
        return shown(self)


def shown(
    frame: pd.DataFrame,
    *,
    above: Sequence[str] = (),
    below: Sequence[str] = (),
    colours: Mapping[str, str] = types.MappingProxyType({}),
) -> str:
    """A table as HTML.

    Args:
        above, below: sentences that stand over it, and under it.
        colours: {a word: JupyterLab's variable for its colour}, of words that are all that a cell says.
    """
    frame = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
    # what is "-" in every row says nothing, and what stands at its right is out of sight in half a screen
    frame = frame.loc[:, [not len(frame) or not (column.astype(object) == "-").all() for _, column in frame.items()]]
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]
    head = "".join(f"<th{_side(each)}>{html.escape(str(name))}</th>" for name, each in zip(frame.columns, numeric))
    rows = [_row(values, numeric, colours) for values in frame.itertuples(index=False, name=None)]
    if len(rows) > ROWS:
        left = f'<tr><td colspan="{len(frame.columns)}">… {len(rows) - ROWS} more …</td></tr>'
        rows = [*rows[: ROWS // 2], left, *rows[-ROWS // 2 :]]
    over, under = ("".join(f"<p>{html.escape(line)}</p>" for line in lines) for lines in (above, below))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'{STYLE}<div class="ppt-table">{over}{table}{under}</div>'


def brief(value: Any) -> str:
    """A value in a cell: a path by its end, a number by four digits, what is missing by a dash."""
    if isinstance(value, (tuple, list)):
        return (
            "×".join(map(str, value)) if all(isinstance(each, int) for each in value) else ", ".join(map(brief, value))
        )
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (float, np.floating)):
        # whole numbers that a missing one beside them has made floats
        number = float(value)
        return str(int(number)) if abs(number) < LARGEST_WHOLE and number.is_integer() else f"{number:.4g}"
    text = str(value)
    if len(text) <= LONGEST:
        return text
    if "/" in text and " " not in text:
        parts = text.split("/")
        kept = next((parts[-count:] for count in (3, 2) if len("/".join(parts[-count:])) < LONGEST), parts[-1:])
        return f"…/{'/'.join(kept)}"[: 2 * LONGEST]
    return f"{text[: LONGEST - 1]}…"


def _row(values: Sequence[Hashable], numeric: Sequence[bool], colours: Mapping[str, str]) -> str:
    return f"<tr>{''.join(_cell(value, is_number, colours) for value, is_number in zip(values, numeric))}</tr>"


def _cell(value: Any, is_number: bool, colours: Mapping[str, str]) -> str:
    text, whole = brief(value), str(value)
    title = f' title="{html.escape(whole)}"' if text.endswith("…") or text.startswith("…") else ""
    said = html.escape(text)
    if text in colours:
        said = f'<b style="color:var({colours[text]})">{said}</b>'
    return f"<td{_side(is_number)}{title}>{said}</td>"


def _side(is_number: bool) -> str:
    return ' class="n"' if is_number else ""
