"""The UR5e's kitchen: published kinematics, an expert that succeeds, and nothing that succeeds by itself."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT

from ppt_kit.cameras import depth_to_points
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.sim.collect import expert_episode
from ppt_kit.sim.env import make_env
from ppt_kit.sim.simulators.ur5.env import UR5Env
from ppt_kit.sim.simulators.ur5.expert import Expert
from ppt_kit.sim.simulators.ur5.kinematics import Kinematics, turn_between
from ppt_kit.sim.simulators.ur5.kitchen import Kitchen
from ppt_kit.sim.simulators.ur5.scene import VARIATIONS
from ppt_kit.sim.simulators.ur5.tasks import TASKS

FULL, CLOSE = "ur5_put_bowl_in_microwave_and_close", "ur5_close_microwave"
# as Universal Robots prints them: d and a in metres, alpha in quarter turns
PRINTED = [(0.1625, 0, 1), (0, -0.425, 0), (0, -0.3922, 0), (0.1333, 0, 1), (0.0997, 0, -1), (0.0996, 0, 0)]
FLANGE_TO_TOOL = 0.168
BLIND = {"num_points": 0}


def env_of(task, **options):
    return make_env({"simulator": "ur5", "task": task, **(options or BLIND)})


@pytest.fixture(scope="module")
def full():
    return env_of(FULL)


@pytest.fixture(scope="module")
def closing():
    return env_of(CLOSE)


def run(env, seed, act, *, steps=None):
    """(success at the last step, subtasks, steps) under act(env, step)."""
    env.reset(seed)
    success, step = False, 0
    while step < (steps or env.max_steps) and not success:
        _, _, success = env.step(act(env, step))
        step += 1
    return success, env.subtasks(), step


def held_still(env, step):
    """What the expert does with its gripper, the arm where it is."""
    action = env.expert_action()
    action[:6] = np.zeros(6) if env.actions == "delta" else env._kitchen.joints
    return action


# ------------------------------------------------------------------ kinematics


def printed_pose(joints):
    pose = np.diag([-1.0, -1.0, 1.0, 1.0])  # the base is turned by half a turn
    for (d, a, quarter), angle in zip(PRINTED, joints, strict=True):
        c, s, ca, sa = np.cos(angle), np.sin(angle), (1, 0, -1, 0)[quarter], (0, 1, 0, -1)[quarter]
        step = [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        pose = pose @ np.array(step, float)
    return pose


def test_the_tool_is_where_the_published_parameters_put_it():
    arm = Kinematics(Kitchen(VARIATIONS[1]).model)
    for joints in np.random.default_rng(0).uniform(-3, 3, (20, 6)):
        place, axes = arm.tool(joints)
        flange = printed_pose(joints)
        assert np.allclose(axes, flange[:3, :3], atol=1e-9)
        assert np.allclose(place, flange[:3, 3] + FLANGE_TO_TOOL * flange[:3, 2], atol=1e-9)


def test_solved_joints_bring_the_tool_there():
    arm, rng = Kinematics(Kitchen(VARIATIONS[1]).model), np.random.default_rng(1)
    for _ in range(20):
        start = np.array([-0.9, -2.2, 2.2, -1.9, -1.0, 0.5]) + rng.uniform(-0.2, 0.2, 6)
        goal = start + rng.uniform(-0.3, 0.3, 6)
        place, axes = arm.tool(goal)
        at, turned = arm.tool(arm.solve(start, place, axes))
        assert np.linalg.norm(at - place) < 1e-3
        assert np.linalg.norm(turn_between(turned, axes)) < 5e-3


def test_joints_turn_in_radians_and_reach_as_far_as_the_arms():
    model = Kitchen(VARIATIONS[1]).model
    assert model.joint("door").range[1] > 2
    assert np.allclose(model.joint("arm/elbow").range, [-3.1415, 3.1415])
    assert np.allclose(model.joint("arm/wrist_3").range, [-6.283, 6.283])


# ------------------------------------------------------------------ what succeeds


@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_expert_puts_the_bowl_inside_and_closes(variation):
    env = env_of(FULL, variation=variation, **BLIND)
    success, parts, steps = run(env, 7, lambda env, step: env.expert_action())
    assert success
    assert parts == {"grasp": True, "lift": True, "place": True, "close": True}
    assert 60 < steps < env.max_steps


def test_the_expert_closes_the_door(closing):
    success, parts, _ = run(closing, 3, lambda env, step: env.expert_action())
    assert success
    assert parts == {"close": True}


def test_delta_actions_move_the_arm_as_absolute_ones_do():
    ends = []
    for actions in ("absolute", "delta"):
        env = env_of(CLOSE, actions=actions, **BLIND)
        reading = env.reset(4)
        for _ in range(30):
            reading, _, _ = env.step(env.expert_action())
        ends.append(reading["obs/joint_pos"])
    assert np.allclose(*ends, atol=1e-3)
    assert np.abs(ends[0] - env.reset(4)["obs/joint_pos"]).max() > 0.2


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_expert_succeeds_on_nine_of_ten_of_a_hundred_seeds(task, variation):
    env = env_of(task, variation=variation, **BLIND)
    runs = [run(env, seed, lambda env, step: env.expert_action()) for seed in range(2000, 2100)]
    wins, steps = sum(success for success, _, _ in runs), [steps for success, _, steps in runs if success]
    print(f"{task}.{variation}: {wins}/100, {np.mean(steps):.0f} steps, at most {max(steps)}")
    assert wins >= 90


# ------------------------------------------------------------------ what does not


@pytest.mark.parametrize("task", TASKS)
def test_an_arm_that_is_held_still_fails(task):
    env = env_of(task)
    for seed in (0, 1):
        success, parts, _ = run(env, seed, held_still)
        assert not success
        assert not any(parts.values())


@pytest.mark.parametrize("actions", ["absolute", "delta"])
def test_what_is_held_stays_where_it_is(actions):
    env = env_of("ur5_close_microwave", actions=actions)
    start = env.reset(3)["obs/joint_pos"]
    for _ in range(20):
        reading, _, _ = env.step(env.hold_action())
    np.testing.assert_allclose(reading["obs/joint_pos"], start, atol=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_the_door_is_open_at_the_start_and_still_at_step_20(task):
    env = env_of(task)
    for seed in range(20):
        env.reset(seed)
        start = env.door
        assert start > 1.3
        for step in range(20):
            env.step(held_still(env, step))
        assert abs(env.door - start) < 0.02


@pytest.mark.parametrize("task", TASKS)
def test_nothing_touches_the_arm_at_the_start(task):
    env = env_of(task)
    for seed in range(50):
        env.reset(seed)
        assert not env._kitchen.arm_touches()


def test_closing_the_door_on_an_empty_microwave_is_no_success():
    """The expert of the other task, in a kitchen whose bowl is on the table, out of the door's way."""
    env = env_of(FULL)
    env.reset(0)
    kitchen = env._kitchen
    kitchen.data.qpos[kitchen._bowl : kitchen._bowl + 2] = [0.3, -0.6]
    expert, success = Expert(kitchen, TASKS[CLOSE]), False
    for _ in range(200):
        targets, closed = expert.act()
        _, _, now = env.step(np.array([*targets, closed]))
        success = success or now
    assert env.subtasks()["close"]
    assert env.door < 0.03
    assert not success


def test_a_bowl_that_is_dropped_is_no_success(full):
    """The expert, whose fingers open when the bowl is up and never close again."""

    def dropping(env, step):
        action = env.expert_action()
        if env.subtasks()["lift"]:
            action[6] = 0.0
        return action

    success, parts, _ = run(full, 7, dropping)
    assert parts["lift"]
    assert not parts["place"]
    assert not success


def test_a_bowl_without_a_grip_stays_on_the_table(full):
    """The expert, whose fingers never close: its way alone does not carry the bowl."""

    def open_handed(env, step):
        return np.array([*env.expert_action()[:6], 0.0])

    success, parts, _ = run(full, 7, open_handed)
    assert not success
    assert not parts["lift"]
    assert not parts["place"]


def test_success_is_of_this_step_alone(closing):
    success, _, _ = run(closing, 3, lambda env, step: env.expert_action())
    assert success
    closing._kitchen.data.qpos[closing._kitchen._door] = 1.0
    _, _, success = closing.step(held_still(closing, 0))
    assert not success
    assert closing.subtasks() == {"close": True}


# ------------------------------------------------------------------ seeds and readings


def test_the_same_seed_gives_the_same_episode_to_the_bit_after_any_other():
    one, other = env_of(FULL), env_of(FULL)
    run(other, 11, lambda env, step: env.expert_action(), steps=40)
    episodes = []
    for env in (one, other):
        env.reset(5)
        seen = []
        for _ in range(60):
            reading, _, _ = env.step(env.expert_action())
            seen.append(np.concatenate([value.ravel() for value in reading.values()]))
        episodes.append(np.stack(seen))
    assert (episodes[0] == episodes[1]).all()
    assert (other.reset(6)["obs/joint_pos"] != other.reset(5)["obs/joint_pos"]).all()


def test_seeds_move_everything():
    env, starts = env_of(FULL), []
    for seed in range(5):
        env.reset(seed)
        kitchen = env._kitchen
        places = [*kitchen.bowl[0][:2], *kitchen.oven[0][:2], kitchen.oven[1][0, 1]]
        starts.append([*kitchen.joints, *places, kitchen.door])
    assert (np.ptp(starts, axis=0) > 0.005).all()


@pytest.fixture(scope="module")
def seen():
    env = env_of(FULL, camera="front,left", image_size=96, num_points=256, use_color=True, save_images=True)
    reading = env.reset(1)
    yield env, reading
    env.close()


def test_the_bowl_is_where_depth_and_calibration_say(seen):
    """Of every camera: the pixels of the bowl's colour lie on the bowl."""
    env, reading = seen
    (x, y, _), info = env._kitchen.bowl[0], env.camera_info()
    for camera in ("front", "left"):
        rgb, depth = reading[f"obs/images/{camera}"].astype(int), reading[f"obs/depths/{camera}"][..., 0]
        orange = ((rgb[..., 0] > 170) & (rgb[..., 0] - rgb[..., 2] > 110)).ravel()
        assert orange.sum() > 20
        points = depth_to_points(depth, info[f"{camera}/intrinsics"], info[f"{camera}/extrinsics"])[orange]
        assert np.abs(np.median(points, axis=0) - [x, y, 0.025]).max() < 0.03


def test_clouds_hold_what_stands_on_the_table(seen):
    _, reading = seen
    points = reading["obs/pointcloud/pos"]
    assert points.shape == (256, 3)
    assert reading["obs/pointcloud/colors"].shape == (256, 3)
    assert points[:, 2].min() > 0.004
    assert (points.max(0) < [1.06, 0.76, 0.81]).all()


def test_depth_ends_at_the_walls(seen):
    for camera in ("front", "left"):
        assert seen[1][f"obs/depths/{camera}"].max() < 6


def test_what_is_not_looked_at_is_not_rendered_and_the_rest_is_the_same():
    env = env_of(CLOSE, image_size=32, save_images="depth", num_points=0)
    everything = env.reset(2)
    assert sorted(name for name in everything if "front" in name) == ["obs/depths/front"]
    env.show_only(["obs/joint_pos"])
    assert not any("front" in name for name in env.reset(2))
    env.show_only(["obs/depths/front"])
    assert (env.reset(2)["obs/depths/front"] == everything["obs/depths/front"]).all()
    env.close()


def test_filming_does_not_change_what_is_seen():
    env = env_of(CLOSE, image_size=32, save_images=True, num_points=0)
    before = env.reset(2)["obs/images/front"]
    assert env.render(64).shape == (64, 64, 3)
    assert (env.reset(2)["obs/images/front"] == before).all()
    env.close()


def test_the_spec_builds_the_same_environment():
    env = env_of(CLOSE, variation=2, actions="delta", max_steps=50, num_points=0)
    again = make_env(env.spec(), uses=["collecting", "evaluating", "filming"])
    assert again.spec() == env.spec()
    assert (again.reset(3)["obs/eef_pos"] == env.reset(3)["obs/eef_pos"]).all()


def test_an_episode_ends_with_the_step_that_succeeds():
    episode = expert_episode(env_of(CLOSE), seed=3)
    assert episode["actions"].shape[1] == 7
    assert episode["obs/joint_pos"].shape == (len(episode["actions"]), 6)
    assert np.allclose(np.linalg.norm(episode["obs/eef_quat"], axis=1), 1, atol=1e-5)
    # a quaternion and its negative are the same turn: one that jumps between them would be two states
    assert np.abs(np.diff(episode["obs/eef_quat"], axis=0)).max() < 0.3


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "ur5_close_microwav"}, "Did you mean ur5_close_microwave"),
        ({"variation": 3}, "variation=3: there are 1, 2"),
        ({"actions": "torque"}, "takes absolute, delta"),
        ({"camera": "frnt"}, "Did you mean front"),
        ({"camera": "front,front"}, "twice"),
        ({"save_images": "infrared"}, "takes true, false, rgb or depth"),
        ({"image_size": 8}, "from 16"),
        ({"num_points": 0, "use_color": True}, "no cloud to colour"),
        ({"max_steps": 0}, "from 1"),
        ({"goal_marker": True}, "takes no goal_marker"),
    ],
)
def test_a_mistake_is_told_in_one_line(options, said):
    with pytest.raises(UserError) as told:
        make_env({"simulator": "ur5", "task": CLOSE, **options})
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_an_action_of_another_width_or_without_numbers_is_refused(closing):
    closing.reset(0)
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ValueError, match="finite numbers"):
            closing.step(action)


def test_a_class_of_its_own_is_what_the_name_means():
    assert isinstance(env_of(CLOSE), UR5Env)


# ------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    ("name", "sees"),
    [
        ("config_ddp_depth_ur5_microwave", ["state", "depth"]),
        ("config_ddp_cloud_ur5_microwave", ["state", "pointcloud"]),
    ],
)
def test_the_configurations_train_on_two_domains(name, sees):
    cfg = load_config(name)
    assert cfg.domains == f"{FULL}.001,{FULL}.002"
    assert list(cfg.policy.modalities) == sees
    assert (ROOT / "ppt_kit/configs" / f"{name}.yaml").is_file()
