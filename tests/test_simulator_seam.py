"""A simulator of the user's own: one class in a file beside the notebook, named by module:Class."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import ROOT, SMALL_WORDS, latest, run_script

import ppt_kit as ppt
from ppt_kit.data.formats import open_store
from ppt_kit.errors import UserError
from ppt_kit.sim.env import make_env

MINE = '''
"""A hand on a line that the wind pushes away from its goal."""
import numpy as np


class MyEnv:
    def __init__(self, task, *, wind=0.0, num_points=8, max_steps=60):
        self.options = {"task": task, "wind": wind, "num_points": num_points, "max_steps": max_steps}
        self.max_steps, self.description = max_steps, f"{task} in the wind"
        self.hand, self.goal = np.zeros(2, np.float32), np.zeros(2, np.float32)

    def reset(self, seed):
        rng = np.random.default_rng(seed)
        self.hand[:], self.goal[:] = rng.normal(size=(2, 2))
        return self._reading()

    def step(self, action):
        self.hand += np.clip(action, -0.2, 0.2) + self.options["wind"] * np.float32(0.01)
        gap = np.abs(self.goal - self.hand).max()
        return self._reading(), -gap, gap < 0.05

    def expert_action(self):
        return np.clip(self.goal - self.hand, -0.2, 0.2)

    def spec(self):
        return {"simulator": "my_lab.sim:MyEnv", **self.options}

    def _reading(self):
        return {"obs/hand": self.hand, "obs/goal": self.goal}


class Seeing(MyEnv):
    def spec(self):
        return super().spec() | {"simulator": "my_lab.sim:Seeing"}

    def _reading(self):
        cloud = np.zeros((self.options["num_points"], 3), np.float32)
        cloud[:, :2] = self.goal
        return super()._reading() | {"obs/pointcloud/pos": cloud}


class Forgetful(MyEnv):
    expert_action = property()  # without a getter: as if there were none


class Unnamed(MyEnv):
    def _reading(self):
        return {"hand": self.hand}


class Elsewhere(MyEnv):
    def spec(self):
        return {"simulator": "my_lab.sim:MyEnv", "task": "push", "gravity": 9.8}


NUMBER = 3
'''


@pytest.fixture
def beside(lab_with):
    """A folder to work in that holds my_lab/sim.py; forgotten afterwards, so that the next test's is another one."""
    return lab_with(MINE)


def test_a_simulator_of_ones_own_is_collected(beside):
    done = ppt.collect("push", simulator="my_lab.sim:MyEnv", episodes=4, seed=7, options={"wind": 0.5})
    assert done.path == beside.relative_to(beside) / "data/push.zarr"
    assert done.seeds == [7, 8, 9, 10]
    store = open_store(done.path)
    assert set(store.keys()) == {"obs/hand", "obs/goal", "actions"}
    assert store.attrs["env"] == {
        "simulator": "my_lab.sim:MyEnv", "task": "push", "wind": 0.5, "num_points": 8, "max_steps": 60,
    }  # fmt: skip
    assert store.sentences == ["push in the wind"] * 4
    rows = np.arange(*store.bounds(2))
    start, goal = np.random.default_rng(9).normal(size=(2, 2)).astype(np.float32)
    hand, actions = store.read("obs/hand", rows), store.read("actions", rows)
    assert np.array_equal(hand[0], start)
    assert np.array_equal(store.read("obs/goal", rows), np.tile(goal, (len(rows), 1)))
    # each row is what was seen before its action, although the simulator gives the same arrays at every step
    np.testing.assert_allclose(hand[1:], hand[:-1] + actions[:-1] + 0.005, atol=1e-6)
    np.testing.assert_allclose(actions, np.clip(goal - hand, -0.2, 0.2), atol=1e-6)


def test_what_is_recorded_builds_it_again(beside):
    done = ppt.collect("push", "options.wind=0.25", simulator="my_lab.sim:MyEnv", episodes=1, max_steps=40)
    spec = open_store(done.path).attrs["env"]
    again = make_env(spec)
    assert again.spec() == spec
    assert (again.max_steps, spec["wind"]) == (40, 0.25)


def test_the_command_line_collects_it_too_and_needs_no_renderer(beside):
    words = ("task=push", "simulator=my_lab.sim:MyEnv", "options.wind=0.3", "episodes=2")
    code = "import sys, runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    seen = f"import atexit; atexit.register(lambda: print('mujoco' in __import__('sys').modules)); {code}"
    script = str(ROOT / "scripts/collect_demos.py")
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    done = run_script(sys.executable, "-c", seen, script, *words, cwd=beside, env=path)
    assert done.returncode == 0, done.stderr
    assert "push.zarr: 2 demonstrations" in done.stdout
    assert done.stdout.strip().endswith("False")


MISTAKES = [
    ({"simulator": "my_lab.sim:MyEnw"}, r"sim\.py has no MyEnw\. Did you mean MyEnv\?"),
    ({"simulator": "my_lab.simm:MyEnv"}, r"no module my_lab\.simm\. Looked in the current folder"),
    ({"simulator": "metawold"}, r"Did you mean metaworld\?"),
    ({"simulator": "my_lab.sim:NUMBER"}, "is no class"),
    (
        {"options": {"wnd": 1}},
        r"wnd=1: .* takes no wnd; it takes task, wind, num_points, max_steps\. Did you mean wind",
    ),
    ({"camera": "front"}, r"camera=front: simulator=my_lab\.sim:MyEnv takes no camera"),
    ({"save_images": True}, "takes no save_images"),
    ({"options": 3}, r"options\.wind=0\.3"),
    ({"simulator": "my_lab.sim:Forgetful"}, "has no expert_action: collecting needs reset, step"),
    ({"simulator": "my_lab.sim:Unnamed"}, r"readings are hand: .* obs/eef_pos"),
    ({"simulator": "my_lab.sim:Elsewhere"}, "takes no gravity"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[str(options) for options, _ in MISTAKES])
def test_a_mistake_is_one_clear_line_and_leaves_no_file(beside, options, says):
    with pytest.raises(UserError, match=says) as raised:
        ppt.collect("push", **{"simulator": "my_lab.sim:MyEnv", "episodes": 1, **options})
    assert "\n" not in str(raised.value)
    assert not (beside / "data").exists() or not list((beside / "data").iterdir())


def test_an_option_that_must_be_given_is_asked_for(beside):
    with pytest.raises(UserError, match="needs task"):
        make_env({"simulator": "my_lab.sim:MyEnv"})


def test_a_policy_is_evaluated_in_it_and_a_video_of_it_is_refused(beside):
    """Without render, camera_info and close; in this process and in others."""
    from ppt_kit.train.trainer import UnifiedTrainer

    ppt.collect("push", simulator="my_lab.sim:Seeing", episodes=4, num_points=16)
    words = ("dataset_path=data", "domains=push", "suffix=run", "train.total_iters=2", "dataset.state_keys=[hand,goal]")
    run = UnifiedTrainer(ppt.load_config("quickstart", *latest(*SMALL_WORDS, *words)))
    run.run()
    policy = ppt.load_policy(run.run_dir)
    one, two = (ppt.evaluate(policy, episodes=2, max_steps=9, n_procs=n) for n in (1, 2))
    assert [row["error"] for row in one.rows] == [None, None]
    assert one.untimed == two.untimed
    with pytest.raises(UserError, match="has no render: filming needs render"):
        ppt.evaluate(policy, episodes=1, videos=1, out_dir=beside / "eval")
    assert not (beside / "eval").exists()


@pytest.mark.long
def test_the_language_bench_tells_each_task_its_own_sentence_and_anothers(beside):
    words = ("tasks=[push,pull]", "simulator=my_lab.sim:Seeing", "demos=2", "episodes=2", "output_dir=heard")
    small = "words=[dataset.num_points=8,policy.width=16,policy.num_heads=2,train.total_iters=2]"
    bench = str(ROOT / "scripts/bench.py")
    done = run_script(bench, "language", *words, small, cwd=beside)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (beside / "heard/language.jsonl").read_text().splitlines()]
    assert [(row["task"], row["other"], row["errors"]) for row in rows] == [("push", "pull", 0), ("pull", "push", 0)]
    folder = beside / rows[0]["run_dir"] / "eval"
    told = [json.loads(line)["options"] for line in (folder / "told_other.jsonl").read_text().splitlines()]
    assert ["sentence='pull in the wind'" in options for options in told] == [True, True, False, False]
    assert ["sentence='push in the wind'" in options for options in told] == [False, False, True, True]
    again = run_script(bench, "language", *words, small, cwd=beside)
    assert (again.returncode, "training" in again.stderr) == (0, False)
    alone = run_script(bench, "language", "tasks=[push]", *words[1:], cwd=beside)
    assert (alone.returncode, "tasks=push: name at least two" in alone.stderr) == (2, True)
