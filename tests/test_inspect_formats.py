"""Every dataset format through the inspector: what the browser is sent is what was written to the disk."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from scene import write_scene
from test_formats import (
    maniskill_columns,
    maniskill_episodes,
    rlds_columns,
    rlds_episodes,
    rlds_record,
    robomimic_columns,
    robomimic_episodes,
    write_maniskill,
    write_rlds,
    write_robomimic,
)
from test_lerobot import Made, number_in

import ppt_kit as ppt

LENGTHS, EPISODE = (6, 9, 4), 1
ROWS = slice(LENGTHS[0], LENGTHS[0] + LENGTHS[1])


def asked(widget, kind, **words):
    """What the browser is sent for a question: the head, and its bytes."""
    sent = []
    widget.send = lambda head, buffers=(): sent.append((head, buffers))
    widget._handle_custom_msg({"kind": kind, "id": "1", "episode": EPISODE, **words}, [])
    (answer,) = sent
    assert "refused" not in answer[0], answer[0]
    return answer


def frames_of(head, buffers):
    """{(what, camera): (part, frames)} as the page unpacks them."""
    found = {}
    for part, data in zip(head["parts"], buffers):
        if part["what"] == "rgb":
            ends = np.cumsum([0, *part["sizes"]])
            frames = np.stack([np.asarray(Image.open(io.BytesIO(data[a:b]))) for a, b in zip(ends, ends[1:])])
        elif part["what"] == "depth":
            frames = np.frombuffer(data, np.uint16).reshape(-1, *part["size"]) / 1000
        elif part["what"] == "xyz":
            frames = np.frombuffer(data, np.uint16).reshape(-1, part["points"], 3) / 65535 * part["span"] + part["low"]
        else:
            frames = np.frombuffer(data, np.uint8)
        found[part["what"], part.get("camera")] = frames
    return found


def assert_pictures(shown, written):
    """Each is, of all that were written, nearest to its own: noise that was a JPEG stays itself."""
    apart = np.abs(shown[:, None].astype(float) - written[None]).mean((2, 3, 4))
    assert apart.argmin(1).tolist() == list(range(len(written)))


def robomimic(folder):
    episodes = robomimic_episodes(LENGTHS)
    return write_robomimic(folder / "lift.hdf5", episodes), robomimic_columns(episodes)


def maniskill(folder):
    episodes = maniskill_episodes(LENGTHS)
    return write_maniskill(folder / "trajectory.h5", episodes), maniskill_columns(episodes)[0]


def rlds(folder):
    episodes = rlds_episodes(LENGTHS)
    records = [[rlds_record(episode) for episode in episodes]]
    return write_rlds(folder / "my_robot/1.0.0", {"train": records}), rlds_columns(episodes)


@pytest.mark.parametrize("write", [robomimic, maniskill, rlds])
def test_a_page_of_a_foreign_format_holds_what_was_written(write, tmp_path):
    path, columns = write(tmp_path)
    widget = ppt.inspect(path)
    head, buffers = asked(widget, "episode")
    assert head["length"] == LENGTHS[EPISODE]
    curves = {group["name"]: np.frombuffer(data, np.float32) for group, data in zip(head["groups"], buffers)}
    assert np.array_equal(curves["action"], columns["actions"][ROWS].astype(np.float32).ravel())
    found = frames_of(*asked(widget, "page", first=0, count=LENGTHS[EPISODE], every=1))
    kinds = {"rgb": "obs/images/", "depth": "obs/depths/"}
    wanted = {
        (kind, key.removeprefix(place)) for kind, place in kinds.items() for key in columns if key.startswith(place)
    }
    assert {key for key in found if key[0] in kinds} == wanted
    for (kind, camera), frames in found.items():
        if kind == "rgb":
            assert_pictures(frames, columns[f"obs/images/{camera}"][ROWS])
        elif kind == "depth":
            assert np.abs(frames - columns[f"obs/depths/{camera}"][ROWS][..., 0]).max() <= 0.00051
        elif kind == "xyz":
            assert np.abs(frames - columns["obs/pointcloud/pos"][ROWS]).max() < 1e-3
        elif kind == "segments":
            assert frames.tolist() == columns["obs/pointcloud/seg"][ROWS].ravel().tolist()
    assert {("xyz", None), ("segments", None)} <= set(found) or "obs/pointcloud/pos" not in columns


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_page_of_lerobot_holds_the_frames_of_its_rows(version, tmp_path):
    made = Made(tmp_path / "there", version, LENGTHS)
    widget = ppt.inspect(made.path)
    head, buffers = asked(widget, "episode")
    curves = {group["name"]: np.frombuffer(data, np.float32) for group, data in zip(head["groups"], buffers)}
    assert np.array_equal(curves["action"], made.values["action"][ROWS].ravel())
    found = frames_of(*asked(widget, "page", first=1, count=4, every=2))
    films = [frames for (kind, _), frames in found.items() if kind == "rgb"]
    assert len(films) == 2
    for frames in films:
        assert [number_in(frame) for frame in frames] == [LENGTHS[0] + step for step in (1, 3, 5, 7)]


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_a_page_of_a_replay_buffer_holds_what_zarr_reads(zipped, tmp_path):
    import zarr

    path = write_scene(tmp_path / "scene.zarr", lengths=LENGTHS, size=32, points=64)
    data = zarr.open_group(str(path), mode="r")["data"]
    widget = ppt.inspect(shutil.make_archive(str(path), "zip", path) if zipped else path)
    found = frames_of(*asked(widget, "page", first=0, count=LENGTHS[EPISODE], every=1))
    assert np.abs(found["rgb", "front"].astype(float) - data["obs/images/front"][ROWS]).mean() < 6
    assert np.abs(found["depth", "front"] - data["obs/depths/front"][ROWS][..., 0]).max() <= 0.00051
    assert np.abs(found["xyz", None] - data["obs/pointcloud/pos"][ROWS]).max() < 1e-4
