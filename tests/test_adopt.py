"""Policies of ppt_learning, made by a replica that shares no code with ours: taken over, they act alike."""

from __future__ import annotations

import hashlib
import re
import shutil

import numpy as np
import old_policy as old
import pytest
import torch
import yaml
from conftest import ROOT, run_script, write_store

import ppt_kit as ppt
from ppt_kit.adopt.run import adopted_run
from ppt_kit.errors import UserError
from ppt_kit.randomness import normal, uniform

MIGRATE = str(ROOT / "scripts/migrate_train_scripts.py")
WIDTH, FRAMES, ACTIONS, POINTS = 16, 3, 8, 16
STATE = 4
# points of a cloud of scanobjectnn, where no data says how many are stored
NOT_STORED = 1024


def fields_of(seed=0, *, state=STATE, action=4):
    generator = torch.Generator().manual_seed(seed)
    spread = lambda width: torch.randn(50, width, generator=generator) * torch.linspace(0.1, 3, width) + 1.5
    return {"state": spread(state), "action": spread(action)}


def config_of(**changes):
    """config.yaml as a run of ppt_learning wrote it; dotted keys change it."""
    values = {
        "seed": 1, "domains": "a", "dataset_path": "data", "output_dir": "outputs/pcd", "suffix": "", "wb_tag": "x",
        "train": {"total_epochs": 3, "pretrained_dir": ""},
        "dataset": {
            "_target_": "ppt_learning.dataset.multi_sim_traj_dataset.MultiTrajDataset", "observation_horizon": FRAMES,
            "action_horizon": ACTIONS, "normalize_state": True, "pcd_channels": 4, "use_pcd": True,
        },
        "network": {
            "_target_": "ppt_learning.models.policy.Policy", "embed_dim": WIDTH, "num_blocks": 2, "num_heads": 4,
            "observation_horizon": FRAMES, "action_horizon": ACTIONS, "action_dim": 4,
        },
        "head": {
            "_target_": "ppt_learning.models.policy_head.MLP", "widths": [24, 20], "tanh_end": True, "output_dim": 4,
            "normalize_action": True, "token_postprocessing": "mean",
        },
        "stem": {
            "modalities": ["state", "pointcloud"], "modality_embed_dim": WIDTH, "num_heads": 2, "dim_head": 6,
            "normalize_state": True, "cross_attention": True, "crossattn_latent": {"state": 2, "pointcloud": 3},
            "state": {"_target_": "ppt_learning.models.policy_stem.MLP", "widths": [24, 20], "output_dim": WIDTH},
            "pointcloud": {
                "_target_": "ppt_learning.models.policy_stem.DP3PointNetEncoderXYZ", "in_channels": 4,
                "pcd_domain": "scanobjectnn", "out_channels": WIDTH,
            },
        },
    }  # fmt: skip
    for dotted, value in changes.items():
        *groups, last = dotted.split("__")
        within = values
        for name in groups:
            within = within[name]
        within[last] = value
    return values


def policy_of(config, *, domains=("a",), head=None, stem=None, seed=0, widths=None):
    """The old policy that a configuration describes, its weights random."""
    torch.manual_seed(seed)
    crosses, concat = config["stem"]["cross_attention"], config["head"]["token_postprocessing"] == "concat"
    latents = config["stem"]["crossattn_latent"] if crosses else dict.fromkeys(config["stem"]["modalities"], 1)
    count = FRAMES * sum(latents[name] for name in config["stem"]["modalities"])
    seen, action = WIDTH * (count if concat else 1), config["network"]["action_dim"]
    of = {name: (widths or {}).get(name, (STATE, action)) for name in domains}
    made = {
        "state": lambda name: old.Net(old.layers_of(of[name][0], [24, 20], WIDTH)),
        "pointcloud": lambda name: old.DP3(config["dataset"]["pcd_channels"], WIDTH),
        **(stem or {}),
    }
    head = head or (lambda name, seen: old.Net(old.layers_of(seen, [24, 20], ACTIONS * of[name][1], tanh=True)))
    return old.OldPolicy(
        width=WIDTH, depth=2, heads_of_trunk=4, latents=latents if crosses else None, frames=FRAMES, cross=(2, 6),
        stems={name: {each: made[each](name) for each in config["stem"]["modalities"]} for name in domains},
        heads={name: head(name, seen) for name in domains},
        fields={name: fields_of(place, state=of[name][0], action=of[name][1]) for place, name in enumerate(domains)},
        pooling="concat" if concat else "mean", no_trunk=config["network"].get("no_trunk", False),
    ).eval()  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Writes a run of ppt_learning into a folder that has its data; gives the run's folder."""

    def write(config, policy, *, files=("model.pth",)):
        write_store(tmp_path / "data/a.zarr", num_points=POINTS)
        folder = tmp_path / "outputs/pcd/a/first"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        for name in files:
            torch.save(policy.state_dict(), folder / name)
        return folder

    return write


def windows(rows=5, seed=3, *, state=STATE, count=POINTS):
    """obs as ours sees them, and as the old policy did; metres."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, FRAMES, state, generator=generator) + 1
    points = 0.3 * torch.randn(rows, FRAMES, count, 3, generator=generator) + torch.tensor([0.5, 0.1, 0.8])
    ours = {"state": states, "pointcloud": torch.cat([points, points[..., 2:]], -1)}
    return ours, {"state": states, "pointcloud": old.centred(points)}


def taken_over(folder, **options):
    """The folder that the script writes, by the script's own parts."""
    run = adopted_run(folder, project=folder.parents[3], **options)
    run.folder.mkdir()
    for name, content in run.files.items():
        (run.folder / name).write_bytes(content())
    return run


def test_a_policy_of_state_and_cloud_acts_alike_to_a_hundred_thousandth(saved):
    before = policy_of(config_of())
    run = taken_over(saved(config_of(), before))
    policy = ppt.load_policy(run.folder)
    ours, theirs = windows()
    with torch.no_grad():
        want = before("a", theirs)
    assert want.std() > 0.1
    assert torch.allclose(policy.act(ours), want, atol=1e-5, rtol=0)


def test_each_part_gives_what_the_old_one_gave(saved):
    before = policy_of(config_of())
    policy = ppt.load_policy(taken_over(saved(config_of(), before)).folder)
    ours, theirs = windows()
    seeds = torch.zeros(len(ours["state"]), dtype=torch.int64)
    with torch.no_grad():
        normalised = before.normalizer["a"].normalize("state", theirs["state"])
        assert torch.allclose(policy.state_norm["a"].normalize(ours["state"]), normalised, atol=1e-5)
        for name, readings, flat in (
            ("state", normalised, normalised.flatten(0, 1)),
            ("pointcloud", ours["pointcloud"], theirs["pointcloud"].flatten(0, 1)),
        ):
            local = before.stems[f"a_{name}"](flat)
            local = local[:, None] if local.ndim == 2 else local
            queries = before.crossattn_modalities_latents[f"a_{name}"].expand(len(local), -1, -1)
            want = before.stems[f"a_attend_{name}"](queries, local).reshape(len(seeds), -1, WIDTH)
            assert torch.allclose(policy.stems["a"][name](readings, seeds), want, atol=1e-5), name
        tokens = before.tokens("a", theirs)
        assert torch.allclose(policy.trunk(tokens, seeds), before.trunk(tokens), atol=1e-5)
        mean = tokens.mean(1, keepdim=True)
        assert torch.allclose(policy.heads["a"](mean, seeds).flatten(1), before.heads["a"](mean[:, 0]), atol=1e-5)


def test_tokens_stand_in_another_order_and_a_head_that_reads_all_of_them_reads_them_in_it(saved):
    config = config_of(head__token_postprocessing="concat", stem__modalities=["pointcloud", "state"])
    before = policy_of(config)
    policy = ppt.load_policy(taken_over(saved(config, before)).folder)
    ours, theirs = windows()
    assert policy.modalities == ["state", "pointcloud"]
    with torch.no_grad():
        assert torch.allclose(policy.act(ours), before("a", theirs), atol=1e-5, rtol=0)


def test_without_latents_and_without_a_trunk_states_enter_as_they_are(saved):
    """As the configurations for depth have it; there the old policy left out the state's statistics."""
    config = config_of(
        stem__cross_attention=False, network__no_trunk=True, head__token_postprocessing="concat", head__tanh_end=False
    )
    head = lambda name, seen: old.Net(old.layers_of(seen, [24], ACTIONS * 4, ln=False))
    before = policy_of(config, head=head)
    run = taken_over(saved(config, before))
    policy = ppt.load_policy(run.folder)
    ours, theirs = windows()
    with torch.no_grad():
        assert torch.allclose(policy.act(ours), before("a", theirs), atol=1e-5, rtol=0)
    assert policy.trunk is None
    assert "nothing read it" in run.told()


def test_two_domains_of_one_file_each_act_as_before(saved):
    widths = {"bowl": (STATE, 4), "wide": (6, 5)}
    config = config_of(domains="bowl, wide")
    before = policy_of(config, domains=("bowl", "wide"), widths=widths)
    policy = ppt.load_policy(taken_over(saved(config, before)).folder)
    assert policy.domains == ["bowl", "wide"]
    for place, (name, (state, action)) in enumerate(widths.items()):
        ours, theirs = windows(seed=place, state=state, count=NOT_STORED)
        with torch.no_grad():
            want = before(name, theirs)
        assert want.shape[-1] == action
        assert torch.allclose(policy.act(ours, name), want, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- PointNeXt

# the network that ppt_learning ships for clouds of its robots, and one of every other kind
SHIPPED = {
    "NAME": "PointNextEncoder", "sampler": "random", "blocks": [1] * 6, "strides": [1, 2, 2, 2, 2, 1], "width": 32,
    "in_channels": 4, "sa_layers": 2, "sa_use_res": True, "radius": 0.15, "radius_scaling": 1.5, "nsample": 32,
    "expansion": 4, "aggr_args": {"feature_type": "dp_fj", "reduction": "max"},
    "group_args": {"NAME": "ballquery", "normalize_dp": True}, "conv_args": {"order": "conv-norm-act"},
    "act_args": {"act": "relu"}, "norm_args": {"norm": "bn"},
}  # fmt: skip
OTHER = SHIPPED | {
    "sampler": "fps", "blocks": [2, 3, 1], "strides": [2, 2, 1], "width": 4, "sa_layers": 1, "sa_use_res": False,
    "radius": 0.6, "nsample": 5, "expansion": 3, "group_args": {"NAME": "ballquery", "normalize_dp": False},
}  # fmt: skip


def pointnext_config(**stem):
    return config_of(
        stem__pointcloud={
            "_target_": "ppt_learning.models.policy_stem.PointNet", "pcd_domain": "dense", "cfg_name": "pointnext-s",
            **stem,
        }
    )  # fmt: skip


def write_network(project, said, *, file="pointnext-s"):
    path = project / f"ppt_learning/models/pointnet_cfg/dense/{file}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"model": {"NAME": "BaseCls", "encoder_args": said}}))
    return path


@pytest.mark.parametrize("seen", ["shipped", "other"])
def test_a_pointnext_of_openpoints_acts_alike_where_it_draws_the_same_centres(saved, tmp_path, seen):
    said = {"shipped": SHIPPED, "other": OTHER}[seen]
    seeds = torch.arange(7, 12)

    def draw(points, count, cloud, stage):
        if said["sampler"] == "fps":
            return old.farthest(points.numpy(), count)
        drawn = uniform(seeds, (FRAMES, count), stream=f"hpt_pointnext.{stage}").flatten(0, 1)[cloud]
        return (drawn * len(points)).long()

    config = pointnext_config(mlp_widths=[512, WIDTH] if seen == "shipped" else None)
    stem = lambda name: old.PointNeXt(said, draw, width=WIDTH if seen == "shipped" else None)
    before = policy_of(config, stem={"pointcloud": stem})
    if seen == "other":
        write_network(tmp_path, said)
    run = taken_over(saved(config, before))
    policy = ppt.load_policy(run.folder)
    ours, theirs = windows(rows=len(seeds))
    with torch.no_grad():
        want = before("a", theirs)
    assert want.std() > 0.1
    assert torch.allclose(policy.act(ours, seeds=seeds), want, atol=1e-5, rtol=0)
    assert ("random centres" in run.told()) == (seen == "shipped")
    assert ("network of the clouds: as ppt_learning ships" in run.told()) == (seen == "shipped")
    if seen == "shipped":
        assert not torch.allclose(policy.act(ours, seeds=seeds + 1), want, atol=1e-5, rtol=0)


def test_a_pointnext_takes_clouds_of_as_many_points_as_come(saved, tmp_path):
    """Of twice as many it takes twice as many centres, as openpoints does."""
    draw = lambda points, count, cloud, stage: old.farthest(points.numpy(), count)
    config = pointnext_config()
    before = policy_of(config, stem={"pointcloud": lambda name: old.PointNeXt(OTHER, draw)})
    write_network(tmp_path, OTHER)
    policy = ppt.load_policy(taken_over(saved(config, before)).folder)
    for count in (POINTS // 2, 2 * POINTS):
        ours, theirs = windows(count=count)
        with torch.no_grad():
            assert torch.allclose(policy.act(ours), before("a", theirs), atol=1e-5, rtol=0)


UNLIKE = [
    ({"aggr_args": {"feature_type": "dp_fj_df"}}, "aggr_args.feature_type=dp_fj_df: there is no stem like it"),
    ({"norm_args": {"norm": "bn", "eps": 1e-3}}, "norm_args.eps=0.001: there is no stem like it"),
    ({"group_args": {"NAME": "ballquery", "relative_xyz": False}}, "group_args.relative_xyz=False"),
    ({"strides": [1, 4, 4], "blocks": [1, 1, 1]}, "the last has to be: it gathers all points"),
    ({"blocks": [2, 1, 1, 1, 1, 1]}, "a stage of stride 1 is one block"),
    ({"blocks": [1, 1]}, "takes one number a stage"),
    ({"strides": 4}, "strides=4: takes a list of whole numbers"),
    ({"expansion": 0.5}, "expansion=0.5: takes a whole number"),
    ({"sampler": "poisson"}, "sampler=poisson: there is no stem like it"),
    ({"radius": [0.1, 0.2]}, "radius=[0.1, 0.2]: there is no stem like it"),
    ({"in_channels": 7}, "points of 7 numbers"),
    ({"width": 16}, "says another network than the weights are of: project.0.weight"),
]


@pytest.mark.parametrize(("changes", "says"), UNLIKE, ids=[says for _, says in UNLIKE])
def test_a_network_of_clouds_that_is_another_one_is_left_out_with_the_reason(saved, tmp_path, changes, says):
    config = pointnext_config(mlp_widths=[512, WIDTH])
    before = policy_of(config, stem={"pointcloud": lambda name: old.PointNeXt(SHIPPED, None, width=WIDTH)})
    write_network(tmp_path, SHIPPED | changes)
    assert says in stem_reason(taken_over(saved(config, before)))


@pytest.mark.parametrize(
    ("text", "says"),
    [("model: [", "cannot be read: while parsing"), ("- 1", "does not hold keys with values"), ("a: 1", "has no model.enc")],
)  # fmt: skip
def test_a_network_file_that_says_nothing_is_named(saved, tmp_path, text, says):
    config = pointnext_config(mlp_widths=[512, WIDTH])
    before = policy_of(config, stem={"pointcloud": lambda name: old.PointNeXt(SHIPPED, None, width=WIDTH)})
    path = write_network(tmp_path, SHIPPED)
    path.write_text(text)
    assert f"{path}: {says}" in stem_reason(taken_over(saved(config, before)))


def stem_reason(run):
    (line,) = [line for line in run.lines if line.startswith("  stems.a.pointcloud: ") and "tensor" not in line]
    return line


@pytest.mark.parametrize(
    ("stem", "says"),
    [
        ({"cfg_name": "pointvector-s"}, "Give --project="),
        ({"color_extra": True}, "stem.pointcloud.color_extra=True"),
        ({"global_feat": ["max"]}, "stem.pointcloud.global_feat=['max']"),
    ],
)  # fmt: skip
def test_a_stem_of_clouds_that_does_more_is_left_out_with_the_reason(saved, stem, says):
    config = pointnext_config(mlp_widths=[512, WIDTH], **stem)
    before = policy_of(config, stem={"pointcloud": lambda name: old.PointNeXt(SHIPPED, None, width=WIDTH)})
    assert says in stem_reason(taken_over(saved(config, before)))


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", ["depth", "image"])
@pytest.mark.parametrize("crosses", [True, False], ids=["latents", "one token a camera"])
def test_a_resnet_sees_two_cameras_as_torchvisions_did(saved, tmp_path, name, crosses):
    """Depth of any size, by its nearest pixel; where nothing was read, the farthest that the window saw."""
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    modality, side = {"depth": "depth", "image": "rgb"}[name], {"depth": (100, 130), "image": (224, 224)}[name]
    config = config_of(
        stem__modalities=["state", name],
        stem__cross_attention=crosses,
        stem__crossattn_latent={"state": 1, name: 2},
        head__token_postprocessing="concat",
    )
    config["stem"][name] = {"_target_": "ppt_learning.models.policy_stem.ResNet", "rgb_only": name == "image"}
    if not crosses:
        # the replica counts a token a modality
        config["stem"]["crossattn_latent"] = {"state": 1, name: 2}
    planes = 1 if name == "depth" else 3
    count = FRAMES * 3
    head = lambda _, __: old.Net(old.layers_of(WIDTH * count, [24, 20], ACTIONS * 4, tanh=True))
    before = policy_of(config, stem={name: lambda _: old.ResNet(WIDTH, planes=planes)}, head=head)
    folder, rng = saved(config, before), np.random.default_rng(0)
    shutil.rmtree(tmp_path / "data")
    pictures = {
        "depth": lambda: rng.uniform(0.3, 2, (6, *side, 1)).astype(np.float32),
        "image": lambda: rng.integers(0, 256, (6, *side, 3), dtype=np.uint8),
    }[name]
    with ZarrWriter(tmp_path / "data/a.zarr") as writer:
        rows = {
            f"obs/{'depths' if name == 'depth' else 'images'}/{camera}": pictures()
            for camera in ("camera_0", "camera_1")
        }
        numbers = {"actions": (6, 4), "obs/eef_pos": (6, 3), "obs/normalized_gripper_pos": (6, 1)}
        writer.append({key: rng.normal(size=size).astype(np.float32) for key, size in numbers.items()} | rows)
    policy = ppt.load_policy(taken_over(folder).folder)
    seen = {
        key.rsplit("/", 1)[1]: torch.tensor(value).reshape(2, FRAMES, *value.shape[1:]) for key, value in rows.items()
    }
    if name == "depth":
        seen["camera_1"][0, 1, 3:40, 5:60] = torch.inf
        seen["camera_0"][1, 0, :20] = 0.0
    states = torch.randn(2, FRAMES, STATE)
    theirs = []
    for each in seen.values():
        if name == "depth":
            each = each.clone()
            for window in each:
                window[window.isinf()] = window[window.isfinite()].max()
            row, column = (np.floor(np.arange(224) * (1 / (224 / size))).astype(int) for size in side)
            each = each[:, :, row][:, :, :, column]
        theirs.append(each)
    with torch.no_grad():
        want = before("a", {"state": states, name: torch.stack(theirs, dim=2)})
    assert torch.allclose(policy.act({"state": states, modality: seen}), want, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- diffusion


def diffusing(config, **options):
    widths = config["head"]["down_dims"]
    return lambda name, seen: old.Diffusion(
        4, seen, ACTIONS, widths, steps=config["head"]["num_inference_steps"], **options
    )


def diffusion_config(**changes):
    head = {
        "_target_": "ppt_learning.models.policy_head.Diffusion", "down_dims": [16, 32, 24], "hist_horizon": 0,
        "noise_scheduler_type": "DDIM", "num_inference_steps": 7, "token_postprocessing": "mean", "output_dim": 4,
        "normalize_action": True,
    }  # fmt: skip
    return config_of(head=head, **changes)


def noise_of(policy, rows):
    """What our head draws for these seeds: the first noise, and that of each step."""
    head, seeds = policy.heads["a"], torch.arange(rows)
    drawn = {step: normal(seeds, head.shape, stream=f"{head.name}.sample.{step}") for step in range(100)}
    return normal(seeds, head.shape, stream=f"{head.name}.start"), drawn


@pytest.mark.parametrize("half", [False, True], ids=["as published", "half the noise, eta 0.5"])
def test_a_diffusion_head_makes_the_same_chunk_of_the_same_noise(saved, half):
    """Through diffusers' own scheduler, which clips some of these chunks."""
    config = diffusion_config()
    before = policy_of(config, head=diffusing(config))
    policy = ppt.load_policy(taken_over(saved(config, before), half_noise=half).folder)
    ours, theirs = windows()
    start, drawn = noise_of(policy, len(ours["state"]))
    with torch.no_grad():
        noise = {"start": 0.5 * start, "drawn": drawn, "eta": 0.5} if half else {"start": start}
        want = before("a", theirs, **noise)
    got = policy.act(ours, seeds=torch.arange(len(start)))
    assert torch.allclose(got, want, atol=1e-5 * want.abs().max().item(), rtol=0)


def test_the_u_net_that_only_adds_and_reads_every_token_is_the_same(saved):
    config = diffusion_config(stem__modalities=["pointcloud", "state"])
    config["head"]["token_postprocessing"] = "concat"
    before = policy_of(config, head=diffusing(config, scales=False))
    policy = ppt.load_policy(taken_over(saved(config, before)).folder)
    ours, theirs = windows()
    start, _ = noise_of(policy, len(ours["state"]))
    with torch.no_grad():
        want = before("a", theirs, start=start)
    got = policy.act(ours, seeds=torch.arange(len(start)))
    assert torch.allclose(got, want, atol=1e-5 * want.abs().max().item(), rtol=0)


def test_ddpm_draws_where_diffusers_does(saved, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    config = diffusion_config()
    config["head"] |= {"noise_scheduler_type": "DDPM", "num_inference_steps": 20, "prediction_type": "sample"}
    before = policy_of(config, head=diffusing(config, scheduler="DDPM", prediction="sample"))
    policy = ppt.load_policy(taken_over(saved(config, before)).folder)
    ours, theirs = windows()
    start, drawn = noise_of(policy, len(ours["state"]))
    steps = iter(range(95, 0, -5))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: drawn[next(steps)])
    with torch.no_grad():
        want = before("a", theirs, start=start)
    got = policy.act(ours, seeds=torch.arange(len(start)))
    assert torch.allclose(got, want, atol=1e-5 * want.abs().max().item(), rtol=0)


# ---------------------------------------------------------------- what is not here


class Other(torch.nn.Module):
    """A stem of a kind that is not here."""

    def __init__(self):
        super().__init__()
        self.pointnet = torch.nn.Linear(4, WIDTH)

    def forward(self, points):
        return self.pointnet(points).amax(1)


@pytest.fixture
def in_part(saved):
    target = "ppt_learning.models.policy_stem.PerActVoxelEncoder"
    config = config_of(stem__pointcloud={"_target_": target, "pcd_domain": "dense"})
    before = policy_of(config, stem={"pointcloud": lambda name: Other()})
    return before, taken_over(saved(config, before))


def test_a_stem_that_is_not_here_is_named_with_the_reason_and_no_policy_is_made_of_the_rest(in_part):
    _, run = in_part
    assert "stems.a.pointcloud: there is no stem like PerActVoxelEncoder here" in run.told()
    assert (run.folder / "adopted.txt").read_text().strip() == run.told()
    with pytest.raises(
        UserError, match=r"is no whole policy: stems.a.pointcloud .*pretrained_parts=\[heads,stems,trunk\]"
    ):
        ppt.load_policy(run.folder)


def test_a_new_policy_begins_with_what_could_be_taken_over(in_part, tmp_path, monkeypatch):
    """By the configuration in the folder, and words: trunk, head and the state's stem are the old ones."""
    from conftest import save_new_policy

    from ppt_kit.config import load_config

    before, run = in_part
    monkeypatch.chdir(tmp_path)
    cfg = load_config(
        "config", f"train.pretrained_dir={run.folder}", "train.pretrained_parts=[trunk,stems,heads]", "suffix=next",
        "wandb.mode=disabled", "normalizer.leave_alone=[]", config_path=run.folder,
    )  # fmt: skip
    (tmp_path / "next").mkdir()
    save_new_policy(cfg, tmp_path / "next")
    policy, tokens = ppt.load_policy(tmp_path / "next"), torch.randn(3, 5, WIDTH)
    seeds = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        assert torch.allclose(policy.trunk(tokens, seeds), before.trunk(tokens), atol=1e-5)
        one = tokens[:, :1]
        assert torch.allclose(policy.heads["a"](one, seeds).flatten(1), before.heads["a"](one[:, 0]), atol=1e-5)
        mlp = before.stems["a_state"].net
        assert torch.equal(policy.stems["a"]["state"].embed[0].weight, mlp[0].weight)


REASONS = [
    ({"head": {"_target_": "a.TransformerDecoder", "token_postprocessing": "mean"}}, "heads.a", "only its last layer was ever saved"),
    ({"head__token_postprocessing": ""}, "heads.a", "read the mean of the tokens"),
    ({"stem__pointcloud__pcd_domain": "mine"}, "stems.a.pointcloud", "Give --project="),
    ({"network__action_horizon": 4}, "heads.a", "gives 32 numbers, and 4 actions of 4 are 16"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "part", "says"), REASONS, ids=[part + " " + says[:20] for _, part, says in REASONS]
)
def test_a_part_that_differs_is_left_out_with_the_reason(saved, changes, part, says):
    run = taken_over(saved(config_of(**changes), policy_of(config_of())))
    (line,) = [line for line in run.lines if line.startswith(f"  {part}: ") and "tensor" not in line]
    assert says in line


def test_a_file_that_needs_code_is_refused_and_none_of_it_runs(saved, tmp_path):
    folder = saved(config_of(), policy_of(config_of()))
    ran = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    torch.save({"trunk": Runs()}, folder / "model.pth")
    with pytest.raises(UserError, match=r"model.pth: needs code to be unpickled \(.*open.*type python -c"):
        adopted_run(folder, project=tmp_path)
    assert not ran.exists()


WRONG = [
    ({"epoch": 3, "policy": {}}, "has tensors alone: epoch is a int"),
    ({"weight": torch.zeros(3)}, "no policy of ppt_learning"),
    ([torch.zeros(3)], "it holds a list"),
]


@pytest.mark.parametrize(("content", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_file_of_something_else_is_said_to_be_that(saved, tmp_path, content, says):
    folder = saved(config_of(), policy_of(config_of()))
    torch.save(content, folder / "model.pth")
    with pytest.raises(UserError, match=says):
        adopted_run(folder, project=tmp_path)


def test_weights_without_their_configuration_are_refused(saved, tmp_path):
    folder = saved(config_of(), policy_of(config_of()))
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="there is no config.yaml beside the weights"):
        adopted_run(folder, project=tmp_path)


def test_the_data_is_that_of_the_old_folder_whatever_lies_where_this_is_typed(saved, tmp_path, monkeypatch):
    folder = saved(config_of(), policy_of(config_of()))
    write_store(tmp_path / "elsewhere/data/a.zarr", num_points=2 * POINTS)
    monkeypatch.chdir(tmp_path / "elsewhere")
    policy = ppt.load_policy(taken_over(folder).folder)
    assert policy.specs["a"].points == POINTS
    assert policy.card["config"]["dataset_path"] == str(tmp_path / "data")


def test_without_the_data_a_policy_acts_and_the_columns_are_said_to_be_unknown(saved, tmp_path):
    before = policy_of(config_of())
    folder = saved(config_of(), before)
    shutil.rmtree(tmp_path / "data")
    run = taken_over(folder)
    assert "--dataset-path=<folder of the datasets> says where it is" in run.told()
    ours, theirs = windows(count=NOT_STORED)
    with torch.no_grad():
        assert torch.allclose(ppt.load_policy(run.folder).act(ours), before("a", theirs), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the script


def everything(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_script_lists_writes_and_takes_back(saved, tmp_path):
    folder = saved(config_of(), policy_of(config_of()), files=("model_20.pth", "model_40.pth"))
    before = everything(tmp_path)
    words = (f"--project={tmp_path}", "--convert-checkpoint=outputs/pcd/a/first")
    listed = run_script(MIGRATE, *words, "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert "  trunk: " in listed.stdout
    assert "write    outputs/pcd/a/first_ppt_kit/model_40.pth" in listed.stdout
    assert everything(tmp_path) == before
    done = run_script(MIGRATE, *words)
    assert done.returncode == 0, done.stderr
    made = folder.with_name("first_ppt_kit")
    assert {path.name for path in made.iterdir()} == {
        "model.pth", "model_20.pth", "model_40.pth", "config.yaml", "adopted.txt"
    }  # fmt: skip
    assert {row["epoch"] for row in ppt.checkpoints(made).to_dict("records")} == {20, 40}
    now = everything(tmp_path)
    assert {name: now[name] for name in before} == before
    undone = run_script(MIGRATE, f"--project={tmp_path}", "--undo")
    assert undone.returncode == 0, undone.stderr
    assert everything(tmp_path) == before
    assert not made.exists()


def test_what_stands_there_already_is_not_overwritten(saved, tmp_path):
    folder = saved(config_of(), policy_of(config_of()))
    other = folder.with_name("first_ppt_kit") / "model.pth"
    other.parent.mkdir()
    other.write_text("mine")
    before = everything(tmp_path)
    refused = run_script(MIGRATE, f"--project={tmp_path}", f"--convert-checkpoint={folder}")
    assert refused.returncode == 2
    assert "is there already, and was not written by this script" in refused.stderr
    assert everything(tmp_path) == before


def test_it_is_evaluated_in_the_simulator_of_its_data(tmp_path):
    """An old policy of states alone, on demonstrations of the planar simulator."""
    ppt.collect(simulator="planar", task="detour", episodes=1, domain="a", dataset_path=tmp_path / "data")
    store = ppt.open_dataset(tmp_path / "data/a.zarr")
    state, action = store.specs["a"].state, store.specs["a"].action_dim
    config = config_of(
        stem__modalities=["state"], dataset__state_keys=list(state), network__action_dim=action, head__output_dim=action
    )
    before = policy_of(config, widths={"a": (sum(state.values()), action)})
    folder = tmp_path / "outputs/pcd/a/first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(before.state_dict(), folder / "model.pth")
    run = taken_over(folder)
    result = ppt.evaluate(ppt.load_policy(run.folder), episodes=2, max_steps=10)
    assert [(row["error"], row["steps"]) for row in result.rows] == [(None, 10)] * 2


# ---------------------------------------------------------------- training on


def still_after(policy):
    """Names of the weights that no gradient reaches."""
    ours, _ = windows(rows=4)
    batch = {
        "obs": ours, "action": torch.randn(4, ACTIONS, 4), "action_is_pad": torch.zeros(4, ACTIONS, dtype=torch.bool),
        "domain": torch.zeros(4, dtype=torch.int64), "index": torch.arange(4),
    }  # fmt: skip
    policy.train()(batch)["loss"].backward()
    return {name for name, weight in policy.named_parameters() if weight.grad is None or not weight.grad.abs().sum()}


# of one local token a frame there is nothing to choose
NOTHING_TO_CHOOSE = {
    f"stems.a.{name}.gather.{part}" for name in ("state", "pointcloud") for part in ("latents", "query.weight")
}


def test_every_weight_of_a_policy_that_was_taken_over_learns(saved):
    config = diffusion_config()
    policy = ppt.load_policy(taken_over(saved(config, policy_of(config, head=diffusing(config)))).folder)
    assert still_after(policy) == NOTHING_TO_CHOOSE


def test_every_weight_of_a_pointnext_that_was_taken_over_learns(saved):
    config = pointnext_config(mlp_widths=[512, WIDTH])
    before = policy_of(config, stem={"pointcloud": lambda name: old.PointNeXt(SHIPPED, None, width=WIDTH)})
    assert still_after(ppt.load_policy(taken_over(saved(config, before)).folder)) == NOTHING_TO_CHOOSE


def test_a_cloud_in_the_unit_sphere_is_what_openpoints_makes_of_it():
    from ppt_kit.models.hpt.stems import in_unit_sphere

    points = torch.randn(4, 2, 9, 3) * torch.tensor([0.2, 0.5, 1.0]) + 3
    for up in (0, 1, 2):
        got = in_unit_sphere(torch.cat([points, points[..., 2:]], -1), up=up)
        assert torch.allclose(got, old.centred(points, up=up), atol=1e-5)
    assert np.isclose(got[..., :3].norm(dim=-1).amax((1, 2)), 1).all()


HPT_WORDS = (
    "policy.trunk_kind=hpt", "policy.stems.state.kind=hpt_state", "policy.stems.pointcloud.kind=hpt_cloud",
    "policy.head.kind=hpt_mlp", "policy.pooling=mean",
)  # fmt: skip


def untrained(cfg):
    from ppt_kit.config import typed
    from ppt_kit.models.policy import build_policy
    from ppt_kit.spec import Spec

    return build_policy(typed(cfg), {"a": Spec(state={"x": 3}, action={"actions": 4}, points=16, channels=3)})


def acted(cfg):
    """A policy of these words, and what it does where nothing is seen."""
    policy = untrained(cfg)
    return policy, policy.act(policy.groups[0].spec.blank(2, policy.horizon))


def test_the_parts_are_words_of_any_configuration(small_cfg):
    policy, actions = acted(small_cfg(*HPT_WORDS))
    assert "blocks of HPT" in repr(policy)
    assert actions.shape == (2, policy.horizon.action, 4)


CLOUDS = "policy.stems.pointcloud"
NEXT = f"{CLOUDS}.kind=hpt_pointnext"
MISTAKES = [
    ([NEXT, f"{CLOUDS}.options.network.depth=3"], "takes hidden, strides, blocks, num_layers"),
    ([NEXT, "policy.stems.pointcloud.options.network.strides=[1,2,1,1]"], "strides=[1,2,1,1]: only the first may be 1"),
    ([NEXT, f"{CLOUDS}.options.network.strides=[1,4,8,1]"], "Set dataset.num_points to 32 or more"),
    ([NEXT, "policy.stems.pointcloud.options.network.blocks=[1,2]"], "blocks=[1,2]: takes one number a stage"),
    ([NEXT, "policy.stems.pointcloud.options.network.blocks=[2,1,1,1,1,1]"], "a stage of stride 1 is one block"),
    ([NEXT, "policy.stems.pointcloud.options.network.radius=far"], "radius=far: takes a number from 0.001 to 10"),
    ([NEXT, "policy.stems.pointcloud.options.sampler=none"], "sampler=none: takes random, farthest"),
    ([NEXT, "policy.stems.pointcloud.options.projection=none"], "512 numbers would be a token"),
    (["policy.stems.pointcloud.options.projection=none"], "projection=none: 256 numbers would be a token"),
    (["policy.pooling=none"], "Set policy.head.options.num_tokens="),
    (["policy.stems.pointcloud.options.projection=cubic"], "projection=cubic: takes linear, norm, none"),
    (["policy.stems.pointcloud.options.up=3"], "options.up=3: takes a whole number from 0 to 2"),
    (["policy.head.kind=hpt_diffusion", "policy.head.options.step_dim=7"], "step_dim=7: takes an even number"),
    (["policy.head.kind=hpt_diffusion", "policy.head.options.network=transformer"], "network=transformer: takes unet"),
    (["policy.stems.state.options.widths=[]"], "takes a list of whole numbers"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[words[-1] for words, _ in MISTAKES])
def test_an_option_that_does_not_fit_is_said_with_what_does(small_cfg, words, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        acted(small_cfg(*HPT_WORDS, *words))
