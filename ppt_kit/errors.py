"""Mistakes of the user's, told in one line."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's, told in one line: what was given, why it cannot work, what to type instead.

    The scripts print it without a traceback and exit with code 2, a notebook shows the line alone.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in the place of the frames, which are all ours."""
        return [f"error: {self}"]
