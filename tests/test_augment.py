"""Augmentation: what each option does to a sample, and that nothing but its own seed decides it."""

from __future__ import annotations

import colorsys
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import latest

from ppt_kit.augment.augmenter import Augmenter
from ppt_kit.augment.pictures import IMAGE_NUMBERS, blur, turn_hue
from ppt_kit.augment.resample import places
from ppt_kit.config import load_config
from ppt_kit.data.clouds import compose_cloud
from ppt_kit.errors import UserError
from ppt_kit.randomness import sample_seeds, uniform
from ppt_kit.spec import MODALITIES, Spec
from ppt_kit.tracking import read_metrics
from ppt_kit.train.trainer import UnifiedTrainer

B, TO, TA, H, W, P = 8, 2, 5, 14, 18, 24
EVERYTHING = (
    "brightness=0.3", "contrast=0.4", "saturation=0.5", "hue=0.2", "blur_sigma=1.5", "shift_px=3", "crop_ratio=0.7",
    "depth_shift_m=0.1", "depth_scale=0.1", "depth_noise_m=0.01", "depth_dropout=0.1",
    "cloud_jitter_m=0.01", "cloud_dropout=0.3",
    "rotation_deg=[10,20,180]", "translation_m=[0.1,0.2,0.3]", "rotation_center=[0.5,0,0]",
    "action_parts=[position,quaternion_xyzw,none]",
)  # fmt: skip
WORLD = ("rotation_deg=[40,50,180]", "translation_m=[0.1,0.2,0.3]", "rotation_center=[0.5,-1,2]")
LAYOUTS = {
    "a": {
        "state": {"eef_pos": (0, 3), "eef_quat": (3, 7), "normalized_gripper_pos": (7, 8)},
        "action": {"actions": (0, 8)},
    }
}


def augmenter(*words, modalities=MODALITIES, layouts=LAYOUTS, point_channels=7):
    asked = latest("shift_px=0", *words)
    cfg = load_config("", f"domains={','.join(layouts)}", *(f"augment.{word}" for word in asked))
    specs = {name: spec_of(layout, point_channels).only(modalities) for name, layout in layouts.items()}
    return Augmenter(cfg.augment, specs)


def spec_of(layout, channels):
    """Of a domain that has everything: make_batch's cameras and cloud, the layout's numbers."""
    widths = {kind: {name: stop - start for name, (start, stop) in layout[kind].items()} for kind in layout}
    cameras = {"rgb": {"front": (H, W), "wrist": (H, W)}, "depth": {"front": (H, W)}}
    return Spec(**widths, **cameras, points=P, channels=channels, language=True)


def make_batch(size=B, *, step=3, channels=7, image=(H, W), points=P):
    rng = np.random.default_rng(0)
    cloud = compose_cloud(
        rng.normal(size=(size, TO, points, 3)).astype(np.float32),
        color=rng.random((size, TO, points, 3), dtype=np.float32),
        segmentation=rng.integers(0, 9, (size, TO, points)),
        channels=channels,
        num_points=points,
    )
    state = rng.normal(size=(size, TO, 8)).astype(np.float32)
    state[..., 3:7] /= np.linalg.norm(state[..., 3:7], axis=-1, keepdims=True)
    rgb = {camera: rng.integers(0, 256, (size, TO, *image, 3), dtype=np.uint8) for camera in ("front", "wrist")}
    depth = {"front": rng.uniform(0.5, 2, (size, TO, *image, 1)).astype(np.float32)}
    depth["front"][:, :, ::5] = 0
    obs = {"state": state, "pointcloud": cloud, "rgb": rgb, "depth": depth}
    batch = {
        "obs": obs,
        "action": rng.normal(size=(size, TA, 8)).astype(np.float32),
        "action_is_pad": np.zeros((size, TA), bool),
        "domain": np.zeros(size, np.int64),
        "index": np.arange(size),
        "noise_seed": sample_seeds(0, step, np.arange(size)),
    }
    batch = tree_map(torch.from_numpy, batch)
    batch["obs"]["language"] = ["task"] * size
    return batch


def tree_map(change, tree):
    return {name: tree_map(change, value) for name, value in tree.items()} if isinstance(tree, dict) else change(tree)


def leaves(tree, prefix=""):
    for name, value in tree.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


def part_of(batch, start, stop):
    return tree_map(lambda value: value[start:stop], batch)


def image_number(batch, name, *, camera="front"):
    """(B,) the number in (0, 1) that the camera's option `name` uses."""
    drawn = uniform(batch["noise_seed"], (len(IMAGE_NUMBERS),), stream=f"augment.image.{camera}")
    return drawn[:, IMAGE_NUMBERS.index(name)].double().numpy()


def world_of(batch, augment):
    """(R (B, 3, 3), t (B, 3)) in float64 by the textbook's three matrices: x -> R (x - c) + c + t."""
    u = uniform(batch["noise_seed"], (2, 3), stream="augment.world").double().numpy() * 2 - 1
    angles, shift = np.deg2rad(list(augment.rotation_deg)) * u[:, 0], np.array(list(augment.translation_m)) * u[:, 1]
    matrices = []
    for a, b, c in angles:
        about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
        about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
        about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
        matrices.append(about_z @ about_y @ about_x)
    return np.stack(matrices), shift


def matrix_of_quaternion(q):
    """(..., 3, 3) of (..., 4) wxyz, by turning the three axes: v' = q v q*."""

    def product(p, q):
        (a, b, c, d), (e, f, g, h) = np.moveaxis(p, -1, 0), np.moveaxis(q, -1, 0)
        return np.stack([
            a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f, a * h + b * g - c * f + d * e,
        ], -1)  # fmt: skip

    columns = [product(product(q, np.eye(4)[axis] + 0 * q), q * [1, -1, -1, -1])[..., 1:] for axis in (1, 2, 3)]
    return np.stack(columns, -1)


def matrix_of_vector(v):
    """(3, 3) of axis times angle, Rodrigues' formula."""
    angle = np.linalg.norm(v)
    x, y, z = v / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


# -------------------------------------------------------------------- seeds, and what stays as it is


def test_nothing_asked_gives_the_batch_itself():
    batch = make_batch()
    assert not augmenter().is_on
    assert augmenter()(batch) is batch


def test_a_batch_of_8_is_augmented_as_3_and_5_are():
    augment, batch = augmenter(*EVERYTHING), make_batch()
    whole = dict(leaves(augment(batch)))
    first, second = (dict(leaves(augment(part_of(batch, *rows)))) for rows in ((0, 3), (3, 8)))
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, torch.cat([first[name], second[name]]), atol=1e-6, rtol=0)


def test_the_order_of_a_batch_does_not_matter():
    augment, batch = augmenter(*EVERYTHING), make_batch()
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    shuffled = augment(tree_map(lambda value: value[order] if isinstance(value, torch.Tensor) else value, batch))
    for name, value in leaves(augment(batch)):
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value[order], dict(leaves(shuffled))[name], atol=1e-6, rtol=0)


def test_another_step_has_other_numbers_and_the_same_step_the_same():
    augment = augmenter(*EVERYTHING)
    first, again, other = (dict(leaves(augment(make_batch(step=step)))) for step in (3, 3, 4))
    for name in ("obs.state", "obs.pointcloud", "obs.rgb.front", "obs.rgb.wrist", "obs.depth.front", "action"):
        assert torch.equal(first[name], again[name])
        assert all(not torch.equal(first[name][row], other[name][row]) for row in range(B)), name


def test_the_input_is_left_alone_and_types_stay():
    batch = make_batch()
    before = tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, batch)
    after = dict(leaves(augmenter(*EVERYTHING)(batch)))
    for (name, now), (_, then) in zip(leaves(batch), leaves(before)):
        assert now == then if isinstance(now, list) else torch.equal(now, then)
        if isinstance(now, torch.Tensor):
            assert (after[name].shape, after[name].dtype) == (now.shape, now.dtype), name
            assert after[name].is_contiguous()


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["brightness=0.3"], {"obs.rgb.front", "obs.rgb.wrist"}),
        (["shift_px=3"], {"obs.rgb.front", "obs.rgb.wrist", "obs.depth.front"}),
        (["depth_scale=0.1"], {"obs.depth.front"}),
        (["cloud_jitter_m=0.1"], {"obs.pointcloud"}),
        (["translation_m=[1,1,1]", "action_parts=none"], {"obs.pointcloud", "obs.state"}),
        (["rotation_deg=[0,0,9]", "action_parts=[displacement,none]"], {"obs.pointcloud", "obs.state", "action"}),
    ],
)
def test_what_an_option_does_not_change_is_the_same_tensor(words, changed):
    batch = make_batch()
    before, after = dict(leaves(batch)), dict(leaves(augmenter(*words)(batch)))
    assert {name for name in before if after[name] is not before[name]} == changed


def test_gradients_are_not_recorded():
    batch = make_batch()
    batch["action"].requires_grad_()
    assert not augmenter(*EVERYTHING)(batch)["action"].requires_grad


def test_an_option_does_not_change_the_numbers_of_another():
    batch = make_batch()
    alone = augmenter("shift_px=3")(batch)["obs"]["depth"]["front"]
    together = augmenter("shift_px=3", "hue=0.1", "cloud_dropout=0.5")(batch)["obs"]["depth"]["front"]
    assert torch.equal(alone, together)


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("word", "modalities"),
    [
        ("hue=0.1", ("state", "depth")),
        ("crop_ratio=0.9", ("state", "pointcloud")),
        ("depth_noise_m=0.1", ("rgb",)),
        ("cloud_dropout=0.1", ("rgb", "depth")),
        ("rotation_deg=[0,0,5]", ("state", "rgb")),
    ],
)
def test_an_option_without_its_modality_is_refused(word, modalities):
    with pytest.raises(UserError, match=f"augment.{word.split('=')[0]} changes .*hold {', '.join(modalities)} only"):
        augmenter(word, "action_parts=none", modalities=modalities)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rotation_deg=[0,0,5]"], "Joint actions cannot follow.*augment.action_parts=none"),
        (["translation_m=[0,0,1]"], "augment.action_parts is empty"),
        (["rotation_deg=5"], "takes three numbers"),
        (["rotation_deg=[0,0,-5]"], "not negative"),
        (["action_parts=[displacment,none]"], "Did you mean displacement"),
        (["action_parts=[]"], "takes a list of none, position"),
        (["action_parts={b: none}"], "one entry for each of a"),
        (["state_parts.eef_pos=pose"], "augment.state_parts.eef_pos=pose: takes"),
        (["state_parts=position"], "state key"),
        (["blur_sigma=1", "blur_probability=0"], "nothing would be blurred"),
        (["crop_ratio=0"], "at least 0.1"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(words, says):
    layouts = {"a": {**LAYOUTS["a"], "action": {"actions": (0, 7)}}}
    with pytest.raises(UserError, match=says):
        augmenter(*words, layouts=layouts)


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ("[position]", 3),
        ("[position,none,none,position]", 8),
        ("[position,position,position,none]", 9),
        ("[none,none,position]", 5),
    ],
)
def test_parts_that_do_not_fill_the_action_are_refused(parts, count):
    layouts = {"a": {**LAYOUTS["a"], "action": {"actions": (0, 7)}}}
    with pytest.raises(UserError, match=f"are {count} numbers, but the action of a has 7"):
        augmenter("rotation_deg=[0,0,5]", f"action_parts={parts}", layouts=layouts)


def test_a_state_key_of_which_nothing_is_said_is_refused_when_the_world_moves():
    layouts = {"a": {"state": {"eef_pos": (0, 3), "tcp": (3, 6)}, "action": {"actions": (0, 8)}}}
    assert augmenter("cloud_jitter_m=0.1", layouts=layouts).is_on
    with pytest.raises(UserError, match=r"augment.state_parts=\{eef_pos: position, tcp: none\}"):
        augmenter(*WORLD, "action_parts=none", layouts=layouts)
    assert augmenter(*WORLD, "action_parts=none", "state_parts.tcp=position", layouts=layouts).is_on


# -------------------------------------------------------------------- pictures


def test_colour_jitter_is_the_formula():
    batch = make_batch()
    out = augmenter("brightness=0.3", "contrast=0.4", "saturation=0.5")(batch)["obs"]["rgb"]["front"].numpy()
    grey_of = np.array([0.299, 0.587, 0.114])
    b, c, s = (
        1 + (2 * image_number(batch, name) - 1) * largest
        for name, largest in (("brightness", 0.3), ("contrast", 0.4), ("saturation", 0.5))
    )
    for row, image in enumerate(batch["obs"]["rgb"]["front"].double().numpy()):
        bright = image * b[row]
        mean = (bright @ grey_of).mean()
        steep = mean + c[row] * (bright - mean)
        grey = (steep @ grey_of)[..., None]
        expected = np.clip(grey + s[row] * (steep - grey), 0, 255)
        assert np.abs(out[row] - expected).max() < 0.5 + 1e-3


def test_hue_is_that_of_colorsys():
    batch = make_batch(image=(4, 5))
    batch["obs"]["rgb"]["front"][0, 0, 0] = 77  # greys have no hue
    batch["obs"]["rgb"]["front"][0, 0, 1] = 0
    out = augmenter("hue=0.3")(batch)["obs"]["rgb"]["front"].numpy()
    turn = (2 * image_number(batch, "hue") - 1) * 0.3
    for row in range(B):
        for pixel, got in zip(batch["obs"]["rgb"]["front"][row].view(-1, 3).numpy(), out[row].reshape(-1, 3)):
            h, s, v = colorsys.rgb_to_hsv(*(pixel / 255.0))
            expected = np.array(colorsys.hsv_to_rgb((h + turn[row]) % 1, s, v)) * 255
            assert np.abs(got - expected).max() < 0.5 + 1e-2
    assert np.abs(turn).max() > 0.1


def test_a_third_of_a_turn_makes_red_green():
    planes = torch.tensor([[255.0, 0], [0, 255], [0, 0]]).view(3, 1, 1, 1, 2)
    turned = turn_hue(planes, torch.tensor([1 / 3]))[:, 0, 0, 0].T
    torch.testing.assert_close(turned, torch.tensor([[0, 255.0, 0], [0, 0, 255]]), atol=1e-3, rtol=0)


def test_blur_is_a_convolution_with_a_gaussian():
    batch = make_batch()
    out = augmenter("blur_sigma=1.5", "blur_probability=0.6")(batch)["obs"]["rgb"]["front"].numpy()
    blurred = image_number(batch, "blur") < 0.6
    assert 0 < blurred.sum() < B
    for row, image in enumerate(batch["obs"]["rgb"]["front"].numpy()):
        expected = image.astype(float)
        if blurred[row]:
            taps = np.arange(-5, 6)
            kernel = np.exp(-0.5 * (taps / (1.5 * image_number(batch, "sigma")[row])) ** 2)
            kernel /= kernel.sum()
            for axis in (1, 2):
                pads = [(5, 5) if number == axis else (0, 0) for number in range(4)]
                padded = np.pad(expected, pads, mode="edge")
                expected = np.apply_along_axis(partial(np.convolve, v=kernel, mode="valid"), axis, padded)
        assert np.abs(out[row] - expected).max() < 0.5 + 1e-3


def test_blur_keeps_a_flat_picture():
    flat = torch.full((3, 2, 1, 5, 6), 200.0)
    torch.testing.assert_close(blur(flat, torch.tensor([0.0, 4.0]), radius=12), flat)


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_a_shift_moves_whole_pixels_and_repeats_the_edge(kind):
    batch = make_batch()
    out = augmenter("shift_px=3")(batch)["obs"][kind]["front"].numpy()
    shifts = [np.floor(image_number(batch, name) * 7).astype(int) for name in ("shift_y", "shift_x")]
    assert len({*shifts[0], *shifts[1]}) > 4
    for row, image in enumerate(batch["obs"][kind]["front"].numpy()):
        padded = np.pad(image, [(0, 0), (3, 3), (3, 3), (0, 0)], mode="edge")
        top, left = shifts[0][row], shifts[1][row]
        assert np.array_equal(out[row], padded[:, top : top + H, left : left + W])


@pytest.mark.parametrize("height", [84, 128, 10])
def test_pictures_are_shifted_by_default_by_4_of_84_pixels_of_their_height(height):
    batch = make_batch(image=(height, 40))
    out, asked = (augmenter(f"shift_px={px}")(batch)["obs"] for px in ("null", {84: 4, 128: 6, 10: 0}[height]))
    for kind in ("rgb", "depth"):
        assert torch.equal(out[kind]["front"], asked[kind]["front"])
        assert torch.equal(out[kind]["front"], batch["obs"][kind]["front"]) == (height == 10)


def test_without_pictures_the_default_changes_nothing():
    batch = make_batch()
    del batch["obs"]["rgb"], batch["obs"]["depth"]
    assert augmenter("shift_px=null", modalities=["state", "pointcloud"])(batch) is batch


def test_shifts_are_even_over_their_range():
    batch = {
        "obs": {"rgb": {"front": torch.arange(15, dtype=torch.uint8).view(1, 1, 1, 15, 1).expand(4000, 1, 1, 15, 3)}},
        "noise_seed": torch.from_numpy(sample_seeds(0, 0, np.arange(4000))),
    }
    middle = augmenter("shift_px=2")(batch)["obs"]["rgb"]["front"][:, 0, 0, 7, 0].numpy()
    counts = np.bincount(middle - 5, minlength=5)
    assert len(counts) == 5
    assert np.abs(counts - 800).max() < 4 * math.sqrt(4000 * 0.2 * 0.8)


def test_a_crop_is_resized_back_bilinearly():
    batch = make_batch()
    out = augmenter("crop_ratio=0.6")(batch)["obs"]["rgb"]["front"].numpy()
    kept = 1 - 0.4 * image_number(batch, "crop")
    for row, image in enumerate(batch["obs"]["rgb"]["front"].double().numpy()):
        expected = image
        for axis, name in ((1, "crop_y"), (2, "crop_x")):
            size = image.shape[axis]
            start = image_number(batch, name)[row] * size * (1 - kept[row])
            centres = start + (np.arange(size) + 0.5) * kept[row] - 0.5  # np.interp repeats the edges
            expected = np.apply_along_axis(partial(np.interp, centres, np.arange(size)), axis, expected)
        assert np.abs(out[row] - expected).max() < 0.5 + 5e-2


def test_a_crop_of_depth_takes_the_nearest_pixel():
    batch = make_batch()
    out = augmenter("crop_ratio=0.6")(batch)["obs"]["depth"]["front"].numpy()
    kept = 1 - 0.4 * image_number(batch, "crop")
    for row, depth in enumerate(batch["obs"]["depth"]["front"].numpy()):
        rows, columns = (
            np.clip(
                np.rint(image_number(batch, name)[row] * n * (1 - kept[row]) + (np.arange(n) + 0.5) * kept[row] - 0.5),
                0,
                n - 1,
            )
            for name, n in (("crop_y", H), ("crop_x", W))
        )
        assert np.array_equal(out[row], depth[:, rows.astype(int)][:, :, columns.astype(int)])


def test_a_crop_of_whole_pixels_is_what_torch_resizes():
    image, size = torch.rand(1, 1, 12, 12), 12
    kept, place = torch.tensor([0.5]), torch.tensor([0.5])  # rows and columns 3 to 8
    at = places(size, kept=kept, place=place, shift=torch.tensor([0]))
    matrix = torch.zeros(size, size)
    matrix[torch.arange(size), at.low[0]] += 1 - at.weight[0]
    matrix[torch.arange(size), at.high[0]] += at.weight[0]
    expected = torch.nn.functional.interpolate(image[..., 3:9, 3:9], size=(12, 12), mode="bilinear")
    ours = matrix @ image[0, 0] @ matrix.T
    torch.testing.assert_close(ours[1:-1, 1:-1], expected[0, 0, 1:-1, 1:-1])  # the rim sees pixels outside the crop


def test_all_frames_and_both_kinds_of_image_get_one_transform_and_cameras_their_own():
    batch = make_batch()
    rgb, depth = batch["obs"]["rgb"], batch["obs"]["depth"]
    rgb["front"][:, 1] = rgb["front"][:, 0]
    rgb["wrist"] = rgb["front"].clone()
    depth["front"] = rgb["front"][..., :1].float() + 1
    words = ("shift_px=3", "crop_ratio=0.7", "hue=0.1", "blur_sigma=1", "blur_probability=1", "brightness=0.2")
    out = augmenter(*words)(batch)["obs"]
    assert torch.equal(out["rgb"]["front"][:, 0], out["rgb"]["front"][:, 1])
    assert all(not torch.equal(out["rgb"]["front"][row], out["rgb"]["wrist"][row]) for row in range(B))
    moved = augmenter("shift_px=3")(batch)["obs"]
    assert torch.equal(moved["depth"]["front"], moved["rgb"]["front"][..., :1].float() + 1)


# -------------------------------------------------------------------- depth


def test_depth_is_scaled_then_shifted_as_a_whole_and_no_reading_stays_none():
    batch = make_batch()
    out = augmenter("depth_shift_m=0.2", "depth_scale=0.1")(batch)["obs"]["depth"]["front"].double().numpy()
    u = uniform(batch["noise_seed"], (2,), stream="augment.depth.front").double().numpy() * 2 - 1
    before = batch["obs"]["depth"]["front"].double().numpy()
    expected = before * (1 + 0.1 * u[:, 0]).reshape(B, 1, 1, 1, 1) + 0.2 * u[:, 1].reshape(B, 1, 1, 1, 1)
    np.testing.assert_allclose(out, np.where(before > 0, expected, 0), atol=1e-6)


def test_depth_noise_has_its_spread_and_differs_by_frame_and_pixel():
    batch = make_batch(image=(64, 64))
    before = batch["obs"]["depth"]["front"]
    noise = (augmenter("depth_noise_m=0.02")(batch)["obs"]["depth"]["front"] - before)[before > 0].double()
    count = len(noise)
    assert abs(noise.mean()) < 4 * 0.02 / math.sqrt(count)
    assert abs(noise.std() / 0.02 - 1) < 4 / math.sqrt(2 * count)
    assert noise.abs().max() < 0.02 * 4.001
    assert len(noise.unique()) > 0.5 * count
    assert abs(torch.corrcoef(noise.view(B * TO, -1)) - torch.eye(B * TO)).max() < 5 / math.sqrt(count / B / TO)


def test_depth_drops_its_share_of_pixels():
    batch = make_batch(image=(64, 64))
    before = batch["obs"]["depth"]["front"]
    after, read = augmenter("depth_dropout=0.1")(batch)["obs"]["depth"]["front"], before > 0
    dropped = (after == 0) & read
    assert torch.equal(after[~dropped], before[~dropped])
    count = int(read.sum())
    assert abs(int(dropped.sum()) - 0.1 * count) < 4 * math.sqrt(count * 0.1 * 0.9)


# -------------------------------------------------------------------- clouds and the world


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7])
def test_points_move_and_their_other_columns_stay_with_them(channels):
    batch = make_batch(channels=channels)
    augment = augmenter(*WORLD, "action_parts=none", point_channels=channels)
    before, after = (b["obs"]["pointcloud"].double().numpy() for b in (batch, augment(batch)))
    turn, shift = world_of(batch, augment.options)
    center = np.array([0.5, -1, 2])
    for row in range(B):
        for frame in range(TO):
            for point in range(P):
                expected = turn[row] @ (before[row, frame, point, :3] - center) + center + shift[row]
                np.testing.assert_allclose(after[row, frame, point, :3], expected, atol=5e-6)
    stop = channels - 1 if channels in (4, 5, 7) else channels
    np.testing.assert_array_equal(after[..., 3:stop], before[..., 3:stop])
    if channels in (4, 5, 7):
        np.testing.assert_array_equal(after[..., -1], after[..., 2])


def test_positions_follow_the_points_and_displacements_only_turn():
    batch = make_batch()
    augment = augmenter(*WORLD, "action_parts=[position,none,displacement,none]")
    out = augment(batch)
    turn, shift = world_of(batch, augment.options)
    center = np.array([0.5, -1, 2])
    for before, after in ((batch["obs"]["state"], out["obs"]["state"]), (batch["action"], out["action"])):
        moved = np.einsum("bij,btj->bti", turn, before[..., :3].double().numpy() - center) + center + shift[:, None]
        np.testing.assert_allclose(after[..., :3].double().numpy(), moved, atol=5e-6)
    turned = np.einsum("bij,btj->bti", turn, batch["action"][..., 4:7].double().numpy())
    np.testing.assert_allclose(out["action"][..., 4:7].double().numpy(), turned, atol=5e-6)
    for column in (3, 7):
        assert torch.equal(out["action"][..., column], batch["action"][..., column])
    assert torch.equal(out["obs"]["state"][..., 7], batch["obs"]["state"][..., 7])
    lengths = [torch.linalg.vector_norm(b["action"][..., 4:7], dim=-1) for b in (batch, out)]
    torch.testing.assert_close(*lengths)


@pytest.mark.parametrize("kind", ["quaternion_xyzw", "quaternion_wxyz"])
def test_a_quaternions_matrix_is_turned_from_the_left(kind):
    batch = make_batch()
    batch["action"][..., :4] = torch.nn.functional.normalize(batch["action"][..., :4], dim=-1)
    augment = augmenter(*WORLD, f"action_parts=[{kind},none]")
    before, after = (b["action"][..., :4].double().numpy() for b in (batch, augment(batch)))
    if kind == "quaternion_xyzw":
        before, after = (np.roll(q, 1, axis=-1) for q in (before, after))
    turn, _ = world_of(batch, augment.options)
    expected = turn[:, None] @ matrix_of_quaternion(before)
    np.testing.assert_allclose(matrix_of_quaternion(after), expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(after, axis=-1), 1, atol=1e-6)


def test_a_states_quaternion_is_turned_as_the_points_are():
    batch = make_batch()
    augment = augmenter(*WORLD, "action_parts=none")
    before, after = (np.roll(b["obs"]["state"][..., 3:7].double().numpy(), 1, axis=-1) for b in (batch, augment(batch)))
    turn, _ = world_of(batch, augment.options)
    np.testing.assert_allclose(matrix_of_quaternion(after), turn[:, None] @ matrix_of_quaternion(before), atol=2e-6)


def test_a_rotation_vectors_matrix_is_turned_from_the_left():
    batch = make_batch()
    batch["action"][0, 0, :3] = torch.tensor([math.pi, 0, 0])  # a hand that points down
    batch["action"][0, 1, :3] = torch.tensor([1e-5, 0, 0])
    augment = augmenter(*WORLD, "action_parts=[rotation_vector,none]")
    before, after = (b["action"][..., :3].double().numpy() for b in (batch, augment(batch)))
    turn, _ = world_of(batch, augment.options)
    for row in range(B):
        for step in range(TA):
            expected = turn[row] @ matrix_of_vector(before[row, step])
            np.testing.assert_allclose(matrix_of_vector(after[row, step]), expected, atol=5e-6)


def test_a_rotation_vector_near_half_a_turn_does_not_jump():
    batch = make_batch()
    down = torch.tensor([math.pi, 0, 0]) + torch.linspace(-0.05, 0.05, TA)[:, None] * torch.tensor([1.0, 0, 0])
    batch["action"][..., :3] = down
    after = augmenter("rotation_deg=[10,10,30]", "action_parts=[rotation_vector,none]")(batch)["action"][..., :3]
    assert torch.linalg.vector_norm(after.diff(dim=1), dim=-1).max() < 0.06


def test_turns_and_shifts_fill_their_range_and_no_more():
    batch = make_batch(2000, image=(1, 1), points=1)
    batch["obs"]["pointcloud"][..., :3] = torch.tensor([1.0, 0, 0])
    after = augmenter("rotation_deg=[0,0,30]", "action_parts=none")(batch)["obs"]["pointcloud"][:, 0, 0]
    angle = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]))
    assert angle.abs().max() <= 30.001
    assert angle.max() > 29
    assert angle.min() < -29
    assert abs(angle.mean()) < 4 * 60 / math.sqrt(12 * 2000)
    assert after[:, 2].abs().max() == 0


def test_domains_have_their_own_columns_and_padding_stays_zero():
    layouts = {
        "small": {"state": {"eef_pos": (0, 3)}, "action": {"actions": (0, 4)}},
        "large": {"state": {"joint_pos": (0, 2), "eef_pos": (2, 5), "eef_quat": (5, 9)}, "action": {"actions": (0, 8)}},
    }
    batch = make_batch()
    batch["domain"] = torch.tensor([0, 1] * (B // 2))
    batch["obs"]["state"] = torch.randn(B, TO, 9, generator=torch.Generator().manual_seed(0))
    small = batch["domain"] == 0
    batch["obs"]["state"][small, :, 3:] = 0
    batch["action"][small, :, 4:] = 0
    parts = "action_parts={small: [displacement,none], large: [none,position,none]}"
    augment = augmenter(*WORLD, parts, layouts=layouts)
    out = augment(batch)
    turn, shift = world_of(batch, augment.options)
    center = np.array([0.5, -1, 2])

    def moved(x):
        return np.einsum("bij,btj->bti", turn, x.double().numpy() - center) + center + shift[:, None]

    mine, theirs = small.numpy(), ~small.numpy()
    for before, after in ((batch["obs"]["state"], out["obs"]["state"]),):
        np.testing.assert_allclose(after[small, :, :3], moved(before[..., :3])[mine], atol=5e-6)
        np.testing.assert_allclose(after[~small, :, 2:5], moved(before[..., 2:5])[theirs], atol=5e-6)
        assert torch.equal(after[~small, :, :2], before[~small, :, :2])
        assert (after[small, :, 3:] == 0).all()
    turned = np.einsum("bij,btj->bti", turn, batch["action"][..., :3].double().numpy())
    np.testing.assert_allclose(out["action"][small, :, :3], turned[mine], atol=5e-6)
    np.testing.assert_allclose(out["action"][~small, :, 1:4], moved(batch["action"][..., 1:4])[theirs], atol=5e-6)
    assert (out["action"][small, :, 4:] == 0).all()
    assert torch.equal(out["action"][~small][..., [0, 4, 5, 6, 7]], batch["action"][~small][..., [0, 4, 5, 6, 7]])


def test_jitter_has_its_spread_and_leaves_colours():
    batch = make_batch(points=512)
    before, after = batch["obs"]["pointcloud"], augmenter("cloud_jitter_m=0.01")(batch)["obs"]["pointcloud"]
    noise = (after - before)[..., :3].double()
    assert abs(noise.mean()) < 4 * 0.01 / math.sqrt(noise.numel())
    assert abs(noise.std() / 0.01 - 1) < 4 / math.sqrt(2 * noise.numel())
    assert torch.equal(after[..., 3:6], before[..., 3:6])
    assert torch.equal(after[..., 6], after[..., 2])


def test_dropped_points_are_copies_of_kept_points_of_their_frame():
    batch = make_batch(points=200)
    before = batch["obs"]["pointcloud"].numpy()
    after = augmenter("cloud_dropout=0.3")(batch)["obs"]["pointcloud"].numpy()
    dropped = (after != before).any(-1)
    count = dropped.size
    assert abs(dropped.sum() - 0.3 * count) < 4 * math.sqrt(count * 0.3 * 0.7)
    for row in range(B):
        for frame in range(TO):
            gone = dropped[row, frame]
            kept = {point.tobytes() for point in before[row, frame][~gone]}
            assert all(point.tobytes() in kept for point in after[row, frame][gone])
            copies = {point.tobytes() for point in after[row, frame][gone]}
            assert len(copies) > 0.5 * gone.sum()  # of many kept points, not of one
    assert not np.array_equal(dropped[:, 0], dropped[:, 1])


def test_copies_are_exact_when_points_are_moved_and_jittered_too():
    batch = make_batch(points=200)
    words = (*WORLD, "action_parts=none", "cloud_jitter_m=0.01")
    whole = augmenter(*words)(batch)["obs"]["pointcloud"].numpy()
    thinned = augmenter(*words, "cloud_dropout=0.3")(batch)["obs"]["pointcloud"].numpy()
    for row in range(B):
        for frame in range(TO):
            points = {point.tobytes() for point in whole[row, frame]}
            assert all(point.tobytes() in points for point in thinned[row, frame])
    assert 0.2 < (whole != thinned).any(-1).mean() < 0.4


def test_a_frame_never_loses_all_of_its_points():
    batch = make_batch(400, image=(1, 1), points=2)
    before = batch["obs"]["pointcloud"]
    after = augmenter("cloud_dropout=0.99")(batch)["obs"]["pointcloud"]
    assert (after[:, :, None] == before[:, :, :, None]).all(-1).any(2).all()


def test_a_run_trains_on_augmented_clouds_and_validates_on_recorded_ones(small_cfg):
    words = (
        "augment.translation_m=[0.3,0.3,0]",
        "augment.action_parts=[displacement,none]",
        "augment.cloud_dropout=0.3",
    )
    plain, moved = (UnifiedTrainer(small_cfg(f"suffix={name}", *more)) for name, more in (("p", ()), ("m", words)))
    for run in (plain, moved):
        run.run()
    losses = [read_metrics(run.run_dir, "train")["loss"].to_numpy() for run in (plain, moved)]
    assert not np.allclose(*losses)
    with pytest.raises(UserError, match="augment.brightness changes rgb"):
        UnifiedTrainer(small_cfg("suffix=x", "augment.brightness=0.1")).run()
