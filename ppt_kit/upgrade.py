"""What an older version wrote, as this one writes it."""

from __future__ import annotations

import re
from typing import Any

# of checkpoint format 1: a stem's place in the policy, then and now
MOVED = ((r"^state_stems\.([^.]+)\.", r"stems.\1.state."), (r"^cloud_stems\.([^.]+)\.", r"stems.\1.pointcloud."))


def upgraded_model(content: dict[str, Any]) -> dict[str, Any]:
    """What model.pth holds, of any format: tensors by today's names, and a view for each domain."""
    if content.get("format", 1) >= 2:
        return content
    tensors = {name: renamed_tensors(content[name]) for name in ("policy", "ema") if content.get(name) is not None}
    sources = content.get("sources", {})
    prints = {name: each["fingerprint"] for name, each in content.get("normalizer", {}).items()}
    views = {name: _view(source, prints[name]) for name, source in sources.items()}
    return {**content, **tensors, "views": views}


def upgraded_engine(state: dict[str, Any], *, format: int) -> dict[str, Any]:
    """The engine's part of a resume file."""
    if format >= 2:
        return state
    moments = {kind: renamed_tensors(values) for kind, values in state["moments"].items()}
    averaged = state["averaged"] and renamed_tensors(state["averaged"])
    return {**state, "weights": renamed_tensors(state["weights"]), "averaged": averaged, "moments": moments}


def renamed_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors by the names that a policy of today has for them."""
    renamed = {}
    for name, value in tensors.items():
        for before, after in MOVED:
            name = re.sub(before, after, name)
        renamed[name] = value
    return renamed


def _view(source: dict[str, Any], fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Format 1 named what was seen in its sources, and told the widths in the normaliser's fingerprint alone."""
    channels = source["point_channels"]
    parts = ["pos"] + ["colors"] * (channels >= 6) + ["seg"] * (channels == 5)
    return {
        "state": _widths(fingerprint["state_keys"], "obs/"),
        "action": _widths(fingerprint["action"][:-1], ""),
        "cloud": {part: f"obs/pointcloud/{part}" for part in parts},
        "points": source["num_points"],
        "channels": channels,
        "color_range": 1.0,
        "made_from": None,
        "rgb": {},
        "depth": {},
        "sizes": {},
        "language": False,
    }


def _widths(named: list[str], prefix: str) -> dict[str, int]:
    """{"obs/eef_pos": 3} of ["eef_pos[3]"]."""
    found = (re.fullmatch(r"(.+)\[(\d+)\]", text) for text in named)
    return {prefix + match[1]: int(match[2]) for match in found if match}
