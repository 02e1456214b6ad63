"""Clouds told from the hand (policy.cloud_origin): the points that stems read, domain by domain, and what is refused."""

from __future__ import annotations

import pytest
import torch

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.schema import PolicyConfig
from ppt_kit.spec import Spec

SMALL = {"width": 32, "depth": 1, "num_heads": 2}
# the hand's place stands at another column of each state
FIRST = Spec(state={"eef_pos": 3, "gripper": 1}, action={"actions": 4}, points=10, channels=6)
SECOND = Spec(state={"joints": 2, "eef_pos": 3}, action={"actions": 4}, points=10, channels=6)


def policy_of(specs, **options) -> PPTPolicy:
    torch.manual_seed(0)
    return PPTPolicy(specs, PolicyConfig(**SMALL, **options)).eval()


def obs_of(spec, size=3):
    g = torch.Generator().manual_seed(1)
    return {
        "state": torch.randn(size, 2, spec.state_dim, generator=g),
        "pointcloud": torch.randn(size, 2, spec.points, spec.channels, generator=g),
    }


@pytest.mark.parametrize("share", ["none", "trunk", "all"])
def test_each_domain_reads_its_points_from_its_own_hand_and_colours_stay(share):
    specs = {"first": FIRST, "second": SECOND}
    told, recorded = policy_of(specs, share=share, cloud_origin="eef_pos"), policy_of(specs, share=share)
    for domain, hand in (("first", slice(0, 3)), ("second", slice(2, 5))):
        obs = obs_of(specs[domain])
        moved = obs["pointcloud"].clone()
        moved[..., :3] -= obs["state"][:, :, None, hand]
        expected = recorded.act({**obs, "pointcloud": moved}, domain)
        assert torch.allclose(told.act(obs, domain), expected, atol=1e-6)
        assert not torch.allclose(recorded.act(obs, domain), expected, atol=1e-3)


def test_a_batch_of_several_domains_trains_on_the_same_points_as_acting_sees():
    specs = {"first": FIRST, "second": SECOND}
    told = policy_of(specs, share="all", cloud_origin="eef_pos")
    obs = obs_of(FIRST, 4)
    obs = {"state": torch.cat([obs["state"], torch.zeros(4, 2, 1)], -1), "pointcloud": obs["pointcloud"]}
    batch = {
        "obs": obs, "action": torch.zeros(4, 8, 4), "action_is_pad": torch.zeros(4, 8, dtype=torch.bool),
        "domain": torch.tensor([0, 1, 0, 1]), "index": torch.arange(4),
    }  # fmt: skip
    seen = {}
    told.stems["all"]["pointcloud"].register_forward_pre_hook(lambda _, given: seen.update(cloud=given[0]))
    told(batch)
    for row, column in enumerate((0, 2, 0, 2)):
        hand = obs["state"][row, :, None, column : column + 3]
        assert torch.equal(seen["cloud"][row, ..., :3], obs["pointcloud"][row, ..., :3] - hand)
        assert torch.equal(seen["cloud"][row, ..., 3:], obs["pointcloud"][row, ..., 3:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cloud_origin": "hand"}, "no such key. It has of 3 numbers: eef_pos"),
        ({"cloud_origin": "gripper"}, "has 1 numbers there"),
        ({"cloud_origin": "eef_pos", "modalities": ["pointcloud"]}, "sees no state of first"),
        ({"cloud_origin": "eef_pos", "modalities": ["state"]}, "sees no pointcloud of first"),
    ],
)
def test_an_origin_that_the_policy_cannot_see_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        policy_of({"first": FIRST}, **options)


def test_auto_takes_the_hand_where_every_domain_has_its_place():
    without = Spec(state={"eef_pos": 5}, action={"actions": 4}, points=10, channels=6)
    blind = Spec(state={"eef_pos": 3}, action={"actions": 4})
    for specs, found in (
        ({"first": FIRST, "second": SECOND}, "eef_pos"), ({"first": FIRST, "without": without}, None),
        ({"blind": blind}, None),
    ):  # fmt: skip
        assert policy_of(specs, cloud_origin="auto").cloud_origin == found
    obs, words = obs_of(FIRST), {"cloud_origin": "eef_pos"}
    auto, told = policy_of({"first": FIRST}, cloud_origin="auto"), policy_of({"first": FIRST}, **words)
    assert torch.equal(auto.act(obs), told.act(obs))


def test_a_run_trains_and_acts_from_the_hand_and_its_stems_are_not_taken_for_others(small_cfg):
    run = ppt.UnifiedTrainer(small_cfg("policy.cloud_origin=eef_pos", "train.total_epochs=1"), mode="single")
    run.run()
    policy = ppt.load_policy(run.run_dir)
    assert "points told from eef_pos" in repr(policy)
    obs = obs_of(policy.specs["a"])
    far = {"state": obs["state"], "pointcloud": obs["pointcloud"] + 1.0}
    assert not torch.allclose(policy.act(obs), policy.act(far), atol=1e-4)
    words = (f"train.pretrained_dir={run.run_dir}", "train.pretrained_parts=[stems]", "suffix=other")
    with pytest.raises(UserError, match=r"policy.cloud_origin=eef_pos, and here it is null"):
        ppt.UnifiedTrainer(small_cfg("policy.cloud_origin=null", *words), mode="single").run()
