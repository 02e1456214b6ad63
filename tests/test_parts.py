"""Parts of the user's own, from a file beside the notebook: the recipes of CONTRIBUTING.md, trained, loaded and evaluated."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, forget_my_lab, latest, run_script

import ppt_kit as ppt
from ppt_kit.config import load_config, typed
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.randomness import sample_seeds
from ppt_kit.schema import PolicyConfig
from ppt_kit.spec import Spec

RECIPES = dict(
    re.findall(r"```python\n# (my_lab/\w+\.py)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
)
SMALL = (
    "policy.width=16", "policy.depth=1", "policy.num_heads=2", "batch_size=8", "optimizer.warmup_steps=2", "log_interval=1",
    "train.total_iters=6", "train.val_interval=1", "wandb.mode=disabled", "suffix=run", "dataset.state_keys=null",
    "dataset.val_ratio=0.3", "policy.stems.pointcloud.kind=null",
)  # fmt: skip
EVALUATE = """
import ppt_kit as ppt
policy = ppt.load_policy("outputs/models/{domain}/run")
rows = [ppt.evaluate(policy, episodes=3, n_procs=n).untimed for n in (1, 2)]
print([row["error"] for row in rows[0]], rows[0] == rows[1], all(row["actions_sha256"] for row in rows[0]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A user's folder: my_lab/ as CONTRIBUTING.md writes it, and demonstrations of its simulator."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab").mkdir()
    for name, code in RECIPES.items():
        (folder / name).write_text(code)
    words = ("simulator=my_lab.sim:MyEnv", "task=reach", "episodes=5")
    done = run_script(str(ROOT / "scripts/collect_demos.py"), *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def trained(lab, *words, domain="reach"):
    """What evaluating prints after training with the words, both as a user types them."""
    (lab / "outputs").exists() and subprocess.run(["rm", "-rf", str(lab / "outputs")], check=True)
    done = run_script(str(ROOT / "scripts/train.py"), *latest(f"domains={domain}", *SMALL, *words), cwd=lab)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = subprocess.run(
        [sys.executable, "-c", EVALUATE.format(domain=domain)], cwd=lab, capture_output=True, text=True, timeout=300
    )
    assert seen.returncode == 0, seen.stderr[-3000:]
    return seen.stdout.strip().splitlines()[-1]


RAN = "[None, None, None] True True"


@pytest.fixture(scope="module")
def run_of_a_head(lab, tmp_path_factory):
    """What evaluating printed, and a copy of the run folder: the next training empties the lab's outputs."""
    told = trained(lab, "policy.head.kind=my_lab.heads:MyHead", "policy.head.options.scale=2")
    return told, shutil.copytree(lab / "outputs/models/reach/run", tmp_path_factory.mktemp("head") / "run")


def test_the_recipes_are_seven_and_short():
    names = ("csv_episodes", "encoders", "experts", "heads", "robot", "sim", "stems")
    assert sorted(RECIPES) == [f"my_lab/{name}.py" for name in names]
    assert all(len(code.strip().splitlines()) <= 15 for code in RECIPES.values())


def test_a_head_of_the_users(run_of_a_head):
    told, run_dir = run_of_a_head
    assert told == RAN
    metrics = ppt.read_metrics(run_dir, "train")
    assert metrics["loss"].iloc[-1] < metrics["loss"].iloc[0]


@pytest.mark.long
def test_a_head_of_the_users_in_sharded_ranks(lab):
    """ZeRO-3 brings a part's weights when it is called: parameters of the user's own class too."""
    words = ("policy.head.kind=my_lab.heads:MyHead", "deepspeed=zero3", "train_mode=distributed", "world_size=2")
    assert trained(lab, *words, "batch_size=4") == RAN


def test_an_encoder_of_the_users(small_cfg, tmp_path, monkeypatch):
    """The recipe, trained before the stem of clouds: it moves, and comes back with the checkpoint."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/encoders.py").write_text(RECIPES["my_lab/encoders.py"])
    monkeypatch.syspath_prepend(tmp_path)
    forget_my_lab()
    kind = ("policy.encoders.pointcloud.kind=my_lab.encoders:MyEncoder", "policy.encoders.pointcloud.frozen=false")
    run = ppt.UnifiedTrainer(small_cfg(*kind, "optimizer.lr=0.01"))
    assert run.run() == 0
    policy = ppt.load_policy(run)
    weights = [value for name, value in policy.named_parameters() if name.startswith("encoders.")]
    assert len(weights) == 4
    forget_my_lab()


def test_a_stem_of_the_users(lab):
    assert trained(lab, "policy.stems.state.kind=my_lab.stems:MyStem", "policy.stems.state.options.hidden=8") == RAN
    content = torch.load(lab / "outputs/models/reach/run/model.pth", weights_only=True)
    assert content["policy"]["stems.reach.state.embed.0.weight"].shape == (8, 4)
    assert content["parts"] == {"my_lab.stems:MyStem": str(lab / "my_lab/stems.py")}


def test_a_simulator_of_the_users(lab):
    assert trained(lab) == RAN


def test_an_expert_of_the_users_for_an_environment_of_gymnasium(lab):
    words = ("simulator=gymnasium", "task=Pendulum-v1", "options.expert=my_lab.experts:Upright", "episodes=2")
    done = run_script(str(ROOT / "scripts/collect_demos.py"), *words, "options.success='return>=-600'", cwd=lab)
    assert done.returncode == 0, done.stderr
    assert "data/Pendulum-v1.zarr: 2 demonstrations, 400 steps" in done.stdout


ACT = """
import numpy as np, ppt_kit as ppt
from my_lab.robot import MyRobot

class Arm:
    def go_home(self): self.at, self.held = np.zeros(2, np.float32), 0
    def position(self): return self.at
    def goal(self): return np.ones(2, np.float32)
    def move_by(self, way): self.at = self.at + way.astype(np.float32)
    def hold(self): self.held += 1

arm = Arm()
ran = ppt.PolicyRunner(ppt.load_policy("outputs/models/reach/run"), MyRobot(arm), hz=10).run(max_steps=15)
print(0 < ran.steps <= 15, ran.success, arm.held, bool(arm.at.any()), list(ran.timing.index))
"""


def test_a_robot_of_the_users(lab):
    assert trained(lab) == RAN
    ran = subprocess.run([sys.executable, "-c", ACT], cwd=lab, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip() == "True None 1 True ['period', 'lateness', 'environment', 'latency']"


def test_a_dataset_format_of_the_users(lab):
    """The same demonstrations as CSV; the format says which simulator they are from."""
    demos = ppt.open_dataset(lab / "data/reach.zarr")
    lines = ["episode,x,y,dx,dy"]
    for episode in range(demos.num_episodes):
        values = demos.episode(episode)
        lines += [
            ",".join(map(str, (episode, *state[2:], *action)))
            for state, action in zip(values["obs"]["state"], values["action"])
        ]
    (lab / "data/lift.csv").write_text("\n".join(lines))
    code = RECIPES["my_lab/csv_episodes.py"].replace(
        "attrs={}", 'attrs={"env": {"simulator": "my_lab.csv_episodes:Seen", "task": "reach"}}'
    )
    seen = "from my_lab.sim import MyEnv\n\nclass Seen(MyEnv):\n" + (
        '    def reset(self, seed): return {"obs/at": super().reset(seed)["obs/hand"]}\n'
        '    def step(self, action):\n        reading, *rest = super().step(action)\n        return {"obs/at": reading["obs/hand"]}, *rest\n'
    )
    (lab / "my_lab/csv_episodes.py").write_text(code + seen)
    assert trained(lab, "dataset.format=my_lab.csv_episodes", domain="lift") == RAN


def test_a_policy_whose_class_is_gone_says_which_and_where_it_was_looked_for(lab, run_of_a_head, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import ppt_kit as ppt; ppt.load_policy({str(run_of_a_head[1])!r})"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    line = done.stderr.strip().splitlines()[-1]
    assert "policy.head.kind=my_lab.heads:MyHead: no module my_lab" in line
    assert f"Looked in the current folder {tmp_path}" in line
    assert f"my_lab.heads:MyHead was in {lab / 'my_lab/heads.py'}" in line


WRONG = [
    (["policy.head.kind=regresion"], "Did you mean regression"),
    (["policy.head.kind=my_lab.heads:MyHeat"], "Did you mean MyHead"),
    (["policy.head.kind=my_lab.heads:torch"], "not derived from ppt_kit.Head"),
    (["policy.head.kind=my_lab.head:MyHead"], "no module my_lab.head"),
    (["policy.head.kind=my_lab.heads:MyHead", "policy.head.options.size=2"], "has no such option; it takes scale"),
    (["policy.head.options.loss=l3"], "takes l1, mse"),
    (["policy.stems.state.kind=my_lab.heads:MyHead"], "not derived from ppt_kit.Stem"),
    (["policy.stems.state.kind=null"], "sees nothing"),
    (["policy.state_latents=3"], "policy.stems.state.num_latents"),
    (["dataset.format=my_lab.csv"], "no module my_lab.csv"),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_part_is_one_clear_line_and_no_file(lab, words, says, tmp_path, run_here):
    assert_one_clear_line(lab, words, says, tmp_path, run_here)


def test_a_wrong_part_in_a_process_of_its_own_is_no_longer(lab, tmp_path):
    assert_one_clear_line(lab, *WRONG[4], tmp_path, run_script)


def assert_one_clear_line(lab, words, says, folder, run):
    out = folder / "out"
    done = run(str(ROOT / "scripts/train.py"), "domains=reach", *SMALL, f"output_dir={out}", *words, cwd=lab)
    assert done.returncode == 2, done.stderr[-2000:]
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not out.exists()


# ------------------------------------------------------------------ noise, and encoders


class NoisyHead(ppt.Head):
    """Draws its chunk around what it learned."""

    def __init__(self, sizes):
        super().__init__()
        self.shape = (sizes.horizon.action, sizes.spec.action_dim)
        self.out = torch.nn.Linear(sizes.width, self.shape[0] * self.shape[1])

    def loss(self, tokens, target, seeds):
        return (self.act(tokens, seeds) - target).square().mean(-1)

    def act(self, tokens, seeds):
        from ppt_kit.randomness import normal

        return self.out(tokens.mean(1)).unflatten(-1, self.shape) + normal(seeds, self.shape, stream="noisy head")


class Doubled(ppt.Encoder):
    """Looks at a cloud before the stems do."""

    factor = 2.0

    def __init__(self, sizes, factor=None):
        super().__init__()
        self.linear = torch.nn.Linear(sizes.spec.channels, sizes.spec.channels, bias=False)
        torch.nn.init.eye_(self.linear.weight)
        self.linear.weight.data *= factor or self.factor

    def forward(self, readings):
        return self.linear(readings.to(self.linear.weight.dtype))


class Halved(Doubled):
    """By a factor that bfloat16 does not hold."""

    factor = 0.51234567


class EachCamera(ppt.Stem):
    """One token a camera, so domains with other cameras have other numbers of tokens."""

    def __init__(self, sizes):
        super().__init__()
        self.cameras, self.embed = list(sizes.spec.rgb), torch.nn.Linear(3, sizes.width)

    def forward(self, readings, seeds):
        assert list(readings) == self.cameras
        means = [image.float().mean((1, 2, 3)) / 255 for image in readings.values()]
        return self.embed(torch.stack(means, 1))


class OneNumber(NoisyHead):
    """Says its loss in the wrong shape."""

    def loss(self, tokens, target, seeds):
        return super().loss(tokens, target, seeds).mean(-1)


NOISY, DOUBLED, HALVED = "test_parts:NoisyHead", "test_parts:Doubled", "test_parts:Halved"


def test_validation_losses_of_a_head_that_draws_noise_repeat(small_cfg, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    runs = [ppt.UnifiedTrainer(small_cfg(f"suffix={name}", f"policy.head.kind={NOISY}")) for name in "xy"]
    losses = []
    for run in runs:
        assert run.run() == 0
        losses.append(ppt.read_metrics(run.run_dir, "val")["loss"].tolist())
    assert losses[0] == losses[1]
    assert len(set(losses[0])) > 1


def test_two_ranks_draw_the_noise_of_one_process(small_data, tmp_path, monkeypatch):
    """The head's noise belongs to the sample: 1 x 2B and 2 x B give the same losses."""
    common = (
        "policy.width=16", "policy.depth=1", "policy.num_heads=2", "dataset.num_points=16", "log_interval=1",
        f"dataset_path={small_data}", f"output_dir={tmp_path}", "domains=a,wide", "train.total_iters=10", "wandb.mode=disabled",
        "train.val_interval=1", "dataset.val_ratio=0.3", f"policy.head.kind={NOISY}",
    )  # fmt: skip
    monkeypatch.chdir(ROOT / "tests")
    assert ppt.UnifiedTrainer(load_config("quickstart", *common, "batch_size=8", "suffix=one")).run() == 0
    two = ("batch_size=4", "train_mode=distributed", "world_size=2", "suffix=two")
    done = run_script(str(ROOT / "scripts/train.py"), *common, *two, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr[-2000:]
    losses = {}
    for name in ("one", "two"):
        rows = [ppt.read_metrics(tmp_path / "a+wide" / name, kind)["loss"] for kind in ("train", "val")]
        losses[name] = np.concatenate(rows)
    assert len(losses["one"]) > 10
    assert np.abs(losses["one"] / losses["two"] - 1).max() < 1e-5


def small_policy(**options):
    torch.manual_seed(0)
    specs = {
        "a": Spec(state={"x": 4}, action={"actions": 3}, points=6, channels=3),
        "b": Spec(state={"x": 2}, action={"actions": 2}, points=6, channels=3),
    }
    words = [f"{name}={value}" for name, value in options.items()]
    cfg = load_config("", "policy.width=16", "policy.depth=1", "policy.num_heads=2", *words)
    return PPTPolicy(specs, typed(cfg).policy)


def batch_of(domains, seed=0):
    g, size = torch.Generator().manual_seed(seed), len(domains)
    return {
        "obs": {"state": torch.randn(size, 2, 4, generator=g), "pointcloud": torch.randn(size, 2, 6, 3, generator=g)},
        "action": torch.randn(size, 8, 3, generator=g), "action_is_pad": torch.zeros(size, 8, dtype=torch.bool),
        "domain": torch.tensor(domains), "noise_seed": torch.arange(size),
    }  # fmt: skip


def test_sampling_repeats_by_its_seeds(monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    policy = small_policy(**{"policy.head.kind": NOISY}).eval()
    obs = {"state": torch.randn(3, 2, 4), "pointcloud": torch.randn(3, 2, 6, 3)}
    seeds = torch.from_numpy(sample_seeds(5, 7, np.arange(3)))
    assert torch.equal(policy.act(obs, "a", seeds=seeds), policy.act(obs, "a", seeds=seeds))
    assert not torch.equal(policy.act(obs, "a", seeds=seeds), policy.act(obs, "a", seeds=seeds + 1))
    assert torch.equal(policy.act(obs, "a"), policy.act(obs, "a"))
    assert torch.allclose(policy.act(obs, "a", seeds=seeds)[2:], policy.act(
        {name: value[2:] for name, value in obs.items()}, "a", seeds=seeds[2:]
    ), atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_an_encoder_runs_once_a_batch_for_all_domains(monkeypatch, frozen):
    monkeypatch.chdir(ROOT / "tests")
    policy = small_policy(**{"policy.encoders.pointcloud.kind": DOUBLED, "policy.encoders.pointcloud.frozen": frozen})
    calls = []
    inner = policy.encoders["pointcloud"]
    inner.register_forward_hook(lambda module, given, made: calls.append((given[0], made)))
    policy(batch_of([0, 1, 0]))["loss"].backward()
    assert len(calls) == 1
    assert torch.allclose(calls[0][1], calls[0][0] * 2)
    plain = small_policy()
    plain.load_state_dict({k: v for k, v in policy.state_dict().items() if not k.startswith("encoders.")})
    doubled = batch_of([0, 1, 0])
    doubled["obs"]["pointcloud"] = doubled["obs"]["pointcloud"] * 2
    assert torch.allclose(policy(batch_of([0, 1, 0]))["loss"], plain(doubled)["loss"])
    moved = [name for name, p in policy.named_parameters() if name.startswith("encoders.") and p.grad is not None]
    assert bool(moved) is (frozen == "false")


@pytest.mark.parametrize("more", [("deepspeed=zero3",), ("deepspeed=zero1", "precision=bf16")], ids=" ".join)
def test_a_frozen_encoder_is_told_by_the_weights_it_was_loaded_with(small_cfg, monkeypatch, more):
    """Shards and casts come later."""
    monkeypatch.chdir(ROOT / "tests")
    run = ppt.UnifiedTrainer(small_cfg(f"policy.encoders.pointcloud.kind={HALVED}", *more, "train.total_iters=2"))
    assert run.run() == 0
    assert (
        ppt.load_policy(run.run_dir).card["encoders"]
        == small_policy(**{"policy.encoders.pointcloud.kind": HALVED}).encoder_fingerprints
    )


def test_a_frozen_encoder_is_named_in_checkpoints_and_not_stored(small_cfg, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    word = f"policy.encoders.pointcloud.kind={DOUBLED}"
    run = ppt.UnifiedTrainer(small_cfg(word, "deepspeed=zero2"))
    assert run.run() == 0
    content = torch.load(run.run_dir / "model.pth", weights_only=True)
    resume = torch.load(next((run.run_dir / "resume").glob("*.pt")), weights_only=True)["engine"]
    for tensors in (
        content["policy"],
        content["ema"],
        resume["weights"],
        resume["averaged"],
        *resume["moments"].values(),
    ):
        assert tensors
        assert not [name for name in tensors if name.startswith("encoders.")]
    policy = ppt.load_policy(run.run_dir)
    assert policy.encoder_fingerprints == content["encoders"]
    assert torch.equal(policy.encoders["pointcloud"].inner.linear.weight, 2 * torch.eye(3))
    longer = ppt.UnifiedTrainer(small_cfg(word, "train.resume=auto", "train.total_epochs=3", "deepspeed=zero2"))
    assert longer.run() == 0
    other = ppt.UnifiedTrainer(
        small_cfg(
            word,
            "train.resume=auto",
            "train.total_epochs=4",
            "deepspeed=zero2",
            "policy.encoders.pointcloud.options={}",
        )
    )
    monkeypatch.setattr(Doubled, "factor", 4.0)
    with pytest.raises(UserError, match="the frozen encoder of pointcloud had the weights"):
        other.run()
    monkeypatch.undo()
    monkeypatch.chdir(ROOT / "tests")
    content["config"]["policy"]["encoders"]["pointcloud"]["options"] = {"factor": 3.0}
    torch.save(content, run.run_dir / "model.pth")
    with pytest.raises(UserError, match="the frozen encoder of pointcloud had the weights"):
        ppt.load_policy(run.run_dir)
    assert PolicyConfig().encoders.pointcloud.kind is None


def test_domains_with_other_numbers_of_cameras_train_together(monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    sizes = {"left": (4, 6), "top": (4, 6), "wrist": (4, 6)}
    specs = {
        "two": Spec(state={"x": 2}, action={"actions": 2}, rgb={name: sizes[name] for name in ("left", "top")}),
        "one": Spec(state={"x": 2}, action={"actions": 2}, rgb={"wrist": sizes["wrist"]}),
    }
    words = ("policy.stems.pointcloud.kind=null", "policy.stems.rgb.kind=test_parts:EachCamera")
    cfg = typed(load_config("", "policy.width=16", "policy.depth=1", "policy.num_heads=2", *words))
    torch.manual_seed(0)
    policy = PPTPolicy(specs, cfg.policy)

    def batch(domains, cameras):
        g, size = torch.Generator().manual_seed(0), len(domains)
        rgb = {name: torch.randint(0, 256, (size, 2, 4, 6, 3), generator=g, dtype=torch.uint8) for name in cameras}
        return {
            "obs": {"state": torch.randn(size, 2, 2, generator=g), "rgb": rgb}, "action": torch.zeros(size, 8, 2),
            "action_is_pad": torch.zeros(size, 8, dtype=torch.bool), "domain": torch.tensor(domains), "index": torch.arange(size),
        }  # fmt: skip

    policy(batch([0, 1, 0], sizes))["loss"].backward()
    assert all(p.grad is not None for p in policy.parameters())
    assert torch.isfinite(policy(batch([1, 1], ["wrist"]))["loss"])
    obs = batch([1], ["wrist"])["obs"]
    assert policy.act(obs, "one").shape == (1, 8, 2)
    with pytest.raises(ValueError, match=r"obs.rgb has no camera left: this policy sees left, top"):
        policy.act(obs, "two")


def test_a_loss_of_the_wrong_shape_is_refused(monkeypatch):
    """Eight windows of eight actions: it would fit the mask of the wrong axis."""
    monkeypatch.chdir(ROOT / "tests")
    policy = small_policy(**{"policy.head.kind": "test_parts:OneNumber"})
    with pytest.raises(ValueError, match=r"the loss of OneNumber is \(8,\); .* \(B, Ta\) = \(8, 8\)"):
        policy(batch_of([0] * 8))


def test_a_stem_of_the_recipe_trains_in_bfloat16(lab):
    words = ("policy.stems.state.kind=my_lab.stems:MyStem", "precision=bf16", "deepspeed=zero1", "suffix=half")
    done = run_script(str(ROOT / "scripts/train.py"), *latest("domains=reach", *SMALL, *words), cwd=lab)
    assert done.returncode == 0, done.stderr[-2000:]
