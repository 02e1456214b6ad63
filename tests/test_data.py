"""Episodes on disk, windows, splits, batches: compared with plain loops over the arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import zarr
from conftest import dataset_of, write_store

from ppt_kit.data.clouds import compose_cloud
from ppt_kit.data.formats import open_store
from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.loader import BatchPlan, Loader, epoch_indices, epoch_order, mixed_order
from ppt_kit.errors import UserError


def windows_of(folder, domains="a", **options):
    return dataset_of(folder, domains, **{"num_points": 16, **options})


# ------------------------------------------------------------------ store


def test_what_is_written_is_plain_zarr_v2(small_data):
    group = zarr.open_group(str(small_data / "a.zarr"), mode="r")
    assert group.metadata.zarr_format == 2
    assert list(group["meta/episode_ends"][:]) == [12, 19, 28, 43]
    meta = json.loads((small_data / "a.zarr/data/actions/.zarray").read_text())
    assert meta["compressor"] is None
    raw = np.fromfile(small_data / "a.zarr/data/actions/0.0", np.float32).reshape(43, 4)  # what any zarr 2 reader sees
    assert np.array_equal(raw, group["data/actions"][:])


def test_rows_come_back_in_any_order_with_repeats(small_data):
    store = open_store(small_data / "a.zarr")
    truth = zarr.open_group(str(small_data / "a.zarr"), mode="r")["data/obs/pointcloud/pos"][:]
    rows = np.array([42, 0, 7, 7, 41])
    assert np.array_equal(store.read("obs/pointcloud/pos", rows), truth[rows])


@pytest.mark.parametrize("compressor", [None, "auto"])
def test_stores_of_others_are_read_in_place(tmp_path, compressor):
    """Many chunks a key, compressed or not, as other tools write them."""
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w", zarr_format=2)
    group.create_array("data/actions", shape=values.shape, chunks=(7, 3), dtype="f4", compressors=compressor)[:] = (
        values
    )
    group.create_array("meta/episode_ends", shape=(2,), dtype="i8")[:] = [20, 50]
    rows = np.array([49, 6, 7, 7, 0, 20])
    assert np.array_equal(open_store(tmp_path / "x.zarr").read("actions", rows), values[rows])


def test_ends_that_do_not_match_name_the_file_and_episode(tmp_path):
    write_store(tmp_path / "x.zarr")
    zarr.open_group(str(tmp_path / "x.zarr"), mode="a")["meta/episode_ends"][3] = 44
    with pytest.raises(UserError, match=r"x.zarr.*43 rows.*episode 3 ends at 44"):
        open_store(tmp_path / "x.zarr")


def test_a_folder_that_is_no_buffer_says_what_is_missing(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(UserError, match="meta/episode_ends"):
        open_store(tmp_path / "x.zarr")


def test_a_crash_while_writing_leaves_nothing_and_spares_what_was_there(tmp_path):
    write_store(tmp_path / "x.zarr")
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def crash():
        with ZarrWriter(tmp_path / "x.zarr", overwrite=True) as writer:
            writer.append({"actions": np.zeros((3, 2), np.float32)})
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        crash()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_an_existing_dataset_is_not_replaced_by_itself(tmp_path):
    write_store(tmp_path / "x.zarr")
    with pytest.raises(UserError, match="overwrite=true"):
        ZarrWriter(tmp_path / "x.zarr")


def test_values_that_are_not_finite_are_not_stored(tmp_path):
    with pytest.raises(ValueError, match=r"episode 0: actions"), ZarrWriter(tmp_path / "x.zarr") as writer:
        writer.append({"actions": np.full((3, 2), np.nan, np.float32)})


# ------------------------------------------------------------------ windows


def slow_window(store, row, *, first, last, To, Ta, hist):
    """The contract, one step at a time."""
    clip = lambda r: min(max(r, first), last)
    start = row - (To - 1 if hist else 0)
    acted = [start + i for i in range(Ta)]
    read = lambda key, r: store.read(key, np.array([r]))[0]
    return {
        "state": np.stack(
            [
                np.concatenate([read("obs/eef_pos", clip(r)), read("obs/normalized_gripper_pos", clip(r))])
                for r in range(row - To + 1, row + 1)
            ]
        ),
        "pointcloud": np.stack([read("obs/pointcloud/pos", clip(r)) for r in range(row - To + 1, row + 1)]),
        "action": np.stack([read("actions", clip(r)) for r in acted]),
        "action_is_pad": np.array([not first <= r <= last for r in acted]),
    }


@pytest.mark.parametrize("hist", [False, True])
@pytest.mark.parametrize(("To", "Ta"), [(1, 4), (2, 8), (3, 20)])
def test_every_window_is_what_the_contract_says(small_data, To, Ta, hist):
    data = windows_of(small_data, observation_horizon=To, action_horizon=Ta, hist_action_cond=hist)
    store, index = data.domains["a"].store, 0
    batch = data.__getitems__(range(len(data)))
    for episode, end in enumerate(store.episode_ends):
        first = int(store.episode_ends[episode - 1]) if episode else 0
        for row in range(first, end):
            want = slow_window(store, row, first=first, last=int(end) - 1, To=To, Ta=Ta, hist=hist)
            assert np.array_equal(batch["obs"]["state"][index], want["state"])
            assert np.array_equal(batch["obs"]["pointcloud"][index], want["pointcloud"])
            assert np.array_equal(batch["action"][index], want["action"])
            assert np.array_equal(batch["action_is_pad"][index], want["action_is_pad"])
            index += 1
    assert index == len(data)


def test_the_types_of_a_batch_are_the_contracts(small_data):
    batch = windows_of(small_data, "b", point_channels=7).__getitems__([3, 0])
    kinds = {name: batch[name].dtype for name in ("action", "action_is_pad", "domain", "index")}
    assert kinds == {"action": torch.float32, "action_is_pad": torch.bool, "domain": torch.int64, "index": torch.int64}
    assert batch["obs"]["pointcloud"].shape == (2, 2, 16, 7)
    assert batch["obs"]["pointcloud"].dtype == torch.float32
    assert 0 <= batch["obs"]["pointcloud"][..., 3:6].min() <= batch["obs"]["pointcloud"][..., 3:6].max() <= 1
    assert torch.equal(batch["obs"]["pointcloud"][..., 6], batch["obs"]["pointcloud"][..., 2])  # height
    assert batch["obs"]["language"] == ["task 0", "task 0"]
    assert batch["index"].tolist() == [3, 0]


def test_one_window_is_the_batch_without_its_first_axis(small_data):
    data = windows_of(small_data)
    assert torch.equal(data[-1]["action"], data.__getitems__([len(data) - 1])["action"][0])
    with pytest.raises(IndexError):
        data[len(data)]


def test_domains_of_different_sizes_share_a_batch(small_data):
    data = windows_of(small_data, "a,wide")
    index = np.array([0, len(data) - 1, 5])
    batch = data.__getitems__(index)
    alone = windows_of(small_data, "wide")
    assert batch["domain"].tolist() == [0, 1, 0]
    assert batch["action"].shape == (3, 8, 6)
    assert torch.equal(batch["action"][1], alone[-1]["action"])
    assert torch.equal(batch["action"][0, :, 4:], torch.zeros(8, 2))
    assert {name: (spec.state_dim, spec.action_dim) for name, spec in data.specs.items()} == {
        "a": (4, 4),
        "wide": (6, 6),
    }


@pytest.mark.parametrize(
    ("before", "after", "first", "last"), [(None, None, 0, 11), (0, None, 1, 11), (None, 0, 0, 4), (0, 3, 1, 7)]
)
def test_padding_limits_cut_windows_at_the_edges(small_data, before, after, first, last):
    data = windows_of(small_data, pad_before=before, pad_after=after, episode_cnt=1)
    rows = [int(data[i]["obs"]["state"][-1, 0]) for i in range(len(data))]
    assert rows == list(range(first, last + 1))


def test_a_split_divides_episodes_and_nothing_is_in_both(small_data):
    parts = [windows_of(small_data, split=split, val_ratio=0.3, seed=4) for split in ("train", "val")]
    episodes = [set(part.episodes["a"].tolist()) for part in parts]
    assert episodes[0] & episodes[1] == set()
    assert episodes[0] | episodes[1] == {0, 1, 2, 3}
    rows = [set(part.rows("a").tolist()) for part in parts]
    assert rows[0] & rows[1] == set()


def test_an_empty_split_says_what_to_set(small_data):
    with pytest.raises(UserError, match="val_ratio"):
        windows_of(small_data, split="val", val_ratio=0)
    with pytest.raises(UserError, match="val_ratio=0"):
        windows_of(small_data, val_ratio=0.5, episode_cnt=1)


def test_fewer_episodes_by_count_and_by_share(small_data):
    assert windows_of(small_data, episode_cnt=2).num_episodes == 2
    assert windows_of(small_data, data_ratio=0.5).num_episodes == 2


def test_missing_keys_name_what_is_there(small_data):
    with pytest.raises(UserError, match=r"state_keys.*no joint_pos.*obs/eef_pos"):
        windows_of(small_data, state_keys=["joint_pos"])
    with pytest.raises(UserError, match="use_color=true"):
        windows_of(small_data, point_channels=6, modalities=["pointcloud"])
    with pytest.raises(UserError, match="num_points=16"):
        windows_of(small_data, num_points=512, modalities=["pointcloud"])


def test_an_episode_nests_its_keys_as_a_batch_does(small_data):
    episode = windows_of(small_data).episode(1)
    assert episode["action"].shape == (7, 4)
    assert episode["obs"]["state"].shape == (7, 4)
    assert episode["obs"]["pointcloud"].shape == (7, 16, 3)
    assert episode["obs"]["language"] == ["task 1"] * 7
    assert list(episode["action"][:, 0]) == list(range(12, 19))


@pytest.mark.parametrize("channels", [3, 4, 6, 7])
def test_packed_clouds_give_the_channels_asked_for(channels):
    packed = np.random.default_rng(0).random((2, 9, 6)).astype(np.float32)
    cloud = compose_cloud(packed, channels=channels, num_points=5)
    assert cloud.shape == (2, 5, channels)
    if channels >= 6:
        assert np.array_equal(cloud[:, 0, 3:6], packed[:, 0, 3:6])


# ------------------------------------------------------------------ order and loader


def test_two_ranks_partition_an_epoch(small_data):
    data = windows_of(small_data)
    a, b = (epoch_indices(data, rank=rank, world_size=2, seed=0) for rank in (0, 1))
    assert sorted([*a, *b]) == list(range(len(data)))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    assert np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=1, epoch=2))
    assert not np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=1, epoch=3))
    assert not np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=2, epoch=2))


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("num_windows", [24, 25, 47, 5])
def test_a_pass_counts_every_window_once_whatever_the_ranks(num_windows, world_size, accumulation):
    plan = BatchPlan(num_windows, 4, world_size=world_size, accumulation=accumulation, seed=3)
    order, seen = plan.order(0), np.zeros(num_windows)
    for step in range(plan.steps_per_pass):
        weights = []
        for micro in range(accumulation):
            for rank in range(world_size):
                windows, weight = plan.micro_batch(step, rank=rank, micro=micro, order=order)
                np.add.at(seen, windows, weight > 0)
                weights.append(weight)
        assert np.mean(weights) == pytest.approx(1)  # the mean over ranks is the mean over windows
    assert (seen == 1).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_give_each_domain_its_exact_share_and_no_window_twice_too_soon(seed):
    mixture, total = ((10, 1.0), (30, 3.0), (7, 0.5)), 47
    passes = [mixed_order(mixture, num_windows=total, seed=seed, epoch=epoch) for epoch in range(6)]
    for order in passes:
        counts = np.histogram(order, bins=[0, 10, 40, 47])[0]
        assert counts.sum() == total
        assert np.abs(counts - np.array([1, 3, 0.5]) / 4.5 * total).max() < 1
    seen = np.bincount(np.concatenate(passes), minlength=47)
    for part in (seen[:10], seen[10:40], seen[40:]):
        assert part.max() - part.min() <= 1
    assert np.array_equal(passes[3], mixed_order(mixture, num_windows=total, seed=seed, epoch=3))


def test_the_same_step_has_the_same_windows_on_one_process_and_on_two():
    one, two = BatchPlan(100, 8, seed=5), BatchPlan(100, 4, world_size=2, seed=5)
    order = one.order(0)
    for step in range(one.steps_per_pass):
        windows, _ = one.micro_batch(step, rank=0, micro=0, order=order)
        halves = [two.micro_batch(step, rank=rank, micro=0, order=order)[0] for rank in (0, 1)]
        assert sorted(windows) == sorted(np.concatenate(halves))


def test_the_loader_starts_in_the_middle_as_if_it_had_run_from_the_start(small_data):
    data = windows_of(small_data)
    plan = BatchPlan(len(data), 8, seed=1)
    whole = list(Loader(data, plan, rank=0, first_step=0, last_step=9, pin=False))
    part = list(Loader(data, plan, rank=0, first_step=4, last_step=9, pin=False))
    assert [step for step, _ in part] == [4, 5, 6, 7, 8]
    for (_, a), (_, b) in zip(whole[4:], part):
        assert torch.equal(a[0]["index"], b[0]["index"])
        assert torch.equal(a[0]["noise_seed"], b[0]["noise_seed"])


def test_an_error_while_loading_reaches_the_loop(small_data):
    data = windows_of(small_data)
    plan = BatchPlan(len(data) + 10, 8)  # it asks for windows that are not there
    with pytest.raises(IndexError):
        list(Loader(data, plan, rank=0, first_step=0, last_step=plan.steps_per_pass, pin=False))


def test_a_run_resumed_with_another_global_batch_sees_the_rest_of_the_pass_once():
    """Three steps of 8 on two ranks, then steps of 4 on one: the pass of 45 windows is completed, then the next begins."""
    before = BatchPlan(45, 4, world_size=2, seed=2)
    after = BatchPlan(45, 4, seed=2, origin=(3, *before.locate(3)))
    windows = [before.step_windows(step) for step in range(3)]
    step = 3
    while after.locate(step)[0] == 0:
        windows.append(after.step_windows(step))
        step += 1
    assert sorted(np.concatenate(windows)) == list(range(45))
    assert after.locate(step) == (1, 0)
    assert after.steps_until(2) == step + 12
    assert BatchPlan(45, 8, seed=2).steps_until(5) == 30
