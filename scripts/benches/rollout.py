"""Steps of the simulator that show a cloud, against Meta-World's own rendering."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from benches.in_turn import in_turn, ratio
from ppt_kit.keys import key

CAMERA = "corner2"


@dataclass
class RolloutBench:
    """Steps a second with clouds, ours and by env.render()."""

    task: str = key("button-press-topdown", "task of Meta-World")
    num_points: int = key(512, "points of a cloud", low=1)
    image_size: int = key(128, "height and width of our picture (pixels)", low=16)
    stock_sizes: list[int] = key([480, 128], "those of env.render(), measured each; 480 is its default")
    block: int = key(20, "steps measured at a time, ours and the stock path's in turn", low=1)
    rounds: int = key(10, "such pairs", low=2)


def rollout(cfg: DictConfig) -> int:
    """Prints a line a way, then where a step's time goes."""
    env = _ours(cfg)
    ours = _endless(env, cfg)
    print(f"{'a step and its cloud':<34}{'steps/s':>9}{'ours':>9}{'x':>7}{'clouds differ by':>20}")
    # closed together: the first to be closed takes the display with it
    stocks = []
    for size in cfg.stock_sizes:
        stock = _Stock(cfg, size)
        stocks.append(stock)
        pairs = in_turn(stock.step, ours, block=cfg.block, rounds=cfg.rounds)
        rates = [1 / float(np.median(seconds)) for seconds in zip(*pairs)]
        gap = _gap(stock.reset(), env.reset(0)["obs/pointcloud/pos"])
        name = f"env.render() {size}x{size}, ours {cfg.image_size}x{cfg.image_size}"
        print(f"{name:<34}{rates[0]:>9.1f}{rates[1]:>9.1f}{1 / ratio(pairs):>7.1f}{1000 * gap:>17.1f} mm", flush=True)
    print("x: median over pairs measured in turn. clouds differ by: median distance of a point to the other cloud.")
    _tell_parts(env)
    for each in (env, *stocks):
        each.close()
    return 0


class _Stock:
    """Meta-World as it comes: env.render() gives the z-buffer, which becomes the same cloud by the same arithmetic.

    Its camera stands where ours does, and its goals are drawn from the same seed.
    """

    def __init__(self, cfg: DictConfig, size: int):
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        from ppt_kit.cameras import intrinsics_from_fovy
        from ppt_kit.sim.simulators.metaworld import CORNER2_POSITION

        make: Any = ALL_V3_ENVIRONMENTS[f"{cfg.task}-v3"]
        self.env = make(render_mode="depth_array", camera_name=CAMERA, width=size, height=size)
        self.env._freeze_rand_vec, self.env.seeded_rand_vec, self.env._set_task_called = False, True, True
        camera = self.env.model.cam(CAMERA)
        camera.pos = CORNER2_POSITION
        self.intrinsics = intrinsics_from_fovy(float(camera.fovy[0]), height=size, width=size)
        self.num_points = cfg.num_points
        self.reset()

    def reset(self) -> np.ndarray:
        """(P, 3) the first cloud of seed 0."""
        import mujoco

        self.env.seed(0)
        self.env.reset()
        mujoco.mj_forward(self.env.model, self.env.data)
        return self._cloud()

    def step(self) -> None:
        if self.env.curr_path_length >= self.env.max_path_length:
            self.reset()
        self.env.step(np.zeros(4, np.float32))
        self._cloud()

    def close(self) -> None:
        self.env.close()

    def _cloud(self) -> np.ndarray:
        from ppt_kit.cameras import crop, depth_to_points, farthest_points
        from ppt_kit.sim.simulators.metaworld import CROP_BOX

        model, camera = self.env.model, self.env.data.cam(CAMERA)
        if self.env.mujoco_renderer.viewer is not None:
            # it makes its context the current one when it is made, and never again: ours took its place
            self.env.mujoco_renderer.viewer.make_context_current()
        near, far = model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent
        metres = near / (1 - self.env.render() * (1 - near / far))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.xmat.reshape(3, 3), camera.xpos
        points = depth_to_points(metres, self.intrinsics, pose)
        inside = points[crop(points, CROP_BOX)]
        return inside[farthest_points(inside, self.num_points)]


def _ours(cfg: DictConfig) -> Any:
    from ppt_kit.sim.env import make_env

    # a stock picture draws every marker
    options = {"image_size": cfg.image_size, "num_points": cfg.num_points, "goal_marker": "all"}
    return make_env({"simulator": "metaworld", "task": cfg.task, "camera": CAMERA, **options})


def _endless(env: Any, cfg: DictConfig) -> Callable[[], None]:
    """A step of `env`, from a new episode on where one is over."""
    state = {"steps": env.max_steps}

    def step() -> None:
        if state["steps"] >= env.max_steps:
            env.reset(0)
            state["steps"] = 0
        env.step(np.zeros(4))
        state["steps"] += 1

    return step


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    """Median distance (m) of a point of one cloud to the nearest of the other."""
    return float(np.median(np.linalg.norm(one[:, None] - other[None], axis=-1).min(1)))


def _tell_parts(env: Any) -> None:
    from ppt_kit.cameras import crop, farthest_points
    from ppt_kit.sim.simulators.metaworld import CROP_BOX

    env.reset(0)
    scene, depth = env._scene, env._scene.depth(CAMERA)
    points = scene.points(CAMERA, depth)
    inside = points[crop(points, CROP_BOX)]
    parts: dict[str, Callable[[], Any]] = {
        "physics": lambda: env._env.step(np.zeros(4, np.float32)), "depth": lambda: scene.depth(CAMERA),
        "points": lambda: scene.points(CAMERA, depth), "crop": lambda: crop(points, CROP_BOX),
        f"{env.num_points} of {len(inside)} points": lambda: farthest_points(inside, env.num_points),
    }  # fmt: skip
    told = [f"{name} {1000 * _seconds(part):.2f}" for name, part in parts.items()]
    print(f"a step of ours (ms): {', '.join(told)}", flush=True)


def _seconds(part: Callable[[], Any], *, calls: int = 50) -> float:
    part()
    began = time.perf_counter()
    for _ in range(calls):
        part()
    return (time.perf_counter() - began) / calls
