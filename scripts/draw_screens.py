"""The screenshots in README.md: python scripts/draw_screens.py [NAME …] [--into=FOLDER]

Each is a notebook of a few cells that a real JupyterLab runs in a browser without a window; a few minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# half a screen, as people have it beside a terminal
WIDTH, HEIGHT = 960, 1250
IMAGES = ROOT / "notebooks/images"


@dataclass(frozen=True)
class Screen:
    """One picture.

    Attributes:
        cells: of the notebook.
        shows: CSS selector of what is drawn.
        before: what happens in the browser before it is drawn, once the cells have run.
    """

    cells: tuple[str, ...]
    shows: str
    before: Callable[[Any], Any] = lambda lab: lab.page.wait_for_timeout(1500)


DATA = (
    "import ppt_kit as ppt\n"
    "ppt.collect('button-press-topdown', domain='press', episodes=5, save_images=True, use_color=True)"
)
PLANAR = "import ppt_kit as ppt\nppt.collect('detour', simulator='planar', episodes=20)"
SHORT = "'planar', 'policy/head=regression', 'train.val_interval=1', 'dataset.val_ratio=0.2', 'save_interval=4'"


def _advance(lab: Any) -> None:
    """To the middle of the first episode."""
    lab.page.wait_for_timeout(3000)
    slider = lab.page.locator(".ppt-inspect input[type=range]").last
    slider.focus()
    for _ in range(30):
        slider.press("ArrowRight")
    lab.page.wait_for_timeout(2500)


def _hide_places(lab: Any) -> None:
    """The command as it reads anywhere: in a folder at home, with the environment's programs on the path."""
    lab.page.wait_for_timeout(25_000)
    lab.page.evaluate(
        """programs => document.querySelectorAll(".ppt-job-command").forEach(field => {
            field.value = field.value.replace(/\\S*\\/books\\b/g, "~/lab").replaceAll(programs, "");
        })""",
        f"{Path(sys.executable).parent}/",
    )


SCREENS = {
    "inspect": Screen((DATA, "ppt.inspect('data/press.zarr')"), ".ppt-inspect", before=_advance),
    "live": Screen(
        (
            PLANAR,
            f"run = ppt.UnifiedTrainer(ppt.load_config({SHORT}, 'train.total_epochs=200', 'suffix=live'))\n"
            "run.run(background=True)",
        ),
        ".jp-OutputArea-output:has(canvas)",
        before=lambda lab: lab.page.wait_for_timeout(15_000),
    ),
    "launch": Screen(
        (PLANAR, f"job = ppt.launch(ppt.load_config({SHORT}, 'train.total_epochs=60', 'suffix=job'), num_gpus=2)\njob"),
        ".jp-OutputArea-output:has(button)",
        before=_hide_places,
    ),
    "runs": Screen(
        (
            PLANAR,
            f"cfg = ppt.load_config({SHORT}, 'train.total_epochs=8', 'suffix=sweep')\n"
            "sweep = ppt.sweep(cfg, {'optimizer.lr': [1e-3, 1e-4], 'seed': range(2)}, jobs=2)\n"
            "ppt.compare_runs(sweep).curves('val_loss', by='optimizer.lr')",
        ),
        ".jp-Cell:last-child .jp-OutputArea-child:has(img)",
    ),
}


def main(names: list[str], into: Path) -> int:
    """Draws some of SCREENS, or all; 2 where that cannot be, with one line that says why."""
    sys.path.insert(0, str(ROOT / "tests"))
    strange = [name for name in names if name not in SCREENS]
    if strange:
        return _refused(f"{strange[0]}: takes {', '.join(SCREENS)}.")
    if not into.is_dir():
        return _refused(f"--into={into}: no such folder.")
    try:
        import browser
    except ImportError as error:
        return _refused(f"{error.name} is not installed. Type pip install 'ppt_kit[notebook,test]', in a checkout.")
    try:
        browser.find_browser()
    except browser.NoBrowser as error:
        return _refused(str(error))
    with tempfile.TemporaryDirectory() as told:
        folder = Path(told)
        (folder / "books").mkdir()
        with browser.served(folder) as server:
            for name in names or SCREENS:
                screen = SCREENS[name]
                with browser.browsing(server, folder / "books") as lab:
                    lab.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
                    lab.open(screen.cells)
                    screen.before(lab)
                    lab.screenshot(into / f"{name}.png", screen.shows)
                print(into / f"{name}.png", flush=True)
    return 0


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    words = sys.argv[1:]
    folders = [word.removeprefix("--into=") for word in words if word.startswith("--into=")]
    sys.exit(main([word for word in words if not word.startswith("--")], Path(folders[-1]) if folders else IMAGES))
