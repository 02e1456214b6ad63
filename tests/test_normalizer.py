"""Statistics against numpy on the stored arrays; what they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from conftest import dataset_of, write_store

from ppt_kit.data.dataset import open_dataset
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.normalizer import check_same_source, fit_normalizer, near_constant
from ppt_kit.errors import UserError
from ppt_kit.schema import NormalizerConfig
from ppt_kit.train.trainer import UnifiedTrainer


def normalised(stats, values):
    return (values - np.array(stats["offset"])) * np.array(stats["scale"])


@pytest.fixture
def poses(tmp_path):
    """Positions, quaternions, a one-hot of the phase, a gripper that closes rarely, a dimension that hardly moves."""
    rng = np.random.default_rng(0)
    with ZarrWriter(tmp_path / "poses.zarr") as writer:
        for length in (300, 250):
            quat = rng.normal(size=(length, 4))
            quat /= np.linalg.norm(quat, axis=1, keepdims=True)
            still = 5 + 1e-6 * rng.normal(size=(length, 1))
            gripper = (np.arange(length)[:, None] == 7).astype(float)
            actions = np.concatenate([rng.normal(3, 2, (length, 3)), quat, gripper, still], axis=1)
            writer.append(
                {
                    "actions": actions.astype(np.float32),
                    "obs/eef_pos": rng.normal(size=(length, 3)).astype(np.float32),
                    "obs/eef_quat": quat.astype(np.float32),
                    "obs/phase": np.eye(3, dtype=np.float32)[rng.integers(0, 3, length)],
                }
            )
    return open_dataset(tmp_path / "poses.zarr")


def truth(dataset, key):
    return zarr.open_group(str(dataset.domains["poses"].store.path), mode="r")[f"data/{key}"][:].astype(np.float64)


def test_limits_go_to_minus_one_and_one_on_the_training_episodes_only(small_data):
    data = dataset_of(small_data, "a", num_points=16, split="train", val_ratio=0.3)
    stats = fit_normalizer(data)["a"]["action"]
    actions = zarr.open_group(str(small_data / "a.zarr"), mode="r")["data/actions"][:][data.rows("a")]
    done = normalised(stats, actions)
    assert np.allclose([done.min(0), done.max(0)], [[-1] * 4, [1] * 4], atol=1e-5)


def test_gaussian_has_mean_zero_and_deviation_one(poses):
    done = normalised(
        fit_normalizer(poses, NormalizerConfig(mode="gaussian"))["poses"]["action"], truth(poses, "actions")
    )[:, :8]
    assert np.allclose(done.mean(0), 0, atol=1e-4)
    assert np.allclose(done.std(0), 1, atol=1e-3)


def test_quantiles_take_one_and_ninety_nine_percent_to_the_ends(poses):
    stats = fit_normalizer(poses, NormalizerConfig(mode="quantiles"))["poses"]["action"]
    done = normalised(stats, truth(poses, "actions"))
    assert np.allclose(np.quantile(done[:, :3], [0.01, 0.99], axis=0), [[-1] * 3, [1] * 3], atol=1e-4)
    assert set(np.round(done[:, 7], 6)) == {-1, 1}  # open in over 98 % of the rows: its limits are its range


def test_identity_changes_nothing(poses):
    stats = fit_normalizer(poses, NormalizerConfig(mode="identity"))["poses"]["state"]
    assert stats["offset"] == [0] * 10
    assert stats["scale"] == [1] * 10


def test_keys_and_domains_have_modes_of_their_own(poses):
    stats = fit_normalizer(
        poses,
        NormalizerConfig(
            per_key={"eef_pos": "gaussian", "actions[3:7]": "identity"}, per_domain={"poses": {"eef_pos": "quantiles"}}
        ),
    )["poses"]
    assert stats["state"]["mode"] == ["quantiles"] * 3 + ["limits"] * 7
    assert stats["action"]["mode"] == ["limits"] * 3 + ["identity"] * 4 + ["limits"] * 2


def test_quaternions_and_one_hot_are_left_alone_when_asked(poses):
    stats = fit_normalizer(poses, NormalizerConfig(leave_alone=["quaternions", "one_hot"]))["poses"]
    assert stats["state"]["mode"] == ["limits"] * 3 + ["identity"] * 7
    assert (
        fit_normalizer(poses, NormalizerConfig(leave_alone=["actions[3:7]"]))["poses"]["action"]["mode"][3:7]
        == ["identity"] * 4
    )
    assert "identity" not in fit_normalizer(poses)["poses"]["state"]["mode"]


@pytest.mark.parametrize("mode", ["limits", "gaussian", "quantiles"])
def test_a_dimension_that_hardly_moves_is_named_and_not_blown_up(poses, mode):
    stats = fit_normalizer(poses, NormalizerConfig(mode=mode))
    assert near_constant(stats, poses.specs) == ["poses: actions[8]"]
    assert stats["poses"]["action"]["scale"][8] == 1
    assert np.abs(normalised(stats["poses"]["action"], truth(poses, "actions"))[:, 8]).max() < 1e-3


def test_a_value_that_is_not_finite_names_its_file_and_episode(tmp_path):
    write_store(tmp_path / "x.zarr")
    zarr.open_group(str(tmp_path / "x.zarr"), mode="a")["data/actions"][14, 0] = np.inf
    with pytest.raises(UserError, match=r"x.zarr: data/actions of episode 1 \(row 14\) is not finite"):
        fit_normalizer(dataset_of(tmp_path, "x", num_points=16))


def test_an_unknown_key_names_those_there_are(poses):
    with pytest.raises(UserError, match=r"has no eef_pose; it has actions, eef_pos"):
        fit_normalizer(poses, NormalizerConfig(per_key={"eef_pose": "identity"}))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["normalizer.mode=limit"], "Did you mean limits"),
        (["normalizer.per_key={eef_pos: gauss}"], "normalizer.per_key.eef_pos=gauss: takes limits"),
        (["normalizer.per_domain={b: {eef_pos: gaussian}}"], "b is none of the domains"),
        (["normalizer.path=absent"], "no such file"),
        (["normalizer.mode=gaussian", "policy.head.kind=diffusion"], "policy.head.options.clip=null"),
    ],
)
def test_mistakes_in_the_configuration_are_told(small_cfg, words, says):
    with pytest.raises(UserError, match=says):
        UnifiedTrainer(small_cfg(*words)).run()


def test_the_modes_of_a_configuration_reach_the_checkpoint(small_cfg):
    run = UnifiedTrainer(
        small_cfg("normalizer.mode=gaussian", "normalizer.per_key.eef_pos=identity", "train.total_iters=1")
    )
    run.run()
    import ppt_kit

    stats = ppt_kit.load_policy(run.run_dir).card["normalizer"]["a"]
    assert stats["state"]["mode"] == ["identity"] * 3 + ["gaussian"]
    assert stats["action"]["mode"] == ["gaussian"] * 4


def test_statistics_of_something_else_are_refused_and_the_difference_is_named(small_data):
    make = lambda name="a", **options: dataset_of(
        small_data, {"a": 1} if name == "a" else name, num_points=16, **options
    )
    stored = fit_normalizer(make())
    check_same_source(stored, fit_normalizer(make()))
    with pytest.raises(UserError, match=r"the state's keys and their order differ: \['eef_pos\[3\]'"):
        check_same_source(stored, fit_normalizer(make(state_keys=["normalized_gripper_pos", "eef_pos"])))
    with pytest.raises(UserError, match="representation of the action differ"):
        check_same_source(stored, fit_normalizer(make(action_key="eef_pos")))
    with pytest.raises(UserError, match="the dataset's episodes differ"):
        check_same_source(stored, fit_normalizer(make(episode_cnt=2)))
    check_same_source(stored, fit_normalizer(make(episode_cnt=2)), any_dataset=True)
    with pytest.raises(UserError, match="no statistics for b"):
        check_same_source(stored, fit_normalizer(make("b")))


def test_another_runs_statistics_are_taken_when_they_fit(small_cfg, small_data, tmp_path):
    first = UnifiedTrainer(small_cfg("train.total_iters=1"))
    first.run()
    write_store(tmp_path / "more/a.zarr", seed=9)
    more = (
        "suffix=second",
        f"dataset_path={tmp_path / 'more'}",
        "train.total_iters=1",
        f"normalizer.path={first.run_dir}",
    )
    with pytest.raises(UserError, match="the dataset's episodes differ"):
        UnifiedTrainer(small_cfg(*more)).run()
    second = UnifiedTrainer(small_cfg(*more, "normalizer.any_dataset=true"))
    second.run()
    from ppt_kit.checkpoint import load_model

    assert load_model(second.run_dir)["normalizer"] == load_model(first.run_dir)["normalizer"]


def test_a_run_does_not_go_on_with_data_that_changed(small_cfg, small_data, tmp_path):
    import shutil

    shutil.copytree(small_data, tmp_path / "copy")
    words = (f"dataset_path={tmp_path / 'copy'}", "train.resume=auto")
    UnifiedTrainer(small_cfg(*words, "train.total_epochs=1")).run()
    zarr.open_group(str(tmp_path / "copy/a.zarr"), mode="a")["data/actions"][0, 0] = 3
    with pytest.raises(UserError, match="the dataset's episodes differ"):
        UnifiedTrainer(small_cfg(*words)).run()


def test_parts_modes_and_domains_that_are_not_there_are_told(poses):
    for options, says in (
        ({"per_key": {"actions[5]": "identity"}}, r"A part of one is e.g. actions\[3:7\]"),
        ({"per_key": {"actions[6:99]": "identity"}}, "actions of poses has 9 numbers"),
        ({"mode": "limit"}, "mode limit is none of limits, gaussian"),
        ({"per_domain": {"pose": {}}}, "pose is none of the domains poses"),
    ):
        with pytest.raises(UserError, match=says):
            fit_normalizer(poses, NormalizerConfig(**options))
