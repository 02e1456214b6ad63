"""The policy's parts against plain arithmetic, and the ancestor's defects that must not come back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ppt_kit import randomness
from ppt_kit.horizon import Horizon
from ppt_kit.models.chunks import ChunkExecutor, Execution
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.pretrained import take_parts
from ppt_kit.randomness import dropout, normal, sample_seeds, uniform
from ppt_kit.schema import PolicyConfig
from ppt_kit.spec import Spec


def spec_of(state, action):
    return Spec(state={"joints": state}, action={"actions": action}, points=10, channels=3)


SPECS = {"a": spec_of(4, 4), "wide": spec_of(6, 7)}
SMALL = {"width": 32, "depth": 2, "num_heads": 2}


def policy_of(specs=SPECS, **options) -> PPTPolicy:
    torch.manual_seed(0)
    return PPTPolicy(specs, PolicyConfig(**{**SMALL, **options}))


def batch_of(domains, *, seed=0, points=10):
    g = torch.Generator().manual_seed(seed)
    size = len(domains)
    return {
        "obs": {
            "state": torch.randn(size, 2, 6, generator=g),
            "pointcloud": torch.randn(size, 2, points, 3, generator=g),
        },
        "action": torch.randn(size, 8, 7, generator=g),
        "action_is_pad": torch.rand(size, 8, generator=g) < 0.3,
        "domain": torch.tensor(domains),
        "noise_seed": torch.randint(0, 2**40, (size,), generator=g),
    }


def test_every_parameter_is_registered_and_gets_a_gradient():
    """The ancestor kept its decoder's layers in a Python list: 903 of 299,655 parameters were trained."""
    policy = policy_of()
    policy(batch_of([0, 1, 0, 1]))["loss"].backward()
    without = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a key's gradient is zero where all attended tokens are the same, so give every name that stays at zero
    assert without == []


def test_padded_actions_change_nothing():
    policy, batch = policy_of(), batch_of([0, 1, 1])
    before = policy(batch)["loss"]
    batch["action"][batch["action_is_pad"]] = 1e6
    assert torch.equal(before, policy(batch)["loss"])


def test_the_loss_is_the_mean_over_windows_of_any_mixture():
    """The sum over domains of one batch = the mean of the windows' own losses: the ranks' mean is the whole batch's."""
    policy = policy_of()
    batch = batch_of([0, 1, 0, 1, 1])
    alone = [policy({**rows_of(batch, [i])})["loss"] for i in range(5)]
    assert policy(batch)["loss"].item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


def rows_of(batch, rows):
    return {
        name: {part: value[rows] for part, value in entry.items()} if isinstance(entry, dict) else entry[rows]
        for name, entry in batch.items()
    }


def test_a_weight_of_zero_takes_a_window_out():
    policy, batch = policy_of(), batch_of([0, 0, 1, 1])
    weighted = policy({**batch, "weight": torch.tensor([2.0, 0.0, 2.0, 0.0])})["loss"]
    assert weighted.item() == pytest.approx(policy(rows_of(batch, [0, 2]))["loss"].item(), rel=1e-5)


def test_a_blank_batch_has_no_loss_and_no_gradient_whatever_it_was_made_from():
    policy, batch = policy_of(), batch_of([0, 1, 1])
    batch["obs"]["pointcloud"][1] = torch.inf
    loss = policy(policy.blank(batch))["loss"]
    loss.backward()
    assert loss == 0
    assert not any(p.grad is not None and p.grad.any() for p in policy.parameters())


def test_a_domain_that_is_not_in_the_batch_still_takes_part():
    policy = policy_of()
    policy(batch_of([0, 0]))["loss"].backward()
    unused = [p for name, p in policy.named_parameters() if ".wide." in name]
    assert unused
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in unused)


def test_actions_come_in_the_datasets_units():
    policy = policy_of({"a": SPECS["a"]})
    obs = {"state": torch.randn(3, 2, 4), "pointcloud": torch.randn(3, 2, 10, 3)}
    plain = policy.act(obs)
    policy.set_normalizer(
        {"a": {"state": {"offset": [0.0] * 4, "scale": [1.0] * 4}, "action": {"offset": [5.0] * 4, "scale": [0.5] * 4}}}
    )
    assert torch.allclose(policy.act(obs), plain / 0.5 + 5)
    assert plain.shape == (3, 8, 4)


def test_the_normaliser_survives_a_cast_to_bfloat16_exactly():
    policy = policy_of({"a": SPECS["a"]})
    stats = {"offset": [0.123456789] * 4, "scale": [1.000001] * 4}
    policy.set_normalizer({"a": {"state": stats, "action": stats}})
    policy.bfloat16()
    assert policy.state_norm["a"].offset.dtype == torch.float32
    assert policy.state_norm["a"].offset[0].item() == pytest.approx(0.123456789, rel=1e-6)
    assert (
        policy(
            rows_of(
                {
                    **batch_of([0, 0]),
                    "obs": {"state": torch.randn(2, 2, 4), "pointcloud": torch.randn(2, 2, 9, 3)},
                    "action": torch.randn(2, 8, 4),
                },
                [0, 1],
            )
        )["loss"].dtype
        == torch.float32
    )


def test_statistics_of_the_wrong_size_are_refused():
    with pytest.raises(ValueError, match="a.action needs 4 numbers"):
        policy_of({"a": SPECS["a"]}).set_normalizer(
            {"a": {"state": {"offset": [0] * 4, "scale": [1] * 4}, "action": {"offset": [0] * 8, "scale": [1] * 8}}}
        )


def test_asking_for_an_unknown_domain_or_horizon_says_what_is_known():
    policy = policy_of()
    obs = {"state": torch.zeros(1, 2, 4), "pointcloud": torch.zeros(1, 2, 5, 3)}
    with pytest.raises(ValueError, match="knows a, wide"):
        policy.act(obs, "b")
    with pytest.raises(ValueError, match="observation_horizon=2"):
        policy.act({"state": torch.zeros(1, 3, 4), "pointcloud": torch.zeros(1, 3, 5, 3)}, "a")


def test_the_order_of_points_does_not_matter():
    policy = policy_of({"a": SPECS["a"]}).eval()
    obs = {"state": torch.randn(1, 2, 4), "pointcloud": torch.randn(1, 2, 30, 3)}
    shuffled = {**obs, "pointcloud": obs["pointcloud"][:, :, torch.randperm(30)]}
    assert torch.allclose(policy.act(obs), policy.act(shuffled), atol=1e-5)


def test_a_trunk_is_copied_whole_or_refused_with_the_difference():
    source, target = policy_of(), policy_of()
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
    head = copy.deepcopy(target.heads.state_dict())
    take_parts(target, source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(source.trunk.parameters(), target.trunk.parameters()))
    assert all(torch.equal(value, target.heads.state_dict()[name]) for name, value in head.items())
    with pytest.raises(ValueError, match=r"trunk.blocks.1.* is absent in the checkpoint"):
        take_parts(policy_of(), policy_of(depth=1).state_dict())


# ------------------------------------------------------------------ chunks -> actions


def chunks_saying(step_of_asking, horizon=6):
    return np.stack([[step_of_asking, i] for i in range(horizon)]).astype(float)


def acted(executor, ask):
    """The action of one step; `ask` gives a chunk where one is due."""
    if executor.is_due:
        executor.add(ask())
    return executor.pop()


@pytest.mark.parametrize("first", [0, 2])
def test_open_loop_runs_the_index_that_was_supervised_for_the_step(first):
    executor = ChunkExecutor(Horizon(first + 1, 6, hist=True), Execution(execute_steps=3))
    asked = iter(range(100))
    got = [acted(executor, lambda: chunks_saying(next(asked))).tolist() for _ in range(7)]
    assert got == [[ask, first + i] for ask in range(3) for i in range(3)][:7]


def test_ensembling_averages_what_all_chunks_say_of_the_step_zeros_included():
    """Weights exp(-0.01 i), i = 0 oldest; the ancestor dropped any action that contained an exact zero."""
    executor, horizon = ChunkExecutor(Horizon(1, 3), Execution(temporal_ensembling=True)), 3
    chunks = [np.zeros((horizon, 1)), np.ones((horizon, 1)), np.full((horizon, 1), 2.0), np.full((horizon, 1), 3.0)]
    got = [acted(executor, lambda c=c: c)[0] for c in chunks]
    weights = np.exp(-0.01 * np.arange(3))
    want = [
        0.0,
        (weights[1] * 1) / weights[:2].sum(),
        (weights * [0, 1, 2]).sum() / weights.sum(),
        (weights * [1, 2, 3]).sum() / weights.sum(),
    ]
    assert np.allclose(got, want)


def test_more_steps_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match="holds 4 actions"):
        ChunkExecutor(Horizon(3, 6, hist=True), Execution(execute_steps=5))


# ------------------------------------------------------------------ counted randomness


def test_noise_belongs_to_the_sample_not_to_the_batch():
    seeds = torch.from_numpy(sample_seeds(3, 7, np.arange(64)))
    whole = uniform(seeds, (5, 6), stream="x")
    assert torch.equal(whole[40:], uniform(seeds[40:], (5, 6), stream="x"))
    assert not torch.equal(whole, uniform(seeds, (5, 6), stream="y"))
    assert len(np.unique(sample_seeds(3, 8, np.arange(64)))) == 64


def test_numbers_are_spread_evenly_and_normally():
    seeds = torch.from_numpy(sample_seeds(0, 0, np.arange(200)))
    flat = uniform(seeds, (1000,), stream="x").flatten()
    counts = torch.histc(flat, 20, 0, 1)
    assert counts.std() / counts.mean() < 0.03
    gauss = normal(seeds, (1000,), stream="x")
    assert abs(gauss.mean()) < 0.01
    assert abs(gauss.std() - 1) < 0.01
    rows = gauss - gauss.mean(1, keepdim=True)
    correlation = (rows[:-1] * rows[1:]).mean()  # neighbours in the batch
    assert abs(correlation) < 0.01


def test_numbers_of_other_samples_positions_streams_and_steps_are_unrelated():
    """Correlations, in standard errors of independent numbers; and every bit is as often 1 as 0, whatever the others are."""

    def numbers(*, step=0, stream="x"):
        return uniform(torch.from_numpy(sample_seeds(0, step, np.arange(256))), (4096,), stream=stream).double().numpy()

    def standard_errors(one, other):
        return abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) * one.size**0.5

    plain = numbers()
    for other in (numbers(step=1), numbers(stream="y"), numbers(stream="trunk.0.mlp")):
        assert standard_errors(plain, other) < 4
    for lag in (1, 2, 3, 16, 256):
        assert standard_errors(plain[:, lag:], plain[:, :-lag]) < 4
    for lag in (1, 2, 64):
        assert standard_errors(plain[lag:], plain[:-lag]) < 4
    pairs = np.histogram2d(plain[:, 1:].ravel(), plain[:, :-1].ravel(), 64, [[0, 1], [0, 1]])[0]
    expected = pairs.sum() / pairs.size
    assert abs(((pairs - expected) ** 2 / expected).sum() - 4095) < 4 * (2 * 4095) ** 0.5  # chi-squared
    bits = ((plain * 2**23).astype(np.int64).reshape(-1, 1) >> np.arange(23)) & 1
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / len(bits) ** 0.5
    assert abs(np.corrcoef(bits.T) - np.eye(23)).max() < 5 / len(bits) ** 0.5


def test_a_seed_that_differs_in_one_bit_changes_half_of_the_bits():
    seeds = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 2048))
    bits_of = lambda s: (uniform(s, (64,), stream="x").double() * 2**23).long()[..., None] >> torch.arange(23) & 1
    before = bits_of(seeds)
    for place in range(0, 64, 7):
        changed = (before != bits_of(seeds ^ (1 << place if place < 63 else -(1 << 63)))).double().mean((0, 1))
        assert (changed - 0.5).abs().max() < 5 * 0.5 / (2048 * 64) ** 0.5


def test_no_number_is_zero_or_one():
    """float32 rounds (2^24 - 1 + 0.5) / 2^24 to 1: the normal numbers made of it would be infinite."""
    extremes = torch.tensor([-(2**31), -1, 0, 1, 2**31 - 1], dtype=torch.int32)
    numbers = randomness._open_interval(extremes)
    assert ((numbers > 0) & (numbers < 1)).all()
    assert torch.isfinite(torch.special.ndtri(numbers)).all()


def test_dropout_keeps_the_mean_and_switches_off_in_eval():
    x, seeds = torch.ones(400, 200), torch.from_numpy(sample_seeds(0, 0, np.arange(400)))
    dropped = dropout(x, seeds, rate=0.3, stream="x")
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    policy, batch = policy_of(dropout=0.5), batch_of([0, 1])
    assert policy(batch)["loss"] != policy.eval()(batch)["loss"]
