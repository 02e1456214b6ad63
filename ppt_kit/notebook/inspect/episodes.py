"""The episodes of a dataset, as the inspector asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.data.disk.rows import spread
from ppt_kit.data.domain import Domain
from ppt_kit.horizon import Horizon
from ppt_kit.notebook.inspect.augmented import Augmented
from ppt_kit.notebook.inspect.packing import Packed, has_color, has_segments, pack, page_steps, points_shown
from ppt_kit.notebook.inspect.predicted import Predictor, hand_column
from ppt_kit.spec import Spec

# frames that are looked at for the range of depths and the place of clouds
LOOKED_AT = 8
PICTURES = ("rgb", "depth", "pointcloud")
SEGMENTS = "obs/pointcloud/seg"


class Episodes(Protocol):
    """What the widget shows: a dataset's episodes, or an evaluation's."""

    def listing(self) -> dict[str, Any]:
        """ "title", and "episodes": of each its label, and outcome ("", "success", "failure", "error")."""

    def episode(self, number: int) -> tuple[dict[str, Any], list[bytes]]:
        """All of one episode but its frames: see `described`."""

    def page(self, number: int, steps: Sequence[int]) -> Packed:
        """Frames of some steps."""

    def chunks(self, number: int, steps: Sequence[int]) -> tuple[dict[str, Any], list[bytes]]:
        """What the policy predicts at some steps: see `Predictor.chunks`."""

    def augmented(self, number: int, step: int, draw: int) -> tuple[dict[str, Any], list[bytes]]:
        """One training window as augmentation gives it: see `Augmented.window`."""


class DatasetEpisodes:
    """Those of a dataset's split.

    Args:
        augmented: what training makes of its windows.
        predictor: of a policy's chunks; None = there is no policy.
    """

    def __init__(self, dataset: MultiTrajDataset, augmented: Augmented, predictor: Predictor | None):
        self.dataset, self._augmented, self._predictor = dataset, augmented, predictor
        self.horizon = predictor.horizon if predictor else dataset.horizon

    def listing(self) -> dict[str, Any]:
        """See `Episodes`."""
        several, found = len(self.dataset.domains) > 1, []
        for index in range(self.dataset.num_episodes):
            name, number = self.dataset.find_episode(index)
            said = self.dataset.domains[name].store.episode_name(number)
            found.append({"label": f"{name}, {said}" if several else said, "outcome": ""})
        held = f", {self.dataset.split} split" if self.dataset.options.val_ratio else ""
        return {"title": " + ".join(self.dataset.domains) + held, "episodes": found}

    def episode(self, number: int) -> tuple[dict[str, Any], list[bytes]]:
        """See `Episodes`."""
        name, _ = self.dataset.find_episode(number)
        spec = self.dataset.specs[name].only(self.dataset.modalities)
        numbers = self.dataset.episode(number, modalities=["state", "language"])
        some = self.dataset.episode(
            number, steps=spread(LOOKED_AT, len(numbers["action"])).tolist(), modalities=["depth", "pointcloud"]
        )["obs"]
        head, buffers = described(numbers["obs"].get("state"), numbers["action"], spec, self.horizon, some=some)
        if head["cloud"] is not None and _keeps_segments(self.dataset.domains[name]):
            head["cloud"]["by"] = [*dict.fromkeys([*head["cloud"]["by"], "segment"])]
        head["language"] = numbers["obs"]["language"][0] if "language" in numbers["obs"] else ""
        head["hand"] = hand_column(spec)
        head["can_augment"] = self._augmented.is_on
        head["augmented_by"] = self._augmented.said
        if self._predictor is not None:
            head["policy"] = self._predictor.told(number)
        return head, buffers

    def page(self, number: int, steps: Sequence[int]) -> Packed:
        """See `Episodes`."""
        return pack(
            self.dataset.episode(number, steps=steps, modalities=PICTURES)["obs"] | self._segments(number, steps)
        )

    def _segments(self, number: int, steps: Sequence[int]) -> dict[str, np.ndarray]:
        """{"segments": (N, P)} of clouds' points, also where a policy does not see them; {} where none are kept."""
        name, episode = self.dataset.find_episode(number)
        domain = self.dataset.domains[name]
        if not _keeps_segments(domain):
            return {}
        rows = domain.store.bounds(episode)[0] + np.asarray(steps)
        stored = domain.store.read(SEGMENTS, rows)
        stored = stored.reshape(len(rows), -1)
        # of more points the same are shown as of the cloud
        return {"segments": stored[:, spread(domain.view.points, stored.shape[1])]}

    def chunks(self, number: int, steps: Sequence[int]) -> tuple[dict[str, Any], list[bytes]]:
        """See `Episodes`."""
        assert self._predictor is not None
        return self._predictor.chunks(number, steps)

    def augmented(self, number: int, step: int, draw: int) -> tuple[dict[str, Any], list[bytes]]:
        """See `Episodes`."""
        return self._augmented.window(number, step, draw=draw)


def _keeps_segments(domain: Domain) -> bool:
    """Whether a segmentation is stored of the clouds that are shown."""
    return bool(domain.view.cloud) and domain.view.made_from is None and SEGMENTS in domain.store.columns


def described(
    state: np.ndarray | None, action: np.ndarray, spec: Spec, horizon: Horizon, *, some: Mapping[str, Any]
) -> tuple[dict[str, Any], list[bytes]]:
    """What the browser has to know of an episode before its frames: curves, cameras, the cloud's place, the window.

    Args:
        state, action: (T, Ds) or None, (T, Da).
        some: obs of a few of its frames.
    Returns:
        The head, and float32 bytes of each of its groups of curves.
    """
    groups = [("state", state, spec.names("state")), ("action", action, spec.names("action"))]
    there = [(name, values, names) for name, values, names in groups if values is not None and values.shape[1]]
    cameras = [
        {"name": camera, "kind": kind, "height": height, "width": width, **_range(some, kind, camera)}
        for kind in ("rgb", "depth")
        for camera, (height, width) in spec.cameras(kind).items()
    ]
    head = {
        "length": len(action),
        "groups": [{"name": name, "names": names} for name, _, names in there],
        "cameras": cameras,
        "cloud": _cloud(some, spec),
        "window": {"seen": horizon.seen.tolist(), "acted": horizon.acted.tolist()},
        "page_steps": page_steps(cameras=cameras, points=spec.points),
    }
    return head, [np.ascontiguousarray(values, np.float32).tobytes() for _, values, _ in there]


def _range(some: Mapping[str, Any], kind: str, camera: str) -> dict[str, Any]:
    """Between which depths the colours of one camera go (m), the same in the whole episode."""
    if kind == "rgb":
        return {}
    depth = np.asarray(some["depth"][camera], np.float32)
    read = depth[np.isfinite(depth) & (depth > 0)]
    if not read.size:
        return {"low": 0.0, "high": 1.0, "log": False}
    low, high = (float(value) for value in np.percentile(read, (1, 99)))
    # a far background would leave the scene one colour
    return {"low": low, "high": max(high, low + 1e-3), "log": high > 10 * low}


def _cloud(some: Mapping[str, Any], spec: Spec) -> dict[str, Any] | None:
    """Where the clouds of an episode are (m), and what their points can be coloured by."""
    if not spec.points or "pointcloud" not in some:
        return None
    xyz = np.nan_to_num(np.asarray(some["pointcloud"])[..., :3]).reshape(-1, 3)
    low, high = np.percentile(xyz, (2, 98), axis=0)
    by = ["colour"] * has_color(spec.channels) + ["height"] + ["segment"] * has_segments(spec.channels)
    shown = points_shown(spec.points)
    return {"low": low.tolist(), "high": high.tolist(), "by": by, "points": spec.points, "shown": shown}
