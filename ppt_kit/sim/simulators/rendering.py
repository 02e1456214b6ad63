"""How MuJoCo renders on this machine: with a display, or with EGL or OSMesa where there is none."""

from __future__ import annotations

import ctypes.util
import difflib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ppt_kit.errors import UserError

REMEDY = "Type apt-get install libegl1 libgl1-mesa-dri"
# values of MUJOCO_GL that mujoco knows on Linux: those that need no display and their libraries, …
HEADLESS = {"egl": "EGL", "osmesa": "OSMesa"}
# … those that open a window on one, and those after which nothing can be rendered
WITH_DISPLAY = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
SWITCHED_OFF = ("disable", "disabled", "off", "false", "0")


def choose_renderer() -> None:
    """Chooses how MuJoCo renders; mujoco reads the choice when it is imported, so this comes before.

    Where there is nothing to choose from nothing is said yet: physics and states alone need no renderer.

    Raises:
        UserError: MUJOCO_GL names nothing that works here.
    """
    if "mujoco" in sys.modules or sys.platform != "linux":
        return
    given = os.environ.get("MUJOCO_GL", "")
    # as mujoco reads it
    wanted = given.lower().strip()
    if wanted:
        _check_choice(given, wanted)
        return
    found = _headless()
    if not _has_display() and found:
        os.environ["MUJOCO_GL"] = found
        # the software renderer takes every core otherwise
        os.environ.setdefault("LP_NUM_THREADS", "1")


@contextmanager
def rendering() -> Iterator[None]:
    """Inside something is rendered for the first time.

    Raises:
        UserError: it cannot be, as without a display, EGL and OSMesa; the drivers raise their own kinds.
    """
    if sys.platform == "linux" and not (os.environ.get("MUJOCO_GL", "").strip() or _has_display() or _headless()):
        raise UserError(
            f"nothing to render with: there is no display, and neither EGL nor OSMesa is installed. {REMEDY}; "
            "or do without pictures: num_points=0 save_images=false needs no renderer."
        )
    try:
        with warnings.catch_warnings():
            # what glfw says of a display that is not there is in its error too
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MuJoCo cannot render here ({_why(error)}). {_remedy()}") from None


def check_rendering() -> None:
    """Renders an empty scene.

    Raises:
        UserError: nothing to render with, or the driver does not work.
    """
    choose_renderer()
    with rendering():
        import mujoco

        with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
            renderer.render()


def _check_choice(given: str, wanted: str) -> None:
    if wanted in SWITCHED_OFF:
        # states alone need no picture; what does is refused when it is first rendered
        return
    if wanted in HEADLESS:
        if not ctypes.util.find_library(HEADLESS[wanted]):
            raise UserError(f"MUJOCO_GL={given!r}: {HEADLESS[wanted]} is not installed. {REMEDY}, or unset MUJOCO_GL.")
        platform = os.environ.get("PYOPENGL_PLATFORM", "")
        if platform and platform.lower() != wanted:
            raise UserError(
                f"MUJOCO_GL={given!r}, but PYOPENGL_PLATFORM={platform!r}: both name what renders. "
                "Type unset PYOPENGL_PLATFORM."
            )
        os.environ.setdefault("LP_NUM_THREADS", "1")
    elif wanted in WITH_DISPLAY:
        if not _has_display():
            raise UserError(
                f"MUJOCO_GL={given!r} opens a window, and there is no display (DISPLAY is not set). "
                "Type MUJOCO_GL=egl, or unset MUJOCO_GL."
            )
    else:
        near = difflib.get_close_matches(wanted, [*HEADLESS, *WITH_DISPLAY[:2]], 1)
        raise UserError(
            f"MUJOCO_GL={given!r}: mujoco takes egl, osmesa, glfw. "
            f"Type MUJOCO_GL={near[0] if near else 'egl'}, or unset it."
        )


def _headless() -> str | None:
    """What renders without a display here, as MUJOCO_GL names it."""
    return next((name for name, library in HEADLESS.items() if ctypes.util.find_library(library)), None)


def _has_display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _remedy() -> str:
    given = os.environ.get("MUJOCO_GL", "")
    if given.lower().strip() in HEADLESS:
        return f"MUJOCO_GL={given!r}. {REMEDY}."
    said = f"MUJOCO_GL={given!r}" if given else f"DISPLAY={os.environ.get('DISPLAY', '')!r}"
    return f"{said} is what it was told. Type MUJOCO_GL=egl."
