"""A policy's view of the world is in one place: an episode seen live and read back from its store gives equal observations."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import dataset_of

from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
from ppt_kit.data.view import View
from ppt_kit.horizon import Horizon
from ppt_kit.sim.collect import collect, expert_episode
from ppt_kit.sim.env import make_env, show_only

TASK = "button-press-topdown"
CAMERAS = ("corner2", "corner3")


class Segmented:
    """Readings of every kind, segments among them, which Meta-World does not give."""

    max_steps, description = 6, "touch the third thing"

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reset(self, seed):
        self.rng, self.steps = np.random.default_rng(seed), 0
        return self.reading()

    def reading(self):
        rng = self.rng
        return {
            "obs/joints": rng.normal(size=3), "obs/grip": np.float32(rng.random()),
            "obs/pointcloud/pos": rng.normal(size=(40, 3)).astype(np.float32),
            "obs/pointcloud/colors": rng.random((40, 3)).astype(np.float32) * 255,
            "obs/pointcloud/seg": rng.integers(0, 4, 40),
            "obs/images/wrist": rng.integers(0, 256, (6, 8, 3), dtype=np.uint8),
            "obs/depths/wrist": rng.integers(300, 2000, (6, 8), dtype=np.uint16),
        }  # fmt: skip

    def step(self, action):
        self.steps += 1
        return self.reading(), 0.0, self.steps >= self.max_steps

    def expert_action(self):
        return self.rng.normal(size=2).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Meta-World's task by two cameras, one in a domain each, and the segmented scene; one episode each."""
    folder = tmp_path_factory.mktemp("views")
    for camera in CAMERAS:
        collect(
            TASK, episodes=1, dataset_path=str(folder), domain=camera, camera=camera, num_points=48, image_size=48,
            use_color=True, save_images=True, seed=11,
        )  # fmt: skip
    with ZarrWriter(folder / "segmented.zarr", attrs={"descriptions": [Segmented.description]}) as writer:
        writer.append(expert_episode(Segmented(), seed=11))
    return folder


def equal_all_the_way(data, name, env, seed=11):
    """Every frame that the expert sees, live and stored, in every modality of the data's."""
    domain, index = data.domains[name], list(data.domains).index(name)
    view = View.from_plain(domain.view.plain())
    stored, reading, counted = data.episode(index), env.reset(seed), 0
    for step in range(len(stored["action"])):
        live = view.live(reading, env.camera_info() if view.made_from else None)
        counted += assert_equal(live, {k: v for k, v in stored["obs"].items() if k != "language"}, step)
        assert stored["obs"]["language"][step] == env.description
        assert np.array_equal(env.expert_action(), stored["action"][step])
        reading, _, _ = env.step(stored["action"][step])
    return counted


def assert_equal(live, stored, step):
    if isinstance(live, dict):
        assert live.keys() == stored.keys()
        return sum(assert_equal(live[name], stored[name], step) for name in live)
    assert live.dtype == stored.dtype
    assert np.array_equal(live, stored[step])
    return 1


@pytest.mark.parametrize("channels", [3, 4, 6, 7])
def test_metaworld_is_seen_as_it_was_recorded_by_two_cameras_in_two_domains(recorded, channels):
    data = dataset_of(recorded, ",".join(CAMERAS), point_channels=channels, num_points=32)
    assert data.specs["corner2"].rgb == {"corner2": (48, 48)}
    assert data.specs["corner3"].rgb == {"corner3": (48, 48)}
    for name in CAMERAS:
        env = make_env(data.domains[name].source()["env"])
        try:
            # state, cloud, rgb and depth of some fifty steps
            assert equal_all_the_way(data, name, env) > 100
        finally:
            env.close()


SHOWN = {
    ("state",): [], ("state", "pointcloud"): ["depth"], ("state", "rgb"): ["rgb"], ("state", "depth"): ["depth"],
    ("rgb", "depth", "pointcloud"): ["depth", "rgb"],
}  # fmt: skip


@pytest.mark.parametrize("modalities", SHOWN, ids="+".join)
def test_what_a_policy_does_not_see_is_not_rendered_and_the_rest_is_the_same_to_the_bit(recorded, modalities):
    data = dataset_of(recorded, "corner2", num_points=32, modalities=modalities)
    view = data.domains["corner2"].view
    env, whole = (make_env(data.domains["corner2"].source()["env"]) for _ in range(2))
    rendered = []
    for name in ("depth", "rgb"):
        draw = getattr(env._scene, name)
        setattr(env._scene, name, lambda camera, draw=draw, name=name: rendered.append(name) or draw(camera))
    try:
        show_only(env, view.needs())
        reading, all_of_it = env.reset(7), whole.reset(7)
        for _ in range(3):
            assert_equal(view.live(reading), expanded(view.live(all_of_it)), 0)
            action = whole.expert_action()
            (reading, *told), (all_of_it, *told_too) = env.step(action), whole.step(action)
            assert told == told_too
    finally:
        env.close()
        whole.close()
    assert rendered == SHOWN[modalities] * 4


def expanded(tree):
    """With a leading axis of one frame."""
    return {name: expanded(value) if isinstance(value, dict) else value[None] for name, value in tree.items()}


@pytest.mark.parametrize("channels", [3, 6])
def test_clouds_made_from_depth_are_made_alike_live(recorded, channels):
    data = dataset_of(
        recorded, "corner2", point_channels=channels, num_points=24, ignored_keys=["pointcloud"],
        crop_box=[-0.55, 0.3, 0.005, 0.55, 1.1, 0.6],
    )  # fmt: skip
    assert data.domains["corner2"].view.made_from is not None
    env = make_env(data.domains["corner2"].source()["env"])
    try:
        assert equal_all_the_way(data, "corner2", env) > 100
    finally:
        env.close()


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7])
def test_segments_float_colours_millimetres_and_scalars_are_seen_alike(recorded, channels):
    data = dataset_of(recorded, "segmented", state_keys=["joints", "grip"], point_channels=channels, num_points=25)
    assert equal_all_the_way(data, "segmented", Segmented()) == 6 * 4
    cloud = data.episode(0)["obs"]["pointcloud"]
    assert cloud.shape == (6, 25, channels)
    if channels >= 6:
        assert 0 < cloud[..., 3:6].max() <= 1


def test_a_batch_of_two_domains_has_zeros_where_a_domain_lacks_the_camera(recorded):
    data = dataset_of(recorded, ",".join(CAMERAS), num_points=32)
    sizes = list(data.domain_sizes().values())
    batch = data.__getitems__([0, sizes[0]])
    rgb = batch["obs"]["rgb"]
    assert set(rgb) == set(CAMERAS)
    for row, name in enumerate(CAMERAS):
        assert rgb[name][row].float().mean() > 0
        assert rgb[name][1 - row].max() == 0


def test_a_spec_survives_a_checkpoint_and_makes_blank_rows(recorded):
    data = dataset_of(recorded, ",".join(CAMERAS), point_channels=7, num_points=32)
    batch, horizon = data.__getitems__([0, 1, 2]), Horizon()
    for domain in data.domains.values():
        view = View.from_plain(domain.view.plain())
        assert view == domain.view
        blank = view.spec.blank(3, horizon)
        assert list(blank) == list(batch["obs"]) == list(data.modalities)
        assert blank["state"].shape == batch["obs"]["state"].shape
        assert blank["pointcloud"].shape == batch["obs"]["pointcloud"].shape
        assert blank["language"] == [""] * 3
    camera = CAMERAS[0]
    blank = data.specs[camera].blank(3, horizon)
    for kind in ("rgb", "depth"):
        assert blank[kind][camera].shape == batch["obs"][kind][camera].shape
        assert blank[kind][camera].dtype == batch["obs"][kind][camera].dtype
