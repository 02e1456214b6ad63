"""The policy as a whole: what it refuses, what it does without, what lies between stems and heads, and what it says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import ppt_kit as ppt
from ppt_kit.engine import Averaged
from ppt_kit.horizon import Horizon
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.pooling import Pooling
from ppt_kit.models.stems import Stem
from ppt_kit.schema import PolicyConfig
from ppt_kit.spec import Spec

SIZE = (4, 6)
SPEC = Spec(
    state={"joints": 3, "gripper": 1}, action={"actions": 3}, points=10, channels=6, rgb={"left": SIZE, "top": SIZE},
    depth={"left": SIZE}, language=True,
)  # fmt: skip


class Cameras(Stem):
    """One token: the mean over the cameras that are there."""

    takes_missing = True

    def __init__(self, sizes):
        super().__init__()
        channels = 3 if sizes.modality == "rgb" else 1
        self.embed = torch.nn.Linear(channels, sizes.width)

    def forward(self, readings, seeds, missing):
        seen = torch.stack([image.float().mean((1, 2, 3)) for image in readings.values()], 1) / 100
        gone = (
            torch.zeros(seen.shape[:2]) if missing is None else torch.stack([missing[c] for c in readings], 1).float()
        )
        assert not (gone == 1).all(1).any()  # of a modality that is gone nothing is masked
        return self.embed((seen * (1 - gone)[..., None]).sum(1) / (1 - gone).sum(1, keepdim=True))[:, None]


class Deaf(Cameras):
    """Cannot be told that a camera is missing."""

    takes_missing = False

    def forward(self, readings, seeds):
        return super().forward(readings, seeds, None)


class Words(Stem):
    """Two tokens of a sentence's length."""

    def __init__(self, sizes):
        super().__init__()
        self.embed = torch.nn.Linear(1, 2 * sizes.width)

    def forward(self, readings, seeds):
        lengths = torch.tensor([[len(each) / 10] for each in readings])
        return self.embed(lengths).unflatten(-1, (2, -1))


def config_of(*, cameras="Cameras", **options):
    config = PolicyConfig(width=32, depth=1, num_heads=2, **options)
    config.stems.rgb.kind, config.stems.depth.kind = f"test_policy:{cameras}", f"test_policy:{cameras}"
    config.stems.language.kind = "test_policy:Words"
    return config


def policy_of(spec=SPEC, *, horizon=None, **options):
    torch.manual_seed(0)
    return PPTPolicy({"a": spec}, config_of(**options), horizon=horizon)


def obs_of(size=3, *, seed=0, spec=SPEC):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(size, 2, *shape, generator=g)
    obs = {"state": draw(4), "pointcloud": draw(10, 6), "language": [f"task {'x' * row}" for row in range(size)]}
    obs["rgb"] = {
        c: torch.randint(0, 256, (size, 2, *SIZE, 3), generator=g, dtype=torch.uint8) for c in ("left", "top")
    }
    obs["depth"] = {"left": draw(*SIZE, 1).abs()}
    return {name: obs[name] for name in spec.modalities}


def batch_of(size=3, *, seed=0, spec=SPEC):
    g = torch.Generator().manual_seed(seed + 1)
    return {
        "obs": obs_of(size, seed=seed, spec=spec), "action": torch.randn(size, 8, 3, generator=g),
        "action_is_pad": torch.zeros(size, 8, dtype=torch.bool), "domain": torch.zeros(size, dtype=torch.int64),
        "index": torch.arange(size),
    }  # fmt: skip


# ------------------------------------------------------------------ the door


def without(tree, *path):
    if len(path) == 1:
        return {name: value for name, value in tree.items() if name != path[0]}
    return {**tree, path[0]: without(tree[path[0]], *path[1:])}


def changed(tree, path, change):
    head, *rest = path
    return {**tree, head: changed(tree[head], rest, change) if rest else change(tree[head])}


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        (["state"], lambda v: v[..., :3], r"obs.state is \(3, 2, 3\); this policy takes \(B, 2, 4\) floating"),
        (["state"], lambda v: v[:, :1], r"obs.state is \(3, 1, 4\): axis 1 must be observation_horizon=2"),
        (["state"], lambda v: v[0], r"obs.state is \(2, 4\); this policy takes \(B, 2, 4\)"),
        (["state"], lambda v: v.long(), r"obs.state is int64; this policy takes .* floating point"),
        (["state"], lambda v: v.numpy(), r"obs.state is a ndarray \(3, 2, 4\); .* torch.as_tensor"),
        (["state"], lambda v: v.to("meta"), "obs.state lies on meta and the policy on cpu"),
        (["state"], lambda v: v[:2], r"obs.state holds 2 windows and obs.pointcloud 3"),
        (["state"], lambda v: v[:0], "holds nothing"),
        (["pointcloud"], lambda v: v[..., :3], r"obs.pointcloud is \(3, 2, 10, 3\); .* \(B, 2, P, 6\)"),
        (["rgb", "top"], lambda v: v.float(), r"obs.rgb.top is float32; .* \(B, 2, 4, 6, 3\) uint8"),
        (["rgb", "top"], lambda v: v.movedim(-1, 2), r"obs.rgb.top is \(3, 2, 3, 4, 6\); .*\(B, To, H, W, 3\)"),
        (["rgb"], lambda v: v["top"], r"obs.rgb is a Tensor \(3, 2, 4, 6, 3\): takes {camera: readings} of left, top"),
        (["depth", "left"], lambda v: v[..., 0], r"obs.depth.left is \(3, 2, 4, 6\); .* \(B, 2, 4, 6, 1\) floating"),
        (["depth", "left"], lambda v: v.byte(), r"obs.depth.left is uint8; .* floating point"),
        (["language"], lambda v: v[0], "obs.language is a str; this policy takes a list of B sentences"),
        (["language"], lambda v: v[:2], "obs.language 2"),
    ],
)
def test_a_wrong_reading_is_refused_with_what_was_expected_and_what_came(path, change, says):
    with pytest.raises(ValueError, match=says):
        policy_of().act(changed(obs_of(), path, change))


def test_what_act_is_told_beside_obs_is_checked_too():
    policy, obs = policy_of(), obs_of()
    with pytest.raises(ValueError, match=r"seeds are \(2,\) int64; takes \(3,\) int64"):
        policy.act(obs, seeds=torch.arange(2))
    with pytest.raises(ValueError, match=r"seeds are \(3,\) float32"):
        policy.act(obs, seeds=torch.zeros(3))
    with pytest.raises(ValueError, match=r"known is \(3, 8, 4\); takes \(3, 8, 3\)"):
        policy.act(obs, known=torch.zeros(3, 8, 4))
    with pytest.raises(ValueError, match="domain 1: this policy knows 1, a"):
        policy.act(obs, 1)
    with pytest.raises(ValueError, match="obs is a list: takes a dictionary of state"):
        policy.act([obs])
    assert policy.act({**obs, "smell": 3}).shape == (3, 8, 3)


class Plain(ppt.Head):
    """Takes no more than it must."""

    def __init__(self, sizes):
        super().__init__()
        self.out = torch.nn.Linear(sizes.width, 24)

    def loss(self, tokens, target, seeds):
        return (self.act(tokens, seeds) - target).square().mean(-1)

    def act(self, tokens, seeds):
        return self.out(tokens.mean(1)).unflatten(-1, (8, 3))


def test_a_head_that_cannot_be_told_is_not_told_in_vain():
    config = config_of()
    config.head.kind = "test_policy:Plain"
    policy = PPTPolicy({"a": SPEC}, config)
    assert policy.act(obs_of()).shape == (3, 8, 3)
    for told in ({"num_steps": 3}, {"known": torch.zeros(3, 8, 3)}):
        with pytest.raises(ValueError, match="Plain takes none; a head with takes_given = True can"):
            policy.act(obs_of(), **told)


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        (["obs", "state"], lambda v: v[..., :3], r"obs.state is \(3, 2, 3\); this policy takes \(3, 2, 4\)"),
        (["obs", "pointcloud"], lambda v: v[..., :3], r"obs.pointcloud is .*; this policy takes \(3, 2, any, 6\)"),
        (["obs", "rgb", "top"], lambda v: v[:, :1], r"obs.rgb.top is \(3, 1, 4, 6, 3\)"),
        (["obs", "language"], lambda v: v[:1], "obs.language holds 1 sentences: takes 3"),
        (["action"], lambda v: v[:, :7], r"action is \(3, 7, 3\); this policy takes \(3, 8, 3\)"),
        (["action_is_pad"], lambda v: v[:2], r"action_is_pad is \(2, 8\)"),
    ],
)
def test_a_batch_of_other_shapes_is_refused(path, change, says):
    with pytest.raises(ValueError, match=says):
        policy_of()(changed(batch_of(), path, change))


# ------------------------------------------------------------------ what is missing

SOURCES = [("state",), ("pointcloud",), ("rgb", "left"), ("rgb", "top"), ("depth", "left"), ("language",)]


def filled(readings, value):
    if isinstance(readings, dict):
        return {name: filled(each, value) for name, each in readings.items()}
    return [f"{value}"] * len(readings) if isinstance(readings, list) else torch.full_like(readings, value)


def test_a_source_that_is_left_out_changes_nothing_to_the_bit(monkeypatch):
    """Each source of each sample is drawn apart; one whose values are others changes the loss only where it was kept."""
    from ppt_kit.models import backbone

    policy, batch = policy_of(modality_dropout=0.5), batch_of(24)
    drawn = []
    real = backbone.left_out
    monkeypatch.setattr(backbone, "left_out", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    head = policy.heads["a"]
    losses = lambda batch: [None, policy(batch)][0]
    rows = []
    head.register_forward_hook(lambda module, given, made: rows.append(made.detach().mean(-1)))
    losses(batch)
    gone = drawn[0]
    assert gone.shape == (24, 6)
    assert gone.any(0).all()
    assert (~gone).any(1).all()
    for column, path in enumerate(SOURCES):
        for value in (3, float("nan")) if path in (("state",), ("pointcloud",)) else (3,):
            other = changed(batch, ["obs", *path], lambda v, value=value: filled(v, value))
            rows.clear()
            policy(batch), policy(other)
            same = (rows[0] == rows[1]).numpy()
            assert same[gone[:, column].numpy()].all(), path
            assert not same[~gone[:, column].numpy()].any(), path


def test_sources_are_left_out_as_often_as_asked_but_never_all():
    from ppt_kit.models.missing import left_out

    seeds = torch.arange(4000) * 7919
    there = torch.ones(4000, 3, dtype=torch.bool)
    gone = left_out(there, seeds, rate=0.3)
    # all three are drawn with 0.027; then the one drawn highest stays
    assert gone.float().mean().item() == pytest.approx(0.3 - 0.027 / 3, abs=0.02)
    assert gone.sum(1).max() == 2
    there[:, 1:] = False
    assert not left_out(there, seeds, rate=0.9).any()
    assert torch.equal(gone[7:9], left_out(torch.ones(2, 3, dtype=torch.bool), seeds[7:9], rate=0.3))


def test_a_policy_acts_without_what_it_was_trained_to_do_without():
    policy, obs = policy_of(modality_dropout=0.2).eval(), obs_of()
    whole = policy.act(obs)
    for path in SOURCES:
        assert not torch.equal(policy.act(without(obs, *path)), whole), path
    assert torch.equal(policy.act(without(obs, "depth")), policy.act(without(obs, "depth", "left")))
    assert policy.act({"language": obs["language"]}).shape == (3, 8, 3)
    with pytest.raises(ValueError, match="obs has nothing that this policy sees"):
        policy.act({"smell": 3})
    plain = policy_of()
    for path, says in ((("state",), "obs has no state"), (("rgb", "top"), "obs.rgb has no camera top: .* left, top")):
        with pytest.raises(ValueError, match=f"{says}.*policy.modality_dropout=0.1"):
            plain.act(without(obs, *path))


def test_a_stem_that_cannot_leave_a_camera_out_is_not_given_zeros_in_its_place():
    policy, obs = policy_of(modality_dropout=0.2, cameras="Deaf").eval(), obs_of()
    with pytest.raises(ValueError, match=r"obs.rgb has no camera top.*takes_missing = False.*Leave all of obs.rgb out"):
        policy.act(without(obs, "rgb", "top"))
    assert policy.act(without(obs, "rgb")).shape == (3, 8, 3)
    assert len(policy._sources) == 5


def test_dropout_of_modalities_is_off_in_evaluation_and_adds_parameters_only_when_asked():
    policy, batch = policy_of(modality_dropout=0.5), batch_of(8)
    assert policy(batch)["loss"] != policy.eval()(batch)["loss"]
    names = {rate: set(policy_of(modality_dropout=rate).state_dict()) for rate in (0.0, 0.5)}
    assert names[0.5] - names[0.0] == {"missing_tokens"}


def test_a_policy_trained_to_miss_a_source_acts_better_without_it_than_with_zeros():
    """Two sources tell the same number, the action: one alone suffices, and zeros in its place mislead."""
    spec = Spec(state={"x": 1}, action={"actions": 1}, points=1, channels=3)
    errors = {}
    for rate in (0.0, 0.4):
        torch.manual_seed(0)
        policy = PPTPolicy(
            {"a": spec}, PolicyConfig(width=32, depth=1, num_heads=2, modality_dropout=rate), horizon=Horizon(1, 1)
        )
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)

        def batch(step, size=64):
            x = torch.rand(size, 1, 1, generator=torch.Generator().manual_seed(step)) * 2 + 0.5
            obs = {"state": x, "pointcloud": x[..., None].expand(-1, 1, 1, 3)}
            return {
                "obs": obs, "action": x, "action_is_pad": torch.zeros(size, 1, dtype=torch.bool),
                "domain": torch.zeros(size, dtype=torch.int64), "index": torch.arange(size) + step * size,
            }  # fmt: skip

        for step in range(160):
            optimizer.zero_grad()
            policy(batch(step))["loss"].backward()
            optimizer.step()
        policy.eval()
        fresh = batch(10_000)
        for gone in ("state", "pointcloud"):
            zeros = {**fresh["obs"], gone: torch.zeros_like(fresh["obs"][gone])}
            for how, obs in {"zeros": zeros, **({"missing": without(fresh["obs"], gone)} if rate else {})}.items():
                errors[rate, gone, how] = (policy.act(obs) - fresh["action"]).abs().mean().item()
    for gone in ("state", "pointcloud"):
        missing = errors[0.4, gone, "missing"]
        assert missing < 0.12, errors
        assert missing < 0.7 * errors[0.4, gone, "zeros"], errors
        assert missing < 0.7 * errors[0.0, gone, "zeros"], errors


# ------------------------------------------------------------------ between stems and heads


def test_each_pooling_is_what_numpy_says():
    tokens = torch.randn(3, 5, 4)
    x = tokens.numpy()
    made = {kind: Pooling(kind, counts=[2, 3], width=4) for kind in ("mean", "max", "modal_mean", "concat")}
    out = {kind: each(tokens).detach().numpy() for kind, each in made.items()}
    assert np.allclose(out["mean"][:, 0], x.mean(1), atol=1e-6)
    assert np.allclose(out["max"][:, 0], x.max(1))
    assert np.allclose(out["modal_mean"], np.stack([x[:, :2].mean(1), x[:, 2:].mean(1)], 1), atol=1e-6)
    weight, bias = (each.detach().numpy() for each in made["concat"].project.parameters())
    assert np.allclose(out["concat"][:, 0], x.reshape(3, 20) @ weight.T + bias, atol=1e-5)


COMBINATIONS = list(
    itertools.product(("none", "mean", "max", "concat", "modal_mean"), (False, True), (False, True), (0.0, 0.3))
)


@pytest.mark.parametrize(("pooling", "no_trunk", "placed", "rate"), COMBINATIONS)
def test_every_way_between_stems_and_head_trains_and_acts(pooling, no_trunk, placed, rate):
    policy = policy_of(pooling=pooling, no_trunk=no_trunk, position_embedding=placed, modality_dropout=rate)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    batch = batch_of(4)
    before = policy.eval()(batch)["loss"]
    policy.train()
    for _ in range(8):
        optimizer.zero_grad()
        policy(batch)["loss"].backward()
        optimizer.step()
    silent = [name for name, p in policy.named_parameters() if p.grad is None]
    assert silent == []
    assert policy.eval()(batch)["loss"] < before
    assert policy.act(obs_of(2)).shape == (2, 8, 3)
    seen = {name.split(".")[0] for name in policy.state_dict()}
    assert ("trunk" in seen) is not no_trunk
    assert ("positions" in seen) is placed
    assert ("pools" in seen) is (pooling == "concat")


def test_a_trunk_of_tokens_without_places_sees_a_set_and_with_places_a_sequence():
    """The mean over what one trunk makes of tokens does not change with their order, unless they have places."""
    for placed in (False, True):
        policy = policy_of(position_embedding=placed).eval()
        tokens, seeds = torch.randn(2, 16, 32), torch.arange(2)
        place = policy.positions["a"] if placed else torch.nn.Identity()
        same = torch.allclose(
            policy.trunk(place(tokens), seeds).mean(1), policy.trunk(place(tokens.flip(1)), seeds).mean(1), atol=1e-5
        )
        assert same is not placed


# ------------------------------------------------------------------ what it says


def test_print_says_in_about_ten_lines_what_a_policy_sees_is_made_of_and_how_large_it_is():
    policy = policy_of(modality_dropout=0.2, pooling="mean")
    lines = repr(policy).splitlines()
    assert 6 <= len(lines) <= 12
    text = "\n".join(lines)
    for part in (
        "state 4", "cloud 10x6", "left 4x6, top 4x6", "a sentence", "2 frame(s)", "8 actions of 3", "RegressionHead",
        "1 blocks, width 32, 2 heads", "pooling=mean", "StateStem", "left out of 20%",
    ):  # fmt: skip
        assert part in text, part
    count = sum(p.numel() for p in policy.parameters())
    assert f"{count / 1e6:.2f}M parameters, {count / 1e6:.2f}M trained" in lines[0]
    policy.freeze("trunk")
    left = count - sum(p.numel() for p in policy.trunk.parameters())
    assert f"{left / 1e6:.2f}M trained" in repr(policy)
    many = PPTPolicy({f"d{i}": SPEC for i in range(9)}, config_of(no_trunk=True))
    assert len(repr(many).splitlines()) <= 14
    assert "5 domains more" in repr(many)


# ------------------------------------------------------------------ averaged weights


def test_averaged_weights_follow_the_recursion_and_hold_only_what_is_trained(small_cfg, monkeypatch):
    """Recomputed by numpy from the weights after each step; validation sees the average, training does not."""
    run = ppt.UnifiedTrainer(small_cfg("train.ema_decay=0.9", "train.total_iters=6", "deepspeed=zero2"))
    real, seen = Averaged.update, []

    def update(self, step):
        real(self, step)
        seen.append((step, {name: live.detach().double().numpy().copy() for name, live in zip(self.names, self._live)}))

    torch.manual_seed(0)
    monkeypatch.setattr(Averaged, "update", update)
    assert run.run() == 0
    content = torch.load(run.run_dir / "model.pth", weights_only=True)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    start = initial_weights(run.cfg)
    for name, average in content["ema"].items():
        if name not in seen[0][1]:
            assert torch.equal(average, content["policy"][name])
            continue
        want = start[name].double().numpy()
        for step, live in seen:
            decay = min(0.9, (1 + step) / (10 + step))
            want = decay * want + (1 - decay) * live[name]
        assert np.abs(average.numpy() - want).max() < 1e-6, name


def initial_weights(cfg):
    from ppt_kit.config import typed
    from ppt_kit.data.dataset import load_dataset
    from ppt_kit.models.policy import build_policy

    torch.manual_seed(cfg.seed)
    return build_policy(typed(cfg), load_dataset(cfg, modalities=["state", "pointcloud"]).specs).state_dict()
