"""How MuJoCo renders on this machine: with a display, or with EGL or OSMesa where there is none."""

from __future__ import annotations

import ctypes.util
import os
import sys

from ppt_kit.errors import UserError

REMEDY = "Type apt-get install libegl1 libgl1-mesa-dri"


def need_renderer() -> None:
    """Chooses how MuJoCo renders; mujoco reads the choice when it is imported, so this comes before.

    Raises:
        UserError: there is neither a display, nor EGL, nor OSMesa.
    """
    if "mujoco" in sys.modules or os.environ.get("MUJOCO_GL") or sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            # the software renderer takes every core otherwise
            os.environ.setdefault("LP_NUM_THREADS", "1")
            return
    raise UserError(f"nothing to render with: neither EGL nor OSMesa is installed. {REMEDY}")


def check_rendering() -> None:
    """Renders an empty scene.

    Raises:
        UserError: nothing to render with, or the driver does not work.
    """
    need_renderer()
    import mujoco

    try:
        with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
            renderer.render()
    # the drivers raise their own kinds
    except Exception as error:
        raise UserError(f"MuJoCo cannot render here ({error}). {REMEDY}") from None
