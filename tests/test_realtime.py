"""A policy at a fixed rate: what is executed when, what is counted, and how a run ends."""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_WORDS, latest

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.signals import Stopped
from ppt_kit.sim.env import make_env
from ppt_kit.sim.realtime.sampling import Answer, ThreadSampler

HZ = 10.0
TA = 8


class Hands:
    """A clock that is moved by who waits, and by hand."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def sleep_until(self, moment):
        self.time = max(self.time, moment)


class Later:
    """Makes a chunk at once and gives it after a latency (s); one number, or one for each chunk."""

    def __init__(self, clock, latency_s):
        self.clock, self.latencies, self.closed = clock, latency_s, 0
        self.made = None

    def ask(self, make):
        assert self.made is None, "asked for a second chunk before the first was there"
        latency = self.latencies if isinstance(self.latencies, int | float) else self.latencies.pop(0)
        self.made = (self.clock.now() + latency, latency, make())

    def answer(self, *, timeout_s=0.0):
        if self.made is None:
            return None
        there, latency, chunk = self.made
        if timeout_s:
            self.clock.sleep_until(there)
        if self.clock.now() < there:
            return None
        self.made = None
        return Answer(chunk, latency)

    def close(self):
        self.closed += 1


class Robot:
    """A point that goes where it is sent, takes its time, and knows neither reward nor success."""

    def __init__(self, clock, takes_s=0.0):
        self.clock, self.takes, self.sent, self.stopped = clock, takes_s, [], 0

    def reset(self, seed=None):
        self.at = np.zeros(2, np.float32)
        return self._reading()

    def step(self, action):
        self.sent.append((self.clock.now(), action))
        self.at = self.at + 0.05 * action.astype(np.float32)
        takes = self.takes(len(self.sent) - 1) if callable(self.takes) else self.takes
        self.clock.sleep_until(self.clock.now() + takes)
        return self._reading(), None, None

    def stop(self):
        self.stopped += 1

    def _reading(self):
        return {"obs/position": self.at, "obs/goal": np.ones(2, np.float32), "obs/obstacle": np.zeros(2, np.float32)}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Of the planar task, seen for a moment: what they do is not the point, that they differ from step to step is."""
    from ppt_kit.train.trainer import UnifiedTrainer

    folder = tmp_path_factory.mktemp("realtime")
    ppt.collect("detour", simulator="planar", episodes=4, dataset_path=str(folder))
    made = {}
    for name, words in {
        "regression": (),
        "flow": ("policy/head=flow", "policy.max_delay=2"),
        "history": ("policy/head=flow", "policy.history=inpaint", "dataset.hist_action_cond=true"),
    }.items():
        fixed = (
            f"dataset_path={folder}", "domains=detour", f"output_dir={folder}/models", f"suffix={name}",
            "train.total_iters=3", f"dataset.action_horizon={TA + (name == 'history')}", "dataset.val_ratio=0",
        )  # fmt: skip
        run = UnifiedTrainer(ppt.load_config("planar", *latest(*SMALL_WORDS, *fixed, *words)))
        run.run()
        made[name] = ppt.load_policy(run.run_dir)
    return made


@pytest.fixture
def policy(policies):
    return policies["regression"]


def run_with(policy, *, latency_s, takes_s=0.0, steps=12, execution=None, **options):
    """(what ran, robot) with a clock that is moved by hand."""
    clock = Hands()
    robot = Robot(clock, takes_s)
    execution = execution or ppt.Execution(execute_steps=4, delay=1, real_time_chunking=False)
    runner = ppt.PolicyRunner(policy, robot, hz=HZ, execution=execution, clock=clock, sampler=Later(clock, latency_s))
    return runner.run(max_steps=steps, **options), robot


# ------------------------------------------------------------------ what is executed


@pytest.mark.parametrize(("name", "delay", "chunking"), [
    ("regression", 1, False), ("regression", 3, False), ("flow", 2, True), ("flow", 2, False), ("history", 2, True),
])  # fmt: skip
def test_in_time_the_actions_are_those_of_an_evaluation_with_that_delay(policies, name, delay, chunking):
    """To the bit: a chunk that is there within its delay makes no other action than one that is made at once."""
    policy, env = policies[name], make_env({"simulator": "planar", "task": "detour"})
    execution = ppt.Execution(execute_steps=4, delay=delay, real_time_chunking=chunking)
    clock = Hands()
    sampler = Later(clock, (delay - 0.5) / HZ)
    runner = ppt.PolicyRunner(policy, env, hz=HZ, execution=execution, clock=clock, sampler=sampler)
    sent, step = [], env.step
    env.step = lambda action: sent.append(action) or step(action)
    ran = runner.run(max_steps=30, seed=5)
    again = make_env({"simulator": "planar", "task": "detour"})
    actor = ppt.Actor(policy, execution=execution)
    actor.reset(seed=5)
    reading = again.reset(5)
    for action in sent:
        expected = actor.act([runner.frame(reading)])[0]
        assert np.array_equal(action, expected)
        reading, _, _ = again.step(expected)
    assert (ran.steps, ran.late, ran.held, ran.skipped) == (30, 0, 0, 0)
    assert ran.success is False


def test_a_late_chunk_lets_the_one_before_go_on_and_is_taken_over_when_it_comes(policy):
    """Asked for at 4, due at 5, there at 4 + 2.5: at step 7. By hand."""
    ran, robot = run_with(policy, latency_s=2.5 / HZ)
    frame = ran.frame
    assert frame["asked"].tolist() == [0] * 7 + [4] * 4 + [8]
    assert frame["step"][frame["late"]].tolist() == [5, 6, 9, 10]
    assert (ran.late, ran.held, ran.skipped, ran.steps) == (4, 0, 0, 12)
    assert ran.latencies_s == [2.5 / HZ] * 3
    first = [action for _, action in robot.sent[:7]]
    in_time, quick = run_with(policy, latency_s=0.5 / HZ)
    assert np.array_equal(first[:5], [action for _, action in quick.sent[:5]])
    assert not np.array_equal(first[5], quick.sent[5][1])
    assert in_time.late == 0


def test_where_no_chunk_says_anything_the_last_action_is_held_or_the_one_that_was_said(policy):
    """Asked for at 4, there at 10.5: of steps 8, 9 and 10 the first chunk says nothing."""
    ran, robot = run_with(policy, latency_s=[0.0, 6.5 / HZ, 0.0, 0.0])
    assert ran.frame["step"][ran.frame["held"]].tolist() == [8, 9, 10]
    assert ran.frame["step"][ran.frame["late"]].tolist() == [5, 6, 7, 8, 9, 10]
    actions = [action for _, action in robot.sent]
    assert all(np.array_equal(actions[7], actions[step]) for step in (8, 9, 10))
    assert not np.array_equal(actions[7], actions[6])
    _, still = run_with(policy, latency_s=[0.0, 6.5 / HZ, 0.0, 0.0], rest=[0.0, 0.0])
    assert [still.sent[step][1].tolist() for step in (8, 9, 10)] == [[0.0, 0.0]] * 3


# ------------------------------------------------------------------ when


def test_deadlines_do_not_drift_whatever_a_step_takes(policy):
    rng = np.random.default_rng(0)
    ran, robot = run_with(policy, latency_s=0.05, takes_s=lambda step: rng.uniform(0, 0.99 / HZ), steps=200)
    began = np.array([moment for moment, _ in robot.sent])
    np.testing.assert_allclose(began - began[0], np.arange(200) / HZ, atol=1e-9)
    assert (ran.skipped, ran.late) == (0, 0)
    assert ran.timing.loc["period", "max_ms"] == pytest.approx(1000 / HZ)
    assert ran.timing.loc["environment", "max_ms"] < 1000 / HZ
    assert ran.timing.loc["latency", "count"] == len(ran.latencies_s) == 50


def test_steps_whose_time_has_passed_are_left_out_and_the_others_keep_theirs(policy):
    """Step 5 takes 2.6 periods: step 6 is left out, 7 begins 0.6 of a period late, 8 in time."""
    ran, robot = run_with(policy, latency_s=0.05, takes_s=lambda index: 2.6 / HZ if index == 5 else 0.0, steps=12)
    assert ran.frame["step"].tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    late_by = (ran.frame["began_s"] - ran.frame["deadline_s"]).to_numpy() * HZ
    np.testing.assert_allclose(late_by, [0] * 6 + [0.6] + [0] * 4, atol=1e-9)
    assert (ran.skipped, ran.steps) == (1, 11)
    assert ran.timing.loc["period", "count"] == 9


def test_the_first_chunk_is_waited_for_before_anything_moves(policy):
    ran, robot = run_with(policy, latency_s=[30.0, 0.0, 0.0])
    assert robot.sent[0][0] == pytest.approx(130.0)
    assert ran.late == 0
    assert ran.latencies_s[0] == 30.0


def test_the_delay_is_measured_where_nobody_says_it(policy, policies):
    for latency, delay, steps in ((0.13, 2, 4), (0.39, 4, 4), (0.01, 1, 4)):
        clock = Hands()
        runner = ppt.PolicyRunner(policy, Robot(clock), hz=HZ, clock=clock, sampler=Later(clock, latency))
        assert runner.execution is None
        ran = runner.run(max_steps=20)
        assert runner.execution == ppt.Execution(execute_steps=steps, delay=delay, real_time_chunking=False)
        assert ran.late == 0
    clock = Hands()
    sampler = Later(clock, [9.0, 0.13, 0.15, 0.14])
    flow = ppt.PolicyRunner(policies["flow"], Robot(clock), hz=HZ, clock=clock, sampler=sampler)
    assert flow.measure() == ppt.Execution(execute_steps=4, delay=2, real_time_chunking=True)
    slow = ppt.PolicyRunner(policy, Robot(clock), hz=HZ, clock=clock, sampler=Later(clock, 0.41))
    with pytest.raises(UserError, match="410 ms, which are 5 control steps, and holds 8 actions"):
        slow.run(max_steps=3)


# ------------------------------------------------------------------ how it ends


def test_a_robot_that_knows_no_success_is_said_to_have_none(policy):
    ran, robot = run_with(policy, latency_s=0.0)
    assert (ran.success, ran.total_reward, ran.ended, robot.stopped) == (None, None, "max_steps", 1)
    assert "12 steps at 10 Hz, 0 late (0 of them held), 0 skipped, ended by max_steps" in str(ran)


class Breaks(Robot):
    def step(self, action):
        if len(self.sent) == 3:
            raise ConnectionError("the arm is gone")
        return super().step(action)


class Interrupted(Robot):
    def step(self, action):
        if len(self.sent) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return super().step(action)


@pytest.mark.parametrize(("robot_of", "raised"), [(Breaks, ConnectionError), (Interrupted, Stopped)])
def test_an_exception_or_an_interrupt_stops_the_robot_and_keeps_what_there_is(policy, robot_of, raised):
    clock = Hands()
    robot = robot_of(clock)
    sampler = Later(clock, 0.0)
    runner = ppt.PolicyRunner(policy, robot, hz=HZ, clock=clock, sampler=sampler)
    with pytest.raises(raised):
        runner.run(max_steps=10)
    assert (robot.stopped, sampler.closed, runner.ran.steps) == (1, 1, 3)
    assert runner.ran.ended == raised.__name__


def test_a_robot_that_cannot_stop_is_let_go_of_after_a_failure_and_kept_otherwise(policy):
    class Closes(Breaks):
        stop = property()
        closed = 0

        def close(self):
            self.closed += 1

    robot = Closes(Hands())
    with pytest.raises(ConnectionError):
        ppt.PolicyRunner(policy, robot, hz=HZ, clock=robot.clock, sampler=Later(robot.clock, 0.0)).run(max_steps=10)
    assert robot.closed == 1
    robot = Closes(Hands())
    ppt.PolicyRunner(policy, robot, hz=HZ, clock=robot.clock, sampler=Later(robot.clock, 0.0)).run(max_steps=3)
    assert robot.closed == 0


def test_a_policy_that_fails_in_its_thread_fails_the_run_with_its_own_words(policy):
    robot = Robot(Hands())

    class Fails(ThreadSampler):
        asked = 0

        def ask(self, make):
            self.asked += 1
            super().ask(make if self.asked < 6 else lambda: 1 / 0)

        def answer(self, *, timeout_s=0.0):
            return super().answer(timeout_s=timeout_s or 20.0)

    with pytest.raises(ZeroDivisionError):
        ppt.PolicyRunner(policy, robot, hz=HZ, clock=robot.clock, sampler=Fails(robot.clock)).run(max_steps=30)
    assert robot.stopped == 1


def test_a_policy_that_never_answers_ends_the_run(policy):
    clock = Hands()
    robot = Robot(clock)
    execution = ppt.Execution(execute_steps=4, delay=1, real_time_chunking=False)
    sampler = Later(clock, [0.0, math.inf])
    runner = ppt.PolicyRunner(policy, robot, hz=HZ, execution=execution, clock=clock, sampler=sampler)
    with pytest.raises(UserError, match="has not answered for 0.7 s"):
        runner.run(max_steps=1000, give_up_s=0.5)
    assert robot.stopped == 1
    assert runner.ran.held == 3


MISTAKES = [
    ({"hz": 0}, "above 0"),
    ({"execution": ppt.Execution(delay=0)}, "Set delay=1 or more"),
    ({"execution": ppt.Execution(delay=1)}, "real_time_chunking=false"),
    ({"execution": ppt.Execution(execute_steps=8, delay=2, real_time_chunking=False)}, "a chunk holds 8 actions"),
    ({"domain": "elsewhere"}, "Say which: detour"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[str(options) for options, _ in MISTAKES])
def test_what_cannot_run_is_refused_before_anything_moves(policy, options, says):
    with pytest.raises(UserError, match=says):
        ppt.PolicyRunner(policy, Robot(Hands()), **{"hz": HZ, **options})


def test_an_environment_that_lacks_something_is_refused_before_anything_moves(policy):
    class Blind(Robot):
        def _reading(self):
            return {"obs/position": self.at, "obs/goal": np.ones(3)}

    robot = Blind(Hands())
    with pytest.raises(UserError, match="sees obs/obstacle, which Blind does not give"):
        ppt.PolicyRunner(policy, robot, hz=HZ, clock=robot.clock).run(max_steps=3)
    assert (robot.sent, robot.stopped) == ([], 1)
    with pytest.raises(UserError, match="object has no reset, step"):
        ppt.PolicyRunner(policy, object(), hz=HZ)
    with pytest.raises(UserError, match="rest=.*takes 2 finite numbers"):
        ppt.PolicyRunner(policy, robot, hz=HZ, clock=robot.clock).run(max_steps=3, rest=[0.0])


def test_a_robot_that_can_be_looked_at_is_looked_at_when_a_step_begins(policy):
    class Looked(Robot):
        looks = 0

        def observe(self):
            self.looks += 1
            return self._reading()

    robot = Looked(Hands())
    sampler = Later(robot.clock, 0.0)
    ppt.PolicyRunner(policy, robot, hz=HZ, clock=robot.clock, sampler=sampler).run(max_steps=7)
    assert robot.looks == 6


# ------------------------------------------------------------------ with the machine's own clock


class Sleeps(Robot):
    """As a robot's controller: a step is sent and takes a part of the period."""

    def __init__(self, takes_s):
        from ppt_kit.sim.realtime.clock import WallClock

        super().__init__(WallClock(), takes_s)


def test_a_thread_makes_chunks_while_the_robot_moves(policy):
    """Order and counts alone: how long a busy machine takes is its own affair."""
    robot = Sleeps(0.002)
    execution = ppt.Execution(execute_steps=4, delay=2, real_time_chunking=False)
    sampler = ThreadSampler(latency_s=0.03)
    ran = ppt.PolicyRunner(policy, robot, hz=50, execution=execution, sampler=sampler).run(max_steps=40)
    assert (ran.steps, robot.stopped) == (len(robot.sent), 1)
    assert ran.frame["step"].iloc[-1] + 1 == ran.steps + ran.skipped
    assert min(ran.latencies_s) >= 0.03
    assert (ran.frame["began_s"] >= ran.frame["deadline_s"] - 1e-6).all()
    assert ran.frame["asked"].is_monotonic_increasing
    # none before the two steps that a chunk is given
    assert (ran.frame["step"] - ran.frame["asked"])[ran.frame["asked"] > 0].min() >= 2


@pytest.mark.long
def test_at_twenty_hertz_a_latency_of_a_tenth_of_a_second_costs_few_actions_where_it_is_known(policies):
    known, hurried = (
        ppt.PolicyRunner(
            policies["flow"], Sleeps(0.03), hz=20, sampler=ThreadSampler(latency_s=0.1),
            execution=ppt.Execution(execute_steps=4, delay=delay),
        ).run(max_steps=200)
        for delay in (4, 1)
    )  # fmt: skip
    assert known.late <= 20
    assert hurried.late >= 60
    assert known.frame["began_s"].iloc[-1] == pytest.approx(known.frame["step"].iloc[-1] / 20, abs=0.1)
    assert known.timing.loc["period", "p50_ms"] == pytest.approx(50, abs=5)
    assert known.timing.loc["latency", "p50_ms"] >= 100


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A flow policy that has learned to go round the obstacle, either way, with actions of its delay known."""
    from ppt_kit.train.trainer import UnifiedTrainer

    folder = tmp_path_factory.mktemp("learned")
    ppt.collect("detour", simulator="planar", episodes=50, dataset_path=str(folder))
    words = (
        f"dataset_path={folder}", f"output_dir={folder}/models", "suffix=flow", "policy/head=flow",
        "policy.max_delay=6", "train.total_epochs=12", "wandb.mode=disabled",
    )  # fmt: skip
    run = UnifiedTrainer(ppt.load_config("planar", *words))
    run.run()
    return ppt.load_policy(run.run_dir)


class Recorded(ThreadSampler):
    """Keeps every chunk that was made."""

    def __init__(self, **options):
        super().__init__(**options)
        self.chunks = []

    def ask(self, make):
        def made():
            self.chunks.append(make())
            return self.chunks[-1]

        super().ask(made)


class Paced:
    """The planar task as a robot has it: a step takes a part of the period, and it goes on after a success."""

    def __init__(self, takes_s):
        self.env, self.takes_s = make_env({"simulator": "planar", "task": "detour"}), takes_s
        self.description = "go round"

    def reset(self, seed):
        return self.env.reset(seed)

    def step(self, action):
        time.sleep(self.takes_s)
        reading, _, _ = self.env.step(action)
        return reading, None, None


def seams(policy, *, chunking, seeds, hz=20.0, latency_s=0.12, delay=4):
    """Where one chunk takes over from another: how far they are apart in the steps that the new one was made in, and
    in the first that it executes; and what ran."""
    known, taken, runs = [], [], []
    for seed in seeds:
        sampler = Recorded(latency_s=latency_s)
        execution = ppt.Execution(execute_steps=6, delay=delay, real_time_chunking=chunking)
        runner = ppt.PolicyRunner(policy, Paced(0.01), hz=hz, sampler=sampler, execution=execution)
        ran = runner.run(max_steps=80, seed=seed)
        asked = list(dict.fromkeys(ran.frame["asked"]))
        chunks = dict(zip(asked, sampler.chunks))
        for before, after in zip(asked, asked[1:]):
            step = int(ran.frame["step"][ran.frame["asked"] == after].iloc[0])
            if step - before < TAKEN:
                steps = [*range(after, after + delay), step]
                gaps = [np.linalg.norm(chunks[after][at - after] - chunks[before][at - before]) for at in steps]
                known += gaps[:-1]
                taken.append(gaps[-1])
        runs.append(ran)
    return np.array(known), np.array(taken), runs


# actions of a chunk of the planar configuration
TAKEN = 16


@pytest.mark.long
def test_on_the_wall_clock_the_period_is_kept_late_actions_are_counted_and_a_chunk_goes_on_without_a_jump(learned):
    """20 Hz, a step that sleeps, chunks that take 0.12 s more: bounds that a loaded machine keeps, and a fault breaks."""
    known, smooth, runs = seams(learned, chunking=True, seeds=range(6))
    unknown, torn, _ = seams(learned, chunking=False, seeds=range(6))
    print(f"jump {smooth.mean():.3f} with real-time chunking, {torn.mean():.3f} without (actions are at most 1 long)")
    assert len(smooth) > 15
    # what runs meanwhile is what the new chunk begins with
    assert known.max() < 1e-4 < 0.05 < unknown.mean()
    # to go or to wait is a jump that the demonstrations have
    assert smooth.mean() < 0.8 * torn.mean()
    frame = pd.concat([ran.frame.assign(run=number) for number, ran in enumerate(runs)])
    lateness = 1000 * (frame["began_s"] - frame["deadline_s"])
    print(f"a step begins {lateness.median():.2f} ms late (median), {lateness.quantile(0.95):.2f} ms (95 %)")
    # no drift: the last step of each run is at its time as the first is
    assert lateness.min() >= -1e-3
    assert lateness.median() < 5
    assert lateness.quantile(0.9) < 25
    for ran in runs:
        late = ran.frame["step"] - ran.frame["asked"]
        # by hand: an action is late once the chunk asked for 6 steps after the one executed is 4 steps old
        assert ran.late == sum(late >= 6 + 4)
        assert ran.steps + ran.skipped == 80
    # it takes three steps and is given four
    assert sum(ran.late for ran in runs) < 0.25 * len(frame)
    assert min(min(ran.latencies_s) for ran in runs) >= 0.12
    _, _, hurried = seams(learned, chunking=True, seeds=range(2), delay=1)
    assert sum(ran.late for ran in hurried) > 0.25 * sum(ran.steps for ran in hurried)
