"""Which mode and which processes: the truth table."""

from __future__ import annotations

import pytest

from ppt_kit.errors import UserError
from ppt_kit.launch import decide, local_share

ALONE: dict = {}
LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
LAUNCHED_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("train_mode", "world_size", "env", "devices", "want"),
    [
        ("single", 1, ALONE, 0, "single"),
        ("single", 4, ALONE, 4, "single"),
        ("single", 1, LAUNCHED_ALONE, 1, "single"),
        ("auto", 1, ALONE, 0, "single"),
        ("auto", 1, ALONE, 8, "single"),
        ("auto", 2, ALONE, 0, "single"),
        ("auto", 4, ALONE, 2, "single"),
        ("auto", 2, ALONE, 2, "spawn"),
        ("auto", 1, LAUNCHED, 0, "rank"),
        ("auto", 2, LAUNCHED, 2, "rank"),
        ("auto", 1, LAUNCHED_ALONE, 1, "rank"),
        ("distributed", 2, ALONE, 0, "spawn"),
        ("distributed", 1, ALONE, 0, "spawn"),
        ("distributed", 1, LAUNCHED, 0, "rank"),
        ("distributed", 8, {"MASTER_ADDR": "h", "RANK": "4", "WORLD_SIZE": "8"}, 4, "spawn"),
    ],
)
def test_what_a_process_is_to_do(train_mode, world_size, env, devices, want):
    assert decide(train_mode, world_size=world_size, env=env, num_devices=devices) == want


def test_contradictions_are_refused():
    with pytest.raises(UserError, match="started 2 processes"):
        decide("single", world_size=1, env=LAUNCHED, num_devices=2)
    with pytest.raises(UserError, match="Leave world_size out"):
        decide("auto", world_size=3, env=LAUNCHED, num_devices=2)
    with pytest.raises(UserError, match=r"2 device\(s\) are visible"):
        local_share({}, world_size=4, num_devices=2)
    with pytest.raises(UserError, match="no rank for this node"):
        local_share({"MASTER_ADDR": "h", "RANK": "8", "WORLD_SIZE": "8"}, world_size=8, num_devices=4)


def test_a_node_starts_its_share():
    node = {"MASTER_ADDR": "h", "RANK": "4", "WORLD_SIZE": "8"}
    assert local_share(node, world_size=8, num_devices=4) == (4, 4, 8)
    assert local_share(node, world_size=8, num_devices=0) == (4, 1, 8)
    assert local_share({**node, "LOCAL_WORLD_SIZE": "2"}, world_size=8, num_devices=0) == (4, 2, 8)
    assert local_share({}, world_size=3, num_devices=0) == (0, 3, 3)
