"""Environments by their id: the package that registers one is imported, and a wrong name is told with the nearest."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from ppt_kit.errors import UserError
from ppt_kit.parts import NoModule, import_beside

# package -> what brings it with the versions that are tested here
EXTRAS = {"gym_pusht": "ppt_kit[gym]"}


def find_spec(task: str) -> EnvSpec:
    """What is registered as `task`: an id, namespace/id whose package is called as its namespace, or module:id.

    Raises:
        UserError: there is none of that name, or its package is not here.
    """
    # else pygame greets on every process's standard output, and looks for a screen and a loudspeaker
    quiet = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_AUDIODRIVER": "dummy"}
    quiet |= {} if os.environ.get("DISPLAY") else {"SDL_VIDEODRIVER": "dummy"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    module, _, name = task.rpartition(":")
    package = module or (name.partition("/")[0] if "/" in name else "")
    if module:
        import_beside(module, option=f"task={task}")
    elif package and not _registered_in(package):
        _import_package(package, task)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, gymnasium.registry, 1)
        said = " ".join(str(error).split()).partition(" Did you mean")[0]
        raise UserError(f"task={task}: {said}" + (f" Did you mean {near[0]}?" if near else "")) from None


def make(spec: EnvSpec, *, task: str, max_steps: int | None, options: Mapping[str, Any]) -> gymnasium.Env:
    """The environment, which ends after max_steps (None = as registered) and gives pictures where it can.

    Raises:
        UserError: a package that it needs is not here.
    """
    _check_options(spec, options, task)
    given = dict(options)
    if "rgb_array" in render_modes(spec):
        given.setdefault("render_mode", "rgb_array")
    limit = {} if max_steps is None else {"max_episode_steps": max_steps}
    try:
        # the checker looks at every step, and spaces are read here anyway
        return gymnasium.make(spec, disable_env_checker=True, **limit, **given)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"task={task}: {_missing(error)}") from None


def render_modes(spec: EnvSpec) -> list[str]:
    """What the environment says that it can render as."""
    metadata = getattr(_creator(spec), "metadata", None) or {}
    return list(metadata.get("render_modes", []))


def _creator(spec: EnvSpec) -> Any:
    """The class or function that makes the environment."""
    if not isinstance(spec.entry_point, str):
        return spec.entry_point
    try:
        return load_env_creator(spec.entry_point)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"task={spec.id}: {_missing(error)}") from None


def _check_options(spec: EnvSpec, options: Mapping[str, Any], task: str) -> None:
    try:
        parameters = inspect.signature(_creator(spec)).parameters
    # what is made of C has none
    except (TypeError, ValueError):
        return
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    unknown = [name for name in options if name not in parameters]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters, 1)
        raise UserError(
            f"options.{unknown[0]}: task={task} takes no {unknown[0]}; it takes {', '.join(parameters) or 'no option'}."
            + (f" Did you mean {near[0]}?" if near else "")
        )


def _registered_in(package: str) -> bool:
    return any(spec.namespace == package for spec in gymnasium.registry.values())


def _import_package(package: str, task: str) -> None:
    try:
        import_beside(package, option=f"task={task}")
    except NoModule:
        wanted = EXTRAS.get(package)
        what = f"pip install '{wanted}'" if wanted else f"pip install {package.replace('_', '-')}"
        also = "" if wanted else f", or name the module that registers it: task=module:{task}"
        raise UserError(f"task={task}: no package {package} is installed. Type {what}{also}.") from None
    except UserError as error:
        if "libGL" not in str(error) and "libgthread" not in str(error):
            raise
        raise UserError(
            f"{error} OpenCV needs it. On Debian or Ubuntu: sudo apt-get install libgl1 libglib2.0-0"
        ) from None


def _missing(error: Exception) -> str:
    return f"cannot be made here: {' '.join(str(error).split())}. Install what it names."
