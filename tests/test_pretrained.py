"""What a run begins with of another one: parts by name, what is frozen and stays to the bit, and what is told of it."""

from __future__ import annotations

import copy

import pytest
import torch

import ppt_kit as ppt
from ppt_kit.checkpoint import load_model
from ppt_kit.config import load_config
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.pretrained import take_parts
from ppt_kit.schema import PolicyConfig
from ppt_kit.spec import Spec

EVERY = ("trunk", "stems", "heads", "encoders")


def spec_of(state=4, action=3):
    return Spec(state={"joints": state}, action={"actions": action}, points=10, channels=3)


def policy_of(*names, seed=0, spec=None, **options) -> PPTPolicy:
    torch.manual_seed(seed)
    return PPTPolicy(
        {name: spec or spec_of() for name in names}, PolicyConfig(width=32, depth=1, num_heads=2, **options)
    )


def equal(policy, other, mine, theirs):
    """Whether the tensors below two names are the same."""
    here, there = policy.state_dict(), other.state_dict()
    names = [name for name in here if name.startswith(mine + ".")]
    assert names
    return all(torch.equal(here[name], there[theirs + name[len(mine) :]]) for name in names)


def test_each_part_is_taken_where_it_is_asked_for_and_nowhere_else():
    source, first = policy_of("a", seed=1), policy_of("a")
    for part in ("trunk", "stems", "heads"):
        policy = policy_of("a")
        taken = take_parts(policy, source.state_dict(), parts=[part])
        assert {name.split(".")[0] for name in taken.names} - {"modality_embedding"} == {part}
        for other in ("trunk", "stems", "heads"):
            assert equal(policy, source if other == part else first, other, other)


def test_stems_and_heads_are_taken_by_name_else_by_the_domain_named_else_from_the_only_one():
    source = policy_of("a", "b", seed=1)
    policy = policy_of("b", "c")
    take_parts(policy, source.state_dict(), parts=EVERY, domain="a")
    for part in ("stems", "heads"):
        assert equal(policy, source, f"{part}.b", f"{part}.b")
        assert equal(policy, source, f"{part}.c", f"{part}.a")
    with pytest.raises(ValueError, match=r"has stems of a, b, and none of c\. Set train.pretrained_domain"):
        take_parts(policy_of("c"), source.state_dict(), parts=["stems"])
    with pytest.raises(ValueError, match=r"train.pretrained_domain=d: the checkpoint has a, b"):
        take_parts(policy_of("c"), source.state_dict(), parts=["stems"], domain="d")
    only = policy_of("c")
    take_parts(only, policy_of("a", seed=1).state_dict(), parts=["heads"])
    assert equal(only, source := policy_of("a", seed=1), "heads.c", "heads.a")


@pytest.mark.parametrize("there", ["none", "trunk", "all"])
@pytest.mark.parametrize("here", ["none", "trunk", "all"])
def test_parts_go_between_all_ways_of_sharing(here, there):
    source, policy = policy_of("a", "b", seed=1, share=there), policy_of("c", "d", share=here)
    take_parts(policy, source.state_dict(), parts=["trunk", "stems", "heads"], domain=None if there == "all" else "a")
    trunks = {"none": ["trunks.a"]}.get(there, ["trunk"])
    for mine in ["trunks.c", "trunks.d"] if here == "none" else ["trunk"]:
        assert equal(policy, source, mine, trunks[0])
    for mine in ["all"] if here == "all" else ["c", "d"]:
        assert equal(policy, source, f"heads.{mine}", f"heads.{'all' if there == 'all' else 'a'}")


def test_modalities_that_both_see_keep_their_embedding_and_the_rest_is_listed():
    config = PolicyConfig(width=32, depth=1, num_heads=2)
    config.stems.state.kind = None
    torch.manual_seed(1)
    source = PPTPolicy({"a": spec_of()}, config)
    policy = policy_of("a")
    before = policy.modality_embedding.detach().clone()
    taken = take_parts(policy, source.state_dict(), parts=["stems"])
    assert policy.modalities == ["state", "pointcloud"]
    assert torch.equal(policy.modality_embedding[1], source.modality_embedding[0])
    assert torch.equal(policy.modality_embedding[0], before[0])
    assert all(name.startswith("stems.a.state.") for name in taken.missing)
    assert len(taken.missing) == len([*policy.stems["a"]["state"].state_dict()])
    back = take_parts(source, policy.state_dict(), parts=["stems"])
    assert all(name.startswith("stems.a.state.") for name in back.left_over)
    assert back.missing == []


def test_another_size_is_refused_with_the_keys_to_set():
    source = policy_of("a", seed=1).state_dict()
    with pytest.raises(ValueError, match=r"stems.a.state.embed.0.weight is \(32, 4\) .* \(32, 6\)"):
        take_parts(policy_of("a", spec=spec_of(state=6)), source, parts=["stems"])
    with pytest.raises(ValueError, match=r"heads.a.out.1.weight .* leave that part out of train.pretrained_parts"):
        take_parts(policy_of("a", spec=spec_of(action=5)), source, parts=["heads"])


def test_what_is_frozen_runs_without_dropout_and_is_said_to_be_frozen():
    policy = policy_of("a", dropout=0.5)
    policy.freeze("trunk")
    policy.train()
    assert not policy.trunk.training
    assert policy.heads.training
    tokens, seeds = torch.randn(2, 5, 32), torch.arange(2)
    assert torch.equal(policy.trunk(tokens, seeds), copy.deepcopy(policy).eval().trunk(tokens, seeds))
    assert "frozen" in next(line for line in repr(policy).splitlines() if line.strip().startswith("trunk"))


@pytest.fixture(scope="module")
def two_domains(small_data, tmp_path_factory):
    """A run trained on the domains a and b."""
    return trained(small_data, tmp_path_factory.mktemp("runs"), "domains=a,b", "suffix=first")


def trained(small_data, folder, *words):
    from conftest import SMALL_WORDS, latest

    fixed = (
        f"dataset_path={small_data}", f"output_dir={folder}", "train.total_iters=4", "policy.dropout=0.2",
        "policy.cloud_origin=null",
    )  # fmt: skip
    run = ppt.UnifiedTrainer(load_config("quickstart", *latest(*SMALL_WORDS, *fixed, *words)))
    assert run.run() == 0
    return run.run_dir


FROZEN = (
    "train.pretrained_parts=[trunk,stems]",
    "train.freeze_trunk=true",
    "train.freeze_stems=true",
    "domains=a",
    "seed=9",
)


@pytest.mark.parametrize(
    "more", [("deepspeed=zero0",), ("deepspeed=zero2",), ("deepspeed=zero2", "precision=bf16")], ids=" ".join
)
def test_what_is_frozen_does_not_move_by_a_bit(small_data, tmp_path, two_domains, more):
    """With weight decay, averaged weights and dropout; also where the weights are rounded to bfloat16 for training."""
    words = (*FROZEN, f"train.pretrained_dir={two_domains}", "optimizer.weight_decay=1", "optimizer.lr=0.01", *more)
    run_dir = trained(small_data, tmp_path, *words)
    before, after = load_model(two_domains)["ema"], load_model(run_dir)
    resume = torch.load(next((run_dir / "resume").glob("*.pt")), weights_only=True)["engine"]
    frozen = [name for name in after["policy"] if name.startswith(("trunk.", "stems.", "modality_embedding"))]
    assert len(frozen) > 20
    for name in frozen:
        for tensors in (after["policy"], after["ema"], resume["weights"], resume["averaged"]):
            assert torch.equal(tensors[name], before[name]), name
        assert not any(name in moments for moments in resume["moments"].values())
    moved = [name for name in after["policy"] if name.startswith("heads.")]
    assert all(name in resume["moments"]["exp_avg"] for name in moved)
    assert not torch.equal(after["policy"]["heads.a.queries"], before["heads.a.queries"])
    # whole, whichever weights are asked for
    for use_ema in (True, False):
        policy = ppt.load_policy(run_dir, use_ema=use_ema)
        assert all(torch.equal(policy.state_dict()[name], before[name]) for name in frozen)


def test_a_policy_of_two_domains_is_fine_tuned_on_a_third_and_resumed(small_data, tmp_path, two_domains):
    words = (
        "domains=wide", f"train.pretrained_dir={two_domains}", "train.pretrained_parts=[trunk,stems]",
        "train.pretrained_domain=b", "dataset.state_keys=[eef_pos,normalized_gripper_pos]", "suffix=tuned",
        "train.freeze_trunk=true", "train.resume=auto",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"stems.wide.state.embed.0.weight is \(32, 4\) .* \(32, 6\)"):
        trained(small_data, tmp_path, *words)
    own = [word if "parts" not in word else "train.pretrained_parts=[trunk]" for word in words if "domain=" not in word]
    own += ["domains=wide"]
    run_dir = trained(small_data, tmp_path, *own)
    assert trained(small_data, tmp_path, *own, "train.total_iters=7") == run_dir
    whole = trained(small_data, tmp_path, *own, "train.total_iters=7", "suffix=whole")
    losses = [ppt.read_metrics(folder, "train")["loss"].tolist() for folder in (run_dir, whole)]
    assert losses[0][:4] == losses[1][:4]
    assert len(losses[0]) == len(losses[1]) == 7
    before, after = load_model(two_domains)["ema"], load_model(run_dir)["policy"]
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("trunk."))
    text = (run_dir / "train.log").read_text()
    assert "tensors taken: trunk.blocks" in text
    assert "tensors frozen: trunk.blocks" in text
    policy = ppt.load_policy(run_dir)
    assert policy.act({"state": torch.zeros(1, 2, 6), "pointcloud": torch.zeros(1, 2, 16, 3)}).shape == (1, 8, 6)


def test_what_is_missing_and_left_over_is_told_and_never_frozen(small_data, tmp_path, two_domains):
    """The first run saw no language … and its heads have no place here."""
    words = ("domains=a", f"train.pretrained_dir={two_domains}", "policy.position_embedding=true")
    run_dir = trained(small_data, tmp_path, *words, "train.pretrained_parts=[trunk,stems,heads]")
    text = (run_dir / "train.log").read_text()
    assert "1 tensors not there, so random at first: positions.a (1)" in text
    assert "tensors there, but not needed: heads.b (" in text
    assert "stems.b.state (" in text
    with pytest.raises(UserError, match=r"has no positions.a \(1\): that would stay random"):
        trained(small_data, tmp_path / "x", *words, "train.pretrained_parts=[stems]", "train.freeze_stems=true")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.freeze_stems=true"], "train.pretrained_dir is empty"),
        (["train.freeze_stems=true", "train.pretrained_dir=x"], r"train.pretrained_parts=\[trunk,stems\]"),
        (["train.pretrained_parts=[stems]"], "train.pretrained_dir is empty"),
        (["train.pretrained_parts=[stem]", "train.pretrained_dir=x"], "takes some of trunk, stems, heads, encoders"),
        (["train.pretrained_domain=a"], "train.pretrained_dir is empty"),
        (["policy.no_trunk=true", "train.pretrained_dir=x"], "policy.no_trunk=true has none"),
        (["policy.no_trunk=true", "activation_checkpointing=true"], "policy.no_trunk=true has none"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(words, says):
    with pytest.raises(UserError, match=says):
        load_config("quickstart", *words)
