"""The inspector: what it sends is what the data holds, and what a browser draws follows the sliders."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from conftest import SMALL_WORDS, latest, save_new_policy
from PIL import Image
from scene import write_scene

import ppt_kit as ppt
from ppt_kit.augment.augmenter import Augmenter
from ppt_kit.models.actor import Actor
from ppt_kit.notebook.inspect.augmented import Augmented, augment_of
from ppt_kit.notebook.inspect.door import _episodes
from ppt_kit.notebook.inspect.packing import millimetres, pack
from ppt_kit.notebook.inspect.predicted import Predictor, fitted
from ppt_kit.randomness import sample_seeds

SIZE, POINTS, LENGTHS = 48, 256, (60, 40)
PIXELS = "selector => document.querySelector(selector).toDataURL()"
ROOT = ".ppt-inspect"
PALETTE = ["#3b7dd8", "#e07b39", "#2e9a5a", "#b05cc6", "#c9a227", "#17a2b8", "#d1495b", "#7f8c8d", "#8d6e4f", "#5c6bc0"]


def untrained(folder, domain, *words):
    """A run folder whose policy has learned nothing of a dataset in folder/data."""
    run_dir = folder / f"{domain}_run"
    run_dir.mkdir()
    fixed = (f"dataset_path={folder / 'data'}", f"domains={domain}", "dataset.val_ratio=0")
    save_new_policy(ppt.load_config("quickstart", *latest(*SMALL_WORDS, *fixed, *words)), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A folder with data/scene.zarr and scene_run."""
    folder = tmp_path_factory.mktemp("scene")
    write_scene(folder / "data/scene.zarr", lengths=LENGTHS, size=SIZE, points=POINTS)
    untrained(folder, "scene", f"dataset.num_points={POINTS}")
    return folder


@pytest.fixture(scope="module")
def detour(tmp_path_factory):
    """A folder with demonstrations of the planar task, and detour_run, whose policy fails."""
    folder = tmp_path_factory.mktemp("detour")
    ppt.collect("detour", simulator="planar", episodes=4, dataset_path=str(folder / "data"))
    untrained(folder, "detour", "policy.stems.pointcloud.kind=null")
    return folder


def unpacked(packed):
    """{(what, camera): (part, bytes)}."""
    return {(part["what"], part.get("camera")): (part, data) for part, data in zip(packed.parts, packed.buffers)}


def test_a_page_holds_the_frames_of_the_dataset(scene):
    data = ppt.open_dataset(scene / "data/scene.zarr")
    steps = [3, 17, 59]
    found, seen = unpacked(_episodes(data, None, None).page(0, steps)), data.episode(0, steps=steps)["obs"]
    part, files = found["rgb", "wrist"]
    ends = np.cumsum([0, *part["sizes"]])
    for frame, begin, end in zip(seen["rgb"]["wrist"], ends, ends[1:]):
        shown = np.asarray(Image.open(io.BytesIO(files[begin:end])), np.float32)
        assert np.abs(shown - frame).mean() < 6
    _, depth = found["depth", "front"]
    shown = np.frombuffer(depth, np.uint16).reshape(3, SIZE, SIZE) / 1000
    assert np.abs(shown - seen["depth"]["front"][..., 0]).max() < 0.001
    part, xyz = found["xyz", None]
    shown = np.frombuffer(xyz, np.uint16).reshape(3, POINTS, 3) / 65535 * part["span"] + part["low"]
    assert np.abs(shown - seen["pointcloud"][..., :3]).max() < 1e-4
    _, colors = found["colors", None]
    assert (
        np.abs(np.frombuffer(colors, np.uint8).reshape(3, POINTS, 3) / 255 - seen["pointcloud"][..., 3:6]).max() < 0.005
    )


def test_depth_that_is_no_reading_is_sent_as_none():
    depth = np.array([[0.0, np.nan], [np.inf, 1.2345]], np.float32).reshape(1, 2, 2, 1)
    assert millimetres(depth).tolist() == [[[0, 0], [0, 1234]]]
    assert millimetres(np.full((1, 600, 300, 1), 100.0)).shape == (1, 200, 100)
    assert (millimetres(np.full((1, 2, 2, 1), 100.0)) == 65535).all()


def test_segments_and_heights_are_told_apart():
    cloud = np.random.default_rng(0).random((2, 8, 5)).astype(np.float32)
    cloud[..., 3] = np.arange(8)
    found = unpacked(pack({"pointcloud": cloud}))
    assert ("colors", None) not in found
    assert np.frombuffer(found["segments", None][1], np.uint8).tolist() == [*range(8)] * 2


def test_another_format_is_inspected_in_place(scene, tmp_path):
    ppt.to_lerobot(scene / "data/scene.zarr", tmp_path / "there", fps=10, codec="h264")
    episodes = _episodes(tmp_path / "there", None, None)
    head, buffers = episodes.episode(1)
    assert (head["length"], head["language"]) == (LENGTHS[1], "fetch the red block")
    data = ppt.open_dataset(scene / "data/scene.zarr").episode(1)
    numbers = dict(zip((group["name"] for group in head["groups"]), buffers))
    assert np.frombuffer(numbers["action"], np.float32).tolist() == data["action"].flatten().tolist()
    assert {camera["kind"] for camera in head["cameras"]} == {"rgb"}
    assert len(unpacked(episodes.page(1, [0, 39]))) == 2


def test_an_augmented_window_is_what_training_would_get(scene):
    data = ppt.load_dataset(ppt.load_config("quickstart", f"dataset_path={scene / 'data'}", "domains=scene", "dataset.val_ratio=0", f"dataset.num_points={POINTS}"))  # fmt: skip
    options = {"rotation_deg": [0, 0, 40], "action_parts": ["displacement", "none"], "brightness": 0.4}
    head, buffers = Augmented(data, options).window(1, 12, draw=3)
    row = LENGTHS[0] + 12
    batch = data[[data.window_rows([i])["scene"][0][0, -1] for i in range(len(data))].index(row)]
    batch = {name: value if name == "obs" else value[None] for name, value in batch.items()}
    batch["obs"] = {k: {c: v[None] for c, v in value.items()} if isinstance(value, dict) else value[None] if torch.is_tensor(value) else [value] for k, value in batch["obs"].items()}  # fmt: skip
    batch["noise_seed"] = torch.from_numpy(sample_seeds(0, 3, np.array([row])))
    wanted = Augmenter(augment_of(options), data.specs)(batch)
    numbers = dict(zip(head["groups"], buffers[len(head["parts"]) :]))
    assert np.frombuffer(numbers["action"], np.float32).tolist() == wanted["action"].flatten().tolist()
    assert np.frombuffer(numbers["state"], np.float32).tolist() == wanted["obs"]["state"].flatten().tolist()
    assert (wanted["action"] != batch["action"]).any()


def test_a_policys_chunks_are_those_that_it_acts_by(scene):
    policy = ppt.load_policy(scene / "scene_run")
    data = ppt.open_dataset(scene / "data/scene.zarr")
    _, buffers = Predictor(policy, data).chunks(1, [0, 1, 39])
    chunks = np.frombuffer(buffers[0], np.float32).reshape(3, policy.horizon.action, 4)
    seen = ppt.load_dataset(policy.card["config"]).episode(1)["obs"]
    actor, got = Actor(policy), []
    actor.listener = lambda _, chunk: got.append(chunk)
    first = {name: {k: v[:1] for k, v in value.items()} if isinstance(value, dict) else value[:1] for name, value in seen.items()}  # fmt: skip
    actor.act(first)
    assert np.abs(got[0] - chunks[0]).max() < 1e-4
    errors = np.frombuffer(buffers[1], np.float32)
    scale = policy.action_norm["scene"].scale.numpy()
    last = data.episode(1)["action"][-1]
    # of the last window all but the first action are padding
    assert errors[2] == pytest.approx(np.abs((chunks[2, 0] - last) * scale).mean(), rel=1e-4)


def test_actions_that_move_the_hand_make_a_path_and_others_make_none(scene):
    episode = ppt.open_dataset(scene / "data/scene.zarr").episode(0)
    hand, actions = episode["obs"]["state"][:, :3], episode["action"]
    path = fitted(hand, actions, column=0)
    assert path.moves
    led = path.of(actions[None, 10:14], hand[10:11])[0]
    assert np.abs(led - hand[11:15]).max() < 1e-3
    absolute = fitted(hand, np.roll(hand, -1, 0), column=0)
    assert not absolute.moves
    noise = np.random.default_rng(0).normal(size=actions.shape).astype(np.float32)
    assert fitted(hand, noise, column=0) is None


def test_an_evaluated_episode_is_run_again_to_the_bit_failures_first(detour):
    policy = ppt.load_policy(detour / "detour_run")
    results = ppt.evaluate(policy, episodes=3, batch_envs=2, max_steps=119, controls=["expert"])
    episodes = _episodes(results, None, None)
    outcomes = [each["outcome"] for each in episodes.listing()["episodes"]]
    assert outcomes == sorted(outcomes, key=["failure", "error", "success"].index)
    assert set(outcomes) == {"failure", "success"}
    for number in (0, len(outcomes) - 1):
        head, _ = episodes.episode(number)
        facts = [fact["text"] for fact in head["facts"]]
        assert "run again to the bit" in facts
        assert any(text.startswith(("no success", "success")) for text in facts)
        row, kept = episodes._ran[number][0], episodes._kept(number)
        assert len(kept.actions) == row["steps"] == head["length"]
        assert (kept.success_step is None) == (not row["success"])
    rows_alone = _episodes(type(results)(results.rows), policy, None)
    assert "run again to the bit" in [fact["text"] for fact in rows_alone.episode(0)[0]["facts"]]
    altered = results.rows[0]["trace"]
    results.rows[0]["trace"] = altered[: 8 * 5] + "zzzz" + altered[8 * 5 + 4 :]
    again = _episodes(results, None, None)
    number = next(i for i, (row, _, _) in enumerate(again._ran) if row is results.rows[0])
    assert any("from step 5 on" in fact["text"] for fact in again.episode(number)[0]["facts"])


@pytest.mark.parametrize(
    ("thing", "options", "said"),
    [
        (7, {}, "not int"),
        ("scene", {"episode": 2}, "there are 2"),
        ("scene", {"augment": {"brightnes": 1}}, "Did you mean"),
        ("results", {}, "policy="),
    ],
)
def test_what_cannot_be_inspected_is_refused(scene, thing, options, said):
    from ppt_kit.sim.results import Evaluation

    row = {"task": "x", "seed": 1, "success": True, "error": None}
    given = {"scene": scene / "data/scene.zarr", "results": Evaluation([row])}.get(thing, thing)
    with pytest.raises(ppt.UserError, match=said):
        ppt.inspect(given, **options)


def test_a_policy_of_other_data_is_refused(scene, small_data):
    policy = ppt.load_policy(scene / "scene_run")
    with pytest.raises(ppt.UserError, match="trained on scene"):
        ppt.inspect(ppt.open_dataset({"a": small_data / "a.zarr", "b": small_data / "b.zarr"}), policy=policy)
    with pytest.raises(ppt.UserError, match=r"it sees .*actions|its actions are"):
        ppt.inspect(ppt.open_dataset(scene / "data/scene.zarr", action_key="obs/eef_pos"), policy=policy)


def drawn(lab, step):
    """Waits until a step is drawn, all of it."""
    lab.page.wait_for_selector(f'{ROOT}[data-drawn="{step}"]', timeout=30_000)


def test_a_browser_draws_a_dataset_and_what_a_policy_predicts(lab, scene):
    # a run folder is as good as its policy
    same = ppt.inspect(str(scene / "data/scene.zarr"), policy=str(scene / "scene_run"))
    assert same._episodes.episode(0)[0]["policy"]
    cells = ["import ppt_kit as ppt", f"policy = ppt.load_policy({str(scene / 'scene_run')!r})", f"w = ppt.inspect({str(scene / 'data/scene.zarr')!r}, policy=policy)\nw"]  # fmt: skip
    page = lab.open(cells)
    drawn(lab, 0)
    views = ['[data-camera="front"][data-kind="rgb"]', '[data-camera="wrist"]', '[data-kind="depth"]', '[data-view="cloud"]', '[data-group="state"]', '[data-group="action"]']  # fmt: skip
    before = [page.evaluate(PIXELS, view) for view in views]
    page.locator(".ppt-time").focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    drawn(lab, 30)
    after = [page.evaluate(PIXELS, view) for view in views]
    assert [view for view, a, b in zip(views, before, after) if a == b] == []
    lab.wait(lambda: lab.ask("w.step") == 30)
    # the cursor can be dragged
    box = page.locator('[data-group="action"]').bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 40, steps=4)
    page.mouse.up()
    drawn(lab, 59)
    # the cloud turns, and is coloured otherwise
    page.keyboard.press("Home")
    drawn(lab, 0)
    cloud = page.evaluate(PIXELS, views[3])
    page.keyboard.press("c")
    lab.wait(lambda: page.evaluate(PIXELS, views[3]) != cloud)
    cloud, box = page.evaluate(PIXELS, views[3]), page.locator(views[3]).bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 110)
    page.mouse.up()
    lab.wait(lambda: page.evaluate(PIXELS, views[3]) != cloud)
    # the error of every step arrives, and what is predicted is drawn
    lab.wait(lambda: page.evaluate(f"!document.querySelector('{ROOT}').panel.chunks.error.some(Number.isNaN)"))
    page.locator(".ppt-play").click()
    lab.wait(lambda: int(page.locator(ROOT).get_attribute("data-drawn")) > 5)
    page.keyboard.press(" ")
    stopped = page.evaluate(f"document.querySelector('{ROOT}').panel.step")
    page.wait_for_timeout(300)
    assert page.evaluate(f"document.querySelector('{ROOT}').panel.step") == stopped
    # what augmentation does is drawn beside it
    plain = page.locator(".ppt-tile").count()
    page.locator(".ppt-switch").click()
    lab.wait(lambda: page.locator(".ppt-mixed canvas").count() == 3 and page.locator(".ppt-tile").count() == plain + 3)
    lab.wait(lambda: page.evaluate(PIXELS, '.ppt-mixed [data-camera="front"]') != page.evaluate(PIXELS, views[0]))
    page.keyboard.press("]")
    lab.wait(lambda: lab.ask("w.episode") == 1)
    lab.wait(lambda: page.locator(".ppt-readout").inner_text().startswith("0 / 39"))
    # the kernel moves it too, once it has heard where the browser is: of two that move it at once the later holds
    lab.wait(lambda: lab.ask("w.step") == 0)
    lab.ask("setattr(w, 'step', 21)")
    drawn(lab, 21)
    assert page.locator(".ppt-refused").inner_text() == ""
    keys = page.locator(".ppt-help").inner_text()
    assert all(said in keys for said in ("space play", "[ ] episode", "c colours", "a augment"))
    assert not lab.elsewhere


def colours_in(lab, selector):
    """{colour of the palette: pixels of it} of a canvas."""
    data = lab.page.evaluate(PIXELS, selector).partition(",")[2]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).reshape(-1, 3).astype(int)
    palette = [[int(each[at : at + 2], 16) for at in (1, 3, 5)] for each in PALETTE]
    return {name: int((np.abs(drawn - colour).max(1) <= 3).sum()) for name, colour in zip(PALETTE, palette)}


def test_a_browser_colours_the_points_of_a_cloud_by_their_segments(lab, tmp_path):
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    rng, kinds = np.random.default_rng(0), np.repeat([0, 3, 16], 100)
    blobs = rng.normal(size=(5, 300, 3), scale=0.05) + np.eye(3)[np.repeat([0, 1, 2], 100)]
    with ZarrWriter(tmp_path / "blobs.zarr") as writer:
        writer.append({
            "actions": np.zeros((5, 2), np.float32), "obs/eef_pos": np.zeros((5, 3), np.float32),
            "obs/pointcloud/pos": blobs.astype(np.float32),
            "obs/pointcloud/colors": np.full((5, 300, 3), 255, np.uint8),
            "obs/pointcloud/seg": np.tile(kinds, (5, 1)).astype(np.uint8),
        })  # fmt: skip
    page = lab.open([f"import ppt_kit as ppt\nw = ppt.inspect({str(tmp_path / 'blobs.zarr')!r})\nw"])
    drawn(lab, 0)
    cloud = '[data-view="cloud"]'
    assert sum(colours_in(lab, cloud).values()) == 0
    page.locator(".ppt-wide select").select_option("segment")
    # of the palette's ten the segments 0, 3 and 16 have the first, the fourth and the seventh
    lab.wait(lambda: sum(colours_in(lab, cloud).values()) > 300)
    # what a key does is said where it does it: there is one episode, and no policy whose training changes it
    assert page.locator(".ppt-help").inner_text().endswith("speed · c colours · r view")
    shown = {name for name, count in colours_in(lab, cloud).items() if count > 50}
    assert shown == {PALETTE[0], PALETTE[3], PALETTE[6]}


def test_a_browser_draws_evaluated_episodes_in_the_dark(lab, detour):
    cells = ["import ppt_kit as ppt", f"results = ppt.evaluate(ppt.load_policy({str(detour / 'detour_run')!r}), episodes=2, controls=['expert'])", "w = ppt.inspect(results)\nw"]  # fmt: skip
    page = lab.open(cells, theme="JupyterLab Dark")
    drawn(lab, 0)
    assert page.locator(".ppt-chip").first.get_attribute("title") == "failure"
    assert page.locator(".ppt-help").inner_text().endswith("speed · [ ] episode")
    assert "run again to the bit" in page.locator(".ppt-facts").inner_text()
    watched = '[data-camera="watched"]'
    first = page.evaluate(PIXELS, watched)
    page.locator(ROOT).focus()
    page.keyboard.press("End")
    lab.wait(lambda: page.evaluate(PIXELS, watched) != first)
    page.locator(".ppt-chip.ppt-success").last.click()
    lab.wait(lambda: "success after step" in page.locator(".ppt-facts").inner_text())
    assert lab.pixels('[data-group="action"]').mean() < 100
    assert not lab.elsewhere


def test_films_are_a_grid_failures_first_with_the_state_beside_each(lab, detour, tmp_path):
    cells = [
        "import ppt_kit as ppt",
        f"policy = ppt.load_policy({str(detour / 'detour_run')!r})",
        f"results = ppt.evaluate(policy, episodes=2, videos=2, warmup_steps=3, out_dir={str(tmp_path / 'eval')!r})",
        "ppt.show_videos(results)",
    ]
    page = lab.open(cells)
    assert page.locator(".ppt-film").count() == 2
    assert "seed 100000: no success in" in page.locator(".ppt-film").first.inner_text()
    where = lambda: page.evaluate(
        "[...document.querySelectorAll('.ppt-film:first-child li b')].map(b => b.textContent)"
    )
    first = where()
    page.evaluate("document.querySelector('video').currentTime = 1")
    lab.wait(lambda: page.locator(".ppt-film output").first.inner_text() != "step 0")
    assert where() != first
    assert not lab.elsewhere


def test_a_film_holds_the_state_of_each_of_its_frames(detour, tmp_path):
    from ppt_kit.sim.watch import states_in

    policy = ppt.load_policy(detour / "detour_run")
    results = ppt.evaluate(policy, episodes=1, videos=1, warmup_steps=3, out_dir=tmp_path, max_steps=20)
    found = states_in(results.videos[0])
    assert found["names"] == policy.specs["detour"].names("state")
    assert len(found["states"]) == results.rows[0]["steps"] + 1
    kept = _episodes(results, None, None)._kept(0)
    assert np.allclose(found["states"][3:-1], [frame["state"] for frame in kept.frames], rtol=1e-3)
