"""From chunks to actions: what is executed is what was supervised, whatever the way of executing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from conftest import SMALL_WORDS, dataset_of, latest

import ppt_kit as ppt
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import CloudStemConfig, HeadConfig, PolicyConfig, StemsConfig
from ppt_kit.models.chunks import ChunkExecutor, Execution
from ppt_kit.models.conditioning import Conditioning
from ppt_kit.models.heads import NOTHING, Head
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.randomness import normal
from ppt_kit.spec import Spec

LENGTHS = (23, 17, 9)
STATS = {
    "state": {"offset": [1.0, 10.0], "scale": [0.5, 0.1]},
    "action": {"offset": [3.0, -50.0], "scale": [0.25, 0.01]},
}


class Recall(Head):
    """Remembers each window it was trained on and says its target again; `asked` is what it was given in acting."""

    takes_given = inpaints = samples = True

    def __init__(self, sizes):
        super().__init__()
        self.seen, self.targets, self.asked = [], [], []

    def loss(self, tokens, target, seeds, given=NOTHING):
        self.seen.append(tokens.flatten(1).detach())
        self.targets.append(target)
        self.given = given
        return torch.ones(target.shape[:2]) + 0 * tokens.sum()

    def act(self, tokens, seeds, given=NOTHING):
        nearest = torch.cdist(tokens.flatten(1), torch.cat(self.seen)).argmin(1)
        target = torch.cat(self.targets)[nearest]
        self.asked.append((given, target, seeds))
        return target


class Noise(Head):
    """Actions of the seeds and the tokens, so that each environment's are its own."""

    def __init__(self, sizes):
        super().__init__()
        self.shape, self.out = (sizes.horizon.action, 2), torch.nn.Linear(sizes.width, 2)
        self.sizes_asked = []

    def act(self, tokens, seeds):
        self.sizes_asked.append(len(tokens))
        return normal(seeds, self.shape, stream="test") + self.out(tokens.mean(1))[:, None]


def policy_of(head, horizon, **options):
    """A policy that sees a state of two numbers and has two actions."""
    asked = PolicyConfig(
        width=32, depth=1, num_heads=2, head=HeadConfig(kind=f"{__name__}:{head}"),
        stems=StemsConfig(pointcloud=CloudStemConfig(kind=None)), **options,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = PPTPolicy({"ramp": Spec(state={"at": 2}, action={"actions": 2})}, asked, horizon=horizon)
    policy.set_normalizer({"ramp": STATS})
    return policy.eval()


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """Three episodes whose action at step t of episode e is (t, -100 e - t), and whose state is (e, t)."""
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    folder = tmp_path_factory.mktemp("ramp")
    with ZarrWriter(folder / "ramp.zarr") as writer:
        for episode, length in enumerate(LENGTHS):
            t = np.arange(length, dtype=np.float32)
            at = np.stack([np.full_like(t, episode), t], 1)
            writer.append({"obs/at": at, "actions": np.stack([t, -100 * episode - t], 1)})
    return folder


def remembering(ramp, horizon, **options):
    """A policy that has memorised every window of the ramp."""
    data = dataset_of(
        ramp, "ramp", state_keys=["at"], observation_horizon=horizon.observation, action_horizon=horizon.action,
        hist_action_cond=horizon.hist, modalities=["state"],
    )  # fmt: skip
    policy = policy_of("Recall", horizon, **options)
    policy(data.__getitems__(np.arange(len(data))))
    return policy


def frame_of(episode, t):
    return {"state": np.array([episode, t], np.float32)}


WAYS = [
    *(Execution(execute_steps=n) for n in (1, 3, 6)),
    Execution(temporal_ensembling=True),
    *(Execution(execute_steps=n, delay=d, real_time_chunking=rtc) for n, d in ((2, 1), (3, 3), (4, 2)) for rtc in (True, False)),
]  # fmt: skip
HORIZONS = [Horizon(1, 6), Horizon(3, 6), Horizon(1, 6, hist=True), Horizon(3, 8, hist=True)]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("horizon", HORIZONS, ids=str)
def test_the_action_of_step_t_is_the_one_recorded_at_step_t(ramp, horizon, way):
    """Three environments, whose episodes end at other times and begin anew; what a chunk is given is true as well."""
    for history in ("none", "inpaint") if horizon.now else ("none",):
        policy = remembering(ramp, horizon, history=history)
        actor = ppt.Actor(policy, num_envs=3, execution=way)
        at = [0, 0, 0]
        for _ in range(max(LENGTHS)):
            actions = actor.act([frame_of(episode, t) for episode, t in enumerate(at)])
            want = [(t, -100 * episode - t) for episode, t in enumerate(at)]
            np.testing.assert_allclose(actions, want, atol=2e-4)
            for episode, length in enumerate(LENGTHS):
                at[episode] = (at[episode] + 1) % length
                if at[episode] == 0:
                    actor.reset(episode)
        check_given(policy.heads["ramp"].asked, horizon, way, history=history)


def check_given(asked, horizon, way, *, history):
    """What chunks were given is what was, and what will be, executed; and it was given wherever there was something."""
    ahead = way.delay if way.real_time_chunking else 0
    if history == "none" and not ahead:
        assert all(given.known is None for given, *_ in asked)
        return
    numbers = set()
    for given, target, _ in asked:
        assert torch.allclose(given.actions[given.known], target[given.known], atol=1e-5)
        numbers |= set(given.known.sum(1).tolist())
    # at an episode's first step nothing is known
    assert min(numbers) == 0
    assert max(numbers) == ahead + (horizon.now if history == "inpaint" else 0)


def test_a_chunk_that_takes_two_steps_is_executed_two_steps_later():
    executor = ChunkExecutor(Horizon(1, 7), Execution(execute_steps=4, delay=2))
    executed, known = [], []
    for step in range(14):
        if executor.is_due:
            known.append(executor.known(2))
            executor.add(np.stack([[step, i] for i in range(7)]).astype(np.float32))
        executed.append(tuple(executor.pop()))
    first, second, third = (
        [(asked, i) for i in places] for asked, places in ((0, range(6)), (4, range(2, 6)), (8, range(2, 6)))
    )
    assert executed == [*first, *second, *third]
    assert [np.isnan(each).all(1).sum() for each in known] == [7, 5, 5, 5]
    assert [each[:2].tolist() for each in known[1:3]] == [[[0, 4], [0, 5]], [[4, 4], [4, 5]]]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (Execution(execute_steps=7), "holds 6 actions"),
        (Execution(execute_steps=5, delay=2), "Set execute_steps to at most 4"),
        (Execution(execute_steps=1, delay=2), "execute_steps to at least delay"),
        (Execution(temporal_ensembling=True, delay=1), "temporal_ensembling=false, or delay=0"),
    ],
    ids=str,
)
def test_what_a_chunk_does_not_hold_is_refused(ramp, way, said):
    with pytest.raises(UserError, match=said):
        ppt.Actor(policy_of("Recall", Horizon(2, 6)), execution=way)


def test_a_head_that_cannot_be_given_actions_runs_ahead_only_when_told_so():
    policy = policy_of("Noise", Horizon(2, 6))
    with pytest.raises(UserError, match="real_time_chunking=false"):
        ppt.Actor(policy, execution=Execution(delay=1))
    with pytest.raises(UserError, match="Noise has no sampling steps"):
        ppt.Actor(policy, execution=Execution(num_steps=4))
    assert ppt.Actor(policy, execution=Execution(delay=1, real_time_chunking=False)).num_envs == 1


# ------------------------------------------------------------------ many environments


def play(actor, states, *, resets):
    """(T, N, 2) actions of `states` (T, N, 2); before step t the environments in resets[t] begin anew."""
    executed = []
    for step, now in enumerate(states):
        for env in resets.get(step, ()):
            actor.reset(env)
        executed.append(actor.act({"state": now}))
    return np.stack(executed)


@pytest.mark.parametrize("way", [Execution(3), Execution(temporal_ensembling=True)], ids=str)
def test_an_environment_among_others_is_told_what_it_is_told_alone(way):
    policy, resets = policy_of("Noise", Horizon(2, 6)), {4: (1,), 6: (0, 2), 7: (1,)}
    states = np.random.default_rng(0).normal(size=(12, 3, 2)).astype(np.float32)
    many = ppt.Actor(policy, num_envs=3, execution=way)
    many.reset(seed=[7, 8, 9])
    together = play(many, states, resets=resets)
    for env, seed in enumerate((7, 8, 9)):
        one = ppt.Actor(policy, execution=way)
        one.reset(seed=seed)
        own = {step: (0,) for step, those in resets.items() if env in those}
        alone = play(one, states[:, [env]], resets=own)
        np.testing.assert_allclose(together[:, env], alone[:, 0], rtol=1e-5, atol=1e-3)
        one.reset(0, seed=seed)
        assert np.array_equal(alone, play(one, states[:, [env]], resets=own))
    assert np.abs(together[:, 0] - together[:, 1]).min() > 1e-3


def test_those_that_need_a_chunk_are_asked_together():
    policy = policy_of("Noise", Horizon(2, 6))
    actor = ppt.Actor(policy, num_envs=4, execution=Execution(execute_steps=3))
    play(actor, np.zeros((7, 4, 2), np.float32), resets={1: (2,), 5: (0, 3)})
    assert policy.heads["ramp"].sizes_asked == [4, 1, 3, 1, 2, 1]


def test_an_environment_at_rest_is_not_asked_and_its_clock_stands(ramp):
    actor = ppt.Actor(remembering(ramp, Horizon(2, 6)), num_envs=2, execution=Execution(execute_steps=4))
    at, moves = 0, (True, True, False, True, False, False, True, True, True)
    for step, moving in enumerate(moves):
        actions = actor.act([frame_of(0, step), frame_of(1, at) if moving else None])
        assert actions[0, 0] == pytest.approx(step, abs=1e-4)
        assert np.isnan(actions[1]).all() if not moving else actions[1, 0] == pytest.approx(at, abs=1e-4)
        at += moving


def test_what_does_not_fit_the_environments_is_refused():
    actor = ppt.Actor(policy_of("Noise", Horizon(2, 6)), num_envs=2)
    with pytest.raises(ValueError, match="3 frames for 2 environments"):
        actor.act([frame_of(0, 0)] * 3)
    with pytest.raises(ValueError, match="counted from 0"):
        actor.reset(2)
    with pytest.raises(ValueError, match="3 numbers for 2"):
        actor.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="num_envs=0"):
        ppt.Actor(actor.policy, num_envs=0)
    with pytest.raises(ValueError, match="knows ramp"):
        ppt.Actor(actor.policy, domain="slope")


# ------------------------------------------------------------------ what training is given


def trained_on(ramp, horizon, **options):
    """(what the head was given for every window, its padding, the loss of a head that says 1 of each action)."""
    policy = remembering(ramp, horizon, **options)
    data = dataset_of(
        ramp, "ramp", state_keys=["at"], observation_horizon=horizon.observation, action_horizon=horizon.action,
        hist_action_cond=horizon.hist, modalities=["state"],
    )  # fmt: skip
    batch = data.__getitems__(np.arange(len(data)))
    loss = policy(batch)["loss"].item()
    return policy.heads["ramp"].given, batch["action_is_pad"], loss


def test_past_actions_are_given_in_training_and_enter_no_loss(ramp):
    given, is_pad, loss = trained_on(ramp, Horizon(3, 8, hist=True), history="inpaint")
    want = ~is_pad & (torch.arange(8) < 2)
    assert torch.equal(given.known, want)
    assert 0 < want.sum() < want[:, :2].numel()
    assert torch.equal(given.counts.all(-1), ~is_pad & ~want)
    assert loss == pytest.approx((~is_pad & ~want).float().mean().item())


def test_without_being_asked_nothing_is_given(ramp):
    given, is_pad, loss = trained_on(ramp, Horizon(3, 8, hist=True))
    assert given.known is None
    assert loss == pytest.approx((~is_pad).float().mean().item())


def test_prefixes_of_every_length_are_given_alike(ramp):
    horizon, is_pad = Horizon(2, 8, hist=True), torch.zeros(4000, 8, dtype=torch.bool)
    known = Conditioning(horizon, max_delay=3).known(is_pad, torch.arange(4000))
    lengths = known.sum(1)
    # from now on, without a hole
    assert torch.equal(known, (torch.arange(8) >= 1) & (torch.arange(8) < 1 + lengths[:, None]))
    share = torch.bincount(lengths, minlength=4) / 4000
    assert share == pytest.approx(torch.full((4,), 0.25), abs=0.04)
    both = Conditioning(horizon, history=True, max_delay=3).known(is_pad, torch.arange(4000))
    assert torch.equal(both, known | (torch.arange(8) < 1))
    padded = Conditioning(horizon, max_delay=3).known(~is_pad, torch.arange(4000))
    assert not padded.any()


@pytest.mark.parametrize(
    ("head", "horizon", "options", "said"),
    [
        ("Recall", Horizon(3, 8), {"history": "inpaint"}, "hist_action_cond=true"),
        ("Recall", Horizon(1, 8, hist=True), {"history": "inpaint"}, "observation_horizon to at least 2"),
        ("Recall", Horizon(3, 8, hist=True), {"max_delay": 6}, "at most 5"),
        ("Noise", Horizon(3, 8, hist=True), {"history": "inpaint"}, "Noise cannot be given actions"),
        ("Noise", Horizon(3, 8), {"max_delay": 2}, "policy.max_delay=0"),
    ],
    ids=str,
)
def test_what_cannot_be_given_is_refused_when_the_policy_is_made(head, horizon, options, said):
    with pytest.raises(UserError, match=said):
        policy_of(head, horizon, **options)


def test_the_heads_that_are_recommended_are_those_that_can():
    from ppt_kit.models.conditioning import INPAINTING
    from ppt_kit.models.heads import HEADS
    from ppt_kit.parts import find_part

    assert {name for name in HEADS if find_part(name, HEADS, option="").inpaints} == set(INPAINTING.split(", "))


# ------------------------------------------------------------------ evaluations


def planar_policy(folder, *words):
    """A policy of the planar task that has seen little."""
    ppt.collect("detour", simulator="planar", episodes=2, dataset_path=str(folder))
    fixed = latest(
        *SMALL_WORDS, f"dataset_path={folder}", f"output_dir={folder / 'models'}", "suffix=run", "train.total_iters=2",
        "dataset.val_ratio=0", "train.val_interval=0", *words,
    )  # fmt: skip
    run = ppt.UnifiedTrainer(load_config("planar", *fixed))
    run.run()
    return ppt.load_policy(run.run_dir)


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return planar_policy(tmp_path_factory.mktemp("planar"))


def test_rows_say_how_chunks_were_executed_and_as_before_where_nothing_is_asked(little, tmp_path):
    asked = {"episodes": 2, "max_steps": 9, "out_dir": tmp_path}
    plain = ppt.evaluate(little, **asked).rows
    late = ppt.evaluate(little, delay=2, real_time_chunking=False, **asked).rows
    assert plain[0]["options"].startswith("execute_steps=4 max_steps=9 simulator=")
    assert late[0]["options"].startswith("execute_steps=4 delay=2 real_time_chunking=false max_steps=9 simulator=")
    assert [a["actions_sha256"] == b["actions_sha256"] for a, b in zip(plain, late)] == [False, False]
    assert ppt.evaluate(little, delay=2, real_time_chunking=False, **asked).rows == late
    with pytest.raises(UserError, match="real_time_chunking=false"):
        ppt.evaluate(little, delay=2, **asked)
    with pytest.raises(UserError, match="no sampling steps"):
        ppt.evaluate(little, num_steps=3, **asked)


def test_a_delay_that_training_did_not_prepare_for_is_told(ramp, caplog, little):
    from ppt_kit.sim.evaluate import EvaluateOptions, check_evaluation

    able = Conditioning(little.horizon, max_delay=1, inpaints=True)
    for delay, told in ((1, False), (2, True)):
        caplog.clear()
        little.conditioning, before = able, little.conditioning
        with caplog.at_level(logging.WARNING):
            check_evaluation(little, EvaluateOptions(delay=delay))
        little.conditioning = before
        assert ("without training for it" in caplog.text) == told


def test_a_flow_head_is_trained_and_evaluated_with_what_was_and_what_will_be_executed(tmp_path, caplog):
    policy = planar_policy(
        tmp_path, "policy/head=flow", "policy.head.options={network: transformer, num_layers: 1}", "dataset.hist_action_cond=true",
        "policy.history=inpaint", "policy.max_delay=2",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        rows = ppt.evaluate(policy, episodes=2, max_steps=12, delay=2, num_steps=2).untimed
    assert [row["error"] for row in rows] == [None, None]
    assert rows[0]["options"].startswith("execute_steps=4 delay=2 num_steps=2 max_steps=12 ")
    assert "without training for it" not in caplog.text
    again, other = (ppt.evaluate(policy, episodes=2, max_steps=12, delay=2, num_steps=n).untimed for n in (2, 3))
    assert again == rows
    assert other[0]["actions_sha256"] != rows[0]["actions_sha256"]
