"""The real simulator, its expert, and what evaluating counts."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from conftest import SMALL_WORDS, latest

from ppt_kit.cameras import crop, depth_to_points, farthest_points, intrinsics_from_fovy
from ppt_kit.checkpoint import load_policy
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.sim.collect import collect, expert_episode
from ppt_kit.sim.env import make_env
from ppt_kit.sim.evaluate import evaluate
from ppt_kit.sim.results import success_table, wilson_interval

TASK = "button-press-topdown"
SPEC = {"simulator": "metaworld", "task": TASK, "num_points": 64, "image_size": 64}


@pytest.fixture(scope="module")
def env():
    made = make_env({**SPEC, "use_color": True, "save_images": True})
    yield made
    made.close()


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    return folder, collect(TASK, episodes=3, dataset_path=str(folder), num_points=64, image_size=64, seed=5)


@pytest.fixture(scope="module")
def trained(collected, tmp_path_factory):
    """A policy that has seen little: what it does is not the point."""
    from ppt_kit.train.trainer import UnifiedTrainer

    words = (
        f"dataset_path={collected[0]}",
        f"output_dir={tmp_path_factory.mktemp('models')}",
        "suffix=run",
        "train.total_iters=3",
    )
    run = UnifiedTrainer(load_config("quickstart", *latest(*SMALL_WORDS, *words, "dataset.num_points=64")))
    run.run()
    return load_policy(run.run_dir)


# ------------------------------------------------------------------ camera


def test_points_project_back_to_their_pixels():
    rng = np.random.default_rng(0)
    depth, fovy = rng.uniform(0.5, 3, (6, 8)), 60.0
    k = intrinsics_from_fovy(fovy, height=6, width=8)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation * np.sign(np.linalg.det(rotation)), [0.3, -0.2, 1.0]
    points = depth_to_points(depth, k, pose)
    camera = (points - pose[:3, 3]) @ pose[:3, :3]  # world -> camera, which looks along -z
    u = k[0, 0] * camera[:, 0] / -camera[:, 2] + k[0, 2]
    v = -k[1, 1] * camera[:, 1] / -camera[:, 2] + k[1, 2]
    assert np.allclose(u.reshape(6, 8), np.arange(8)[None], atol=1e-4)
    assert np.allclose(v.reshape(6, 8), np.arange(6)[:, None], atol=1e-4)
    assert np.allclose(-camera[:, 2].reshape(6, 8), depth, atol=1e-5)


def test_farthest_points_are_those_of_the_definition():
    points = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    chosen = farthest_points(points, 12)
    for index in range(1, 12):
        gaps = np.linalg.norm(points[:, None] - points[chosen[:index]][None], axis=-1).min(1)
        assert gaps[chosen[index]] == pytest.approx(gaps.max())
    assert sorted(farthest_points(points[:5], 12)) == sorted(np.resize(np.arange(5), 12))
    with pytest.raises(ValueError, match="sees nothing"):
        farthest_points(points[:0], 3)


def test_the_crop_keeps_what_is_inside():
    box = np.array([[0, 0, 0], [1, 1, 1]])
    assert crop(np.array([[0.5, 0.5, 0.5], [2, 0.5, 0.5], [0.5, -1, 0.5]]), box).tolist() == [0]


# ------------------------------------------------------------------ simulator and expert


def test_the_cloud_is_where_the_button_is(env):
    """Independent of the camera: the simulator's own position of the button, three goals."""
    for seed in (1, 2, 3):
        cloud = env.reset(seed)["obs/pointcloud/pos"]
        button = env._env.data.site("buttonStart").xpos
        assert np.linalg.norm(cloud - button, axis=1).min() < 0.06
        assert cloud.shape == (64, 3)


def test_an_episode_is_the_same_to_the_bit_and_seeds_differ(env):
    first, again, other = (expert_episode(env, seed=seed) for seed in (11, 11, 12))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["obs/pointcloud/pos"][0], other["obs/pointcloud/pos"][0])
    assert np.abs(first["actions"]).max() <= 1
    assert first["obs/images/corner2"].dtype == np.uint8
    assert 0.1 < first["obs/depths/corner2"].min() < 3  # metres, not a z-buffer


def test_the_expert_solves_fresh_goals_and_idling_does_not(env):
    assert all(expert_episode(env, seed=seed) is not None for seed in range(40, 44))
    env.reset(40)
    assert not any(env.step(np.zeros(4))[2] for _ in range(60))


def test_the_goal_marker_is_hidden_where_that_is_asked_for():
    """Drawn markers end up in depth, and so would give a goal away."""
    pictures = []
    for marker in ("none", "all"):
        env = make_env({"simulator": "metaworld", "task": "reach", "goal_marker": marker})
        env.reset(3)
        pictures.append(env.render(128).astype(int))
        env.close()
    assert (np.abs(pictures[0] - pictures[1]).max(-1) > 50).sum() > 5


def test_what_is_collected_says_where_it_comes_from(collected):
    folder, done = collected
    group = zarr.open_group(str(folder / f"{TASK}.zarr"), mode="r")
    assert done.episodes == 3
    assert list(group["meta/episode_seeds"][:]) == done.seeds == [5, 6, 7]
    assert group["meta/episode_success"][:].all()
    assert group.attrs["env"]["task"] == TASK
    assert group["meta/camera_info/corner2/intrinsics"].shape == (3, 3)
    assert group["meta/episode_ends"][-1] == done.steps == group["data/actions"].shape[0]
    with pytest.raises(UserError, match="overwrite=true"):
        collect(TASK, episodes=1, dataset_path=str(folder))


def test_unsuccessful_expert_episodes_are_counted_and_not_stored(tmp_path):
    """Twenty steps do not suffice: every episode fails, nothing is written, and the line says so."""
    with pytest.raises(UserError, match="failed 3 times"):
        collect(TASK, episodes=1, dataset_path=str(tmp_path), max_steps=20, max_failures=2, num_points=16)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ evaluating


def test_seeds_of_the_demonstrations_are_refused(trained):
    with pytest.raises(UserError, match="seen in training"):
        evaluate(trained, episodes=4, seed=3)


def test_rows_summary_and_video_are_written(trained, tmp_path):
    result = evaluate(trained, episodes=2, max_steps=12, videos=1, out_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert rows == result.rows
    assert {"checkpoint", "task", "seed", "success", "steps", "return", "error", "subtasks"} <= set(rows[0])
    assert [row["seed"] for row in rows] == [100_000, 100_001]
    assert [row["steps"] for row in rows] == [12, 12]
    summary = json.loads((tmp_path / "eval.json").read_text())
    assert summary == {"run": {"total": 0.0, "subtask_sr": {"success": 0.0}}}
    assert (tmp_path / "eval.txt").read_text() == "success rate of run is: 0.0\n"

    import av

    with av.open(str(result.videos[0])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 13


def test_processes_give_the_same_episodes_as_one(trained):
    """To the bit, actions included, although the parent's torch has other threads than a worker's."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        one, two = (evaluate(trained, episodes=3, max_steps=10, n_procs=n) for n in (1, 2))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert one.untimed == two.untimed
    assert all(len(row["actions_sha256"]) == 64 for row in one.rows)
    assert len({row["actions_sha256"] for row in one.rows}) == 3


class OneThread(torch.nn.Module):
    """Fails where torch has more threads: then the last bits of sums depend on the process."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def forward(self, *args):
        assert torch.get_num_threads() == 1
        return self.whole(*args)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_policy_is_asked_with_one_thread(trained, monkeypatch, processes):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before, trunk = torch.get_num_threads(), trained.trunk
    torch.set_num_threads(3)
    trained.trunk = OneThread(trunk)
    try:
        rows = evaluate(trained, episodes=2, max_steps=2, n_procs=processes).rows
    finally:
        trained.trunk = trunk
        torch.set_num_threads(before)
    assert [row["error"] for row in rows] == [None, None]


def test_an_episode_repeats_its_actions_whatever_ran_before(trained):
    """Alone, and as the last of three: nothing of the others is left in policy, executor or simulator."""
    alone = evaluate(trained, episodes=1, seed=100_002, max_steps=10).untimed[0]
    assert evaluate(trained, episodes=3, max_steps=10).untimed[2] == alone


def test_a_policy_that_draws_is_given_seeds_of_episode_and_step(trained, monkeypatch):
    """Counted as training counts its noise: the same for the same episode and step, else different."""
    from ppt_kit.randomness import sample_seeds

    asked = []
    act = trained.act

    def listen(obs, domain, *, seeds):
        asked.append(seeds)
        return act(obs, domain, seeds=seeds)

    monkeypatch.setattr(trained, "act", listen)
    evaluate(trained, episodes=2, max_steps=5, execute_steps=4)
    expected = [sample_seeds(seed, step, np.arange(1))[0] for seed in (100_000, 100_001) for step in (0, 4)]
    assert [seeds.tolist() for seeds in asked] == [[seed] for seed in expected]
    assert len(set(expected)) == 4


def test_an_exception_is_an_error_and_not_a_failure(trained):
    class Broken(torch.nn.Module):
        """Fails on its second call."""

        def __init__(self, whole):
            super().__init__()
            self.whole, self.calls = whole, 0

        def forward(self, *args):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of luck")
            return self.whole(*args)

    trunk = trained.trunk
    trained.trunk = Broken(trunk)
    try:
        result = evaluate(trained, episodes=2, max_steps=6)
    finally:
        trained.trunk = trunk
    assert [row["success"] for row in result.rows] == [None, False]
    assert "RuntimeError: out of luck" in result.rows[0]["error"]
    line = success_table(result).iloc[0]
    assert (line["episodes"], line["errors"], line["successes"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"execute_steps": 9}, "holds 8 actions"),
        ({"zero_keys": ["cloud"]}, "takes state, pointcloud"),
        ({"domain": "x"}, "knows button"),
        ({"videos": 1}, "out_dir"),
        ({"task": "no-such-task"}, "no such task"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(trained, options, says):
    with pytest.raises(UserError, match=says):
        evaluate(trained, episodes=1, **options)


@pytest.mark.parametrize(
    ("wins", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (20, 20, 0.8389, 1.0), (15, 20, 0.5313, 0.8881), (1, 2, 0.0945, 0.9055)],
)
def test_the_interval_is_wilsons(wins, trials, low, high):
    """Newcombe 1998, method 3, to four digits."""
    assert np.allclose(wilson_interval(wins, trials), (low, high), atol=5e-5)


def test_the_table_counts_over_several_evaluations():
    rows = [{"checkpoint": "m", "task": "t", "zero_keys": [], "success": s} for s in (True, True, False, None)]
    rows += [{"checkpoint": "m", "task": "t", "zero_keys": ["pointcloud"], "success": False}]
    table = success_table(pd.DataFrame(rows))
    assert table["zeroed"].tolist() == ["-", "pointcloud"]
    assert table["rate"].tolist() == [pytest.approx(2 / 3), 0]
    assert table["errors"].tolist() == [1, 0]
    assert math.isnan(success_table(pd.DataFrame(rows[3:4])).iloc[0]["rate"])


class Elsewhere:
    """Another simulator than the data's: told what it gives."""

    max_steps = 3
    gives: dict = {}

    def __init__(self, task):
        self.task = task

    def reset(self, seed):
        return {name: np.zeros(shape, np.float32) for name, shape in self.gives.items()}

    def step(self, action):
        return self.reset(0), 0.0, False


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (
            {"obs/eef_pos": 3},
            "sees obs/normalized_gripper_pos, obs/pointcloud/pos, which test_sim:Elsewhere does not give",
        ),
        (
            {"obs/eef_pos": 5, "obs/normalized_gripper_pos": 1, "obs/pointcloud/pos": (64, 3)},
            "sees 3 numbers of obs/eef_pos, test_sim:Elsewhere gives 5",
        ),
        (
            {"obs/eef_pos": 3, "obs/normalized_gripper_pos": 1, "obs/pointcloud/pos": (64, 2)},
            r"sees points \(P, 3\) of obs/pointcloud/pos, test_sim:Elsewhere gives an array \(64, 2\)",
        ),
    ],
)
def test_a_simulator_that_does_not_show_what_the_policy_sees_is_refused_before_it_runs(
    trained, monkeypatch, gives, says
):
    monkeypatch.setitem(trained.card["sources"][TASK], "env", {"simulator": "test_sim:Elsewhere", "task": "x"})
    monkeypatch.setattr(Elsewhere, "gives", gives)
    with pytest.raises(UserError, match=says):
        evaluate(trained, episodes=1)
