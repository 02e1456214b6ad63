"""Meta-World's tasks as this package shows them: goals, markers, cameras, and episodes that repeat to the bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import ROOT, run_script

import ppt_kit as ppt
from ppt_kit.data.formats import open_store
from ppt_kit.errors import UserError
from ppt_kit.sim.env import make_env
from ppt_kit.sim.simulators import rendering
from ppt_kit.sim.simulators.metaworld import TASKS, MetaWorldEnv
from ppt_kit.sim.simulators.metaworld_tasks import TASKS as KNOWN

SMALL = {"image_size": 48, "num_points": 64}
NEEDING = [name for name, task in KNOWN.items() if task.needs_marker]
# as datasets recorded it before pictures were turned and markers had words
OLD = {"simulator": "metaworld", "max_steps": 200, "camera": "corner2", "image_size": 48, "num_points": 64,
       "use_color": True, "save_images": True, "goal_marker": False}  # fmt: skip


@pytest.fixture
def opened():
    """Makes environments that are closed afterwards."""
    made = []

    def make(task="reach", **options):
        made.append(make_env({"simulator": "metaworld", "task": task, **SMALL, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()


# ------------------------------------------------------------------ the table


def test_the_table_has_every_task_once_and_its_levels_have_the_published_means():
    """Means: Ze et al. 2024, table I, to its one digit."""
    table = ppt.tasks()
    assert sorted(table["task"]) == TASKS
    levels = table.groupby("level")
    assert dict(levels.size()) == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    published = {"easy": (90.9, 83.6), "medium": (61.6, 31.1), "hard": (31.7, 9.0), "very hard": (49.0, 26.6)}
    for level, means in published.items():
        assert np.allclose(levels[["dp3", "dp"]].mean().loc[level], means, atol=0.06)
    assert dict(table.groupby("goal_shown_by").size()) == {"fixed": 3, "marker": 15, "scene": 32}
    assert (table["marker"] == "drawn").tolist() == (table["goal_shown_by"] == "marker").tolist()


def goal_shown_by(task, *, seeds=40):
    """Measured: whether the goal moves at all, and whether along each axis something that is drawn moves with it."""
    env = MetaWorldEnv(task, num_points=0)
    goals, geoms = [], []
    for seed in range(seeds):
        env.reset(seed)
        goals.append(env._env._target_pos.copy())
        geoms.append(env._env.data.geom_xpos.copy())
    model = env._env.model
    drawn = (model.geom_group <= 2) & (model.geom_rgba[:, 3] > 0)
    spread = np.std(goals, axis=0)
    beside = (np.array(goals)[:, None] - np.array(geoms)[:, drawn]).std(0).min(0)
    env.close()
    if spread.max() < 1e-6:
        return "fixed"
    return "scene" if beside[spread > 1e-6].max() < 1e-4 else "marker"


@pytest.mark.parametrize(
    "task", [t if t in ("reach", "sweep", "hammer") else pytest.param(t, marks=pytest.mark.long) for t in TASKS]
)
def test_what_the_table_says_of_the_goal_is_what_is_measured(task):
    assert goal_shown_by(task) == KNOWN[task].goal_shown_by


def test_the_command_prints_the_table_and_collects_nothing(tmp_path, run_here):
    done = run_here(str(ROOT / "scripts/collect_demos.py"), "list_tasks=true", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 51
    assert "push-back" in done.stdout
    assert not list(tmp_path.iterdir())
    done = run_here(str(ROOT / "scripts/collect_demos.py"), "list_tasks=true", "simulator=metawold", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean metaworld" in done.stderr


def test_an_unknown_task_is_told_with_the_nearest_names():
    with pytest.raises(UserError, match=r"Did you mean push-\w+ or push-\w+ or push"):
        make_env({"simulator": "metaworld", "task": "push-bal"})


# ------------------------------------------------------------------ markers


def near_goal(env, seed):
    """How many points of the cloud lie within the marker's sphere."""
    cloud = env.reset(seed)["obs/pointcloud/pos"]
    name, goal = env._env._target_site_config[0]
    # Meta-World's own marker stands where the object begins
    goal = env._env._target_pos if env.task == "pick-out-of-hole" else goal
    radius = env._env.model.site(name).size[0] + 0.004
    return int((np.linalg.norm(cloud - goal, axis=1) < radius).sum())


@pytest.mark.parametrize(
    "task", [t if t in ("reach", "push") else pytest.param(t, marks=pytest.mark.long) for t in NEEDING]
)
def test_a_marker_that_is_needed_is_in_the_cloud_by_default(opened, task):
    # all points, of which some are elsewhere where the hand is near, and those that a policy gets
    shown, hidden, few = (
        opened(task, goal_marker=word, image_size=128, num_points=number)
        for word, number in (("auto", 16_384), ("none", 16_384), ("auto", 512))
    )
    for seed in range(3):
        assert near_goal(shown, seed) > near_goal(hidden, seed)
        assert near_goal(few, seed) > 0


@pytest.mark.parametrize(
    ("task", "same"),
    [("reach", {"auto": "all"}), ("peg-insert-side", {"auto": "none"}), ("reach", {True: "all", False: "none"})],
)
def test_auto_and_the_booleans_of_old_datasets_are_one_of_all_and_none(opened, task, same):
    for word, other in same.items():
        one, two = (opened(task, goal_marker=each, save_images=True, upright=True) for each in (word, other))
        assert_same(one.reset(5), two.reset(5))
    shown, hidden = (opened(task, goal_marker=word, save_images=True).reset(5) for word in ("all", "none"))
    assert not np.array_equal(shown["obs/depths/corner2"], hidden["obs/depths/corner2"])


# ------------------------------------------------------------------ episodes


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert np.array_equal(one[name], two[name]), name


def episode(env, seed, *, steps=6):
    """Everything that an episode shows and gives, under the expert."""
    told = [env.reset(seed)]
    for _ in range(steps):
        action = env.expert_action()
        reading, reward, success = env.step(action)
        told.append({**reading, "reward": np.array(reward), "success": np.array(success), "action": action})
    return told


@pytest.mark.parametrize(
    "task", [t if t in ("reach", "stick-pull") else pytest.param(t, marks=pytest.mark.long) for t in TASKS]
)
def test_an_episode_is_its_seeds_alone_whatever_ran_before_and_whatever_numpy_draws(opened, task):
    """Another episode to its half before, another state of the global generator, which stays as it is."""
    fresh, used = (opened(task, goal_marker="all", save_images=True, use_color=True) for _ in range(2))
    np.random.seed(1)
    first = episode(fresh, 21)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    episode(used, 4, steps=30)
    second = episode(used, 21)
    assert np.array_equal(np.random.get_state()[1], before)
    for one, two in zip(first, second, strict=True):
        assert_same(one, two)


def test_success_is_that_of_this_step(opened):
    env = opened("reach", num_points=0)
    env.reset(0)
    assert any(env.step(env.expert_action())[2] for _ in range(80))
    assert not [env.step(np.array([-1, -1, 1, 0]))[2] for _ in range(30)][-1]


# ------------------------------------------------------------------ cameras


def hit_by_rays(env, name, pixels):
    """Depth (m) where rays through pixels (N, 2) of the stored picture meet the scene: no renderer, no depth buffer."""
    import mujoco

    model, data, info = env._env.model, env._env.data, env.camera_info()
    k, pose = info[f"{name}/intrinsics"], info[f"{name}/extrinsics"]
    rays = np.stack(
        [(pixels[:, 0] - k[0, 2]) / k[0, 0], -(pixels[:, 1] - k[1, 2]) / k[1, 1], -np.ones(len(pixels))], axis=1
    )
    geom, groups = np.zeros(1, np.int32), np.array([1, 1, 1, 0, 0, 0], np.uint8)
    # the length of a ray whose part along the viewing axis is 1 is counted in metres along that axis
    return np.array(
        [mujoco.mj_ray(model, data, pose[:3, 3].copy(), pose[:3, :3] @ ray, groups, 1, -1, geom) for ray in rays]
    )


@pytest.mark.parametrize("name", ["corner", "corner2", "corner3", "corner4", "topview"])
def test_a_stored_picture_is_upright_and_its_calibration_finds_what_it_shows(opened, name):
    """Independent of drawing: rays cast into the scene from each pixel meet it where the picture's depth says."""
    env = opened("door-open", camera=name, save_images="depth", num_points=0, image_size=64)
    depth = env.reset(2)[f"obs/depths/{name}"][..., 0]
    v, u = np.mgrid[4:64:7, 4:64:7]
    expected, seen = hit_by_rays(env, name, np.stack([u.ravel(), v.ravel()], axis=1)), depth[v, u].ravel()
    met = (expected > 0) & (seen < 5)
    assert met.sum() > 40
    assert (np.abs(seen - expected)[met] < 0.01).mean() > 0.9
    if name != "topview":
        # turned by half a turn, the same rays meet other things; from above a table is a table either way
        assert (np.abs(depth[::-1, ::-1][v, u].ravel() - expected)[met] < 0.01).mean() < 0.5
    # the picture's up is not the world's down
    assert env.camera_info()[f"{name}/extrinsics"][2, 1] > -1e-6


def test_what_old_datasets_recorded_is_shown_as_they_recorded_it():
    """Their corner2 hangs upside down; the cloud is the same either way, and so are the points made from depth."""
    old, new = make_env({"task": "door-open", **OLD}), make_env({"task": "door-open", **OLD, "goal_marker": "none"})
    try:
        for one, two in zip(episode(old, 7, steps=2), episode(new, 7, steps=2), strict=True):
            for kind in ("images", "depths"):
                assert np.array_equal(one.pop(f"obs/{kind}/corner2"), two.pop(f"obs/{kind}/corner2")[::-1, ::-1])
            assert_same(one, two)
        assert (old.spec()["upright"], new.spec()["upright"]) == (False, True)
        assert old.camera_info()["corner2/extrinsics"][2, 1] < -0.5
        assert np.array_equal(old.render(64), new.render(64))
    finally:
        old.close()
        new.close()


def test_what_is_recorded_shows_the_same_again(opened):
    """Also of an old dataset: its spec, written anew, still says how its pictures stood."""
    for options in (OLD, {"camera": ["corner3", "topview"], "cloud_camera": "corner2", "save_images": "rgb"}):
        env = opened("reach", **{name: value for name, value in options.items() if name != "simulator"})
        again = make_env(env.spec())
        assert_same(env.reset(3), again.reset(3))
        assert again.spec() == env.spec()
        again.close()


def test_several_cameras_are_shown_each_and_the_cloud_is_of_all_or_of_those_that_are_named(opened):
    options = {"save_images": True, "image_size": 128, "num_points": 512}
    both = opened("door-open", camera="corner2, corner3", **options)
    one, other = (opened("door-open", camera=name, **options).reset(3) for name in ("corner2", "corner3"))
    named = opened("door-open", camera=["corner2", "corner3"], cloud_camera="corner2", **options).reset(3)
    reading = both.reset(3)
    cameras = [f"obs/{kind}/{name}" for kind in ("images", "depths") for name in ("corner2", "corner3")]
    assert set(reading) == {"obs/eef_pos", "obs/normalized_gripper_pos", "obs/pointcloud/pos", *cameras}
    assert {name.split("/")[0] for name in both.camera_info()} == {"corner2", "corner3"}
    for name in cameras:
        assert np.array_equal(reading[name], (one if name.endswith("2") else other)[name])
    assert np.array_equal(named["obs/pointcloud/pos"], one["obs/pointcloud/pos"])
    merged = reading["obs/pointcloud/pos"]
    # more than there are: all of them
    dense = [
        opened("door-open", camera=name, image_size=128, num_points=20_000).reset(3) for name in ("corner2", "corner3")
    ]
    known = [{point.tobytes() for point in each["obs/pointcloud/pos"]} for each in dense]
    of_one, of_other = (np.array([point.tobytes() in points for point in merged]) for points in known)
    # each point is one of the two cameras', and each camera has its share
    assert (of_one | of_other).all()
    assert min((of_one & ~of_other).sum(), (of_other & ~of_one).sum()) > 50


def test_the_cloud_of_a_camera_on_the_hand_stays_in_the_world_and_its_one_pose_is_not_claimed(opened):
    """Independent of drawing: from where the camera is now, a ray to each point meets nothing before it."""
    import mujoco

    env = opened("door-open", camera="gripperPOV", save_images="depth", image_size=64, num_points=128)
    env.reset(1)
    for _ in range(20):
        cloud = env.step(env.expert_action())[0]["obs/pointcloud/pos"].astype(float)
    assert env.camera_info() == {}
    model, data = env._env.model, env._env.data
    at, groups, geom = data.cam("gripperPOV").xpos.copy(), np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    ways = np.unique(cloud, axis=0) - at
    met = np.array([mujoco.mj_ray(model, data, at, way, groups, 1, -1, geom) for way in ways])
    assert len(ways) > 20
    assert (np.abs(met - 1) * np.linalg.norm(ways, axis=1) < 0.01).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "columns", "drawn"),
    [
        ({"num_points": 0}, [], False),
        ({"num_points": 0, "save_images": "rgb"}, ["images/corner2"], True),
        ({"num_points": 0, "save_images": "depth"}, ["depths/corner2"], True),
        ({"save_images": "depth"}, ["pointcloud/pos", "depths/corner2"], True),
        ({"use_color": True}, ["pointcloud/pos", "pointcloud/colors"], True),
        ({"save_images": True}, ["pointcloud/pos", "images/corner2", "depths/corner2"], True),
    ],
    ids=str,
)
def test_what_is_chosen_is_given_and_without_any_of_it_nothing_is_drawn(opened, options, columns, drawn):
    env = opened("reach", **options)
    for reading in (env.reset(1), env.step(np.zeros(4))[0]):
        assert set(reading) == {"obs/eef_pos", "obs/normalized_gripper_pos", *(f"obs/{name}" for name in columns)}
    assert bool(env._scene._renderers) == drawn


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"camera": "corner2,cornr3"}, r"camera=cornr3: reach has topview, .* Did you mean corner3\?"),
        ({"cloud_camera": "side"}, "cloud_camera=side: reach has"),
        ({"camera": "corner2,corner2"}, "names a camera twice"),
        ({"camera": []}, "takes a name, or several"),
        ({"save_images": "depths"}, r"save_images='depths': takes rgb, depth, true, false\. Did you mean depth\?"),
        ({"goal_marker": "some"}, "goal_marker='some': takes auto, all, none"),
        ({"upright": "yes"}, "upright='yes': takes true or false"),
        ({"num_points": 0, "cloud_camera": "corner"}, "cloud_camera=corner, but num_points=0"),
        ({"num_points": 0, "use_color": True}, "use_color=true, but num_points=0"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_one_line(options, says):
    with pytest.raises(UserError, match=says) as told:
        make_env({"simulator": "metaworld", "task": "reach", **options})
    assert "\n" not in str(told.value)


def test_demonstrations_have_each_camera_and_say_how_they_stood(tmp_path):
    options = {"episodes": 1, "dataset_path": str(tmp_path), "num_points": 0, "image_size": 32, "save_images": "depth"}
    done = ppt.collect("reach", camera=["corner2", "corner3"], goal_marker="none", **options)
    store = open_store(done.path)
    pictures = {name for name in store.keys() if name.startswith(("obs/images", "obs/depths"))}  # noqa: SIM118
    assert pictures == {"obs/depths/corner2", "obs/depths/corner3"}
    assert set(store.cameras) == {"corner2", "corner3"}
    env = store.attrs["env"]
    assert (env["camera"], env["goal_marker"], env["upright"]) == ("corner2,corner3", "none", True)
    # the same again is the same dataset, and with another marker it is another one
    assert ppt.collect("reach", camera="corner2, corner3", goal_marker="none", **options).seeds == done.seeds
    with pytest.raises(UserError, match="overwrite=true"):
        ppt.collect("reach", camera="corner2, corner3", goal_marker="all", **options)


# ------------------------------------------------------------------ without a renderer

# a machine without a display, EGL and OSMesa, as Python's own look-up of libraries tells it
HEADLESS = """
import ctypes.util
found = ctypes.util.find_library
ctypes.util.find_library = lambda name: None if name in ("EGL", "OSMesa") else found(name)
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_without_egl_and_osmesa_a_picture_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(rendering.sys, "modules", {})
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: None)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    rendering.choose_renderer()
    with pytest.raises(UserError, match=r"neither EGL nor OSMesa is installed\. Type apt-get install"):
        with rendering.rendering():
            raise AssertionError("was not reached")


@pytest.mark.parametrize(("points", "code"), [(0, 0), (16, 2)])
def test_without_egl_and_osmesa_states_are_collected_and_clouds_are_refused(tmp_path, points, code):
    script, env = str(ROOT / "scripts/collect_demos.py"), {"DISPLAY": "", "WAYLAND_DISPLAY": "", "MUJOCO_GL": ""}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    words = ("task=reach", "episodes=1", f"num_points={points}")
    done = run_script(sys.executable, "-c", HEADLESS, script, *words, cwd=tmp_path, env=env)
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert "neither EGL nor OSMesa is installed" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*.zarr"))
    else:
        assert "1 demonstrations" in done.stdout
