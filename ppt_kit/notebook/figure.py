"""A figure that a notebook shows, with the line of pandas that gives its numbers."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import pandas as pd
from matplotlib.figure import Figure


class Plot(Figure):
    """A figure that a notebook shows when a cell ends in it, and that `savefig` writes anywhere.

    Attributes:
        data: what is drawn, as a table.
        code: one line of pandas that gives `data`, in the names that its function has for what it was given.
    """

    def __init__(self, *args: Any, data: pd.DataFrame | None = None, code: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.data, self.code = pd.DataFrame() if data is None else data, code

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode()
        line = f'<pre style="white-space:pre-wrap;font-size:85%;opacity:.75">{html.escape(self.code)}</pre>'
        return (
            f'<img style="{self._shown_style()}max-width:100%;background:white" src="data:image/png;base64,{picture}">'
            + (line if self.code else "")
        )

    def _shown_style(self) -> str:
        """CSS of the picture beyond its limits."""
        return ""
