"""Frames a second of `ppt.inspect`, in a browser that draws by the CPU: two cameras and a cloud, scrubbed."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ppt_kit.errors import UserError
from ppt_kit.keys import key

TESTS = Path(__file__).parents[2] / "tests"
# goes through steps as fast as each is drawn, all its pictures and its cloud; asking by requestAnimationFrame would see
# a frame only one frame after it was drawn
SCRUB = """async ([first, count, stride, length]) => {
    const panel = document.querySelector('.ppt-inspect').panel, began = performance.now();
    let slowest = 0;
    for (let n = 0; n < count; n++) {
        const step = (first + n * stride) % length, asked = performance.now();
        panel.go(step);
        while (panel.drawn !== step) await new Promise(seen => setTimeout(seen, 1));
        slowest = Math.max(slowest, performance.now() - asked);
    }
    return [count / (performance.now() - began) * 1000, slowest];
}"""


@dataclass
class InspectBench:
    """Frames a second in the inspector: an episode scrubbed forwards, backwards and by leaps."""

    steps: int = key(1000, "of the episode", low=10)
    points: int = key(4096, "of its clouds", low=1)
    image_size: int = key(128, "height and width of its pictures (pixels)", low=16)
    width: int = key(1000, "of the browser's window (pixels)", low=400)


def inspect(cfg: DictConfig) -> int:
    """Prints a line a way of scrubbing."""
    with tempfile.TemporaryDirectory() as folder, _lab(Path(folder), cfg.width) as lab:
        from scene import write_scene

        path = write_scene(Path(folder) / "scene.zarr", lengths=(cfg.steps,), size=cfg.image_size, points=cfg.points)
        began = time.perf_counter()
        lab.open([f"import ppt_kit as ppt\nppt.inspect({str(path)!r})"])
        lab.page.wait_for_selector('.ppt-inspect[data-drawn="0"]', timeout=60_000)
        lab.page.wait_for_function("document.querySelector('.ppt-inspect').panel.pages.idle", timeout=60_000)
        print(f"{cfg.steps} steps, rgb of 2 cameras, depth of one, {cfg.image_size} pixels; {cfg.points} points")
        print(f"opened, kernel and import included: {time.perf_counter() - began:.1f} s")
        # leaps first: afterwards most of the episode is in the browser; meanwhile the nearest known frame is shown
        for name, first, stride in (("leaps", 0, 397), ("forwards", 0, 1), ("backwards", cfg.steps - 1, cfg.steps - 1)):
            count = 60 if name == "leaps" else cfg.steps
            rate, slowest = lab.page.evaluate(SCRUB, [first, count, stride, cfg.steps])
            print(f"{name:>10}: {rate:6.1f} frames/s, the slowest after {slowest:.0f} ms")
    return 0


@contextmanager
def _lab(folder: Path, width: int) -> Iterator[Any]:
    """The JupyterLab that the tests drive.

    Raises:
        UserError: what it needs is not here.
    """
    sys.path.insert(0, str(TESTS))
    try:
        import browser
    except ImportError as error:
        raise UserError(f"inspect needs {error.name}: pip install 'ppt_kit[notebook,test]', in a checkout.") from None
    try:
        browser.find_browser()
    except browser.NoBrowser as error:
        raise UserError(str(error)) from None
    (folder / "books").mkdir()
    with browser.served(folder) as server, browser.browsing(server, folder / "books") as lab:
        lab.page.set_viewport_size({"width": width, "height": 1000})
        yield lab
