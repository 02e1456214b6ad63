"""Every head: what it learns, what it must not see, and that its noise belongs to the sample."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch

from ppt_kit.engine.quiet import leave_whole
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import HeadConfig, PolicyConfig
from ppt_kit.models.heads import HEADS, Given, Head
from ppt_kit.models.heads.head import GENERATIVE
from ppt_kit.models.part import Sizes, build_part
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.randomness import normal
from ppt_kit.spec import Spec

# every head as it is, and the other ways that its options have; small, so that a U-Net is quick
SMALL_NET = {"widths": [8, 16]}
TRANSFORMER = {"network": "transformer", "num_layers": 1}
CASES = {
    **{kind: (kind, SMALL_NET if kind in GENERATIVE else {}) for kind in HEADS},
    "regression mse": ("regression", {"loss": "mse"}),
    "diffusion transformer": ("diffusion", TRANSFORMER),
    "diffusion epsilon ddpm": ("diffusion", {**SMALL_NET, "prediction": "epsilon", "sampler": "ddpm"}),
    "diffusion v": ("diffusion", {**SMALL_NET, "prediction": "v"}),
    "flow transformer heun": ("flow", {**TRANSFORMER, "solver": "heun", "times": "beta"}),
    "flow velocity": ("flow", {**SMALL_NET, "prediction": "velocity"}),
    "meanflow transformer": ("meanflow", TRANSFORMER),
    "mixture noisy": ("mixture", {"low_noise": False}),
    "cvae sampling": ("cvae", {"sample": True}),
}  # fmt: skip
DRAWING = [name for name, (kind, _) in CASES.items() if kind in (*GENERATIVE, "mixture") or name == "cvae sampling"]
INPAINTING = [name for name, (kind, _) in CASES.items() if kind in GENERATIVE]
every_head = pytest.mark.parametrize("name", CASES)
SPECS = {
    "a": Spec(state={"joints": 4}, action={"actions": 4}),
    "wide": Spec(state={"joints": 6}, action={"actions": 7}),
}
TA = 8


def class_of(kind) -> type[Head]:
    module, _, name = HEADS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def head_of(name, *, width=16, action_dim=3, horizon=TA, dropout=0.0, **more) -> Head:
    kind, options = CASES[name]
    spec = Spec(state={"x": 1}, action={"actions": action_dim})
    sizes = Sizes(
        width=width, num_heads=2, dropout=dropout, horizon=Horizon(2, horizon), spec=spec, name="head.a"
    )  # fmt: skip
    torch.manual_seed(0)
    return build_part(kind, sizes, {**options, **more}, known=HEADS, base=Head, option="policy.head")


def policy_of(name, *, specs=SPECS, dropout=0.0):
    kind, options = CASES[name]
    torch.manual_seed(0)
    asked = PolicyConfig(width=16, depth=1, num_heads=2, dropout=dropout, head=HeadConfig(kind, options))
    asked.stems.pointcloud.kind = None
    return PPTPolicy(specs, asked, horizon=Horizon(2, TA))


def batch_of(domains, *, seed=0):
    g, size = torch.Generator().manual_seed(seed), len(domains)
    return {
        "obs": {"state": torch.randn(size, 2, 6, generator=g)},
        "action": torch.rand(size, TA, 7, generator=g) * 2 - 1,
        "action_is_pad": torch.rand(size, TA, generator=g) < 0.3,
        "domain": torch.tensor(domains),
        "noise_seed": torch.randint(0, 2**40, (size,), generator=g),
    }  # fmt: skip


def rows_of(batch, rows):
    return {
        name: {part: value[rows] for part, value in entry.items()} if isinstance(entry, dict) else entry[rows]
        for name, entry in batch.items()
    }


def tokens_of(size, *, seed=0, width=16):
    return torch.randn(size, 5, width, generator=torch.Generator().manual_seed(seed))


SEEDS = torch.arange(6) * 7919


# ------------------------------------------------------------------ training


@every_head
def test_every_parameter_gets_a_gradient(name):
    policy = policy_of(name)
    policy(batch_of([0, 1] * 8))["loss"].backward()
    assert not [key for key, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@every_head
@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_what_a_padded_action_holds_changes_nothing(name, garbage):
    policy, batch = policy_of(name), batch_of([0, 1, 1, 0])
    before = policy(batch)["loss"]
    batch["action"][batch["action_is_pad"]] = garbage
    batch["action"][batch["domain"] == 0, :, 4:] = garbage
    assert torch.equal(before, policy(batch)["loss"])


@every_head
def test_a_head_itself_learns_nothing_from_numbers_that_do_not_count(name):
    """Neither from padded actions, nor from those that only another domain's wider action has."""
    head, g = head_of(name), torch.Generator().manual_seed(0)
    counts = torch.rand(6, TA, 1, generator=g).lt(0.7).repeat(1, 1, 3)
    counts[:, 3], counts[:3, :, 2] = True, False
    target = torch.rand(6, TA, 3, generator=g)
    losses = [
        head(tokens_of(6), SEEDS, torch.where(counts, target, other), Given(counts=counts)) * counts.any(-1)
        for other in (0.0, 1e6, float("nan"))
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    losses[2].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@every_head
def test_the_loss_of_a_batch_is_the_mean_of_its_windows_own(name):
    """1 process with 2B windows and 2 with B are the same mathematics: noise, too, belongs to the window."""
    policy, batch = policy_of(name, dropout=0.2), batch_of([0, 1, 0, 1, 1, 0])
    halves = [policy(rows_of(batch, slice(*ends)))["loss"] for ends in ((0, 3), (3, 6))]
    assert policy(batch)["loss"].item() == pytest.approx(torch.stack(halves).mean().item(), rel=1e-5)


@every_head
def test_a_blank_batch_has_no_loss_and_no_gradient(name):
    policy, batch = policy_of(name), batch_of([0, 1, 1])
    loss = policy(policy.blank(batch))["loss"]
    loss.backward()
    assert loss == 0
    assert not any(p.grad is not None and p.grad.any() for p in policy.parameters())


@every_head
def test_a_window_of_padding_alone_has_a_finite_loss_and_no_gradient(name):
    policy, batch = policy_of(name), batch_of([0, 1])
    batch["action_is_pad"][:] = True
    batch["action"][:] = float("nan")
    loss = policy(batch)["loss"]
    loss.backward()
    assert loss == 0
    assert not any(p.grad is not None and p.grad.any() for p in policy.parameters())


@every_head
def test_bfloat16_weights_give_a_finite_loss_near_that_of_float32(name):
    policy, batch = policy_of(name), batch_of([0, 1] * 8)
    exact = policy(batch)["loss"].item()
    policy.bfloat16()
    loss = policy(batch)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters())
    chunk = policy.act({"state": torch.randn(2, 2, 4)}, "a")
    assert chunk.dtype == torch.float32
    assert torch.isfinite(chunk).all()


@pytest.mark.parametrize("name", DRAWING)
def test_a_loss_repeats_by_its_seeds_and_other_seeds_make_another(name):
    policy, batch = policy_of(name), batch_of([0, 1, 1])
    if CASES[name][0] != "mixture":
        other = {**batch, "noise_seed": batch["noise_seed"] + 1}
        assert policy(batch)["loss"] != policy(other)["loss"]
    torch.manual_seed(1)
    before = policy(batch)["loss"]
    torch.manual_seed(2)
    assert torch.equal(before, policy(batch)["loss"])


def test_the_divergence_of_a_cvae_counts_once_a_window_however_much_is_padded():
    heads = [head_of("cvae", kl_weight=weight) for weight in (0.0, 1.0)]
    target, is_pad = torch.zeros(1, TA, 3), torch.zeros(1, TA, dtype=torch.bool)
    for length in (TA, 2):
        is_pad[:, length:] = True
        given = Given(counts=(~is_pad)[..., None].expand_as(target))
        with_kl, without = (
            h(tokens_of(1), SEEDS[:1], target, given).masked_fill(is_pad, 0).mean() for h in heads[::-1]
        )
        divergence = with_kl - without
        mean, log_var = heads[0].encoder(target, ~is_pad, tokens_of(1), SEEDS[:1])
        scale = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        of_torch = torch.distributions.kl_divergence(scale, torch.distributions.Normal(0.0, 1.0)).sum()
        assert divergence.item() == pytest.approx(of_torch.item(), rel=1e-4)


@pytest.mark.parametrize("follow", [0.0, 0.5])
def test_the_loss_of_a_mixture_is_that_of_torchs_distributions_and_its_modes_follow(follow):
    head, target = head_of("mixture", follow=follow), torch.randn(4, TA, 3)
    counts = torch.rand(4, TA, 1).lt(0.6).repeat(1, 1, 3)
    counts[:, 0] = True
    got = head(tokens_of(4), SEEDS[:4], target, Given(counts=counts)).masked_fill(~counts.any(-1), 0).mean(-1)
    mean, std, log_share = head._modes(tokens_of(4), SEEDS[:4])
    for row in range(4):
        keep = counts[row].flatten()
        modes = torch.distributions.Independent(
            torch.distributions.Normal(mean[row].flatten(1)[:, keep], std[row].flatten(1)[:, keep]), 1
        )
        shares = torch.distributions.Categorical(logits=log_share[row])
        nll = -torch.distributions.MixtureSameFamily(shares, modes).log_prob(target[row].flatten()[keep])
        # each number that counts once, over all that a chunk has
        gap = (mean[row] - target[row]).abs().flatten(1)[:, keep].sum() / (len(mean[row]) * TA * 3)
        assert got[row].item() == pytest.approx(nll.item() / (TA * 3) + follow * gap.item(), rel=1e-5)


def test_the_shares_of_a_mixture_learn_whose_turn_it_is_as_fast_as_one_number():
    """Their gradient is that of the chunk's likelihood, once more a number: not a share of it as the modes' is."""
    head, target = head_of("mixture", follow=0.0), torch.randn(4, TA, 3)
    logits = []

    def keep(_module, _given, given_back):
        given_back.retain_grad()
        logits.append(given_back)

    head.share.register_forward_hook(keep)
    head.loss(tokens_of(4), target, SEEDS[:4]).mean(1).sum().backward()
    mean, std, log_share = head._modes(tokens_of(4), SEEDS[:4])
    joint = torch.distributions.Normal(mean, std).log_prob(target[:, None]).sum((2, 3)) + log_share
    expected = log_share.exp() - joint.softmax(dim=1)
    torch.testing.assert_close(logits[0].grad, expected * (1 + 1 / (TA * 3)), atol=1e-6, rtol=1e-4)


# ------------------------------------------------------------------ acting


@every_head
def test_acting_gives_a_chunk_that_repeats_by_its_seeds(name):
    policy = policy_of(name, dropout=0.3).eval()
    obs = {"state": torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))}
    one = policy.act(obs, "a", seeds=SEEDS[:3])
    torch.manual_seed(5)
    assert one.shape == (3, TA, 4)
    assert torch.equal(one, policy.act(obs, "a", seeds=SEEDS[:3]))
    assert torch.equal(one, policy.act(obs, "a", seeds=SEEDS[3:])) is (name not in DRAWING)
    alone = policy.act({"state": obs["state"][1:2]}, "a", seeds=SEEDS[1:2])
    assert torch.allclose(one[1:2], alone, atol=1e-5)


@every_head
def test_actions_come_in_the_datasets_units(name):
    policy, obs = policy_of(name).eval(), {"state": torch.randn(2, 2, 4)}
    plain = policy.act(obs, "a")
    unit, shifted = ({"offset": [x] * n, "scale": [s] * n} for x, s, n in ((0.0, 1.0, 4), (5.0, 0.5, 4)))
    wide = {"state": {"offset": [0.0] * 6, "scale": [1.0] * 6}, "action": {"offset": [0.0] * 7, "scale": [1.0] * 7}}
    policy.set_normalizer({"a": {"state": unit, "action": shifted}, "wide": wide})
    assert torch.allclose(policy.act(obs, "a"), plain / 0.5 + 5)


@pytest.mark.parametrize("name", INPAINTING)
@pytest.mark.parametrize("num_steps", [1, 2, 7, None])
def test_known_actions_come_out_exactly_and_the_others_depend_on_them(name, num_steps):
    head = head_of(name).eval()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    known = torch.zeros(6, TA, dtype=torch.bool)
    known[:, :3] = True
    chunks = []
    for value in (0.9, -0.7):
        actions = torch.where(known[..., None], torch.full((6, TA, 3), value), torch.nan)
        chunks.append(head(tokens_of(6), SEEDS, None, Given(known=known, actions=actions, num_steps=num_steps)))
        assert (chunks[-1][:, :3] == value).all()
        assert torch.isfinite(chunks[-1]).all()
    assert not torch.equal(chunks[0][:, 3:], chunks[1][:, 3:])


@pytest.mark.parametrize("name", INPAINTING)
def test_known_actions_are_shown_in_training_and_enter_no_loss(name):
    head, target = head_of(name), torch.rand(6, TA, 3)
    known = torch.zeros(6, TA, dtype=torch.bool)
    known[:, :2] = True
    counts = torch.ones(6, TA, 3, dtype=torch.bool)
    seen = []
    head.network.register_forward_pre_hook(lambda _, args: seen.append(args))
    loss = head(tokens_of(6), SEEDS, target, Given(counts=counts, known=known))
    assert (loss[:, :2] == 0).all()
    assert (loss[:, 2:] > 0).all()
    chunk, shown_as_known, *_ = seen[0]
    assert torch.equal(chunk[:, :2], target[:, :2])
    assert torch.equal(shown_as_known, known)
    assert not torch.isclose(chunk[:, 2:], target[:, 2:]).all(-1).any()


@pytest.mark.parametrize("name", INPAINTING)
def test_numbers_that_an_action_does_not_have_are_zero_in_every_step(name):
    head = head_of(name).eval()
    counts = torch.ones(6, TA, 3, dtype=torch.bool)
    counts[:, :, 2] = False
    seen = []
    head.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(tokens_of(6), SEEDS, torch.rand(6, TA, 3), Given(counts=counts))
    assert (head(tokens_of(6), SEEDS, None, Given(counts=counts, num_steps=3))[..., 2] == 0).all()
    assert len(seen) == 1 + (5 if "heun" in name else 3)
    assert all((chunk[..., 2] == 0).all() and (chunk[..., :2] != 0).all() for chunk in seen)


@pytest.mark.parametrize("name", INPAINTING)
def test_the_number_of_steps_is_the_number_of_calls(name):
    head, calls = head_of(name).eval(), []
    head.network.register_forward_pre_hook(lambda *_: calls.append(1))
    for num_steps in (None, 1, 2, 5, 23):
        calls.clear()
        assert torch.isfinite(head(tokens_of(2), SEEDS[:2], None, Given(num_steps=num_steps))).all()
        steps = num_steps or head.num_steps
        assert len(calls) == (2 * steps - 1 if "heun" in name else steps)


@every_head
def test_a_head_refuses_what_it_cannot_do_and_names_those_that_can(name):
    head = head_of(name)
    if CASES[name][0] in GENERATIVE:
        with pytest.raises(ValueError, match="num_steps=0: at least 1"):
            head(tokens_of(1), SEEDS[:1], None, Given(num_steps=0))
        return
    for given in (Given(num_steps=3), Given(known=torch.ones(1, TA, dtype=torch.bool), actions=torch.zeros(1, TA, 3))):
        with pytest.raises(ValueError, match=f"{type(head).__name__} .*diffusion, flow, meanflow"):
            head(tokens_of(1), SEEDS[:1], None, given)


def test_heads_say_of_themselves_what_they_can_do():
    able = {kind for kind in HEADS if class_of(kind).samples}
    assert able == {kind for kind in HEADS if class_of(kind).inpaints} == set(GENERATIVE)


def test_a_user_s_head_without_given_refuses_known_actions_too():
    class Own(Head):
        def act(self, tokens, seeds):
            return tokens

    with pytest.raises(ValueError, match="Own cannot in-paint"):
        Own()(tokens_of(1), SEEDS[:1], None, Given(known=torch.ones(1, TA, dtype=torch.bool)))


@pytest.mark.parametrize("kind", GENERATIVE)
@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 16, 17])
def test_a_unet_takes_chunks_of_every_length(kind, horizon):
    head = head_of(kind, horizon=horizon, widths=[8, 8, 8, 8])
    assert torch.isfinite(head(tokens_of(2), SEEDS[:2], torch.zeros(2, horizon, 3))).all()
    assert head(tokens_of(2), SEEDS[:2]).shape == (2, horizon, 3)


# ------------------------------------------------------------------ against others' arithmetic


@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_noise_is_added_and_taken_out_as_by_diffusers(betas, prediction, sampler):
    from diffusers import DDIMScheduler, DDPMScheduler

    from ppt_kit.models.heads.schedule import Schedule

    ours = Schedule(100, betas=betas, prediction=prediction, clip=1.0)
    options = {
        "num_train_timesteps": 100, "beta_schedule": betas, "timestep_spacing": "trailing", "clip_sample": True,
        "prediction_type": "v_prediction" if prediction == "v" else prediction,
    }  # fmt: skip
    theirs = (DDIMScheduler if sampler == "ddim" else DDPMScheduler)(**options)
    clean, noise = torch.rand(5, TA, 3) * 2 - 1, torch.randn(5, TA, 3)
    steps = torch.tensor([0, 3, 50, 98, 99])
    assert torch.allclose(ours.noisy(clean, noise, steps), theirs.add_noise(clean, noise, steps), atol=1e-6)
    if prediction == "v":
        assert torch.allclose(ours.wanted(clean, noise, steps), theirs.get_velocity(clean, noise, steps), atol=1e-6)
    theirs.set_timesteps(10)
    walked = ours.steps(10)
    assert walked == theirs.timesteps.tolist()
    chunk = torch.randn(5, TA, 3)
    for step, then in zip(walked, [*walked[1:], None]):
        predicted = torch.randn(5, TA, 3)
        drawn = torch.randn(chunk.shape, generator=torch.Generator().manual_seed(step))
        made = ours.clean(chunk, predicted, step)
        if sampler == "ddim":
            got = ours.ddim(chunk, made, step, then=then)
            want = theirs.step(predicted, step, chunk, use_clipped_model_output=True).prev_sample
        else:
            got = ours.ddpm(chunk, made, drawn, step, then=then)
            want = theirs.step(predicted, step, chunk, generator=torch.Generator().manual_seed(step)).prev_sample
        assert torch.allclose(got, want, atol=2e-5)
        chunk = want


@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 33, 100])
def test_sampling_starts_at_pure_noise_and_goes_down(num_steps):
    from ppt_kit.models.heads.schedule import Schedule

    steps = Schedule(100, betas="squaredcos_cap_v2", prediction="sample", clip=None).steps(num_steps)
    assert steps[0] == 99
    assert len(steps) == num_steps
    assert all(a > b >= 0 for a, b in zip(steps, steps[1:]))


@pytest.mark.parametrize("name", ["meanflow", "meanflow transformer"])
def test_the_rate_of_a_mean_flow_is_the_difference_quotient(name):
    head = head_of(name).double()
    chunk, velocity, context = (torch.randn(3, *size).double() for size in ((TA, 3), (TA, 3), (5, 16)))
    context = head.context(context, SEEDS[:3])
    known = torch.zeros(3, TA, dtype=torch.bool)
    times = torch.rand(3, 2, dtype=torch.float64)
    mean, rate = head.network(chunk, known, times, context, SEEDS[:3], velocity=velocity)
    at = lambda h: head.network(chunk + h * velocity, known, times + h, context, SEEDS[:3])
    assert torch.allclose(mean, at(0.0))
    assert torch.allclose(rate, (at(1e-5) - at(-1e-5)) / 2e-5, atol=1e-6)


def test_times_are_drawn_as_the_options_say():
    seeds = torch.arange(20_000)
    beta = head_of("flow", times="beta")._drawn_times(seeds)
    want = torch.distributions.Beta(1.5, 1.0)
    assert beta.mean().item() == pytest.approx(want.mean.item(), abs=0.01)
    assert beta.std().item() == pytest.approx(want.stddev.item(), abs=0.01)
    begin, end = head_of("meanflow", equal_share=0.25)._drawn_times(seeds)
    assert (begin == end).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (begin <= end).all()
    # half of the others have r = 0, from which one step acts
    assert (begin == 0).float().mean().item() == pytest.approx(0.375, abs=0.02)
    assert ((begin >= 0) & (end < 1)).all()
    begin, _ = head_of("meanflow", to_zero_share=0.0)._drawn_times(seeds)
    assert (begin > 0).all()


# ------------------------------------------------------------------ learning

# small enough to learn in a second or two
LEARNING = {kind: {"network": "transformer", "widths": None, "num_layers": 1} for kind in GENERATIVE}
LEARNING |= {"cvae": {"num_layers": 1, "kl_weight": 0.05, "sample": True}, "mixture": {"num_layers": 1, "num_modes": 3}}
LEARNING |= {"decoder": {"num_layers": 1}}
REGRESSING = ("regression", "mlp", "decoder")


def kinds_but(slow):
    """Every head; the slow one in the long suite."""
    return [pytest.param(kind, marks=pytest.mark.long) if kind == slow else kind for kind in HEADS]


def trained(head, tokens, target, *, steps, rate=4e-3):
    """The head after steps of Adam on all samples at once."""
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        head(tokens, torch.arange(len(tokens)) + 1_000_003 * step, target).mean().backward()
        optimizer.step()
    return head.eval()


@pytest.mark.parametrize("kind", kinds_but("meanflow"))
def test_a_chunk_that_the_tokens_decide_is_learned(kind):
    """Four kinds of tokens, each with its chunk: the error is a seventh of a chunk's own spread, or less."""
    chunks = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    which, tokens = torch.arange(64) % 4, tokens_of(4, width=32)
    head = head_of(kind, width=32, action_dim=2, horizon=4, **LEARNING.get(kind, {}))
    trained(head, tokens[which], chunks[which], steps=800 if kind == "mixture" else 200)
    assert (head(tokens, torch.arange(4) + 5) - chunks).square().mean().sqrt() < chunks.std() / 7


@pytest.fixture
def one_thread():
    """What is learned hangs on the order of sums, and so on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", kinds_but("cvae"))
def test_of_two_ways_a_generative_head_takes_one_and_regression_the_middle(kind):
    """The same tokens, half of the chunks at +0.5, half at -0.5: neither is wrong, and what lies between is."""
    target = torch.where(torch.arange(64) % 2 == 0, 0.5, -0.5)[:, None, None].repeat(1, 4, 2)
    tokens = tokens_of(1, width=32).expand(64, -1, -1)
    more = {**LEARNING.get(kind, {}), **({"loss": "mse"} if kind in REGRESSING else {})}
    steps = {"meanflow": 350, "cvae": 500}.get(kind, 200)
    head = trained(head_of(kind, width=32, action_dim=2, horizon=4, **more), tokens, target, steps=steps)
    got = head(tokens_of(1, width=32).expand(256, -1, -1), torch.arange(256) + 5)
    if kind in REGRESSING:
        assert got.abs().max() < 0.15
        return
    up, down = ((got - way).abs().amax((1, 2)) < 0.15 for way in (0.5, -0.5))
    assert (up | down).float().mean() >= 0.9
    # both ways are taken
    assert 0.1 < up.float().mean() < 0.9


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("name", ["flow", "meanflow", "mixture"])
def test_a_compiled_policy_gives_the_same_loss_and_gradients(name):
    torch._dynamo.reset()
    policy, batch = policy_of(name, specs={"a": SPECS["a"]}, dropout=0.2), batch_of([0] * 4)
    batch["obs"]["state"], batch["action"] = batch["obs"]["state"][..., :4], batch["action"][..., :4]
    results = []
    # as the engine does: a mean flow's forward derivative is beyond the compiler
    leave_whole(policy, compiled=True)
    for way in (policy, torch.compile(policy)):
        policy.zero_grad()
        loss = way(batch)["loss"]
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in policy.parameters()]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(results[0][1], results[1][1]))


# ------------------------------------------------------------------ options

WRONG = [
    ("diffusion", {"network": "gru"}, "network=gru: takes unet, transformer"),
    ("diffusion", {"sampler": "ddom"}, "sampler=ddom: takes ddim, ddpm"),
    ("diffusion", {"prediction": "x0"}, "prediction=x0: takes epsilon, sample, v"),
    ("diffusion", {"betas": "cosine"}, "betas=cosine: takes squaredcos_cap_v2"),
    ("diffusion", {"num_steps": 200}, "num_steps=200: takes a number within 1 and 100"),
    ("diffusion", {"clip": 0}, "clip=0: takes a number 1e-06 or more"),
    ("flow", {"solver": "rk4"}, "solver=rk4: takes euler, heun"),
    ("flow", {"prediction": "v"}, "prediction=v: takes sample, velocity"),
    ("flow", {"num_steps": 0}, "num_steps=0: takes a whole number, 1 or more"),
    ("flow", {"num_layers": 2}, "num_layers=2: of network=transformer; a unet has widths"),
    ("flow", {"network": "transformer", "widths": [8]}, "a transformer has num_layers"),
    ("flow", {"widths": []}, "takes channels of one level or more"),
    ("flow", {"widths": [8, 0.5]}, "widths=0.5: takes a whole number"),
    ("meanflow", {"equal_share": -1}, "equal_share=-1: takes a number within 0 and 1"),
    ("mixture", {"num_modes": 0}, "num_modes=0: takes a whole number"),
    ("mixture", {"min_std": 0}, "min_std=0: takes a number"),
    ("cvae", {"kl_weight": -1}, "kl_weight=-1: takes a number 0 or more"),
    ("cvae", {"sample": "yes"}, "sample=yes: takes true or false"),
    ("mlp", {"loss": "l3"}, "loss=l3: takes l1, mse"),
    ("decoder", {"num_layers": 0}, "num_layers=0: takes a whole number"),
    ("decoder", {"layers": 3}, "has no such option; it takes loss, num_layers"),
    ("flow", {"step": 3}, "has no such option; it takes network, widths, num_layers, num_steps"),
]


@pytest.mark.parametrize(("kind", "options", "says"), WRONG, ids=[f"{kind} {options}" for kind, options, _ in WRONG])
def test_a_wrong_option_is_one_line_that_says_what_to_type(kind, options, says):
    spec = Spec(state={"x": 1}, action={"actions": 2})
    sizes = Sizes(width=16, num_heads=2, dropout=0.0, horizon=Horizon(2, 8), spec=spec, name="head.a")
    with pytest.raises(UserError) as error:
        build_part(kind, sizes, options, known=HEADS, base=Head, option="policy.head")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_more_steps_in_acting_than_in_training_are_refused():
    head = head_of("diffusion", num_train_steps=20)
    with pytest.raises(ValueError, match="num_steps=21: .* 20 steps"):
        head(tokens_of(1), SEEDS[:1], None, Given(num_steps=21))


def test_diffusion_without_diffusers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers.schedulers.scheduling_ddpm", None)
    with pytest.raises(UserError, match=r"pip install 'ppt_kit\[diffusion\]'"):
        head_of("diffusion")


def test_initial_noise_of_two_heads_is_not_the_same():
    one, other = normal(SEEDS, (TA, 3), stream="head.a.start"), normal(SEEDS, (TA, 3), stream="head.b.start")
    assert not torch.equal(one, other)
