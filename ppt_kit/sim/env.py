"""What a simulator offers, so that collecting, rolling out and evaluating do not know which one it is."""

from __future__ import annotations

import ctypes.util
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ppt_kit.errors import UserError


class SimEnv(Protocol):
    """One task in one simulator. The same seed gives the same episode, to the bit."""

    max_steps: int
    description: str  # the task in words

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Starts an episode; stored key -> reading, e.g. eef_pos (3,) m, pointcloud/pos (P, 3) m."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool]:
        """One control step: readings, reward, success so far."""

    def expert_action(self) -> np.ndarray:
        """(Da,) what the scripted expert does now."""

    def render(self, size: int = 256) -> np.ndarray:
        """(size, size, 3) uint8 picture for people."""

    def spec(self) -> dict[str, Any]:
        """What `make_env` needs to build this environment again; recorded with every dataset."""

    def camera_info(self) -> dict[str, np.ndarray]:
        """<camera>/intrinsics (3, 3) and <camera>/extrinsics (4, 4) camera to world."""

    def close(self) -> None:
        """Frees the renderer."""


def make_env(spec: Mapping[str, Any]) -> SimEnv:
    """The environment that `spec()` describes.

    Raises:
        UserError: an unknown simulator or task, or nothing to render with.
    """
    options = {name: value for name, value in spec.items() if name != "simulator"}
    if spec.get("simulator") != "metaworld":
        raise UserError(f"simulator {spec.get('simulator')!r} is not known; there is metaworld.")
    _need_renderer()
    from ppt_kit.sim.metaworld import MetaWorldEnv

    return MetaWorldEnv(**options)


def _need_renderer() -> None:
    """Chooses how MuJoCo renders, before mujoco is imported; on a machine without a display that is EGL or OSMesa."""
    if "mujoco" in sys.modules or os.environ.get("MUJOCO_GL") or sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            os.environ.setdefault("LP_NUM_THREADS", "1")  # the software renderer takes every core otherwise
            return
    raise UserError(
        "nothing to render with: neither EGL nor OSMesa is installed. Type apt-get install libegl1 libgl1-mesa-dri"
    )


def check_rendering() -> None:
    """Renders an empty scene.

    Raises:
        UserError: nothing to render with, or the driver does not work.
    """
    _need_renderer()
    import mujoco

    try:
        with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
            renderer.render()
    except Exception as error:  # the drivers raise their own kinds
        raise UserError(f"MuJoCo cannot render here ({error}). Type apt-get install libegl1 libgl1-mesa-dri") from None
