"""Stems against brute force: what a token may depend on, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppt_kit.horizon import Horizon
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.gather import Latents, waves
from ppt_kit.models.stems.state import StateStem
from ppt_kit.spec import Spec


def sizes_of(*, num_latents=4, channels=3, points=64, width=32, modality="pointcloud"):
    spec = Spec(state={"x": 5}, action={"actions": 4}, points=points, channels=channels)
    return Sizes(
        width=width, num_heads=2, dropout=0.0, horizon=Horizon(2, 4), spec=spec, name="stem.a", modality=modality,
        num_latents=num_latents,
    )  # fmt: skip


def latents_of(num_latents=4, *, place_dim=0, seed=0):
    torch.manual_seed(seed)
    return Latents(sizes_of(num_latents=num_latents), place_dim=place_dim)


# ------------------------------------------------------------------ latents


def test_latents_attend_to_every_token_of_every_frame():
    """Against attention written out in numpy, one head at a time."""
    gather, tokens, places = latents_of(place_dim=3), torch.randn(2, 2, 5, 32), torch.randn(2, 2, 5, 3)
    with torch.no_grad():
        got = gather(tokens, places=places).numpy()
        encoded = torch.cat([places, waves(places)], -1)
        x = gather.norm((tokens + gather.time[None, :, None] + gather.place(encoded)).reshape(2, 10, 32))
        key, value = gather.attention.key_value(x).chunk(2, -1)
        query = gather.attention.query(gather.latents)
        heads = []
        for head in (slice(0, 16), slice(16, 32)):
            score = np.einsum("qd,bkd->bqk", query[:, head].numpy(), key[..., head].numpy()) / 4
            weight = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
            heads.append(weight @ value[..., head].numpy())
        want = gather.attention.out(torch.tensor(np.concatenate(heads, -1))) + gather.latents
    assert np.abs(got - want.numpy()).max() < 1e-5


def test_waves_are_sines_and_cosines_of_wavelengths_from_two_down_to_an_eighth():
    places = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)
    angles = 2 * np.pi * places[:, :, None] / np.array([2, 1, 0.5, 0.25, 0.125])
    want = np.concatenate([np.sin(angles).reshape(7, 15), np.cos(angles).reshape(7, 15)], -1)
    assert np.abs(waves(torch.tensor(places)).numpy() - want).max() < 1e-5


def test_one_token_a_frame_is_a_frame_with_one_local_token():
    gather, frames = latents_of(), torch.randn(3, 2, 32)
    assert torch.allclose(gather(frames), gather(frames[:, :, None]), atol=1e-6)


def test_a_missing_token_changes_nothing_whatever_it_holds():
    gather, tokens, places = latents_of(place_dim=3), torch.randn(2, 2, 6, 32), torch.randn(2, 2, 6, 3)
    missing = torch.zeros(2, 2, 6, dtype=torch.bool)
    missing[:, :, 4:] = True
    shown = gather(tokens[:, :, :4], places=places[:, :, :4])
    for what in (0.0, 1e4, torch.nan, torch.inf):
        tokens[:, :, 4:] = what
        assert torch.allclose(gather(tokens, places=places, missing=missing), shown, atol=1e-5)


def test_a_token_is_missing_in_its_own_row_and_frame_alone():
    gather, tokens = latents_of(), torch.randn(2, 2, 6, 32)
    missing = torch.zeros(2, 2, 6, dtype=torch.bool)
    missing[0, 1, 2] = True
    masked = gather(tokens, missing=missing)
    assert torch.allclose(masked[1], gather(tokens)[1], atol=1e-6)
    kept = tokens[:1] + gather.time[:, None]
    kept = kept.flatten(1, 2)[:, [place for place in range(12) if place != 8]]
    want = gather.latents + gather.attention(gather.latents[None], gather.norm(kept))
    assert torch.allclose(masked[:1], want, atol=1e-5)


def test_where_every_token_is_missing_the_latents_stay_as_they_are_and_gradients_are_finite():
    gather, tokens = latents_of(), torch.randn(2, 2, 6, 32, requires_grad=True)
    missing = torch.zeros(2, 1, 1, dtype=torch.bool)
    missing[0] = True
    got = gather(tokens, missing=missing)
    assert torch.equal(got[0], gather.latents)
    assert torch.allclose(got[1], gather(tokens)[1], atol=1e-6)
    got.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in gather.parameters())
    assert not tokens.grad[0].any()
    assert tokens.grad[1].any()


def test_tokens_passed_through_are_the_local_ones_with_time_and_place_and_a_missing_one_is_zeros():
    gather, tokens, places = latents_of(None, place_dim=2), torch.randn(3, 2, 5, 32), torch.randn(3, 2, 5, 2)
    got = gather(tokens, places=places)
    assert got.shape == (3, 10, 32)
    here = gather.place(torch.cat([places, waves(places)], -1))[1, 1, 2]
    assert torch.allclose(got[1, 7], tokens[1, 1, 2] + gather.time[1] + here, atol=1e-6)
    missing = torch.zeros(3, 2, 5, dtype=torch.bool)
    missing[1, 1, 2] = True
    masked = gather(tokens, places=places, missing=missing)
    assert not masked[1, 7].any()
    masked[1, 7] = got[1, 7]
    assert torch.equal(masked, got)
    assert sorted(dict(gather.named_parameters())) == ["place.bias", "place.weight", "time"]


def test_places_are_asked_for_where_there_are_some():
    with pytest.raises(ValueError, match="place_dim"):
        latents_of()(torch.randn(1, 2, 5, 32), places=torch.randn(1, 2, 5, 3))
    with pytest.raises(ValueError, match="place_dim"):
        latents_of(place_dim=3)(torch.randn(1, 2, 5, 32))


def test_a_state_is_one_token_a_frame_where_tokens_are_passed_through():
    torch.manual_seed(0)
    stem = StateStem(sizes_of(num_latents=None, modality="state"))
    assert stem(torch.randn(3, 2, 5), torch.zeros(3, dtype=torch.long)).shape == (3, 2, 32)
