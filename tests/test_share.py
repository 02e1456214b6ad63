"""Several domains in one policy: what each way of sharing shares, and that no domain sees another's numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

import ppt_kit as ppt
from ppt_kit.errors import UserError
from ppt_kit.model_keys import HeadConfig
from ppt_kit.models.heads import HEADS
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.stems import Stem
from ppt_kit.schema import PolicyConfig
from ppt_kit.spec import Spec

SHARES = ("none", "trunk", "all")


def spec_of(state, action, **more):
    return Spec(state={"joints": state}, action={"actions": action}, points=10, channels=3, **more)


SPECS = {"a": spec_of(4, 4), "wide": spec_of(6, 7), "small.1": spec_of(2, 3)}


def policy_of(share, specs=SPECS, **options) -> PPTPolicy:
    torch.manual_seed(0)
    return PPTPolicy(specs, PolicyConfig(width=32, depth=1, num_heads=2, share=share, **options))


def batch_of(domains, *, seed=0):
    g, size = torch.Generator().manual_seed(seed), len(domains)
    batch = {
        "obs": {"state": torch.randn(size, 2, 6, generator=g), "pointcloud": torch.randn(size, 2, 10, 3, generator=g)},
        "action": torch.randn(size, 8, 7, generator=g),
        "action_is_pad": torch.rand(size, 8, generator=g) < 0.3,
        "domain": torch.tensor(domains),
        "noise_seed": torch.randint(0, 2**40, (size,), generator=g),
    }
    for row, domain in enumerate(domains):
        spec = list(SPECS.values())[domain]
        batch["obs"]["state"][row, :, spec.state_dim :] = 0
        batch["action"][row, :, spec.action_dim :] = 0
    return batch


def rows_of(batch, rows):
    return {
        name: {part: value[rows] for part, value in entry.items()} if isinstance(entry, dict) else entry[rows]
        for name, entry in batch.items()
    }


def own_obs(batch, row, spec):
    return {
        "state": batch["obs"]["state"][row : row + 1, :, : spec.state_dim],
        "pointcloud": batch["obs"]["pointcloud"][row : row + 1],
    }


def norms_of(policy):
    g = torch.Generator().manual_seed(5)
    draw = lambda width: {
        "offset": torch.randn(width, generator=g).tolist(), "scale": (torch.rand(width, generator=g) + 0.5).tolist(),
    }  # fmt: skip
    return {
        name: {"state": draw(spec.state_dim), "action": draw(spec.action_dim)} for name, spec in policy.specs.items()
    }


def test_what_is_shared_has_one_copy_and_the_rest_one_a_domain():
    names = {share: [name for name, _ in policy_of(share).named_parameters()] for share in SHARES}
    count = lambda share, start: len({name.split(".")[1] for name in names[share] if name.startswith(start)})
    assert [count(share, "stems.") for share in SHARES] == [3, 3, 1]
    assert [count(share, "heads.") for share in SHARES] == [3, 3, 1]
    assert [count(share, "trunks.") for share in SHARES] == [3, 0, 0]
    assert [any(name.startswith("trunk.") for name in names[share]) for share in SHARES] == [False, True, True]
    # the normaliser's numbers are each domain's own
    assert all(len(policy_of(share).action_norm) == 3 for share in SHARES)


@pytest.mark.parametrize("share", SHARES)
def test_the_loss_of_a_mixture_is_the_mean_of_its_windows_own(share):
    policy, batch = policy_of(share), batch_of([0, 1, 2, 0, 1])
    policy.set_normalizer(norms_of(policy))
    alone = torch.stack([policy(rows_of(batch, [row]))["loss"] for row in range(5)])
    assert policy(batch)["loss"].item() == pytest.approx(alone.mean().item(), rel=1e-5)


@pytest.mark.parametrize("share", SHARES)
def test_a_domains_actions_come_in_its_own_width_and_units(share):
    """The loss of a window says how far act() is from its actions, in the normaliser's units, edges left out."""
    policy, batch = policy_of(share).eval(), batch_of([0, 1, 2])
    norms = norms_of(policy)
    policy.set_normalizer(norms)
    for row, (name, spec) in enumerate(SPECS.items()):
        acted = policy.act(own_obs(batch, row, spec), name)
        assert acted.shape == (1, 8, spec.action_dim)
        gap = (acted[0] - batch["action"][row, :, : spec.action_dim]) * torch.tensor(norms[name]["action"]["scale"])
        want = gap.abs().mean(-1)[~batch["action_is_pad"][row]].sum() / 8
        assert policy(rows_of(batch, [row]))["loss"].item() == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("share", SHARES)
def test_numbers_that_a_domain_does_not_have_change_nothing(share):
    policy, batch = policy_of(share), batch_of([0, 1, 2])
    policy.set_normalizer(norms_of(policy))
    before = policy(batch)["loss"]
    for row, spec in enumerate(SPECS.values()):
        batch["obs"]["state"][row, :, spec.state_dim :] = 1e6
        batch["action"][row, :, spec.action_dim :] = torch.inf
    assert torch.equal(policy(batch)["loss"], before)


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_serves_domains_of_other_widths(kind):
    """Each window's loss is its own, whatever the others are, and act() gives each domain its width."""
    config = PolicyConfig(width=32, depth=1, num_heads=2, share="all", modality_dropout=0.2)
    config.head.kind = kind
    torch.manual_seed(0)
    policy, batch = PPTPolicy(SPECS, config), batch_of([0, 1, 2, 1])
    alone = torch.stack([policy(rows_of(batch, [row]))["loss"] for row in range(4)])
    whole = policy(batch)["loss"]
    assert whole.item() == pytest.approx(alone.mean().item(), rel=1e-4)
    whole.backward()
    batch["action"][0, :, 4:] = torch.nan
    assert torch.equal(policy(batch)["loss"], whole)
    policy.eval()
    for row, (name, spec) in enumerate(SPECS.items()):
        acted = policy.act(own_obs(batch, row, spec), name)
        assert acted.shape == (1, 8, spec.action_dim)
        assert torch.isfinite(acted).all()


@pytest.mark.parametrize("kind", ["diffusion", "flow", "meanflow"])
def test_a_head_that_samples_is_shown_no_number_that_the_domain_does_not_have(kind):
    """In training they are zero in the noisy chunk: in acting they must be, too."""
    policy, shown = policy_of("all", head=HeadConfig(kind=kind)).eval(), []
    network = next(iter(policy.heads.values())).network
    network.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    batch = batch_of([2, 2])
    policy.act({**batch["obs"], "state": batch["obs"]["state"][..., :2]}, "small.1")
    assert shown
    assert all((chunk[..., 3:] == 0).all() and (chunk[..., :3] != 0).all() for chunk in shown)


def test_shared_parts_run_once_for_all_domains():
    policy, calls = policy_of("all"), []
    for module in (policy.stems["all"]["state"], policy.trunk, policy.heads["all"]):
        module.register_forward_hook(lambda module, given, made: calls.append((type(module).__name__, len(given[0]))))
    policy(batch_of([0, 1, 2, 1]))
    assert calls == [("StateStem", 4), ("Trunk", 4), ("RegressionHead", 4)]


@pytest.mark.parametrize("share", SHARES)
def test_a_domain_that_is_not_in_the_batch_still_takes_part(share):
    policy = policy_of(share)
    policy(batch_of([0, 0]))["loss"].backward()
    assert all(p.grad is not None for p in policy.parameters())
    of_others = [p for name, p in policy.named_parameters() if {"wide", "small·1"} & set(name.split("."))]
    assert not any(p.grad.any() for p in of_others)


class WithoutGiven(ppt.Head):
    """Cannot be told which numbers count."""

    def __init__(self, sizes):
        super().__init__()


class AllCameras(Stem):
    """The mean over the cameras that are there, if it can be told which."""

    takes_missing = True

    def __init__(self, sizes):
        super().__init__()
        self.embed = torch.nn.Linear(3, sizes.width)

    def forward(self, readings, seeds, missing):
        seen = torch.stack([image.float().mean((1, 2, 3)) / 255 for image in readings.values()], 1)
        there = torch.ones(seen.shape[:2]) if missing is None else torch.stack(
            [1 - missing[name].float() for name in readings], 1
        )  # fmt: skip
        return self.embed((seen * there[..., None]).sum(1) / there.sum(1, keepdim=True))[:, None]


class Deaf(AllCameras):
    """Cannot be told."""

    takes_missing = False


def with_cameras(kind, share="all", *, encoder=None):
    size = (4, 6)
    specs = {
        "two": Spec(state={"x": 2}, action={"actions": 2}, rgb={"left": size, "top": size}),
        "one": Spec(state={"x": 2}, action={"actions": 2}, rgb={"wrist": size}),
    }
    config = PolicyConfig(width=32, depth=1, num_heads=2, share=share)
    config.encoders.rgb.kind = encoder and f"test_share:{encoder}"
    config.stems.pointcloud.kind, config.stems.rgb.kind = None, f"test_share:{kind}"
    torch.manual_seed(0)
    return PPTPolicy(specs, config)


def test_what_one_set_of_parts_cannot_serve_is_refused():
    config = PolicyConfig(width=32, depth=1, num_heads=2, share="all")
    config.head.kind = "test_share:WithoutGiven"
    with pytest.raises(UserError, match=r"takes_given = True.*policy.share=trunk"):
        PPTPolicy(SPECS, config)
    colours = Spec(state={"x": 2}, action={"actions": 2}, points=10, channels=6)
    with pytest.raises(UserError, match=r"a has 3 and c has 6.*dataset.point_channels"):
        policy_of("all", {"a": SPECS["a"], "c": colours})
    with pytest.raises(UserError, match=r"two has left, top; one has wrist.*takes_missing"):
        with_cameras("Deaf")


def test_a_camera_that_a_domain_has_not_enters_nothing():
    policy = with_cameras("AllCameras").eval()
    g = torch.Generator().manual_seed(0)
    image = lambda: torch.randint(0, 256, (2, 2, 4, 6, 3), generator=g, dtype=torch.uint8)
    batch = {
        "obs": {"state": torch.randn(2, 2, 2, generator=g), "rgb": {name: image() for name in ("left", "top", "wrist")}},
        "action": torch.randn(2, 8, 2, generator=g), "action_is_pad": torch.zeros(2, 8, dtype=torch.bool),
        "domain": torch.tensor([0, 1]), "index": torch.arange(2),
    }  # fmt: skip
    before = policy(batch)["loss"]
    batch["obs"]["rgb"]["wrist"][0], batch["obs"]["rgb"]["left"][1], batch["obs"]["rgb"]["top"][1] = 9, 99, 199
    assert torch.equal(policy(batch)["loss"], before)
    batch["obs"]["rgb"]["wrist"][1] = 9
    assert not torch.equal(policy(batch)["loss"], before)
    # a domain acts on its own cameras, as the loss does
    obs = {"state": batch["obs"]["state"][1:], "rgb": {"wrist": batch["obs"]["rgb"]["wrist"][1:]}}
    want = (policy.act(obs, "one") - batch["action"][1:]).abs().mean()
    alone = {name: value[1:] for name, value in batch.items() if name != "obs"} | {"obs": obs}
    assert policy(alone)["loss"].item() == pytest.approx(want.item(), rel=1e-5)


class Colour(ppt.Encoder):
    """The mean colour of each frame."""

    def __init__(self, sizes):
        super().__init__()

    def forward(self, readings):
        return {camera: image.float().mean((2, 3)) for camera, image in readings.items()}


class OfColours(AllCameras):
    """Reads what Colour makes."""

    def forward(self, readings, seeds, missing):
        return super().forward({name: colour[:, :, None, None] for name, colour in readings.items()}, seeds, missing)


@pytest.mark.parametrize("share", SHARES)
def test_kept_features_are_taken_also_where_a_batch_has_not_every_camera(share):
    """As the dataset gives them: of the cameras that the batch's own domains have."""
    policy = with_cameras("OfColours", share, encoder="Colour")
    g = torch.Generator().manual_seed(0)
    batch = {
        "obs": {
            "state": torch.randn(2, 2, 2, generator=g),
            "rgb": {"wrist": torch.randint(0, 256, (2, 2, 4, 6, 3), generator=g, dtype=torch.uint8)},
        },
        "action": torch.randn(2, 8, 2, generator=g), "action_is_pad": torch.zeros(2, 8, dtype=torch.bool),
        "domain": torch.tensor([1, 1]), "index": torch.arange(2),
    }  # fmt: skip
    kept = {"state": batch["obs"]["state"], "encoded": {"rgb": Colour(None)(batch["obs"]["rgb"])}}
    assert policy({**batch, "obs": kept})["loss"].item() == pytest.approx(policy(batch)["loss"].item(), rel=1e-6)


class NoLookAtValues(TorchDispatchMode):
    """Fails on what, on a GPU, makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("nonzero", "_local_scalar_dense", "masked_select", "is_nonzero", "equal", "unique"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("more", [{}, {"modality_dropout": 0.3, "pooling": "concat", "position_embedding": True}])
def test_a_training_step_looks_at_no_value(share, more):
    """The rows of each domain come with the batch, as the loader puts them there."""
    policy, batch = policy_of(share, dropout=0.1, **more), batch_of([0, 1, 0, 2])
    batch["rows"] = [torch.from_numpy(np.flatnonzero(batch["domain"].numpy() == number)) for number in range(3)]
    want = policy({name: value for name, value in batch.items() if name != "rows"})["loss"]
    with NoLookAtValues():
        loss = policy(batch)["loss"]
        loss.backward()
    assert torch.equal(loss, want)
    if share != "all":
        without = {name: value for name, value in batch.items() if name != "rows"}
        with NoLookAtValues(), pytest.raises(AssertionError, match="nonzero"):
            policy(without)
    assert policy(policy.blank(batch))["loss"] == 0


@pytest.mark.long
@pytest.mark.parametrize("share", SHARES)
def test_a_step_is_compiled_whole_whatever_the_mixture(share):
    """One graph of a step, without a break; few of them for batches with other numbers of rows of each domain."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    policy = policy_of(share, dropout=0.1, modality_dropout=0.3, pooling="concat", position_embedding=True)
    compiled = torch.compile(policy, backend="aot_eager")
    for seed, domains in enumerate([[0, 1, 2, 0], [0, 1, 1, 2], [0, 0, 2, 1], [1, 1, 2, 2], [0, 0, 1, 2]]):
        batch = batch_of(domains, seed=seed)
        batch["rows"] = [torch.from_numpy(np.flatnonzero(np.array(domains) == number)) for number in range(3)]
        assert compiled(batch)["loss"].item() == pytest.approx(policy(batch)["loss"].item(), rel=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= (1 if share == "all" else 4)


def test_the_loader_says_which_rows_are_whose(small_data):
    from conftest import dataset_of

    from ppt_kit.data.loader import BatchPlan, Loader, to_device

    dataset = dataset_of(small_data, "a,wide", state_keys=None, num_points=16)
    plan = BatchPlan(len(dataset), 8)
    for _, (batch,) in Loader(dataset, plan, rank=0, first_step=0, last_step=4, pin=False):
        assert [rows.tolist() for rows in batch["rows"]] == [
            np.flatnonzero(batch["domain"].numpy() == number).tolist() for number in (0, 1)
        ]
        # on the host wherever the batch goes
        assert to_device(batch, torch.device("meta"))["rows"][0].device.type == "cpu"
    alone = Loader(dataset_of(small_data, "a", state_keys=None, num_points=16), BatchPlan(9, 8), rank=0, first_step=0, last_step=1, pin=False)  # fmt: skip
    assert all("rows" not in batch for _, (batch,) in alone)


@pytest.mark.parametrize("share", ["none", "all"])
def test_a_shared_policy_goes_from_training_through_a_checkpoint_to_acting(small_cfg, share):
    words = ("domains=a,wide", f"policy.share={share}", "train.total_epochs=3", "deepspeed=zero2", "policy.dropout=0.1")
    run = ppt.UnifiedTrainer(small_cfg(*words))
    assert run.run() == 0
    losses = ppt.read_metrics(run.run_dir, "train")["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    policy = ppt.load_policy(run.run_dir)
    for name, spec in policy.specs.items():
        obs = {"state": torch.zeros(3, 2, spec.state_dim), "pointcloud": torch.zeros(3, 2, 16, 3)}
        assert policy.act(obs, name).shape == (3, 8, spec.action_dim)
    longer = ppt.UnifiedTrainer(small_cfg(*words[:2], *words[3:], "train.total_epochs=4", "train.resume=auto"))
    assert longer.run() == 0


# ------------------------------------------------------------------ ranks whose batches hold different domains

MORE = {"none": {}, "trunk": {"modality_dropout": 0.3}, "all": {"pooling": "concat", "position_embedding": True}}


def gradients_of_a_rank(rank, path, stages):
    """Writes down the gradients that two ranks agree on, for every way of sharing."""
    from deepspeed.utils import safe_get_full_grad

    from ppt_kit.config import load_config, typed
    from ppt_kit.engine import Engine, join_world, leave_world

    world, found = join_world(rank=rank, local_rank=rank, world_size=2), {}
    for stage in stages:
        for share in SHARES:
            cfg = typed(load_config("quickstart", f"deepspeed=zero{stage}", "batch_size=4", "gradient_clipping=0"))
            engine = Engine(policy_of(share, **MORE[share]), cfg, world)
            loss = engine._deepspeed(rows_of(batch_of([0, 0, 0, 0, 1, 1, 2, 2]), slice(4 * rank, 4 * rank + 4)))["loss"]
            engine._deepspeed.backward(loss)
            found[stage, share] = {name: safe_get_full_grad(p) for name, p in engine.policy.named_parameters()}
    if rank == 0:
        torch.save(found, path)
    leave_world(world)


@pytest.mark.parametrize("stages", ["2", pytest.param("013", marks=pytest.mark.long)])
def test_two_ranks_with_different_domains_give_the_gradients_of_one_process(tmp_path, stages):
    """Rank 0 sees the first domain, rank 1 the others; one process the union. At each ZeRO stage."""
    from ppt_kit.jobs.ranks import free_port

    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "gradients.pt"), stages], cwd=ROOT, text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told[0][-2000:] + told[1][-2000:]
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert len(found) == 3 * len(stages)
    for (stage, share), gradients in found.items():
        policy = policy_of(share, **MORE[share])
        policy(batch_of([0, 0, 0, 0, 1, 1, 2, 2]))["loss"].backward()
        for name, p in policy.named_parameters():
            gap = (gradients[name].cpu() - p.grad).abs().max() / max(p.grad.abs().max().item(), 1e-3)
            assert gap < 1e-5, (stage, share, name, gap)


if __name__ == "__main__":
    gradients_of_a_rank(int(sys.argv[1]), sys.argv[2], map(int, sys.argv[3]))
