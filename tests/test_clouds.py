"""Cloud stems against brute force: what is chosen, what lies around it, and what a token may depend on."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from ppt_kit.config import load_config, typed
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.models.part import Sizes, build_part
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.stems import STEMS, Stem
from ppt_kit.models.stems.cloud_geometry import OBLIQUE, farthest_points, first_within, neighbours, take
from ppt_kit.parts import find_part
from ppt_kit.spec import Spec

KINDS = ("points", "dp3", "patches", "pointnext")
LOCAL = {
    "patches": {"num_groups": 12, "group_size": 6, "radius": 0.3, "hidden": 16},
    "pointnext": {"num_centres": [24, 12], "group_size": 6, "radius": 0.3, "hidden": 8},
}
SEEDS = torch.zeros(2, dtype=torch.long)


def stem_of(kind, *, channels=3, num_latents=4, points=64, width=32, **options):
    spec = Spec(state={"x": 5}, action={"actions": 4}, points=points, channels=channels)
    sizes = Sizes(
        width=width, num_heads=2, dropout=0.0, horizon=Horizon(2, 4), spec=spec, name="stem.a", modality="pointcloud",
        num_latents=num_latents,
    )  # fmt: skip
    torch.manual_seed(0)
    options = {**LOCAL.get(kind, {}), **options}
    return build_part(kind, sizes, options, known=STEMS, base=Stem, option="policy.stems.pointcloud")


def clouds(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ geometry


def test_farthest_points_are_those_of_a_slow_loop():
    xyz = clouds(5, 60, 3)
    got = farthest_points(xyz, 20).numpy()
    for cloud, chosen in zip(xyz.double().numpy(), got):
        want = [int((cloud @ np.array(OBLIQUE)).argmax())]
        while len(want) < 20:
            gaps = [min(np.linalg.norm(point - cloud[other]) for other in want) for point in cloud]
            want.append(int(np.argmax(gaps)))
        assert chosen.tolist() == want


def test_the_first_points_within_a_ball_are_those_of_a_slow_loop():
    xyz, far = clouds(3, 70, 3), torch.full((3, 1, 3), 9.0)
    got = first_within(torch.cat([xyz[:, :20], far], 1), xyz, count=8, radius=0.25)
    for cloud, chosen in zip(xyz.double(), got[:, :20].tolist()):
        for centre, indices in zip(cloud, chosen):
            near = [at for at, point in enumerate(cloud) if (point - centre).norm() < 0.25]
            assert indices == (near + near[:1] * 8)[:8]
    assert not got[:, 20].any()
    assert first_within(xyz[:, :5], xyz[:, :3], count=8, radius=9.0)[0, 0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]


def test_which_points_are_farthest_does_not_depend_on_their_order():
    xyz, order = clouds(3, 200, 3), torch.randperm(200)
    assert torch.equal(take(xyz, farthest_points(xyz, 50)), take(xyz[:, order], farthest_points(xyz[:, order], 50)))


def test_a_cloud_of_fewer_places_than_asked_has_some_twice_and_all_of_them():
    xyz = clouds(1, 4, 3).repeat(1, 3, 1)
    chosen = take(xyz, farthest_points(xyz, 9))[0]
    assert len(chosen) == 9
    assert {tuple(place) for place in chosen.tolist()} == {tuple(place) for place in xyz[0].tolist()}


def test_a_ball_holds_the_nearest_points_within_its_radius_and_the_nearest_again_for_the_rest():
    xyz = clouds(3, 50, 3)
    centres, radius, count = xyz[:, :7] + 0.01, 0.3, 8
    got = neighbours(centres, xyz, count=count, radius=radius).numpy()
    filled = set()
    for row in range(3):
        for number in range(7):
            gaps = np.linalg.norm(xyz[row].numpy() - centres[row, number].numpy(), axis=-1)
            within = [index for index in np.argsort(gaps) if gaps[index] <= radius][:count]
            filled.add(len(within))
            assert got[row, number].tolist() == [*within, *[within[0]] * (count - len(within))]
    # both kinds of ball were there
    assert max(filled) == count > min(filled)


def test_a_ball_of_more_points_than_there_are_holds_them_all():
    xyz = clouds(2, 5, 3)
    got = neighbours(xyz[:, :2], xyz, count=9, radius=10.0)
    assert got.shape == (2, 2, 9)
    assert all(set(ball.tolist()) == set(range(5)) for ball in got.flatten(0, 1))


def test_taking_is_indexing_cloud_by_cloud():
    values, index = torch.randn(3, 10, 4), torch.randint(0, 10, (3, 5, 2))
    want = np.stack([values[row].numpy()[index[row].numpy()] for row in range(3)])
    assert np.array_equal(take(values, index).numpy(), want)


# ------------------------------------------------------------------ stems


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_points_does_not_matter_and_their_columns_do(kind, channels):
    stem, seen = stem_of(kind, channels=channels), clouds(2, 2, 64, channels)
    tokens = stem(seen, SEEDS)
    assert tokens.shape == (2, 4, 32)
    assert torch.allclose(stem(seen[:, :, torch.randperm(64)], SEEDS), tokens, atol=1e-5)
    for column in range(channels):
        other = seen.clone()
        other[..., column] = other[..., column].flip(2)
        assert not torch.allclose(stem(other, SEEDS), tokens, atol=1e-4), f"column {column} is not looked at"


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_tokens_is_that_of_the_latents_or_of_the_local_tokens(kind):
    assert stem_of(kind, num_latents=7)(clouds(2, 2, 64, 3), SEEDS).shape == (2, 7, 32)
    passed = stem_of(kind, num_latents=None)
    number = 2 * 12 if kind in LOCAL else 2
    for seen in (clouds(2, 2, 64, 3), clouds(2, 2, 40, 3), torch.zeros(2, 2, 64, 3), clouds(2, 2, 64, 3) * 1e-4):
        assert passed(seen, SEEDS).shape == (2, number, 32)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_patch_looks_the_same_where_it_is_moved_along_the_ground_and_its_place_moves_with_it(kind):
    stem, seen, move = stem_of(kind), clouds(2, 2, 64, 3), torch.tensor([0.31, -0.17, 0.0])
    tokens, places = stem.local(seen)
    moved_tokens, moved_places = stem.local(seen + move)
    assert torch.allclose(moved_tokens, tokens, atol=1e-4)
    assert torch.allclose(moved_places, places + move, atol=1e-5)
    assert not torch.allclose(stem(seen + move, SEEDS), stem(seen, SEEDS), atol=1e-3)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_token_sees_what_lies_around_its_place_and_nothing_far_from_it(kind):
    """Two clouds 5 m apart: what happens in the one leaves the tokens of the other as they were."""
    stem = stem_of(kind)
    near, far = clouds(1, 2, 32, 3), clouds(1, 2, 32, 3, seed=1) + torch.tensor([5.0, 0.0, 0.0])
    # a point that is no centre: where the centres are would change with it
    _, places = stem.local(torch.cat([near, far], dim=2))
    centres = {tuple(place) for place in places[0, 0].tolist()}
    inner = next(index for index, point in enumerate(near[0, 0].tolist()) if tuple(point) not in centres)
    changed = near.clone()
    changed[0, 0, inner, 2] += 0.02
    before, at = stem.local(torch.cat([near, far], dim=2))
    after, still = stem.local(torch.cat([changed, far], dim=2))
    assert torch.equal(at, still)
    differs = (before - after).abs().amax(-1)[0, 0] > 1e-6
    there = at[0, 0, :, 0] > 2
    assert differs.any()
    assert there.any()
    assert not differs[there].any()


@pytest.mark.parametrize("num_latents", [4, None])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_stem_gets_a_gradient(kind, num_latents):
    stem = stem_of(kind, channels=6, num_latents=num_latents)
    tokens = stem(clouds(2, 2, 64, 6), SEEDS)
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert [name for name, p in stem.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_bfloat16_give_nearly_the_same_tokens(kind):
    """Metres stay in float32 until they are places in a neighbourhood: 3 m from the origin bfloat16 has 8 mm."""
    stem, seen = stem_of(kind), clouds(2, 2, 64, 3) + torch.tensor([3.0, 3.0, 0.0])
    exact = stem(seen, SEEDS)
    half = stem.bfloat16()(seen, SEEDS)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).square().mean() / exact.square().mean() < 4e-3


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("patches", {"num_groups": 0}, "options.num_groups=0: takes a whole number from 1 to 4096"),
        ("patches", {"group_size": 2.5}, "options.group_size=2.5: takes a whole number from 1 to 1024"),
        ("patches", {"radius": 0}, "options.radius=0: takes metres, from 0.001 to 10"),
        ("patches", {"radius": float("nan")}, "options.radius=nan: takes metres, from 0.001 to 10"),
        ("patches", {"hidden": True}, "options.hidden=true: takes a whole number from 4 to 1024"),
        ("patches", {"num_group": 3}, "options.num_group: patches has no such option; it takes num_groups"),
        ("dp3", {"hidden": 1}, "options.hidden=1: takes a whole number from 4 to 1024"),
        ("pointnext", {"num_centres": 128}, "options.num_centres=128: takes a list of whole numbers"),
        ("pointnext", {"num_centres": []}, r"options.num_centres=\[\]: takes a list of whole numbers"),
        ("pointnext", {"num_centres": [64, -1]}, "options.num_centres=-1: takes a whole number from 1 to 4096"),
        ("pointnext", {"num_blocks": -1}, "options.num_blocks=-1: takes a whole number from 0 to 100"),
        ("points", {"hidden": 3}, "options.hidden: points has no such option; it takes none"),
    ],
)
def test_an_option_that_a_stem_does_not_take_is_refused_with_what_it_takes(kind, options, said):
    with pytest.raises(UserError, match=f"policy.stems.pointcloud.{said}"):
        stem_of(kind, **options)


def test_a_cloud_of_fewer_points_than_groups_has_a_group_of_each():
    stem = stem_of("patches", points=10, num_groups=64, num_latents=None)
    assert stem(clouds(2, 2, 10, 3), SEEDS).shape == (2, 20, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_of_words_has_the_stem_and_learns_from_domains_in_any_mixture(kind):
    """Also with tokens passed through, and with a domain that the batch lacks: its blank cloud is one point."""
    words = ("policy.width=32", "policy.depth=1", "policy.num_heads=2", "policy.stems.pointcloud.num_latents=null")
    specs = {
        name: Spec(state={"x": 4}, action={"actions": 3}, points=16, channels=channels)
        for name, channels in (("a", 3), ("b", 3))
    }
    torch.manual_seed(0)
    policy = PPTPolicy(specs, typed(load_config("", *words, f"policy.stems.pointcloud.kind={kind}")).policy)
    batch = {
        "obs": {"state": torch.randn(3, 2, 4), "pointcloud": clouds(3, 2, 16, 3)}, "action": torch.randn(3, 8, 3),
        "action_is_pad": torch.zeros(3, 8, dtype=torch.bool), "noise_seed": torch.arange(3),
        "domain": torch.zeros(3, dtype=torch.long),
    }  # fmt: skip
    policy(batch)["loss"].backward()
    own = {name: p.grad.abs().sum() for name, p in policy.named_parameters()}
    assert all(torch.isfinite(size) for size in own.values())
    assert not any(size for name, size in own.items() if ".b." in name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_takes_the_shipped_stem_with_the_defaults_of_its_class(kind):
    """What the file says is what the class does without it: `policy.stems.pointcloud.kind=x` is the same stem."""
    options = typed(load_config("quickstart", f"policy.stems.pointcloud={kind}")).policy.stems.pointcloud
    assert (options.kind, options.num_latents) == (kind, 8)
    takes = inspect.signature(find_part(kind, STEMS, option="kind")).parameters
    defaults = {name: each.default for name, each in takes.items() if name != "sizes"}
    written = {name: tuple(value) if isinstance(value, list) else value for name, value in options.options.items()}
    assert written == defaults
