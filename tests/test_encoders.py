"""Pictures: the small network's keypoints, feature maps of backbones, and what a checkpoint holds of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL_WORDS, latest

import ppt_kit as ppt
from ppt_kit.config import load_config, typed
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.models.encoders.backbone import normalised
from ppt_kit.models.part import Sizes
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.models.stems.image import CnnStem, depth_planes, grid, rgb_planes
from ppt_kit.models.stems.maps import MapStem
from ppt_kit.spec import Spec

CAMERAS = {"front": (32, 48), "wrist": (32, 32)}
SPEC = Spec(state={"x": 3}, action={"actions": 2}, rgb=CAMERAS, depth=CAMERAS)
RESNET = {"depths": "[1,1]", "hidden_sizes": "[8,16]", "embedding_size": "8"}
DINO = {"hidden_size": "16", "num_hidden_layers": "1", "num_attention_heads": "2", "image_size": "28"}
TINY = {"resnet18": RESNET, "resnet50": RESNET, "dinov2": DINO}


def sizes_of(modality="rgb", *, spec=SPEC, encoded=0):
    torch.manual_seed(0)
    return Sizes(
        width=32, num_heads=2, dropout=0.0, horizon=Horizon(), spec=spec, name=f"stem.a.{modality}", modality=modality,
        num_latents=4, encoded=encoded,
    )  # fmt: skip


def pictures(modality="rgb", *, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    draw = {
        "rgb": lambda size: rng.integers(0, 256, (rows, 2, *size, 3), dtype=np.uint8),
        "depth": lambda size: rng.uniform(0.1, 3, (rows, 2, *size, 1)).astype(np.float32),
    }[modality]
    return {name: torch.from_numpy(draw(size)) for name, size in CAMERAS.items()}


def words_of(kind, modality="rgb", *words, **options):
    asked = {**TINY[kind], **options}
    return [
        f"policy.encoders.{modality}.kind={kind}", f"policy.stems.{modality}.kind=maps",
        *(f"policy.encoders.{modality}.options.{name}={value}" for name, value in asked.items()), *words,
    ]  # fmt: skip


def policy_of(*words, specs=None, seed=0):
    torch.manual_seed(seed)
    cfg = load_config("", "policy.width=32", "policy.depth=1", "policy.num_heads=2", *words)
    return PPTPolicy(specs or {"a": SPEC}, typed(cfg).policy)


# ------------------------------------------------------------------ the small network


@pytest.mark.parametrize("modality", ["rgb", "depth"])
@pytest.mark.parametrize("shared", [False, True])
def test_pictures_become_tokens_and_every_weight_learns(modality, shared):
    stem = CnnStem(sizes_of(modality), shared=shared)
    tokens = stem(pictures(modality), torch.zeros(3, dtype=torch.int64))
    assert tokens.shape == (3, 4, 32)
    tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stem.parameters())
    assert len(stem.nets) == (1 if shared else 2)


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_a_batch_of_pictures_is_each_picture_by_itself(modality):
    stem, seen, seeds = CnnStem(sizes_of(modality)), pictures(modality), torch.zeros(3, dtype=torch.int64)
    alone = torch.cat([stem({n: p[row : row + 1] for n, p in seen.items()}, seeds[:1]) for row in range(3)])
    assert torch.allclose(stem(seen, seeds), alone, atol=1e-5)


def test_a_cell_is_where_numpy_says():
    got = grid(3, 4, device=torch.device("cpu")).numpy().reshape(3, 4, 2)
    for row in range(3):
        for column in range(4):
            assert np.allclose(got[row, column], [(column + 0.5) / 4 * 2 - 1, (row + 0.5) / 3 * 2 - 1])


def test_a_spot_is_followed_to_a_few_pixels():
    """Trained to say where a bright spot is among 64 x 64 pixels, of places not seen; the middle is 12 pixels off."""
    spec = Spec(action={"actions": 2}, rgb={"front": (64, 64)})
    stem = CnnStem(replace(sizes_of(spec=spec), horizon=Horizon(1)), keypoints=16)
    out = torch.nn.Linear(32, 2)
    rng = np.random.default_rng(0)

    def batch(rows):
        places = rng.integers(8, 56, (rows, 2))
        seen = rng.integers(0, 40, (rows, 1, 64, 64, 3), dtype=np.uint8)
        for row, (y, x) in enumerate(places):
            seen[row, :, y - 3 : y + 4, x - 3 : x + 4] = (250, 60, 60)
        return {"front": torch.from_numpy(seen)}, torch.from_numpy(places / 64.0).float()

    optimizer = torch.optim.AdamW([*stem.parameters(), *out.parameters()], lr=1e-3)
    for _ in range(150):
        seen, places = batch(16)
        loss = (out(stem(seen, torch.zeros(16, dtype=torch.int64)).mean(1)) - places).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        seen, places = batch(32)
        error = (out(stem(seen, torch.zeros(32, dtype=torch.int64)).mean(1)) - places).abs().mean() * 64
    assert error < 4, f"{error:.1f} pixels"


def test_large_pictures_are_averaged_down_and_small_ones_are_refused():
    big = torch.arange(2 * 300 * 260 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 300, 260, 3)
    want = big.numpy()[:, :300, :258].reshape(2, 100, 3, 86, 3, 3).mean((2, 4)) / 127.5 - 1
    assert np.allclose(rgb_planes(big).permute(0, 2, 3, 1).numpy(), want, atol=1e-5)
    with pytest.raises(UserError, match="front has 4 x 6 pixels, and it takes 8 at least"):
        CnnStem(sizes_of(spec=Spec(action={"a": 1}, rgb={"front": (4, 6)})))


def test_where_depth_was_not_read_there_is_nothing():
    depth = torch.full((1, 8, 8, 1), 1.5)
    depth[0, 0, :3, 0] = torch.tensor([0.0, torch.nan, torch.inf])
    planes = depth_planes(depth)
    assert torch.isfinite(planes).all()
    assert not planes[0, :, 0, :3].any()
    angle = np.pi * 1.5 * np.array([1, 2, 4])
    want = [1, 1 / 2.5, *np.sin(angle), *np.cos(angle)]
    assert np.allclose(planes[0, :, 1, 1].numpy(), want, atol=1e-5)


@pytest.mark.parametrize("kind", ["cnn", "maps"])
def test_a_camera_that_failed_enters_nothing(kind):
    seeds, seen = torch.zeros(3, dtype=torch.int64), pictures()
    if kind == "maps":
        seen = {name: torch.randn(3, 2, 2, 3, 16) for name in CAMERAS}
    stem = CnnStem(sizes_of()) if kind == "cnn" else MapStem(sizes_of(encoded=16))
    gone = torch.tensor([False, True, False])
    missing = {"front": torch.zeros(3, dtype=torch.bool), "wrist": gone}
    before = stem(seen, seeds, missing)
    other = {"front": seen["front"], "wrist": seen["wrist"].clone()}
    other["wrist"][1] = 7
    after = stem(other, seeds, missing)
    assert torch.equal(before, after)
    assert not torch.allclose(before[1], stem(seen, seeds)[1], atol=1e-4)
    assert torch.allclose(before[[0, 2]], stem(seen, seeds)[[0, 2]], atol=1e-6)


# ------------------------------------------------------------------ backbones


def test_pictures_are_normalised_as_imagenet_was():
    rgb = pictures()["front"].flatten(0, 1)
    want = (rgb.numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(normalised(rgb).permute(0, 2, 3, 1).numpy(), want, atol=1e-5)
    depth = torch.tensor([[[[0.0], [1.0]], [[3.0], [torch.nan]]]])
    near = np.array([0, 0.5, 0.25, 0])[:, None]
    want = (near - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(normalised(depth).permute(0, 2, 3, 1).numpy().reshape(4, 3), want, atol=1e-5)


@pytest.mark.parametrize("modality", ["rgb", "depth"])
@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("more", [(), ("frozen=false", "options.shared=false")], ids=["frozen", "trained, one each"])
def test_a_backbone_before_the_stems_acts_and_learns_where_it_is_trained(kind, modality, more):
    policy = policy_of(*words_of(kind, modality, *(f"policy.encoders.{modality}.{word}" for word in more)))
    obs = {"state": torch.randn(3, 2, 3), "rgb": pictures(), "depth": pictures("depth")}
    batch = {
        "obs": obs, "action": torch.randn(3, 8, 2), "action_is_pad": torch.zeros(3, 8, dtype=torch.bool),
        "domain": torch.zeros(3, dtype=torch.int64), "index": torch.arange(3),
    }  # fmt: skip
    policy(batch)["loss"].backward()
    moved = [name for name, p in policy.named_parameters() if name.startswith("encoders.") and p.grad is not None]
    assert bool(moved) is bool(more)
    assert any("nets.1." in name for name in moved) is bool(more)
    assert policy.eval().act(obs).shape == (3, 8, 2)


@pytest.mark.parametrize("kind", TINY)
def test_no_statistics_of_a_batch_enter(kind):
    policy = policy_of(*words_of(kind, "rgb", "policy.encoders.rgb.frozen=false")).train()
    seen = pictures()
    whole = policy.encoders["rgb"](seen)
    alone = policy.encoders["rgb"]({name: value[1:2] for name, value in seen.items()})
    assert torch.allclose(whole["front"][1:2], alone["front"], atol=1e-5)


def test_maps_have_a_cell_for_each_patch_or_stride():
    made = policy_of(*words_of("dinov2", "rgb", size=42)).encoders["rgb"](pictures())
    assert made["front"].shape == (3, 2, 3, 3, 16)
    made = policy_of(*words_of("dinov2")).encoders["rgb"](pictures())
    assert made["front"].shape == (3, 2, 2, 3, 16)  # 32 x 48 -> 28 x 42
    made = policy_of(*words_of("resnet18")).encoders["rgb"](pictures())
    assert made["front"].shape == (3, 2, 4, 6, 16)


def save_tiny(folder, kind="dinov2", seed=7):
    """A folder as the hub has them; the model itself is given back."""
    import transformers

    torch.manual_seed(seed)
    if kind == "dinov2":
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
        )
        model = transformers.Dinov2Model(config)
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        model = transformers.ResNetModel(config)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["dinov2", "resnet18"])
def test_the_weights_of_a_folder_give_what_transformers_gives(tmp_path, kind):
    model, seen = save_tiny(tmp_path / "net", kind), {"front": pictures()["wrist"][:, :, :28, :28]}
    options = {"weights": str(tmp_path / "net")}
    words = [f"policy.encoders.rgb.options.{name}={value}" for name, value in options.items()]
    policy = policy_of(f"policy.encoders.rgb.kind={kind}", "policy.stems.rgb.kind=maps", *words).train()
    got = policy.encoders["rgb"](seen)["front"].flatten(0, 1)
    with torch.no_grad():
        want = model(normalised(seen["front"].flatten(0, 1))).last_hidden_state
    want = want[:, 1:].unflatten(1, (2, 2)) if kind == "dinov2" else want.permute(0, 2, 3, 1)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["weights=facebook/dinov2-nowhere"], "cannot be had .*local folder"),
        (["weights=./nowhere"], "no such folder"),
        (["weights={resnet}"], "is a resnet, and .* takes a dinov2"),
        (["hiden_size=3"], "no such option; it takes weights, size, shared, hidden_size"),
        (["hidden_size=-3"], "no such backbone can be made"),
        (["num_hidden_layers=-1"], "num_hidden_layers takes a whole number, at least 1"),
        (["hidden_size=32", "num_attention_heads=3"], "hidden_size takes a multiple of num_attention_heads"),
        (["hidden_size=wide"], "no such backbone can be made"),
        (["weights=5"], "weights=5: takes a folder, or a name on the hub"),
        (["shared=3"], "shared=3: takes true or false"),
        (["size=true"], "size=true: takes a whole number, 1 or more"),
        (["weights={dinov2}", "hidden_size=16"], "the weights say how large"),
    ],
)
def test_what_cannot_be_a_backbone_is_one_line(tmp_path, monkeypatch, words, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in ("resnet", "dinov2"):
        save_tiny(tmp_path / kind, kind)
    filled = [word.format(resnet=tmp_path / "resnet", dinov2=tmp_path / "dinov2") for word in words]
    fixed = ("policy.encoders.rgb.kind=dinov2", "policy.stems.rgb.kind=maps")
    with pytest.raises(UserError, match=says) as told:
        policy_of(*fixed, *(f"policy.encoders.rgb.options.{word}" for word in filled))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["policy.stems.rgb.kind=maps"], "reads the feature maps of an encoder. Set policy.encoders.rgb.kind=resnet18"),
        (["policy.encoders.rgb.kind=resnet18"], "Set policy.stems.rgb.kind=maps"),
        (["policy.stems.state.kind=cnn"], "does not read state. Set mlp or hpt_state, or module:Class"),
    ],
)  # fmt: skip
def test_a_stem_that_does_not_fit_its_encoder_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        policy_of(*words)


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    from test_modalities import write_seen

    folder = tmp_path_factory.mktemp("seen")
    write_seen(folder / "eyes.zarr", kinds=("state", "rgb"))
    write_seen(folder / "more.zarr", kinds=("state", "rgb"), seed=1)
    return folder


def run_of(folder, out, *words):
    fixed = (f"dataset_path={folder}", "domains=eyes", f"output_dir={out}", "suffix=run", "train.total_iters=3")
    return ppt.UnifiedTrainer(load_config("quickstart", *latest(*SMALL_WORDS, *fixed, *words)))


def test_a_checkpoint_of_a_trained_backbone_needs_no_file_of_its_weights(seen, tmp_path):
    save_tiny(tmp_path / "net", "resnet18")
    options = ("policy.encoders.rgb.kind=resnet18", "policy.stems.rgb.kind=maps", "policy.encoders.rgb.frozen=false")
    run = run_of(seen, tmp_path, *options, f"policy.encoders.rgb.options.weights={tmp_path / 'net'}")
    assert run.run() == 0
    obs = ppt.load_dataset(run.cfg, modalities=["state", "rgb"]).__getitems__([0, 1])["obs"]
    before = ppt.load_policy(run.run_dir).act(obs)
    for file in (tmp_path / "net").iterdir():
        file.unlink()
    (tmp_path / "net").rmdir()
    assert torch.equal(ppt.load_policy(run.run_dir).act(obs), before)
    # plain values alone stand beside the weights
    json.dumps(ppt.load_policy(run.run_dir).card["architectures"])


@pytest.mark.parametrize("more", [("deepspeed=zero3",), ("deepspeed=zero1", "precision=bf16")], ids=" ".join)
def test_a_frozen_backbone_is_named_and_not_stored(seen, tmp_path, more):
    run = run_of(seen, tmp_path, *words_of("resnet18"), *more)
    assert run.run() == 0
    content = torch.load(run.run_dir / "model.pth", weights_only=True)
    assert not [name for name in content["policy"] if name.startswith("encoders.")]
    assert content["encoders"] == {"rgb": policy_of(*words_of("resnet18"), seed=9).encoder_fingerprints["rgb"]}
    assert ppt.load_policy(run.run_dir).encoder_fingerprints == content["encoders"]


def test_domains_with_other_cameras_share_a_backbone_with_one_network_each():
    specs = {
        "a": Spec(state={"x": 3}, action={"actions": 2}, rgb={"front": (32, 48)}),
        "b": Spec(state={"x": 3}, action={"actions": 2}, rgb={"wrist": (32, 32)}),
    }
    words = words_of("resnet18", "rgb", "policy.encoders.rgb.options.shared=false", "policy.encoders.rgb.frozen=false")
    policy = policy_of(*words, specs=specs)
    assert policy.encoders["rgb"].cameras == ["front", "wrist"]
    assert policy.eval().act({"state": torch.randn(3, 2, 3), "rgb": {"wrist": pictures()["wrist"]}}, "b").shape == (
        3,
        8,
        2,
    )


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("channels=wide", "channels=wide: takes a whole number from 8 to 1024"),
        ("channels=0", "channels=0: takes a whole number from 8 to 1024"),
        ("channels=12", "channels=12: takes a multiple of 8"),
        ("keypoints=2.5", "keypoints=2.5: takes a whole number from 1 to 1024"),
        ("shared=3", "shared=3: takes true or false"),
    ],
)
def test_what_cannot_be_a_small_network_is_one_line(option, says):
    with pytest.raises(UserError, match=f"policy.stems.rgb.options.{says}"):
        policy_of(f"policy.stems.rgb.options.{option}")
