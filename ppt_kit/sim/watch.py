"""Videos of episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.sim.rollout import Episode

VIDEO_FPS = 30
# of the bar below the picture, two lines (pixels); even, as a video wants it
BAR, LINE, LETTERS = 32, 15, 11
WHITE, GREY, GREEN, RED = (255, 255, 255), (190, 190, 190), (110, 220, 130), (245, 130, 120)


def write_video(
    path: Path, frames: Sequence[np.ndarray], *, fps: int = VIDEO_FPS, states: Mapping[str, Any] | None = None
) -> None:
    """An H.264 file of (H, W, 3) uint8 frames; H and W even.

    Args:
        states: what `states_in` gives back.
    """
    import av

    with av.open(str(path), "w", format="mp4") as container:
        if states:
            container.metadata["comment"] = json.dumps(states)
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def states_of(episode: Episode, names: Sequence[str]) -> dict[str, Any] | None:
    """{"names", "states"} of a filmed episode: of each frame the state that the policy saw; None where it saw none."""
    if not episode.states:
        return None
    # before the policy acts, and after it did, it looks at nothing
    missing = max(0, len(episode.frames) - 1 - len(episode.states))
    seen = [episode.states[0]] * missing + episode.states + [episode.states[-1]]
    rows = [[float(f"{value:.4g}") for value in np.ravel(state)] for state in seen[: len(episode.frames)]]
    return {"names": list(names), "states": rows}


def states_in(path: Path) -> dict[str, Any] | None:
    """What `states_of` gave of a filmed episode, out of its video; None where it holds none."""
    import av

    with av.open(str(path)) as container:
        told = container.metadata.get("comment")
    try:
        found = json.loads(told) if told else None
    # somebody's own comment
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"names", "states"} <= found.keys() else None


def pictures_of(path: Path, *, count: int) -> list[np.ndarray]:
    """(H, W, 3) uint8: so many frames of a filmed episode, first and last among them, without what is written below."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frames[place][:-BAR] for place in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def captioned(episode: Episode, *, told: str) -> list[np.ndarray]:
    """(H + BAR, W, 3) uint8 the episode's frames, and below each what is seen.

    Args:
        told: what is run: its first line stands above, the second before step and outcome.
    """
    first, _, second = told.partition("\n")
    last = len(episode.frames) - 1
    frames = []
    for step, frame in enumerate(episode.frames):
        solved = episode.success_step is not None and step >= episode.success_step
        outcome = "success" if solved else "no success" if step == last else ""
        colour = GREEN if solved else RED
        bar = _bar(frame.shape[1], f"{first}  seed {episode.seed}", f"{second}  step {step}", outcome, colour=colour)
        frames.append(np.concatenate([frame, bar]))
    return frames


def _bar(width: int, first: str, second: str, outcome: str, *, colour: tuple[int, int, int]) -> np.ndarray:
    """(BAR, width, 3) uint8 two lines on black, the outcome at the right end of the second."""
    from PIL import Image, ImageDraw, ImageFont

    image, font = Image.new("RGB", (width, BAR)), ImageFont.load_default(LETTERS)
    draw = ImageDraw.Draw(image)
    room = width - 8 - draw.textlength(outcome, font=font)
    draw.text((3, 1), _cut(first, draw, font, width - 6), fill=WHITE, font=font)
    draw.text((3, 1 + LINE), _cut(second, draw, font, room - 6), fill=GREY, font=font)
    draw.text((room + 4, 1 + LINE), outcome, fill=colour, font=font)
    return np.asarray(image)


def _cut(text: str, draw: Any, font: Any, room: float) -> str:
    """As much of the end of a text as there is room for: what differs between runs stands there."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(f"…{text}", font=font) > room:
        text = text[1:]
    return f"…{text}"
