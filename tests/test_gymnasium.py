"""Environments of Gymnasium through one adapter: what is seen, what counts, and the whole way to a success rate."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from conftest import ROOT, SMALL_WORDS, latest, run_script, write_store
from gymnasium import spaces

import ppt_kit as ppt
from ppt_kit.data.formats import open_store
from ppt_kit.errors import UserError
from ppt_kit.sim.collect import expert_episode
from ppt_kit.sim.env import make_env

LAB = '''
"""A cart on a line, and experts."""
import gymnasium
import numpy as np
from gymnasium import spaces


class Slide(gymnasium.Env):
    """Ends when the cart falls off either end; says nothing of success, but in its info's `gap`."""

    def __init__(self, step=0.1, seeded=True):
        self.step_size, self.seeded = step, seeded
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        inner = spaces.Dict({"at": spaces.Box(-2, 2, (1,), np.float64), "side": spaces.Discrete(2)})
        self.observation_space = spaces.Dict({
            "robot": inner, "goal": spaces.Box(-1, 1, (1,), np.float64), "note": spaces.Text(9),
            "front": spaces.Box(0, 255, (3, 20, 24), np.uint8),
        })

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        rng = self.np_random if self.seeded else np.random.default_rng()
        self.at, self.goal, self.taken = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), []
        return self._seen(), {}

    def step(self, action):
        assert action.dtype == np.float32 and abs(action[0]) <= 1
        self.taken.append(float(action[0]))
        self.at += self.step_size * float(action[0])
        gap = abs(self.at - self.goal)
        return self._seen(), -gap, abs(self.at) > 1, False, {"gap": gap, "near": float(1 - gap)}

    def _seen(self):
        picture = np.zeros((3, 20, 24), np.uint8)
        picture[0, 5, 7] = 200
        inner = {"at": np.array([self.at]), "side": int(self.at > 0)}
        return {"robot": inner, "goal": np.array([self.goal]), "note": "hello", "front": picture}


gymnasium.register("Slide-v0", entry_point=Slide, max_episode_steps=40)
gymnasium.register("Endless-v0", entry_point=Slide)


def to_goal(env):
    return lambda seen: np.clip((seen["goal"] - seen["robot"]["at"]) / env.step_size, -3, 3)


class Swing:
    """Pendulum-v1: energy into the swing, then balance."""

    def __init__(self, env):
        assert env.spec.id == "Pendulum-v1"

    def __call__(self, seen):
        cosine, sine, speed = seen
        if cosine > 0.8:
            return [-12 * np.arctan2(sine, cosine) - 3 * speed]
        # at rest on top it is 15
        energy = speed**2 / 2 + 15 * cosine
        return [2 * np.sign(speed * (15 - energy)) or 2]
'''
SLIDE = {
    "simulator": "gymnasium", "task": "my_lab.sim:Slide-v0", "success": "near>=0.95", "keys": {"note": None},
    "expert": "my_lab.sim:to_goal",
}  # fmt: skip
PUSHT = {"simulator": "gymnasium", "task": "gym_pusht/PushT-v0"}
needs_pusht = pytest.mark.skipif(
    run_script(sys.executable, "-c", "import gym_pusht").returncode != 0, reason="gym_pusht cannot be imported"
)


@pytest.fixture
def lab(lab_with):
    folder = lab_with(LAB)
    yield folder
    for name in ("Slide-v0", "Endless-v0"):
        gymnasium.registry.pop(name, None)


# ------------------------------------------------------------------ what is seen


def test_nested_keys_pictures_and_choices_have_the_names_of_columns(lab):
    env = make_env(SLIDE, uses=["collecting"])
    reading = env.reset(3)
    own = gymnasium.make("Slide-v0")
    seen, _ = own.reset(seed=3)
    assert set(reading) == {"obs/robot_at", "obs/robot_side", "obs/goal", "obs/images/front"}
    assert np.array_equal(reading["obs/robot_at"], seen["robot"]["at"].astype(np.float32))
    assert reading["obs/robot_side"].tolist() == [1 - seen["robot"]["side"], seen["robot"]["side"]]
    assert reading["obs/images/front"].shape == (20, 24, 3)
    assert reading["obs/images/front"][5, 7].tolist() == [200, 0, 0]
    assert (env.max_steps, env.description) == (40, "slide")


CASES = [
    (spaces.Box(0, 255, (20, 30, 3), np.uint8), "obs/images/x", (20, 30, 3), np.uint8),
    (spaces.Box(0, 255, (20, 30, 1), np.uint8), "obs/images/x", (20, 30, 3), np.uint8),
    (spaces.Box(0, 255, (20, 30), np.uint8), "obs/images/x", (20, 30, 3), np.uint8),
    (spaces.Box(0, 1, (3, 20, 30), np.float32), "obs/images/x", (20, 30, 3), np.uint8),
    (spaces.Box(0, 255, (8, 8), np.uint8), "obs/x", (64,), np.float32),
    (spaces.Box(-1, 1, (4, 2), np.float64), "obs/x", (8,), np.float32),
    (spaces.Box(-1, 1, (), np.float64), "obs/x", (1,), np.float32),
    (spaces.MultiBinary(3), "obs/x", (3,), np.float32),
    (spaces.MultiDiscrete([2, 3]), "obs/x", (5,), np.float32),
]


@pytest.mark.parametrize(("space", "column", "shape", "dtype"), CASES, ids=[str(case[0]) for case in CASES])
def test_each_kind_of_space_becomes_a_column(space, column, shape, dtype):
    from ppt_kit.sim.simulators.gym.spaces import parts_of

    (part,) = parts_of(spaces.Dict({"x": space}), {})
    row = part.read({"x": space.sample()})
    assert (part.column, row.shape, row.dtype) == (column, shape, dtype)


def test_a_picture_of_real_numbers_goes_to_255_and_depth_stays_in_metres():
    from ppt_kit.sim.simulators.gym.spaces import parts_of

    space = spaces.Dict({
        "front": spaces.Box(0, 1, (20, 30, 3), np.float32), "front_depth": spaces.Box(0, np.inf, (1, 20, 30), np.float32),
    })  # fmt: skip
    parts = {part.column: part for part in parts_of(space, {"front_depth": "depth"})}
    seen = {"front": np.full((20, 30, 3), 0.5, np.float32), "front_depth": np.full((1, 20, 30), 7.25, np.float32)}
    assert (parts["obs/images/front"].read(seen) == 128).all()
    depth = parts["obs/depths/depth"].read(seen)
    assert (depth.shape, float(depth.max())) == ((20, 30, 1), 7.25)


REFUSED = [
    (spaces.Box(0, 255, (4, 20, 30), np.uint8), "1 or 3 channels"),
    (spaces.Box(0, 255, (3, 20, 3), np.uint8), "Either would be one"),
    (spaces.Box(0, 255, (4, 20, 30, 3), np.uint8), "dataset.observation_horizon"),
    (spaces.Box(-1, 1, (20, 30, 3), np.float32), "from 0 to 1 or to 255"),
    (spaces.Box(0, 9, (20, 30, 2), np.float32), "1 or 3 channels"),
    (spaces.Text(5), r"options\.keys\.x=null"),
]


@pytest.mark.parametrize(("space", "says"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_a_space_that_is_neither_picture_nor_numbers_is_refused(space, says):
    from ppt_kit.sim.simulators.gym.spaces import parts_of

    with pytest.raises(UserError, match=says):
        parts_of(spaces.Dict({"x": space}), {})


def test_two_parts_of_one_name_are_refused_and_renamed():
    from ppt_kit.sim.simulators.gym.spaces import parts_of

    number = spaces.Box(-1, 1, (2,))
    space = spaces.Dict({"a": spaces.Dict({"b": number}), "a_b": number})
    with pytest.raises(UserError, match=r"Rename one: options\.keys\.a_b"):
        parts_of(space, {})
    with pytest.raises(UserError, match="has no such key; it has a_x"):
        parts_of(spaces.Dict({"a_x": number}), {"a_y": "state"})


# ------------------------------------------------------------------ actions, ends, success


def test_actions_are_brought_into_the_bounds_and_nothing_moves_after_the_end(lab):
    env = make_env(SLIDE | {"max_steps": 30})
    env.reset(1)
    own = env._env.unwrapped
    steps = [env.step(np.array([7.0])) for _ in range(30)]
    assert set(own.taken) == {1.0}
    fell = next(i for i, step in enumerate(steps) if abs(step[0]["obs/robot_at"][0]) > 1)
    assert len(own.taken) == fell + 1
    assert env.over
    assert [step[1] for step in steps[fell + 1 :]] == [0.0] * (29 - fell)
    assert all(np.array_equal(step[0]["obs/robot_at"], steps[fell][0]["obs/robot_at"]) for step in steps[fell:])
    env.reset(1)
    assert not env.over


def test_what_counts_is_what_was_said(lab):
    env = make_env(SLIDE | {"subtasks": {"half": "near>=0.5", "fell": "terminated", "all": "return>=-1e9"}})
    env.reset(5)
    own = gymnasium.make("Slide-v0")
    own.reset(seed=5)
    for _ in range(40):
        action = env.expert_action()
        _, reward, success = env.step(action)
        _, expected, _, _, info = own.step(action.astype(np.float32))
        assert (reward, success) == (expected, info["near"] >= 0.95)
    assert success
    assert env.subtasks() == {"half": True, "fell": False, "all": True}
    assert env.scores()["near"] == pytest.approx(1, abs=1e-6)
    env.reset(6)
    assert not any(env.subtasks().values())


def test_a_bound_on_the_return_holds_at_the_end_alone(lab):
    env = make_env({**SLIDE, "success": "return>=-100", "max_steps": 6})
    env.reset(0)
    assert [env.step(np.zeros(1))[2] for _ in range(6)] == [False] * 5 + [True]


MISTAKES = [
    ({"success": None}, "do not say whether the task is done; info has gap, near"),
    ({"success": "near > 3"}, "reward>=0.9"),
    ({"task": "my_lab.sim:Slyde-v0"}, r"Did you mean Slide-v0\?"),
    ({"task": "Pendulm-v1"}, r"Did you mean Pendulum-v1\?"),
    ({"task": "CartPole-v1"}, "Discrete.2., a choice among actions"),
    ({"task": "gym_nowhere/X-v0"}, "pip install gym-nowhere"),
    ({"task": "my_lab.sim:Endless-v0"}, "max_steps=300"),
    ({"stepp": 3}, r"takes no stepp; it takes step, seeded\. Did you mean step\?"),
    ({"keys": {}}, r"options\.keys\.note=null"),
    ({"keys": {"nota": None}}, "has no such key; it has"),
    ({"expert": "my_lab.sim:to_gaol"}, "Did you mean to_goal"),
    ({"subtasks": {"x": "reward"}}, "options.subtasks.x=reward"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[str(options) for options, _ in MISTAKES])
def test_a_mistake_is_one_line_at_the_door(lab, options, says):
    spec = {name: value for name, value in (SLIDE | options).items() if value is not None}
    with pytest.raises(UserError, match=says) as raised:
        make_env(spec)
    assert "\n" not in str(raised.value)


def test_an_environment_that_ignores_its_seed_is_told_of(lab, caplog):
    make_env(SLIDE)
    assert not caplog.records
    make_env(SLIDE | {"seeded": False})
    assert "cannot be repeated" in caplog.text


def test_without_an_expert_collecting_says_how_to_give_one(lab):
    spec = {name: value for name, value in SLIDE.items() if name not in ("simulator", "task", "expert")}
    with pytest.raises(UserError, match=r"options\.expert=my_lab\.experts:MyExpert.*Nothing was written"):
        ppt.collect(SLIDE["task"], simulator="gymnasium", episodes=1, options=spec)


def test_a_package_that_is_not_installed_is_named_with_what_to_type(tmp_path):
    """In a process that cannot find it."""
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'gym_pusht': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = ("simulator=gymnasium", "task=gym_pusht/PushT-v0", "episodes=1")
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    script = str(ROOT / "scripts/collect_demos.py")
    done = run_script(sys.executable, "-c", hide, script, *words, cwd=tmp_path, env=path)
    assert done.returncode == 2
    assert "pip install 'ppt_kit[gym]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ------------------------------------------------------------------ the whole way


def test_pendulum_is_collected_by_a_users_expert_under_a_name_that_a_file_can_have(lab, capfd):
    options = {"expert": "my_lab.sim:Swing", "success": "return>=-600"}
    done = ppt.collect("Pendulum-v1", simulator="gymnasium", episodes=2, image_size=32, options=options)
    assert done.path.name == "Pendulum-v1.zarr"
    store = open_store(done.path)
    assert set(store.keys()) == {"obs/state", "obs/images/render", "actions"}
    own = gymnasium.make("Pendulum-v1")
    seen, _ = own.reset(seed=done.seeds[1])
    rows = np.arange(*store.bounds(1))
    states, actions = store.read("obs/state", rows), store.read("actions", rows)
    total = 0.0
    for state, action in zip(states, actions):
        assert np.array_equal(state, seen)
        seen, reward, _, _, _ = own.step(action.astype(np.float32))
        total += reward
    assert len(rows) == 200
    assert total >= -600
    assert np.abs(actions).max() <= 2
    assert "pygame" not in capfd.readouterr().out


def trained(path, tmp_path, *words):
    from ppt_kit.train.trainer import UnifiedTrainer

    fixed = (
        f"dataset_path={path.parent}", f"domains={path.name.removesuffix('.zarr')}", f"output_dir={tmp_path / 'models'}",
        "suffix=run", "train.total_iters=2",
    )  # fmt: skip
    run = UnifiedTrainer(ppt.load_config("quickstart", *latest(*SMALL_WORDS, *fixed, *words)))
    run.run()
    return ppt.load_policy(run.run_dir)


def test_a_task_with_a_slash_goes_from_demonstrations_to_a_success_rate(lab):
    options = {name: value for name, value in SLIDE.items() if name not in ("simulator", "task")}
    done = ppt.collect(SLIDE["task"], simulator="gymnasium", episodes=4, options=options)
    assert done.path.name == "my_lab.sim-Slide-v0.zarr"
    policy = trained(done.path, lab)
    assert set(policy.modalities) >= {"state", "rgb"}
    one, two = (ppt.evaluate(policy, episodes=2, n_procs=n, max_steps=7) for n in (1, 2))
    assert [row["error"] for row in one.rows] == [None, None]
    assert [row["actions_sha256"] for row in one.rows] == [row["actions_sha256"] for row in two.rows]
    assert one.rows[0]["task"] == SLIDE["task"]
    told = ppt.evaluate(policy, task=SLIDE["task"], episodes=1, max_steps=7)
    assert told.rows[0]["actions_sha256"] == one.rows[0]["actions_sha256"]


def test_demonstrations_of_a_file_are_evaluated_in_the_environment_that_is_told(lab, tmp_path):
    """Its columns are called otherwise, and it does not say where it comes from."""
    rng = np.random.default_rng(0)
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    with ZarrWriter(tmp_path / "theirs.zarr") as writer:
        for _ in range(4):
            arrays = {"obs/where": rng.normal(size=(9, 1)), "obs/target": rng.normal(size=(9, 1)), "actions": rng.normal(size=(9, 1))}  # fmt: skip
            writer.append({name: value.astype(np.float32) for name, value in arrays.items()})
    keys = "{note: null, front: null, robot_side: null, robot_at: where, goal: target}"
    told = ("dataset.env.simulator=gymnasium", f"dataset.env.task={SLIDE['task']}", "dataset.env.success='near>=0.95'")
    policy = trained(tmp_path / "theirs.zarr", lab, *told, f"dataset.env.keys={keys}")
    rows = ppt.evaluate(policy, episodes=2, max_steps=7).rows
    assert [row["error"] for row in rows] == [None, None]
    untold = trained(tmp_path / "theirs.zarr", lab, "suffix=untold")
    with pytest.raises(UserError, match="does not say which simulator"):
        ppt.evaluate(untold, episodes=1)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("dataset.env=3", "by name"),
        ("dataset.env.task=x", "by name"),
        ("dataset.env={simulator: gymnasum, task: x}", "Did you mean gymnasium"),
    ],
)
def test_a_simulator_that_cannot_be_is_refused_before_training(tmp_path, word, says):
    write_store(tmp_path / "a.zarr")
    with pytest.raises(UserError, match=says):
        trained(tmp_path / "a.zarr", tmp_path, word)


# ------------------------------------------------------------------ PushT


@pytest.fixture(scope="module")
def pusht():
    made = make_env(PUSHT | {"obs_type": "pixels_agent_pos"}, uses=["collecting", "evaluating", "filming"])
    yield made
    made.close()


@needs_pusht
def test_pusht_shows_what_the_environment_itself_shows(pusht):
    own = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    seen, _ = own.reset(seed=11)
    reading = pusht.reset(11)
    for _ in range(3):
        assert np.array_equal(reading["obs/images/pixels"], seen["pixels"])
        assert np.array_equal(reading["obs/agent_pos"], seen["agent_pos"].astype(np.float32))
        action = pusht.expert_action()
        reading, reward, success = pusht.step(action)
        seen, expected, _, _, info = own.step(action.astype(np.float32))
        assert (reward, success) == (expected, info["is_success"])
        assert pusht.scores()["coverage"] >= info["coverage"]
    assert pusht.render(100).shape == (100, 100, 3)


@needs_pusht
def test_the_pusher_reaches_what_the_environment_calls_success_and_its_episode_repeats_to_the_bit(pusht):
    first = expert_episode(pusht, seed=6)
    assert first is not None
    assert list(pusht.subtasks().values()) == [True, True, True]
    assert pusht.scores()["coverage"] > 0.95
    expert_episode(pusht, seed=7)
    again = expert_episode(make_env(PUSHT | {"obs_type": "pixels_agent_pos"}), seed=6)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    own = gymnasium.make("gym_pusht/PushT-v0")
    own.reset(seed=6)
    ends = [own.step(action.astype(np.float32))[2:] for action in first["actions"]]
    assert [terminated for terminated, _, _ in ends] == [False] * (len(ends) - 1) + [True]
    assert ends[-1][2]["is_success"]


@needs_pusht
def test_a_pusher_that_holds_still_fails_and_stays_where_it_is(pusht):
    before = pusht.reset(6)["obs/agent_pos"]
    steps = [pusht.step(pusht.hold_action()) for _ in range(20)]
    assert not any(success for _, _, success in steps)
    assert np.abs(steps[-1][0]["obs/agent_pos"] - before).max() < 1


@needs_pusht
def test_the_twin_of_the_physics_is_where_the_environment_is(pusht):
    """Otherwise the pusher would be right by luck."""
    from ppt_kit.sim.simulators.gym.pusher import State, Twin

    pusht.reset(2)
    own = pusht._env.unwrapped
    twin, plan = Twin(own), []
    twin.put(State.of(own))
    for _ in range(45):
        plan.append(pusht.expert_action().astype(np.float32))
        pusht.step(plan[-1])
    after, expected = State.of(own), twin.run(np.stack(plan))
    assert np.abs(after.tee.position - expected.tee.position).max() < 0.5
    assert abs(after.tee.angle - expected.tee.angle) < 0.01
    assert np.linalg.norm(after.tee.position - State.of(pusht._env.unwrapped).tee.position) == 0


@needs_pusht
@pytest.mark.long
def test_the_pusher_succeeds_on_nine_of_ten_seeds():
    env = make_env(PUSHT)
    assert sum(expert_episode(env, seed=seed) is not None for seed in range(5000, 5040)) >= 36


@needs_pusht
def test_pusht_from_the_command_line_to_rows_with_its_coverage(tmp_path):
    script = str(ROOT / "scripts/collect_demos.py")
    words = (
        "simulator=gymnasium",
        "task=gym_pusht/PushT-v0",
        "options.obs_type=pixels_agent_pos",
        "episodes=2",
        "seed=6",
    )
    done = run_script(script, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data/gym_pusht-PushT-v0.zarr: 2 demonstrations" in done.stdout
    assert "pygame" not in done.stdout
    policy = trained(tmp_path / "data/gym_pusht-PushT-v0.zarr", tmp_path, "dataset.val_ratio=0")
    assert (policy.specs["gym_pusht-PushT-v0"].state_dim, policy.specs["gym_pusht-PushT-v0"].rgb) == (
        2,
        {"pixels": (96, 96)},
    )
    result = ppt.evaluate(policy, episodes=2, max_steps=6, videos=1, out_dir=tmp_path / "eval")
    assert [row["error"] for row in result.rows] == [None, None]
    assert result.videos[0].is_file()


@pytest.mark.parametrize("head", ["diffusion", "mixture", "mlp"])
def test_the_head_of_the_pusht_configuration_can_be_another(head):
    """Whole: no option of the one that it has by itself is left."""
    chosen = ppt.load_config("pusht", f"policy/head={head}").policy.head
    plain = ppt.load_config("quickstart", f"policy/head={head}").policy.head
    assert ppt.load_config("pusht").policy.head.kind == "flow"
    assert chosen == plain
