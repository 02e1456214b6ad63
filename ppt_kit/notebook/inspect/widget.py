"""The widget: answers what the browser asks for, with bytes, on demand."""

from __future__ import annotations

import logging
from importlib import resources
from typing import Any

import anywidget
import numpy as np
import traitlets

from ppt_kit.errors import UserError
from ppt_kit.notebook.inspect.episodes import Episodes

log = logging.getLogger(__name__)

# the ES module, in this order
PARTS = ("dom.js", "link.js", "curves.js", "cloud.js", "pictures.js", "panel.js", "main.js")


def _static(*names: str) -> str:
    folder = resources.files("ppt_kit.notebook.inspect") / "static"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


class Inspector(anywidget.AnyWidget):
    """Shows episodes in a notebook. Which one, and at which step, can be read and set: `episode`, `step`."""

    _esm = _static(*PARTS)
    _css = _static("inspect.css")
    listing = traitlets.Dict().tag(sync=True)
    episode = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)

    def __init__(self, episodes: Episodes, **traits: Any):
        super().__init__(listing=episodes.listing(), **traits)
        self._episodes = episodes
        self.on_msg(self._asked)

    def __repr__(self) -> str:
        return f"inspector of {self.listing['title']}, {len(self.listing['episodes'])} episodes"

    def _asked(self, _: Any, content: dict[str, Any], buffers: list) -> None:
        """One question: {"kind", "id", …}; the answer has both, or says why there is none."""
        answers = {"episode": self._episode, "page": self._page, "chunks": self._chunks, "augmented": self._augmented}
        base = {name: content[name] for name in ("kind", "id")}
        try:
            head, data = answers[content["kind"]](content)
            self.send({**base, **head}, data)
        except (UserError, IndexError, ValueError) as error:
            self.send({**base, "refused": str(error)})
        # the user sees it where it happened, and the log has the rest
        except Exception as error:
            log.exception("the inspector cannot show this")
            self.send({**base, "refused": f"{type(error).__name__}: {error}"})

    def _episode(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        return self._episodes.episode(asked["episode"])

    def _page(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        packed = self._episodes.page(asked["episode"], _steps(asked))
        return {"parts": packed.parts}, packed.buffers

    def _chunks(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        return self._episodes.chunks(asked["episode"], _steps(asked))

    def _augmented(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        return self._episodes.augmented(asked["episode"], asked["step"], asked["draw"])


def _steps(asked: dict[str, Any]) -> list[int]:
    first, count, every = (int(asked[name]) for name in ("first", "count", "every"))
    return np.arange(first, first + count * every, every).tolist()
