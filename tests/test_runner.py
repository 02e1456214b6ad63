"""Evaluations at length: what a row says of its episode, in one process or several, alone or together."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, latest, untrained_run

import ppt_kit as ppt
from ppt_kit.config import load_config
from ppt_kit.data.formats import open_store
from ppt_kit.errors import UserError
from ppt_kit.schema import EvaluateConfig
from ppt_kit.sim.results import Evaluation, checkpoint_table
from ppt_kit.sim.rows import TIMED
from ppt_kit.sim.runner.options import num_processes

# solved, whatever is done, at the steps 3 to 5, and 7 to the end where the seed is even
MINE = """
import faulthandler, json, os, time
import numpy as np


class Clock:
    description = "wait"

    def __init__(self, task, *, max_steps=12):
        if task == "wiat":
            raise ValueError("no such task")
        self.task, self.max_steps = task, max_steps

    def reset(self, seed):
        self.seed, self.time, self.hand = seed, 0, np.random.default_rng(seed).normal(size=2).astype(np.float32)
        return self._reading()

    def step(self, action):
        self.time += 1
        if self.seed == int(os.environ.get("BROKEN", -1)):
            raise RuntimeError("out of order")
        if self.seed == int(os.environ.get("DEADLY", -1)):
            faulthandler._sigsegv()
        if self.seed == int(os.environ.get("HANGING", -1)):
            time.sleep(1000)
        if self.seed == int(os.environ.get("FLAKY", -1)) and not os.path.exists("tried"):
            open("tried", "w").close()
            raise RuntimeError("once")
        if "DIARY" in os.environ:
            with open(os.environ["DIARY"], "a") as diary:
                diary.write(json.dumps([float(each) for each in action]) + chr(10))
        self.hand = self.hand + np.clip(action, -0.3, 0.3).astype(np.float32)
        return self._reading(), 0.5, 3 <= self.time <= 5 or (self.time >= 7 and self.seed % 2 == 0)

    def subtasks(self):
        return {"waited": self.time >= 2, "waited long": self.time >= 10}

    def expert_action(self):
        return np.array([0.1, -0.1])

    def spec(self):
        return {"simulator": "my_lab.sim:Clock", "task": self.task, "max_steps": self.max_steps}

    def render(self, size=256):
        return np.full((size, size, 3), min(255, 10 * self.time), np.uint8)

    def _reading(self):
        return {"obs/hand": self.hand}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return untrained_run(
        tmp_path_factory.mktemp("lab"), MINE, "Clock", "dataset.state_keys=[hand]",
        "policy.stems.pointcloud.kind=null", task="wait",
    )  # fmt: skip


@pytest.fixture
def run_dir(lab_with, made):
    """The run of an untrained policy in a folder of the test's own."""
    folder = lab_with(MINE)
    for name in ("run", "data"):
        shutil.copytree(made.parent / name, folder / name)
    return folder / "run"


@pytest.fixture
def policy(run_dir):
    return ppt.load_policy("run")


# ------------------------------------------------------------------ what a row says


def test_an_episode_ends_with_its_first_success_unless_asked_otherwise(policy):
    row = ppt.evaluate(policy, episodes=1).rows[0]
    assert (row["steps"], row["success"], row["success_last"], row["success_step"]) == (3, True, True, 3)
    assert row["return"] == 1.5


def test_success_at_any_step_and_at_the_last_are_told_apart(policy):
    """The clock's own answer: even seeds are solved at the end, odd ones were solved on the way."""
    rows = ppt.evaluate(policy, episodes=4, stop_at_success=False).rows
    assert [row["success"] for row in rows] == [True] * 4
    assert [row["success_last"] for row in rows] == [True, False, True, False]
    assert {(row["steps"], row["success_step"], row["return"]) for row in rows} == {(12, 3, 6.0)}
    never = ppt.evaluate(policy, episodes=1, max_steps=2, stop_at_success=False).rows[0]
    assert (never["success"], never["success_last"], never["success_step"]) == (False, False, None)


def test_subtasks_are_the_simulators_in_their_order_with_success_last(policy, tmp_path):
    row = ppt.evaluate(policy, episodes=1, out_dir=tmp_path).rows[0]
    assert list(row["subtasks"].items()) == [("waited", True), ("waited long", False), ("success", True)]
    rates = ppt.evaluate(policy, episodes=2, stop_at_success=False, max_steps=11).rows[1]["subtasks"]
    assert rates == {"waited": True, "waited long": True, "success": True}


def test_rows_say_how_long_the_policy_took_and_which_share_of_the_time_that_was(policy, monkeypatch):
    slow = policy.act
    monkeypatch.setattr(policy, "act", lambda *args, **kwargs: (time.sleep(0.05), slow(*args, **kwargs))[1])
    row = ppt.evaluate(policy, episodes=1, stop_at_success=False, execute_steps=4).rows[0]
    # three chunks of twelve steps
    assert 50 <= row["policy_ms"] < 200
    assert row["policy_share"] == pytest.approx(3e-3 * row["policy_ms"] / row["episode_s"])
    assert 0.5 < row["policy_share"] < 1


def test_rows_of_before_are_taken_and_say_what_they_can(policy, tmp_path):
    ppt.evaluate(policy, episodes=2, out_dir=tmp_path)
    file = tmp_path / "eval.jsonl"
    new = ("success_last", "success_step", "control", "attempts", "traceback", "epoch", *TIMED)
    old = [{k: v for k, v in json.loads(line).items() if k not in new} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in old))
    rows = ppt.evaluate(policy, episodes=2, out_dir=tmp_path).rows
    assert [(row["success_last"], row["success_step"], row["policy_ms"]) for row in rows] == [(True, 3, None)] * 2
    assert file.read_text().count("\n") == 2


def test_an_option_that_there_is_not_is_told_with_the_nearest_and_a_notebook_completes_those_that_there_are(policy):
    import inspect

    with pytest.raises(UserError, match="episods=3: an evaluation takes no episods. Did you mean episodes"):
        ppt.evaluate(policy, episods=3)
    parameters = inspect.signature(ppt.evaluate).parameters
    assert list(parameters)[:3] == ["policy", "task", "domain"]
    assert parameters["stop_at_success"].default is True


# ------------------------------------------------------------------ alone, together, in processes


def test_batched_episodes_are_the_same_in_any_number_of_processes_and_alone(policy):
    """To the bit: neither who else is stepped beside it nor where it runs changes an episode."""
    asked = {"batch_envs": 3, "stop_at_success": False}
    whole = ppt.evaluate(policy, episodes=7, **asked).untimed
    assert [row["steps"] for row in whole] == [12] * 7
    assert ppt.evaluate(policy, episodes=7, n_procs=2, **asked).untimed == whole
    for i in (0, 4, 6):
        assert ppt.evaluate(policy, episodes=1, seed=100_000 + i, **asked).untimed == whole[i : i + 1]
    one_by_one = ppt.evaluate(policy, episodes=7, stop_at_success=False).untimed
    assert all("batch_envs=3" in row["options"] for row in whole)
    # nor are they far from those that are alone
    for together, alone in zip(whole, one_by_one):
        assert (together["seed"], together["return"]) == (alone["seed"], alone["return"])


def test_a_batch_asks_the_policy_once_for_all_of_its_environments(policy, monkeypatch):
    heights, act = [], policy.act
    monkeypatch.setattr(
        policy, "act", lambda obs, *args, **kwargs: heights.append(len(obs["state"])) or act(obs, *args, **kwargs)
    )
    rows = ppt.evaluate(policy, episodes=5, batch_envs=2, stop_at_success=False, execute_steps=4).rows
    assert [row["error"] for row in rows] == [None] * 5
    # 12 steps are 3 chunks; two places, of which the first has three episodes
    assert heights == [2] * 9
    # a call is shared by those that it is for
    assert rows[4]["policy_share"] < 1


def test_what_one_environment_raises_ends_no_other_episode(policy, monkeypatch):
    monkeypatch.setenv("BROKEN", "100001")
    rows = ppt.evaluate(policy, episodes=6, batch_envs=3).rows
    assert [row["seed"] for row in rows if row["error"]] == [100_001]
    assert "RuntimeError: out of order (sim.py:" in rows[1]["error"]
    assert "Traceback" in rows[1]["traceback"]
    assert 'raise RuntimeError("out of order")' in rows[1]["traceback"]
    monkeypatch.delenv("BROKEN")
    good = ppt.evaluate(policy, episodes=6, batch_envs=3).untimed
    untimed = [{k: v for k, v in row.items() if k in good[0]} for row in rows]
    assert untimed[:1] + untimed[2:] == good[:1] + good[2:]


def test_an_error_is_run_again_as_often_as_is_asked(policy, monkeypatch, tmp_path, lab_file):
    """The first try leaves a mark, and the next one sees it."""
    monkeypatch.setenv("FLAKY", "100001")
    rows = ppt.evaluate(policy, episodes=3, retries=1, out_dir=tmp_path).rows
    assert [(row["error"], row["attempts"]) for row in rows] == [(None, 1), (None, 2), (None, 1)]
    assert (tmp_path / "eval.jsonl").read_text().count("\n") == 3
    monkeypatch.setenv("BROKEN", "100002")
    again = ppt.evaluate(policy, episodes=3, retries=2, log_name="other", out_dir=tmp_path).rows
    assert (again[2]["success"], again[2]["attempts"]) == (None, 3)


@pytest.fixture
def lab_file(run_dir):
    return run_dir.parent


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_worker_that_dies_costs_the_episode_that_it_died_of_alone(policy, monkeypatch, batch):
    monkeypatch.setenv("DEADLY", "100002")
    rows = ppt.evaluate(policy, episodes=6, n_procs=2, batch_envs=batch).rows
    assert [row["seed"] for row in rows if row["error"]] == [100_002]
    assert rows[2]["error"] == "the worker process died of SIGSEGV"
    assert "in step" in rows[2]["traceback"]
    assert rows[2]["success"] is None
    assert all(row["success"] for row in rows[:2] + rows[3:])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_worker_that_hangs_is_an_error_that_says_where(policy, monkeypatch, processes):
    monkeypatch.setenv("HANGING", "100001")
    began = time.monotonic()
    rows = ppt.evaluate(policy, episodes=3, n_procs=processes, episode_timeout_s=3).rows
    assert time.monotonic() - began < 120
    assert [row["error"] for row in rows] == [None, "it took longer than 3 s", None]
    assert "in step" in rows[1]["traceback"]


# ------------------------------------------------------------------ floor and ceiling


def test_every_control_has_its_line_and_none_is_taken_for_a_policy(policy, tmp_path):
    result = ppt.evaluate(policy, episodes=3, controls="all", out_dir=tmp_path, stop_at_success=False, max_steps=8)
    table = ppt.success_table(result).set_index("control")
    assert list(table.index) == ["-", "hold", "blind", "replay", "expert"]
    assert list(table["checkpoint"]) == ["run", "-", "run", "-", "-"]
    assert list(table["zeroed"]) == ["-", "-", "state", "-", "-"]
    assert set(table["episodes"]) == {3}
    # the clock is solved whatever is done: nothing is proved, and the table says so
    note = "proves nothing about acting (hold 3/3) and seeing (blind 3/3) and reacting (replay 3/3)"
    assert list(table["note"]) == [note, "", "", "", ""]
    summary = json.loads((tmp_path / "eval.json").read_text())
    assert {"run", "run control blind", "control hold"} <= set(summary)
    again = ppt.evaluate(policy, episodes=3, controls="all", out_dir=tmp_path, stop_at_success=False, max_steps=8)
    assert again.rows == result.rows


def test_each_control_does_what_its_name_says(policy, lab_file, monkeypatch):
    """The hand's way, written down by the simulator itself, against what was recorded."""
    monkeypatch.setenv("DIARY", "diary.jsonl")
    for name in ("hold", "expert", "replay"):
        ppt.evaluate(policy, episodes=1, seed=100_001, controls=[name], stop_at_success=False)
    acts = [json.loads(line) for line in (lab_file / "diary.jsonl").read_text().splitlines()]
    episodes = [acts[i : i + 12] for i in range(0, len(acts), 12)]
    assert len(episodes) == 6
    hold, expert, replay = episodes[1::2]
    assert hold == [[0.0, 0.0]] * 12
    assert np.allclose(expert, [[0.1, -0.1]] * 12)
    store = open_store("data/wait.zarr")
    played = store.read("actions", np.arange(*store.bounds(100_001 % 3)))
    assert np.allclose(replay[: len(played)], played)
    assert replay[len(played) :] == [[0.0, 0.0]] * (12 - len(played))


def test_a_policy_that_is_no_better_than_a_floor_is_marked_and_one_that_is_better_is_not():
    def rows(control, wins, checkpoint="m"):
        shared = {"task": "t", "zero_keys": [], "control": control, "checkpoint": checkpoint, "epoch": 1}
        return [{**shared, "seed": seed, "success": seed < wins} for seed in range(20)]

    def note(policy, *, blind=0, hold=0):
        frame = pd.DataFrame([*rows(None, policy), *rows("blind", blind), *rows("hold", hold, "-")])
        return ppt.success_table(frame).iloc[0]["note"]

    assert note(20, blind=9) == ""
    assert note(20, blind=10) == "proves nothing about seeing (blind 10/20)"
    # 3 of 20 have the interval 5 to 36 %
    assert note(3, hold=1) == ""
    assert note(3, hold=2) == "proves nothing about acting (hold 2/20)"
    assert note(0, blind=1) == ""


def test_a_control_that_cannot_be_run_is_told_before_anything_runs(policy, lab_file, caplog):
    (lab_file / "data").rename(lab_file / "moved")
    with pytest.raises(UserError, match="controls=replay: the demonstrations of wait cannot be read"):
        ppt.evaluate(policy, episodes=1, controls=["replay"])
    with pytest.raises(UserError, match="controls=holt: .* Did you mean hold"):
        ppt.evaluate(policy, episodes=1, controls=["holt"])
    rows = ppt.evaluate(policy, episodes=1, controls="all").rows
    assert [row["control"] for row in rows] == [None, "hold", "blind", "expert"]
    assert "controls=all, but not replay" in caplog.text


def test_zeroing_the_only_picture_is_the_same_as_blind():
    from types import SimpleNamespace

    from ppt_kit.sim.runner.controls import chosen

    def names(*modalities):
        return chosen(["no_depth", "blind"], SimpleNamespace(modalities=modalities))

    assert names("state", "depth") == ["blind"]
    assert names("state", "rgb", "depth") == ["no_depth", "blind"]


# ------------------------------------------------------------------ the command


def test_the_blocks_words_of_rollout_runner_are_the_same_keys_and_a_conflict_is_refused():
    def read(*words):
        return load_config("", *words, schema=EvaluateConfig)

    cfg = read(
        "rollout_runner.episode_num=7", "--rollout_runner.max_timestep=90", "rollout_runner.save_video=true",
        "rollout_runner.obs_mode=pointcloud", "rollout_runner.warmup_step=2",
    )  # fmt: skip
    assert (cfg.episodes, cfg.max_steps, cfg.videos, cfg.obs_mode, cfg.warmup_steps) == (7, 90, -1, "pointcloud", 2)
    assert read("rollout_runner.save_video=false").videos == 0
    assert read("rollout_runner.episode_num=20", "episodes=20").episodes == 20
    with pytest.raises(UserError, match="episodes=20 and rollout_runner.episode_num=7 are two words for one key"):
        read("episodes=20", "rollout_runner.episode_num=7")
    with pytest.raises(UserError, match="unknown key rollout_runner.episodes"):
        read("rollout_runner.episodes=7")


@pytest.mark.parametrize(
    ("mode", "asked", "episodes", "number"),
    [
        ("sequential", 8, 50, 1), ("parallel", 3, 50, 3), ("parallel", 8, 5, 5), ("parallel", None, 50, 4),
        ("auto", None, 50, 4), ("auto", 2, 50, 2), ("auto", None, 7, 1), ("auto", None, 9, 2),
    ],
)  # fmt: skip
def test_processes_are_as_many_as_the_mode_says(monkeypatch, mode, asked, episodes, number):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    got, said = num_processes(mode, asked, episodes=episodes)
    assert got == number
    assert (mode == "auto") == ("for 4 cores and" in said)


def test_all_checkpoints_of_a_run_are_evaluated_in_all_tasks_and_a_killed_one_goes_on(run_dir, run_here, caplog):
    shutil.copy(run_dir / "model_1.pth", run_dir / "model_2.pth")
    words = (
        "train.pretrained_dir=run", "train.model_names=all", "env_names=[wait,rest]", "rollout_runner.episode_num=2",
        "eval_mode=auto", "controls=[hold]",
    )  # fmt: skip
    done = run_here(str(ROOT / "scripts/eval_sim.py"), *words, cwd=run_dir.parent)
    assert done.returncode == 0, done.stderr
    assert "eval_mode=auto: one process, for" in caplog.text
    file = run_dir / "eval/eval.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ran = [(row["checkpoint"], row["task"], row["control"], row["seed"]) for row in rows]
    assert len(ran) == len(set(ran)) == 12
    assert {each[:3] for each in ran} == {
        *((f"run/model_{epoch}.pth", task, None) for epoch in (1, 2) for task in ("wait", "rest")),
        ("-", "wait", "hold"), ("-", "rest", "hold"),
    }  # fmt: skip
    assert {row["epoch"] for row in rows if row["control"] is None} == {1}
    table = [line for line in done.stdout.splitlines() if "%" not in line and (" wait " in line or " rest " in line)]
    assert len(table) == 6
    for name in ("eval.png", "eval.svg"):
        assert (run_dir / "eval" / name).stat().st_size > 5000
    # as if it had been killed in the second checkpoint's last task
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:9]) + lines[9][:20])
    again = run_here(str(ROOT / "scripts/eval_sim.py"), *words, cwd=run_dir.parent)
    assert again.returncode == 0, again.stderr
    after = file.read_bytes().splitlines(keepends=True)
    assert after[:9] == lines[:9]
    key = lambda row: (row["checkpoint"], row["task"], row["control"] or "", row["seed"])
    kept = lambda row: {name: value for name, value in row.items() if name not in TIMED}
    assert sorted(map(kept, map(json.loads, after)), key=key) == sorted(map(kept, rows), key=key)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train.model_names=[model_11]",), "run has no such checkpoint. Did you mean model_1?"),
        (("train.model_names=[../run/model_1]",), "run has no such checkpoint"),
        (("train.pretrained_dir=run,gone",), "gone: no such file"),
        (("train.pretrained_dir=run,run",), "names run twice"),
        (("train.pretrained_dir=run/model.pth", "train.model_names=all"), "looked for in a run folder"),
        (("env_names=[wait,nap]", "task=wait"), "both say what to run"),
        (("obs_mode=pointcloud",), "this policy sees state. Type obs_mode=state"),
        (("warmup_steps=12",), "none is left for the policy"),
        (("controls=[no_depth]",), "controls=no_depth: a policy that sees state has none"),
        (("episodes=0",), "episodes=0: must be at least 1"),
        (("task=wiat",), "no such task"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_before_the_first_episode(run_dir, run_here, words, says):
    given = latest("train.pretrained_dir=run", *words)
    done = run_here(str(ROOT / "scripts/eval_sim.py"), *given, cwd=run_dir.parent)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
    assert "evaluating" not in done.stderr
    assert not (run_dir / "eval").exists()


def test_a_folder_for_videos_that_cannot_be_written_is_told_first(run_dir, run_here):
    (run_dir / "eval").write_text("")
    done = run_here(str(ROOT / "scripts/eval_sim.py"), "train.pretrained_dir=run", "videos=2", cwd=run_dir.parent)
    assert (done.returncode, "a file is in the way" in done.stderr) == (2, True)


def test_the_policy_acts_only_after_the_warm_up(policy, monkeypatch, lab_file):
    monkeypatch.setenv("DIARY", "diary.jsonl")
    row = ppt.evaluate(policy, episodes=1, warmup_steps=2, stop_at_success=False).rows[0]
    acts = [json.loads(line) for line in (lab_file / "diary.jsonl").read_text().splitlines()]
    assert row["steps"] == len(acts) == 12
    assert acts[:2] == [[0.0, 0.0]] * 2
    assert all(act != [0.0, 0.0] for act in acts[2:])
    assert "warmup_steps=2" in row["options"]


def test_videos_have_a_bar_with_the_outcome_and_one_a_checkpoint(run_dir, tmp_path):
    import av

    policy = ppt.load_policy("run/model_1.pth")
    film = ppt.evaluate(policy, episodes=2, videos=-1, out_dir=tmp_path, max_steps=4).videos
    assert [path.name for path in film] == [f"eval_wait_model_1_{seed}.mp4" for seed in (100_000, 100_001)]
    with av.open(str(film[0])) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    # solved at the third step: three frames before, and that one
    assert [frame.shape for frame in frames] == [(288, 256, 3)] * 4
    bars = [frame[256:] for frame in frames]
    assert bars[0].max() > 120
    green = [(bar[..., 1] - bar[..., 0] > 25).sum() for bar in bars]
    assert green[3] > 20
    assert max(green[:3]) == 0


def test_success_over_checkpoints_is_drawn_at_their_epochs_with_intervals():
    rows = []
    for epoch, wins in ((5, 2), (10, 6)):
        shared = {"checkpoint": f"r/model_{epoch}.pth", "task": "t", "zero_keys": [], "control": None, "epoch": epoch}
        rows += [{**shared, "seed": seed, "success": seed < wins} for seed in range(10)]
    hold = {"checkpoint": "-", "task": "t", "zero_keys": [], "control": "hold", "epoch": None, "success": False}
    figure = ppt.plot_checkpoints(pd.DataFrame([*rows, *({**hold, "seed": seed} for seed in range(10))]))
    assert list(ppt.success_table(pd.DataFrame(rows))["rate"]) == [0.2, 0.6]
    (axes,) = figure.axes
    line, level = axes.lines
    assert np.allclose(line.get_xydata(), [[5, 0.2], [10, 0.6]])
    assert list(level.get_ydata()) == [0, 0]
    band = axes.collections[0].get_paths()[0].vertices
    # Wilson: 2 of 10 and 6 of 10
    assert np.isclose(band[:, 1].min(), 0.0567, atol=1e-3)
    assert np.isclose(band[:, 1].max(), 0.8318, atol=1e-3)


def test_runs_with_a_dot_in_their_names_are_two_runs():
    """A name as lr0.1 is a folder's: not a file of the folder around it."""
    made = {
        "domain": "a", "task": "lift", "control": None, "zero_keys": [], "success": True, "error": None, "policy_ms": None,
    }  # fmt: skip
    checkpoints = ("models/door/lr0.1", "models/door/lr0.01", "models/door/lr0.1/model_10.pth")
    rows = [{**made, "checkpoint": name, "epoch": 10, "seed": 0} for name in checkpoints]
    assert list(checkpoint_table(Evaluation(rows))["run"]) == ["lr0.1", "lr0.01", "lr0.1"]
