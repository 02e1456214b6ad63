"""A policy at a fixed rate: each control step at its own time, the next chunk sampled meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np

from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.actor import Frame, Moment, check_execution, next_chunks, window_of
from ppt_kit.models.chunks import Execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.signals import stops_raise
from ppt_kit.sim.env import copied, is_over
from ppt_kit.sim.episodes import check_reading
from ppt_kit.sim.realtime.clock import Clock, WallClock
from ppt_kit.sim.realtime.env import Env, brought_to_rest, check_env, observed
from ppt_kit.sim.realtime.sampling import Answer, Sampler, ThreadSampler
from ppt_kit.sim.realtime.timeline import Timeline
from ppt_kit.sim.realtime.timing import Ran, Tick
from ppt_kit.sim.rollout import seen_of

# chunks that are made before a run to measure how long one takes; the first, which warms up, does not count
MEASURED = 4
# of the first chunk, which is waited for: weights are moved, kernels chosen (s)
FIRST_S = 120.0


class PolicyRunner:
    """Acts in an environment at `hz`, whatever the policy takes to think.

    Control step k begins at k / hz after the first, by deadlines that do not drift: what is read then, the action that
    the present chunk has for that step, `env.step`. The next chunk is sampled in a thread and taken over `delay` steps
    after it was asked for; a head that can makes it begin with the actions that run meanwhile. A chunk that is late is
    taken over when it comes: until then the one before goes on, and where that has nothing more, the last action (or
    `rest`) is held. A step that takes longer than its period moves no later one: those whose time has passed are left
    out.

    However a run ends, `env.stop()` is called, where there is one; it is not closed, but for a robot without `stop`
    after an exception.

    Args:
        policy: from `load_policy`.
        env: a robot, or a simulator: see ppt_kit.Env.
        hz: control steps a second; the demonstrations' own.
        domain: whose stems and heads to use; None = the policy's only one.
        sentence: what the policy is told; None = env.description.
        execution: how chunks are executed; its delay is at least 1. None = `measure` says.
        clock: None = the machine's own.
        sampler: where chunks are made; None = in a thread. ThreadSampler(latency_s=0.2) tries out a slower machine.
    Attributes:
        ran: what there is of the last run, also of one that was interrupted.
    Raises:
        UserError: the policy cannot act so, or the environment lacks something.
    """

    def __init__(
        self,
        policy: PPTPolicy,
        env: Env,
        *,
        hz: float,
        domain: str | None = None,
        sentence: str | None = None,
        execution: Execution | None = None,
        clock: Clock | None = None,
        sampler: Sampler | None = None,
    ):
        check_env(env)
        if not 0 < hz <= 10_000:
            raise UserError(f"hz={hz}: takes control steps a second, above 0 and at most 10000.")
        self.policy, self.env, self.hz = policy, env, float(hz)
        self.domain = _domain(policy, domain)
        self.view = View.from_plain(policy.card["views"][self.domain])
        self.sentence, self.clock = sentence, clock or WallClock()
        self.sampler = sampler or ThreadSampler(self.clock)
        self._execution = execution
        if execution is not None:
            _check(policy, execution)
        self.ran = Ran(self.hz)

    @property
    def execution(self) -> Execution | None:
        """How chunks are executed; None = not measured yet."""
        return self._execution

    def run(
        self,
        *,
        max_steps: int | None = None,
        seed: int = 0,
        stop_at_success: bool = True,
        rest: np.ndarray | None = None,
        give_up_s: float = 2.0,
    ) -> Ran:
        """Acts until the task is done, max_steps are over, or somebody interrupts.

        Args:
            max_steps: None = the environment's, where it has one; else there is no end but an interrupt.
            seed: for env.reset, and of the noise of heads that draw some.
            stop_at_success: False = go on after a success.
            rest: (Da,) what is executed where no chunk says anything, e.g. zeros for velocities; None = the last
                action.
            give_up_s: an answer that is longer than this overdue ends the run by an error (s).
        Raises:
            Stopped: a stop signal, or a notebook's interrupt, came; `ran` has what there is.
            UserError: the readings lack what the policy sees, or the policy did not answer.
            Exception: what the environment or the policy raised.
        """
        self.ran, steps = Ran(self.hz), max_steps if max_steps is not None else getattr(self.env, "max_steps", None)
        if steps is not None and steps < 1:
            raise UserError(f"max_steps={steps}: takes a whole number above 0, or None.")
        held = _rest(rest, self.policy.specs[self.domain].action_dim)
        with self._brought_to_rest(self.ran), closing(self.sampler):
            reading = self._checked(self.env.reset(seed))
            if self._execution is None:
                self._execution = self._measured(reading)
            going = _Going(self, reading, seed=seed, rest=held, give_up_s=give_up_s)
            going.go(steps, stop_at_success=stop_at_success)
        return self.ran

    def measure(self, *, seed: int = 0) -> Execution:
        """Resets the environment, samples a few chunks, and says which delay they need; runs nothing.

        Raises:
            UserError: a chunk does not hold the actions of the time that one takes.
        """
        with self._brought_to_rest(Ran(self.hz)), closing(self.sampler):
            return self._measured(self._checked(self.env.reset(seed)))

    def frame(self, reading: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """obs of one frame, as the training data's were."""
        return seen_of(self.view, self.env, reading, self.sentence)

    def _measured(self, reading: Mapping[str, np.ndarray]) -> Execution:
        horizon, latencies = self.policy.horizon, []
        inpaints = self.policy.conditioning.inpaints
        for step in range(MEASURED):
            window = window_of([self.frame(reading)], horizon.observation)
            self.sampler.ask(partial(_made, self.policy, self.domain, Moment(window, 0, step), None))
            latencies.append(self.waited().latency_s)
        slowest = max(latencies[1:])
        # an answer is taken up at the next control step
        delay, held = max(1, math.ceil(slowest * self.hz)), horizon.action - horizon.now
        if 2 * delay > held:
            raise UserError(
                f"hz={self.hz:g}: a chunk takes {slowest * 1000:.0f} ms, which are {delay} control steps, and holds "
                f"{held} actions: it must hold twice as many. Set hz lower, num_steps of the execution lower, or train "
                "with a higher dataset.action_horizon."
            )
        steps = min(max(delay, Execution().execute_steps), held - delay)
        return Execution(execute_steps=steps, delay=delay, real_time_chunking=inpaints)

    def waited(self) -> Answer:
        """The chunk that was asked for before anything moves.

        Raises:
            UserError: it does not come.
        """
        answer = self.sampler.answer(timeout_s=FIRST_S)
        if answer is None:
            raise UserError(f"the policy made no chunk within {FIRST_S:g} s. Nothing was executed.")
        return answer

    def _checked(self, reading: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The first readings, once they have what the policy sees."""
        given = copied(reading)
        check_reading(
            self.view, given, self.env, sentence=self.sentence, domain=self.domain, source=type(self.env).__name__,
            remedy="Name its readings as the data's columns are, and give them in the data's sizes.",
        )  # fmt: skip
        return given

    @contextmanager
    def _brought_to_rest(self, ran: Ran) -> Iterator[None]:
        with stops_raise():
            failed = True
            try:
                yield
                failed = False
            except BaseException as error:
                ran.ended = type(error).__name__
                raise
            finally:
                brought_to_rest(self.env, failed=failed)


class _Going:
    """One run, from its first chunk to its last step."""

    def __init__(
        self, runner: PolicyRunner, reading: Mapping[str, Any], *, seed: int, rest: np.ndarray | None, give_up_s: float
    ):
        assert runner.execution is not None
        policy, self.execution = runner.policy, runner.execution
        self.runner, self.seed, self.give_up_s, self.ran = runner, seed, give_up_s, runner.ran
        self.frames: deque[Frame] = deque([runner.frame(reading)], maxlen=policy.horizon.observation)
        history = policy.conditioning.history
        self.timeline = Timeline(policy.horizon, self.execution, rest=rest, history=history)
        self.reading, self.clock, self.period = reading, runner.clock, 1.0 / runner.hz
        self.asked_at = self.clock.now()

    def go(self, max_steps: int | None, *, stop_at_success: bool) -> None:
        self._ask(0)
        self._take(self.runner.waited(), 0)
        self.start, step = self.clock.now(), 0
        while max_steps is None or step < max_steps:
            tick = self._tick(step)
            self.ran.ticks.append(tick)
            if tick.success and stop_at_success:
                self.ran.ended = "success"
                return
            if is_over(self.runner.env):
                self.ran.ended = "the environment"
                return
            step = self._next(step)
        self.ran.ended = "max_steps"

    def _tick(self, step: int) -> Tick:
        """One control step at its time."""
        self.clock.sleep_until(self.start + step * self.period)
        began = self.clock.now()
        if step:
            self.frames.append(self.runner.frame(observed(self.runner.env, self.reading)))
            self._listen(step)
            if self.timeline.is_due(step):
                self._ask(step)
        due = self.timeline.pop(step)
        sent = self.clock.now()
        self.reading, reward, success = self.runner.env.step(due.action)
        return Tick(
            step=step, deadline_s=step * self.period, began_s=began - self.start, sent_s=sent - self.start,
            ended_s=self.clock.now() - self.start, asked=due.asked, late=due.late, held=due.held,
            reward=None if reward is None else float(reward), success=None if success is None else bool(success),
        )  # fmt: skip

    def _next(self, step: int) -> int:
        """The next control step whose time has not passed; the one that is going on counts as none that has."""
        now = int((self.clock.now() - self.start) / self.period)
        following = max(step + 1, now)
        skipped = following - step - 1
        if skipped:
            self.frames.extend([self.frames[-1]] * min(skipped, len(self.frames)))
            self.timeline.skip(skipped)
        return following

    def _ask(self, step: int) -> None:
        policy, domain = self.runner.policy, self.runner.domain
        known = self.timeline.known(step, policy.specs[domain].action_dim)
        moment = Moment(window_of(self.frames, policy.horizon.observation), self.seed, step, known)
        self.timeline.ask(step)
        self.asked_at = self.clock.now()
        self.runner.sampler.ask(partial(_made, policy, domain, moment, self.execution.num_steps))

    def _listen(self, step: int) -> None:
        if not self.timeline.is_waiting:
            return
        answer = self.runner.sampler.answer()
        if answer is not None:
            self._take(answer, step)
            return
        waited = self.clock.now() - self.asked_at
        if waited > self.give_up_s + self.execution.delay * self.period:
            raise UserError(
                f"the policy has not answered for {waited:.1f} s (step {step}): the run was stopped. "
                "give_up_s is how long an answer may be overdue."
            )

    def _take(self, answer: Answer, step: int) -> None:
        self.ran.latencies_s.append(answer.latency_s)
        self.timeline.add(answer.chunk, step=step)


def _made(policy: PPTPolicy, domain: str, moment: Moment, num_steps: int | None) -> np.ndarray:
    """(Ta, Da) one chunk."""
    return next_chunks(policy, domain, [moment], num_steps=num_steps)[0]


def _domain(policy: PPTPolicy, domain: str | None) -> str:
    if domain is None and len(policy.domains) == 1:
        return policy.domains[0]
    if domain not in policy.domains:
        said = "knows several" if domain is None else f"has no {domain}"
        raise UserError(f"domain={domain}: this policy {said}. Say which: {', '.join(policy.domains)}.")
    return domain


def _check(policy: PPTPolicy, execution: Execution) -> None:
    if execution.temporal_ensembling or execution.delay < 1:
        raise UserError(
            f"execution={execution}: in real time a chunk is made while the one before runs, and takes one control "
            "step at least. Set delay=1 or more, and temporal_ensembling=False; or leave execution out: it is measured."
        )
    check_execution(policy, execution)


def _rest(rest: Any, action_dim: int) -> np.ndarray | None:
    if rest is None:
        return None
    action = np.array(rest, np.float64)
    if action.shape != (action_dim,) or not np.isfinite(action).all():
        raise UserError(f"rest={rest}: takes {action_dim} finite numbers, as an action is.")
    return action
