"""A policy sees what the data has and its options name: it trains on any subset, and what it does not see is not read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_WORDS, latest

import ppt_kit as ppt
from ppt_kit.config import load_config
from ppt_kit.data.formats import open_store
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.errors import UserError
from ppt_kit.spec import MODALITIES

HEIGHT, WIDTH = 20, 24
FOLDERS = {"state": "obs/joints", "rgb": "obs/images", "depth": "obs/depths", "pointcloud": "obs/pointcloud"}


def write_seen(
    path, *, kinds=("state", "pointcloud", "rgb", "depth"), seed=0, lengths=(9, 8, 7), action_dim=3, size=HEIGHT
):
    """A replay buffer that has these modalities."""
    rng = np.random.default_rng(seed)
    with ZarrWriter(path, attrs={"descriptions": [f"say {i}" for i in range(len(lengths))]}) as writer:
        for n in lengths:
            arrays = {"actions": rng.normal(size=(n, action_dim)).astype(np.float32)}
            if "state" in kinds:
                arrays["obs/joints"] = rng.normal(size=(n, 4)).astype(np.float32)
            if "pointcloud" in kinds:
                arrays["obs/pointcloud/pos"] = rng.normal(size=(n, 16, 3)).astype(np.float32)
            if "rgb" in kinds:
                arrays["obs/images/front"] = rng.integers(0, 256, (n, size, WIDTH, 3), dtype=np.uint8)
            if "depth" in kinds:
                arrays["obs/depths/front"] = rng.uniform(0.2, 2, (n, size, WIDTH, 1)).astype(np.float32)
            writer.append(arrays)
    return path


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """`all` has everything, `blind` has state alone, `eyes` has state and rgb."""
    folder = tmp_path_factory.mktemp("seen")
    write_seen(folder / "all.zarr")
    write_seen(folder / "blind.zarr", kinds=("state",), seed=1)
    write_seen(folder / "eyes.zarr", kinds=("state", "rgb"), seed=2)
    return folder


def run_of(folder, out, *words, domains="all"):
    fixed = (f"dataset_path={folder}", f"domains={domains}", f"output_dir={out}", "suffix=run", "train.total_iters=2")
    return ppt.UnifiedTrainer(load_config("quickstart", *latest(*SMALL_WORDS, *fixed, *words)))


class Poisoned:
    """A column that says so when it is read."""

    layout = "poison"

    def __init__(self, column):
        self.shape, self.dtype, self.stored_as = column.shape, column.dtype, column.stored_as

    def read(self, rows):
        raise AssertionError(f"{self.stored_as} was read")


class WithPoison:
    """A format of its own: the replay buffer, with poison in the columns whose names begin with one of `poisoned`."""

    NAME, LOOKED_FOR, ENDINGS = "poisoned", "a .zarr", (".zarr",)
    poisoned: tuple[str, ...] = ()

    @staticmethod
    def recognises(path):
        return path.suffix == ".zarr"

    @staticmethod
    def open_store(path, *, filter_key=None):
        store = open_store(path)
        columns = store.columns.items()
        store.columns = {name: Poisoned(c) if name.startswith(WithPoison.poisoned) else c for name, c in columns}
        return store


SUBSETS = [
    kinds for n in (1, 2, 4) for kinds in itertools.combinations(("state", "pointcloud", "rgb", "depth"), n)
]  # fmt: skip


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_any_subset_trains_and_acts_and_nothing_else_of_the_data_is_read(seen, tmp_path, monkeypatch, kinds):
    monkeypatch.chdir(ROOT / "tests")
    monkeypatch.setattr(WithPoison, "poisoned", tuple(FOLDERS[kind] for kind in FOLDERS if kind not in kinds))
    run = run_of(
        seen, tmp_path, f"policy.modalities=[{','.join(kinds)}]", "dataset.format=test_modalities:WithPoison",
    )  # fmt: skip
    assert run.run() == 0
    policy = ppt.load_policy(run.run_dir)
    assert policy.modalities == [name for name in MODALITIES if name in kinds]
    obs = ppt.load_dataset(run.cfg, modalities=kinds).__getitems__([0, 3])["obs"]
    assert set(obs) == set(kinds)
    assert policy.act(obs).shape == (2, 8, 3)


@pytest.mark.parametrize(
    ("domains", "sees"),
    [
        ("all", ["state", "pointcloud", "rgb", "depth"]),
        ("eyes", ["state", "rgb"]),
        ("blind", ["state"]),
        ("eyes,all", ["state", "rgb"]),
    ],
)
def test_null_is_what_every_domain_has(seen, tmp_path, domains, sees):
    run = run_of(seen, tmp_path, domains=domains)
    assert run.run() == 0
    assert ppt.load_policy(run.run_dir).modalities == sees


@pytest.mark.parametrize("more", [("deepspeed=zero3",), ("deepspeed=zero1", "precision=bf16")], ids=" ".join)
def test_every_modality_trains_in_shards_and_in_half_precision(seen, tmp_path, more):
    words = ("policy.stems.language.kind=sentence", "policy.encoders.language.kind=minilm")
    run = run_of(seen, tmp_path, *words, *more, "train.val_interval=0")
    assert run.run() == 0
    policy = ppt.load_policy(run.run_dir)
    assert policy.modalities == list(MODALITIES)
    obs = ppt.load_dataset(run.cfg, modalities=MODALITIES).__getitems__([0, 3])["obs"]
    assert torch.isfinite(policy.act(obs)).all()
    assert np.isfinite(ppt.read_metrics(run.run_dir, "train")["loss"]).all()


def test_a_kind_that_is_null_is_not_seen_as_before(seen, tmp_path):
    run = run_of(seen, tmp_path, "policy.stems.rgb.kind=null", "policy.stems.depth.kind=null")
    run.run()
    policy = ppt.load_policy(run.run_dir)
    assert policy.modalities == ["state", "pointcloud"]
    assert not [name for name in policy.state_dict() if "rgb" in name or "depth" in name]


@pytest.mark.parametrize(
    ("domains", "words", "says"),
    [
        ("blind", ["policy.modalities=[state,rgb]"], r"blind.zarr has no rgb; it has state, language, .*policy.modalities=\[state\]"),
        ("eyes,blind", ["policy.modalities=[state,rgb]"], r"blind.zarr has no rgb.*eyes has it"),
        ("all", ["policy.modalities=[language]"], r"policy.stems.language.kind=null.*to sentence, or module:Class"),
        ("all", ["policy.modalities=[rbg]"], r"names rbg: takes state, .*Did you mean rgb"),
        ("all", ["policy.modalities=[]"], "sees? nothing"),
        ("blind", ["policy.stems.state.kind=null"], r"sees nothing of what every domain has: blind has state, language"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_refused_before_a_file_is_written(seen, tmp_path, domains, words, says):
    with pytest.raises(UserError, match=says):
        run_of(seen, tmp_path / "out", *words, domains=domains).run()
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_when_a_default_names_what_it_saw(seen, tmp_path):
    """A configuration from before the modalities had a key, and this one, mean the same policy."""
    run = run_of(
        seen,
        tmp_path,
        "policy.modalities=[state]",
        "dataset.state_keys=[joints]",
        "augment.shift_px=0",
        domains="blind",
    )
    run.run()
    again = run_of(seen, tmp_path, "train.resume=auto", "train.total_iters=3", domains="blind")
    assert again.run() == 0
    assert ppt.load_policy(again.run_dir).card["step"] == 3
    other = run_of(
        seen, tmp_path, "train.resume=auto", "train.total_iters=4", "policy.stems.state.num_latents=2", domains="blind"
    )
    with pytest.raises(UserError, match="policy is"):
        other.run()


def test_a_policy_that_is_to_see_what_a_domain_lacks_is_refused():
    from ppt_kit.models.policy import PPTPolicy
    from ppt_kit.schema import PolicyConfig
    from ppt_kit.spec import Spec

    spec = Spec(state={"joints": 4}, action={"actions": 3})
    with pytest.raises(UserError, match=r"names rgb, and domain a has state only. Type policy.modalities=\[state\]"):
        PPTPolicy({"a": spec}, PolicyConfig(width=32, num_heads=2, modalities=["state", "rgb"]))
    torch.manual_seed(0)
    assert PPTPolicy({"a": spec}, PolicyConfig(width=32, num_heads=2)).modalities == ["state"]


# ------------------------------------------------------------------ the commonest dataset there is, with the fewest words


class SpotEnv:
    """A hand that must reach a spot which only its camera shows."""

    max_steps, description, size = 12, "reach the spot", 32

    def __init__(self, task):
        self.task = task

    def reset(self, seed):
        self.hand, self.goal = np.random.default_rng(seed).uniform(-1, 1, (2, 2)).astype(np.float32)
        return self._reading()

    def step(self, action):
        self.hand = self.hand + np.clip(action, -0.3, 0.3).astype(np.float32)
        return self._reading(), 0.0, bool(np.abs(self.goal - self.hand).max() < 0.1)

    def expert_action(self):
        return np.clip(self.goal - self.hand, -0.3, 0.3)

    def spec(self):
        return {"simulator": "test_modalities:SpotEnv", "task": self.task}

    def _reading(self):
        image = np.full((self.size, self.size, 3), 30, np.uint8)
        row, column = ((self.goal + 1) * 15).astype(int)
        image[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = (240, 60, 60)
        return {"obs/hand": self.hand, "obs/images/front": image}


@pytest.mark.parametrize("kind", ["zarr", "lerobot", "robomimic"])
def test_rgb_and_state_go_from_a_file_to_a_checkpoint_and_a_rate_with_two_words(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(ROOT / "tests")
    ppt.collect("spot", simulator="test_modalities:SpotEnv", episodes=4, dataset_path=str(tmp_path))
    if kind == "lerobot":
        ppt.to_lerobot(tmp_path / "spot.zarr", tmp_path / "lift", fps=10, video=False)
    elif kind == "robomimic":
        write_robomimic(tmp_path / "lift.hdf5", ppt.open_dataset(tmp_path / "spot.zarr"))
    else:
        (tmp_path / "spot.zarr").rename(tmp_path / "lift.zarr")
    run = run_of(tmp_path, tmp_path / "out", domains="lift")
    assert run.run() == 0
    policy = ppt.load_policy(run.run_dir)
    assert policy.modalities == ["state", "rgb"]
    assert list(policy.specs["lift"].rgb.values()) == [(32, 32)]
    assert policy.specs["lift"].state_dim == 2
    if kind == "robomimic":
        with pytest.raises(UserError, match="does not say which simulator"):
            ppt.evaluate(policy, episodes=1)
        return
    assert [row["error"] for row in ppt.evaluate(policy, episodes=2).rows] == [None, None]
    monkeypatch.setattr(SpotEnv, "size", 24)
    with pytest.raises(UserError, match=r"sees 32 x 32 pixels of obs/images/front, .* gives an array \(24, 24, 3\)"):
        ppt.evaluate(policy, episodes=2)


def write_robomimic(path, demos):
    """The same demonstrations as robomimic has them."""
    import h5py

    with h5py.File(path, "w") as file:
        for number in range(demos.num_episodes):
            episode, group = demos.episode(number), file.create_group(f"data/demo_{number}")
            group.create_dataset("actions", data=episode["action"])
            group.create_dataset("obs/robot0_eef_pos", data=episode["obs"]["state"])
            group.create_dataset("obs/agentview_image", data=episode["obs"]["rgb"]["front"])
            group.attrs["num_samples"] = len(episode["action"])
