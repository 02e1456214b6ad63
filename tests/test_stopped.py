"""Evaluating and collecting that are stopped, killed, or run out of disk keep what is done, leave no process, and go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import pytest
from conftest import ROOT, SMALL_WORDS, forget_my_lab, latest, run_script
from omegaconf import OmegaConf

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.programs import PROGRAMS
from ppt_kit.signals import Stopped, held_back, stops_raise

# a hand on a line; how long a step takes, and which seed is hard or deadly, is in the environment of the process
MINE = """
import os, signal, time
import numpy as np


class Line:
    description = "go there"

    def __init__(self, task, *, wind=0.0, max_steps=12, wide=1):
        self.task, self.wind, self.max_steps, self.wide = task, wind, max_steps, wide

    def reset(self, seed):
        self.seed = seed
        self.hand, self.goal = np.random.default_rng(seed).uniform(-1, 1, (2, 2)).astype(np.float32)
        return self._reading()

    def step(self, action):
        time.sleep(float(os.environ.get("STEP_S", 0)))
        if self.seed == int(os.environ.get("DEADLY", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == int(os.environ.get("BROKEN", -1)):
            raise RuntimeError("out of order")
        self.hand = self.hand + np.clip(action, -0.3, 0.3).astype(np.float32)
        return self._reading(), 0.0, np.abs(self.goal - self.hand).max() < 0.05

    def expert_action(self):
        # every third seed's expert gives up
        return np.clip(self.goal - self.hand, -0.3, 0.3) * (self.seed % 3 != 2)

    def render(self, size=256):
        return np.full((size, size, 3), int(self.seed) % 256, np.uint8)

    def camera_info(self):
        pose = np.eye(4, dtype=np.float32)
        pose[0, 3] = 1 / 7
        return {"front/intrinsics": np.diag([1 / 3, 1 / 3, 1]), "front/extrinsics": pose}

    def spec(self):
        options = {name: getattr(self, name) for name in ("task", "wind", "max_steps", "wide")}
        return {"simulator": "my_lab.sim:Line"} | options

    def _reading(self):
        return {"obs/hand": self.hand, "obs/goal": self.goal, "obs/wide": np.full(self.wide, self.hand[0])}
"""
WHAT = ("simulator=my_lab.sim:Line", "task=line", "episodes=8", "dataset_path=data")


@pytest.fixture
def lab(lab_with):
    """A folder to work in that holds my_lab/sim.py."""
    return lab_with(MINE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """model.pth of a policy that has learned nothing, recorded in the lab's simulator."""
    from ppt_kit.checkpoint import save_model
    from ppt_kit.train.assemble import card_of, new_policy, open_sources, statistics

    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab").mkdir()
    (folder / "my_lab/sim.py").write_text(MINE)
    with contextlib.chdir(folder):
        before = list(sys.path)
        ppt.collect("line", simulator="my_lab.sim:Line", episodes=3)
        words = ("dataset_path=data", "domains=line", "dataset.state_keys=[hand,goal]")
        cfg = ppt.load_config("quickstart", *SMALL_WORDS, *words, "policy.stems.pointcloud.kind=null")
        sources = open_sources(cfg, folder / "run")
        stats = statistics(sources)
        policy, _ = new_policy(sources, stats)
        config = OmegaConf.to_container(cfg, resolve=True)
        content = {"policy": policy.state_dict(), "ema": None, "step": 1, "epoch": 1}
        content |= card_of(sources.train_set, policy, config=config, stats=stats)
        (folder / "run").mkdir()
        save_model(folder / "run", content, epoch=None, keep_last=0)
        sys.path[:] = before
    forget_my_lab()
    return folder / "run/model.pth"


@pytest.fixture
def run_dir(lab, model):
    """A run folder of its own for each test."""
    (lab / "run").mkdir()
    (lab / "run/model.pth").write_bytes(model.read_bytes())
    return lab / "run"


def rows_in(path):
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def alike(rows):
    """Of each row what must not depend on who ran it."""
    names = ("seed", "success", "steps", "return", "actions_sha256")
    return sorted(tuple(row[name] for name in names) for row in rows)


def start(script, *words, cwd, **env):
    """A script in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *words], cwd=cwd, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip


class Forked:
    """As `start`, of a process that has imported everything already: a script takes no seconds to begin.

    Args:
        script: a file in scripts/, or a function.
        limit: bytes that a file may have, as on a full disk.
    """

    def __init__(self, script, *words, cwd, limit=None, **env):
        self.returncode, self._files = None, [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            self._be(script, words, cwd, limit, env)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def communicate(self, timeout=60):
        wait_for(lambda: self.poll() is not None, seconds=timeout)
        for file in self._files:
            file.seek(0)
        return [file.read().decode() for file in self._files]

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def _be(self, script, words, cwd, limit, env):
        code = 1
        try:
            os.setsid()
            os.chdir(cwd)
            os.environ |= env
            for number, file in enumerate(self._files, 1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if callable(script):
                code = script() or 0
            else:
                sys.argv, sys.path = [script, *words], [str(ROOT / "scripts"), *sys.path]
                runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def wait_for(condition, *, seconds=90, of=None):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert of is None or of.poll() is None, of.communicate()
        time.sleep(0.02)


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def tree_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes):
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


EVALUATE = ("train.pretrained_dir=run", "episodes=9", "videos=0", "execute_steps=8")
PARALLEL = ("eval_mode=parallel", "n_procs=2")


def evaluated(run_dir, **options):
    """All the episodes in this process, with rows of their own."""
    policy = ppt.load_policy(run_dir)
    return ppt.evaluate(policy, **{"episodes": 9, "execute_steps": 8, **options})


@pytest.mark.parametrize(
    ("number", "to_all", "words", "begin"),
    [
        (signal.SIGINT, True, PARALLEL, Forked),
        (signal.SIGKILL, False, PARALLEL, Forked),
        (signal.SIGINT, True, (), Forked),
        (signal.SIGTERM, False, (), Forked),
        pytest.param(signal.SIGTERM, False, PARALLEL, Forked, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, False, PARALLEL, start, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, True, PARALLEL, start, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, True, PARALLEL, start, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, False, PARALLEL, start, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, False, (), start, marks=pytest.mark.long),
    ],
)
def test_a_stopped_evaluation_keeps_its_rows_leaves_no_process_and_goes_on(
    run_dir, caplog, number, to_all, words, begin
):
    file = run_dir / "eval/eval.jsonl"
    process = begin("eval_sim.py", *EVALUATE, *words, cwd=run_dir.parent, STEP_S="0.08")
    wait_for(lambda: lines_of(file) >= 2, of=process)
    workers = tree_of(process)
    asked = time.monotonic()
    (os.killpg if to_all else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    wait_for(lambda: gone(workers), seconds=5)
    kept = rows_in(file)
    assert 2 <= len(kept) < 9
    assert [row["error"] for row in kept] == [None] * len(kept)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        said = [line for line in re.split(r"[\r\n]+", err) if "it/s" not in line and "evaluating" not in line and line]
        assert len(said) == 1, err
        assert f"{len(kept)} of 9 episodes are in run/eval/eval.jsonl; the same again goes on" in said[0]
    assert not (run_dir / "eval/eval.txt").exists()
    result = evaluated("run", out_dir="run/eval")
    assert f"has {len(kept)} of 9 episodes: going on" in caplog.text
    assert len(rows_in(file)) == 9
    assert rows_in(file)[: len(kept)] == kept
    assert [row["seed"] for row in result.rows] == list(range(100_000, 100_009))
    assert alike(rows_in(file)) == alike(result.rows) == alike(evaluated("run").rows)


def test_a_call_from_a_notebook_is_interrupted_and_goes_on(run_dir, monkeypatch):
    """SIGINT to this process, as a kernel gets it, while two workers run."""
    monkeypatch.setenv("STEP_S", "0.08")
    file = run_dir / "eval/eval.jsonl"
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(file), str(os.getpid())], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(KeyboardInterrupt, match="of 9 episodes are in run/eval/eval.jsonl") as stopped:
        evaluated("run", out_dir="run/eval", n_procs=2)
    assert isinstance(stopped.value, Stopped)
    assert watcher.wait() == 0
    assert not [each for each in psutil.Process().children() if "multiprocessing.spawn" in " ".join(each.cmdline())]
    kept = rows_in(file)
    monkeypatch.setenv("STEP_S", "0")
    assert evaluated("run", out_dir="run/eval").rows[0] in rows_in(file)
    assert len(rows_in(file)) == 9
    assert rows_in(file)[: len(kept)] == kept
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


WATCHER = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
os.kill(int(sys.argv[2]), 2)
"""


def test_a_finished_evaluation_is_not_run_again_and_says_so(run_dir, caplog):
    first = evaluated("run", out_dir="run/eval")
    text = {path.name: path.read_bytes() for path in (run_dir / "eval").iterdir()}
    again = evaluated("run", out_dir="run/eval")
    assert again.rows == first.rows
    assert "has all 9 episodes" in caplog.text
    assert {path.name: path.read_bytes() for path in (run_dir / "eval").iterdir()} == text


@pytest.mark.parametrize(
    "other",
    [
        {"execute_steps": 4},
        {"temporal_ensembling": True},
        {"zero_keys": ["state"]},
        {"max_steps": 11},
        {"seed": 200_000},
    ],
    ids=str,
)
def test_rows_of_other_options_are_not_taken(run_dir, other):
    first = evaluated("run", out_dir="run/eval", episodes=2)
    second = evaluated("run", out_dir="run/eval", **{"episodes": 2, **other})
    assert alike(second.rows) == alike(evaluated("run", **{"episodes": 2, **other}).rows)
    assert rows_in(run_dir / "eval/eval.jsonl") == first.rows + second.rows


def test_rows_of_other_weights_or_another_simulator_are_not_taken(run_dir, lab):
    import torch

    evaluated("run", out_dir="run/eval", episodes=2)
    policy = ppt.load_policy("run")
    with torch.no_grad():
        next(policy.heads.parameters()).add_(0.5)
    changed = ppt.evaluate(policy, episodes=2, execute_steps=8, out_dir="run/eval")
    assert alike(changed.rows) != alike(evaluated("run", episodes=2).rows)
    assert len(rows_in(run_dir / "eval/eval.jsonl")) == 4
    (lab / "my_lab/sim.py").write_text(MINE + "\n# mended\n")
    evaluated("run", out_dir="run/eval", episodes=2)
    assert len(rows_in(run_dir / "eval/eval.jsonl")) == 6


def test_a_half_written_line_goes_errors_are_run_again_and_lines_of_others_stay(run_dir, monkeypatch):
    file = run_dir / "eval/eval.jsonl"
    monkeypatch.setenv("BROKEN", "100001")
    first = evaluated("run", out_dir="run/eval", episodes=3)
    assert "RuntimeError: out of order (sim.py:" in first.rows[1]["error"]
    monkeypatch.delenv("BROKEN")
    others = b'{"seed": 100000, "mine": 1}\nnot a row\n'
    file.write_bytes(others + file.read_bytes() + b'{"checkpoint": "run", "seed": 100')
    again = evaluated("run", out_dir="run/eval", episodes=4)
    assert [row["error"] for row in again.rows] == [None] * 4
    text = file.read_bytes()
    assert text.startswith(others)
    assert [json.loads(line)["seed"] for line in text.splitlines()[2:]] == [100_000, 100_002, 100_001, 100_003]
    assert [row["seed"] for row in again.rows] == [100_000, 100_001, 100_002, 100_003]


def test_a_worker_that_dies_costs_its_episode_alone(run_dir, monkeypatch):
    monkeypatch.setenv("DEADLY", "100002")
    rows = evaluated("run", n_procs=2).rows
    assert [row["seed"] for row in rows if row["error"]] == [100_002]
    assert rows[2]["error"] == "the worker process died of SIGKILL"
    monkeypatch.delenv("DEADLY")
    whole = evaluated("run").rows
    assert alike(rows[:2] + rows[3:]) == alike(whole[:2] + whole[3:])


def test_workers_that_cannot_begin_are_one_line(run_dir, lab):
    """The parent has the class in memory, the workers look for its file."""
    policy = ppt.load_policy("run")
    ppt.evaluate(policy, episodes=1)
    (lab / "my_lab/sim.py").write_text("raise ImportError('gone')")
    with pytest.raises(UserError, match=r"no worker process could begin: .*gone.*n_procs=1") as told:
        ppt.evaluate(policy, episodes=2, n_procs=2)
    assert "\n" not in str(told.value)


def test_a_full_disk_in_the_middle_keeps_the_rows_and_is_one_line(run_dir):
    """A quota that the fourth row passes."""
    file = run_dir / "eval/eval.jsonl"
    evaluated("run", out_dir="run/eval", episodes=1)
    a_row = len(file.read_bytes())
    others = (json.dumps({"mine": "x" * 200}) + "\n") * 400
    file.write_text(others + file.read_text())
    limit = len(others) + int(3.5 * a_row)
    process = Forked("eval_sim.py", *EVALUATE, cwd=run_dir.parent, limit=limit)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].startswith("error: run/eval/eval.jsonl: File too large"), err
    assert "Traceback" not in err
    assert [row["seed"] for row in rows_in(file)[400:]] == [100_000, 100_001, 100_002]
    evaluated("run", out_dir="run/eval")
    assert len(rows_in(file)) == 409


def test_a_video_that_cannot_be_written_costs_no_row(run_dir, caplog):
    (run_dir / "eval/eval_line_100000.mp4").mkdir(parents=True)
    result = evaluated("run", out_dir="run/eval", episodes=2, videos=2)
    assert [row["error"] for row in result.rows] == [None, None]
    assert [row["video"] for row in result.rows] == [None, "run/eval/eval_line_100001.mp4"]
    assert "seed 100000: its video could not be written" in caplog.text
    assert "video_error" not in rows_in(run_dir / "eval/eval.jsonl")[0]
    (run_dir / "eval/eval_line_100000.mp4").rmdir()
    # the episode whose video was asked for and is not there is run again, the other is not
    assert len(evaluated("run", out_dir="run/eval", episodes=2, videos=2).videos) == 2
    assert [row["seed"] for row in rows_in(run_dir / "eval/eval.jsonl")] == [100_001, 100_000]


MISTAKES = [
    ({"out_dir": "taken"}, "taken: a file is in the way"),
    ({"out_dir": "run/eval", "log_name": "../x"}, "must be a"),
    ({"out_dir": "run/eval", "log_name": "a/b"}, "must be one plain name"),
    ({"out_dir": "run/eval", "log_name": ""}, "must be a plain name"),
    ({"out_dir": "run/eval", "log_name": "broken"}, r"broken\.json: cannot be read"),
    ({"max_steps": 0}, "max_steps=0: takes a whole number, at least 1"),
    ({"seed": 0}, "seen in training"),
    ({"task": 3}, "takes a name"),
    ({"episodes": 0}, "episodes=0: takes a whole number, at least 1"),
    ({"episodes": "9"}, "episodes='9': takes"),
    ({"seed": 2**64}, "seed=18446744073709551616"),
    ({"seed": 0.5}, "seed=0.5: takes"),
    ({"n_procs": True}, "n_procs=True: takes"),
    ({"zero_keys": "state"}, "takes a list of names"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[str(options) for options, _ in MISTAKES])
def test_what_cannot_be_evaluated_is_told_before_the_bar(run_dir, lab, capfd, options, says):
    (lab / "taken").write_text("")
    (run_dir / "eval").mkdir()
    (run_dir / "eval/broken.json").write_text("{")
    before = sorted(lab.rglob("*"))
    with pytest.raises(UserError, match=says) as told:
        evaluated("run", **options)
    assert "\n" not in str(told.value)
    assert "evaluating" not in capfd.readouterr().err
    assert [path for path in sorted(lab.rglob("*")) if "__pycache__" not in str(path)] == before


def of_the_env(**changes):
    return lambda card: card["sources"]["line"]["env"].update(changes)


def of_the_view(**changes):
    return lambda card: card["views"]["line"].update(changes)


CARDS = [
    (lambda card: card["sources"].update(line=[]), "sources.line of the checkpoint is []"),
    (lambda card: card["sources"].clear(), "sources.line of the checkpoint is absent"),
    (lambda card: card.update(sources=None), "not loaded from a run folder"),
    (lambda card: card["sources"]["line"].update(env="line"), "sources.line.env of the checkpoint is 'line'"),
    (lambda card: card["sources"]["line"].update(env=None), "does not say which simulator"),
    (lambda card: card["sources"]["line"].update(seeds="0,1"), "sources.line.seeds of the checkpoint is '0,1'"),
    (lambda card: card["sources"]["line"].update(seeds=[0.5]), "takes a list of whole numbers"),
    (of_the_env(simulator=3), "sources.line.env.simulator of the checkpoint is 3"),
    (of_the_env(simulator=None), "env.simulator of the checkpoint is absent"),
    (of_the_env(simulator="os:getcwd"), "simulator=os:getcwd"),
    (of_the_env(simulator="my_lab.gone:Line"), "no module my_lab.gone"),
    (of_the_env(task=["line"]), "sources.line.env.task of the checkpoint is ['line']"),
    (of_the_env(max_steps="many"), "max_steps='many' is no whole number above 0"),
    (of_the_env(gravity=1), "takes no gravity"),
    (of_the_env(simulator="metaworld", task="reach"), "takes no wind"),
    (lambda card: card["views"].update(line=7), "views.line of the checkpoint is 7"),
    (lambda card: card["views"]["line"].pop("rgb"), "views.line.rgb of the checkpoint is absent"),
    (of_the_view(state={"obs/hand": "two"}), "views.line.state of the checkpoint"),
    (of_the_view(state={"obs/hand": 3, "obs/goal": 2}), "sees 3 numbers of obs/hand"),
    (of_the_view(points=-1), "views.line.points of the checkpoint is -1"),
    (of_the_view(sizes={"x": 5}), "views.line cannot be read"),
    (of_the_view(made_from={"cameras": 3, "lens": 1}), "views.line cannot be read"),
]


@pytest.mark.parametrize(("damage", "says"), CARDS, ids=[says[:40] for _, says in CARDS])
def test_what_a_checkpoint_says_of_its_simulator_is_read_as_a_users_words(run_dir, damage, says):
    policy = ppt.load_policy("run")
    damage(policy.card)
    with pytest.raises(UserError, match=re.escape(says)) as told:
        ppt.evaluate(policy, episodes=1)
    assert "\n" not in str(told.value)


WORLD = {"simulator": "metaworld", "task": "reach"}


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": "big"}, {"image_size": 2.5}, {"image_size": 3}, {"num_points": -1}, {"num_points": True},
        {"max_steps": 10**12}, {"max_steps": float("nan")}, {"camera": 3}, {"use_color": "yes"}, {"goal_marker": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_of_another_kind_is_named(options):
    from ppt_kit.sim.env import make_env

    with pytest.raises(UserError, match=f"{next(iter(options))}=.*takes"):
        make_env(WORLD | options)


# ------------------------------------------------------------------ collecting


def same_files(one, other):
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert [path for path in files if (one / path).read_bytes() != (other / path).read_bytes()] == []


def collected(*words, **options):
    return ppt.collect("line", *words, simulator="my_lab.sim:Line", **{"episodes": 8, **options})


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)]
)
def test_a_stopped_collection_loses_no_whole_episode_and_goes_on_to_the_same_dataset(lab, caplog, number, to_all):
    left = lab / "data/.line.zarr.partial/episodes.jsonl"
    process = Forked("collect_demos.py", *WHAT, cwd=lab, STEP_S="0.05")
    wait_for(lambda: lines_of(left) >= 3, of=process)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=30)
    kept = lines_of(left)
    assert 3 <= kept < 8
    assert not (lab / "data/line.zarr").exists()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert err.strip().splitlines()[-1].endswith(f"{kept} of 8 demonstrations are kept; the same again goes on.")
        assert "Traceback" not in err
    done = collected(dataset_path="data")
    assert f"going on with a collection that stopped after {kept} demonstrations" in caplog.text
    whole = collected(dataset_path="whole")
    assert (done.seeds, done.discarded_seeds, done.steps) == (whole.seeds, whole.discarded_seeds, whole.steps)
    assert done.discarded_seeds == [2, 5, 8]
    same_files(done.path, whole.path)
    assert [path.name for path in (lab / "data").iterdir()] == ["line.zarr"]


@pytest.fixture
def stopped(lab, monkeypatch):
    """A collection that failed after two demonstrations."""
    monkeypatch.setenv("BROKEN", "3")
    with pytest.raises(UserError, match=r"seed 3: RuntimeError: out of order \(sim.py:\d+\)"):
        collected()
    monkeypatch.delenv("BROKEN")
    return lab / "data/.line.zarr.partial"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=1"], r"after 2 demonstrations, with seed=0, and this one has seed=1\. Type the former"),
        (["options.wind=1"], r"with wind=0\.0, and this one has wind=1"),
        (["max_steps=11"], "with max_steps=12, and this one has max_steps=11"),
        (["domain=line", "task=other"], "with task=line, and this one has task=other"),
    ],
)
def test_a_collection_of_other_options_is_not_mixed_up(stopped, caplog, words, says):
    task = "other" if "task=other" in words else "line"
    words = [word for word in words if not word.startswith("task=")]
    with pytest.raises(UserError, match=says):
        ppt.collect(task, *words, simulator="my_lab.sim:Line", episodes=8)
    assert lines_of(stopped / "episodes.jsonl") == 2
    caplog.clear()
    replaced = ppt.collect(task, *words, "overwrite=true", simulator="my_lab.sim:Line", episodes=8)
    assert "what a stopped collection left (2 demonstrations" in caplog.text
    assert [path.name for path in replaced.path.parent.iterdir()] == ["line.zarr"]
    whole = ppt.collect(task, *words, simulator="my_lab.sim:Line", episodes=8, dataset_path="whole")
    same_files(replaced.path, whole.path)


def test_an_edited_simulator_is_another_one(stopped, lab):
    (lab / "my_lab/sim.py").write_text(MINE + "\n# mended\n")
    with pytest.raises(UserError, match="with code="):
        collected()


def test_more_episodes_go_on_too_and_fewer_where_it_is_said(stopped, lab):
    with pytest.raises(UserError, match="stopped after 2 demonstrations, and this one wants 1"):
        collected(episodes=1)
    same_files(collected("overwrite=true", episodes=1).path, collected(episodes=1, dataset_path="whole").path)


def test_overwriting_goes_on_and_the_old_dataset_stays_until_the_end(lab, monkeypatch):
    collected(episodes=2)
    old = {path: path.read_bytes() for path in (lab / "data/line.zarr").rglob("*") if path.is_file()}
    monkeypatch.setenv("BROKEN", "4")
    with pytest.raises(UserError, match="3 of 8 demonstrations are kept"):
        collected("overwrite=true", "options.wind=1")
    assert {path: path.read_bytes() for path in (lab / "data/line.zarr").rglob("*") if path.is_file()} == old
    monkeypatch.delenv("BROKEN")
    done = collected("overwrite=true", "options.wind=1")
    same_files(done.path, collected("options.wind=1", dataset_path="whole").path)


@pytest.mark.parametrize("at", ["_create", "_write_array", "finish_folder", "fsync", "rmtree"])
@pytest.mark.parametrize("over", [False, True])
def test_killed_while_it_finishes_a_dataset_is_the_old_or_the_new_and_goes_on(lab, at, over):
    """Killed by itself at each step behind the last episode; `rmtree` comes when the dataset is there."""
    if over:
        collected("options.wind=1", episodes=2)
    process = Forked(lambda: killed(at, over=over), cwd=lab)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = (lambda: collected("overwrite=true")) if over else collected
    if at == "rmtree":
        # it was complete, and is found so
        assert again().episodes == collected(dataset_path="whole").episodes
    else:
        again()
    same_files(lab / "data/line.zarr", collected(dataset_path="whole").path)
    assert [path.name for path in (lab / "data").iterdir()] == ["line.zarr"]


def test_a_complete_dataset_is_taken_by_the_same_call_and_refused_to_others(lab, caplog):
    first = collected()
    before = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    again = collected()
    assert (again.seeds, again.discarded_seeds, again.steps) == (first.seeds, first.discarded_seeds, first.steps)
    assert "are there already" in caplog.text
    for word in ("options.wind=1", "seed=1", "max_steps=33"):
        with pytest.raises(UserError, match="exists already"):
            collected(word)
    with pytest.raises(UserError, match="exists already"):
        collected(episodes=first.episodes + 1)
    file = lab / "my_lab/sim.py"
    file.write_text(file.read_text() + "\n# edited\n")
    with pytest.raises(UserError, match="exists already"):
        collected()
    assert {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()} == before


def killed(at, *, over):
    """Collects, and ends where the function `at` would be called after the last episode."""
    from ppt_kit import files
    from ppt_kit.data.formats.replay_buffer import partial, writer

    where, finish = {"rmtree": partial.shutil, "fsync": files}.get(at, writer), writer.ZarrWriter._finish

    def finish_and_die(self):
        setattr(where, at, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        finish(self)

    writer.ZarrWriter._finish = finish_and_die
    collected(overwrite=over)


def test_a_full_disk_loses_no_whole_episode_and_is_one_line(lab):
    """A quota that one file passes after some episodes."""
    process = Forked("collect_demos.py", *WHAT, "options.wide=1000", cwd=lab, limit=100_000)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 2
    said = err.strip().splitlines()[-1]
    assert said.startswith("error: data/line.zarr: File too large. Make room. ")
    assert "Traceback" not in err
    kept = int(re.search(r"(\d+) of 8 demonstrations are kept", said)[1])
    assert kept == lines_of(lab / "data/.line.zarr.partial/episodes.jsonl") > 0
    done, whole = (collected("options.wide=1000", dataset_path=folder) for folder in ("data", "whole"))
    same_files(done.path, whole.path)


def test_an_expert_that_gives_up_keeps_what_succeeded(lab):
    with pytest.raises(UserError, match=r"failed 2 times within 12 steps; 4 are kept\. Set max_failures higher to go"):
        collected(max_failures=1)
    done = collected()
    assert done.discarded_seeds == [2, 5, 8]
    same_files(done.path, collected(dataset_path="whole").path)


def test_two_that_collect_the_same_are_told(lab):
    process = Forked("collect_demos.py", *WHAT, cwd=lab, STEP_S="0.2")
    wait_for(lambda: (lab / "data/.line.zarr.partial/plan.json").exists(), of=process)
    with pytest.raises(UserError, match="another process is writing it now"):
        collected()
    process.kill()
    process.communicate()


def no_dataset(lab):
    """What stands under the name, and what must still be there."""
    (lab / "data/line.zarr/photos").mkdir(parents=True)
    (lab / "data/line.zarr/photos/me.jpg").write_text("me")


def a_file(lab):
    (lab / "data").mkdir()
    (lab / "data/line.zarr").write_text("mine")


def a_link(lab):
    (lab / "data").mkdir()
    (lab / "data/line.zarr").symlink_to(lab)


def a_link_to_nothing(lab):
    (lab / "data").mkdir()
    (lab / "data/line.zarr").symlink_to(lab / "nothing")


def a_file_as_folder(lab):
    (lab / "data").write_text("mine")


@pytest.mark.parametrize("there", [no_dataset, a_file, a_link, a_link_to_nothing, a_file_as_folder])
def test_what_is_no_dataset_is_not_replaced_and_told_before_the_simulator_starts(lab, there):
    there(lab)
    (lab / "my_lab/sim.py").write_text("raise SystemExit('started')")
    before = sorted(lab.rglob("*"))
    for words in ([], ["overwrite=true"]):
        with pytest.raises(UserError, match=r"data") as told:
            collected(*words)
        assert "\n" not in str(told.value)
    assert sorted(lab.rglob("*")) == before


@pytest.mark.parametrize("domain", ["../x", "/x", "a/b", ".", "a\nb", "x" * 300, "a.zarr"])
def test_a_dataset_has_one_plain_name(lab, domain):
    with pytest.raises(UserError, match="domain="):
        collected(domain=domain)
    assert not (lab / "data").exists()


def test_what_a_script_imports_before_it_can_be_stopped_takes_no_time():
    """Until `cli.run` Ctrl-C would be Python's own many lines."""
    commands = ", ".join(PROGRAMS)
    slow = ("omegaconf", "fire", "hydra", "torch", "numpy", "tqdm")
    code = (
        f"import sys; from ppt_kit.commands import {commands}; print([name for name in {slow} if name in sys.modules])"
    )
    done = run_script(sys.executable, "-c", code, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == "[]\n", done.stderr


# ------------------------------------------------------------------ rendering


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"MUJOCO_GL": "foo"}, "MUJOCO_GL='foo': mujoco takes egl, osmesa, glfw. Type MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "elg"}, "Type MUJOCO_GL=egl"),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL='glfw' opens a window, and there is no display"),
        ({"MUJOCO_GL": " ON"}, "MUJOCO_GL=' ON' opens a window"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "glx"}, "PYOPENGL_PLATFORM='glx'"),
    ],
    ids=str,
)
def test_a_renderer_that_is_not_there_is_one_line(monkeypatch, env, says):
    from ppt_kit.sim.simulators import rendering

    monkeypatch.setattr(rendering.sys, "modules", {})
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(says)):
        rendering.choose_renderer()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"MUJOCO_GL": "foo"}, "MUJOCO_GL='foo'"),
        ({"MUJOCO_GL": "off"}, "MuJoCo cannot render here"),
        pytest.param({"MUJOCO_GL": "", "DISPLAY": ":99"}, "Type MUJOCO_GL=egl", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_command_without_a_renderer_says_so_in_one_line(tmp_path, env, says):
    done = run_script(str(ROOT / "scripts/collect_demos.py"), "task=reach", cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [done.stderr.splitlines()[-1]]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.zarr"))


@pytest.mark.long
def test_blanks_and_capitals_are_as_mujoco_reads_them(tmp_path):
    words = ("task=reach", "episodes=1", "num_points=16", "image_size=16")
    done = run_script(str(ROOT / "scripts/collect_demos.py"), *words, cwd=tmp_path, env={"MUJOCO_GL": "EGL "})
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ the quickstart

# as the command of that name, with fewer episodes
QUICKSTART = """
from ppt_kit.commands import cli, quickstart
from ppt_kit.schema import Config
quickstart.DEMONSTRATIONS, quickstart.EPISODES = 3, 2
if __name__ == "__main__":
    cli.run(quickstart.main, schema=Config, config_name="quickstart", about="")
"""
QUICK_WORDS = latest(*SMALL_WORDS, "train.total_iters=300", "train.val_interval=0", "save_interval=1")


def quickstart(folder):
    (folder / "quick.py").write_text(QUICKSTART)
    return subprocess.Popen(
        [sys.executable, "quick.py", *QUICK_WORDS], cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.long
def test_a_quickstart_stopped_in_each_of_its_phases_goes_on_and_a_second_one_is_new(tmp_path):
    runs = tmp_path / "outputs/models/button-press-topdown"

    def there(name):
        return lambda: any(lines_of(path) for path in tmp_path.glob(name))

    phases = [
        ("data/.button-press-topdown.zarr.partial/episodes.jsonl", signal.SIGINT),
        ("outputs/models/*/*/metrics.jsonl", signal.SIGINT),
        ("outputs/models/*/*/eval/eval.jsonl", signal.SIGTERM),
        ("outputs/models/*/*/eval/control.jsonl", signal.SIGINT),
    ]
    for name, number in phases:
        process = quickstart(tmp_path)
        wait_for(there(name), of=process, seconds=240)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert "Traceback" not in err
        assert not list(tmp_path.glob("outputs/models/*/*/quickstart.png"))
    process = quickstart(tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "already there, not collected again" in out
    assert "going on with a quickstart that was stopped" in out
    (run,) = runs.iterdir()
    assert (run / "quickstart.png").exists()
    assert [row["seed"] for row in rows_in(run / "eval/control.jsonl")] == [100_000, 100_001]
    assert read_steps(run) == list(range(1, 301))
    process = quickstart(tmp_path)
    wait_for(lambda: len(list(runs.iterdir())) == 2, of=process, seconds=240)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def read_steps(run):
    return ppt.read_metrics(run, "train")["step"].tolist()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dataset.state_keys=[eef_posn]"], "eef_posn"),
        (["policy.head.kind=flwo"], "policy.head.kind=flwo"),
        (["policy.modalities=[state,rgb]"], "rgb"),
        (["deepspeed=zero9"], "zero9"),
        (["train.pretrained_dir=absent"], "absent"),
        (["output_dir=taken"], "taken"),
        (["dataset_path=taken"], "taken"),
        (["domains=reach,push"], "one task"),
        (["domains=reech"], "Did you mean reach"),
    ],
    ids=str,
)
def test_a_quickstart_that_could_not_train_collects_nothing(tmp_path, run_here, words, says):
    (tmp_path / "taken").write_text("")
    done = run_here(str(ROOT / "scripts/quickstart.py"), "dataset.num_points=16", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_another_thread_is_given_waits_for_the_end_of_the_block_too(number):
    """The system gives it to any thread that has not blocked it, and Python brings it to the main one."""
    ends, done = threading.Event(), []
    other = threading.Thread(target=ends.wait)
    other.start()

    def work():
        with stops_raise(), held_back():
            with held_back():
                os.kill(os.getpid(), number)
                end = time.monotonic() + 0.1
                while time.monotonic() < end:
                    time.sleep(0.01)
                done.append("inner")
            done.append("outer")

    try:
        with pytest.raises(Stopped):
            work()
        assert done == ["inner", "outer"]
    finally:
        ends.set()
        other.join()
