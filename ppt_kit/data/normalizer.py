"""Statistics that bring states and actions to about [-1, 1], fitted on the training episodes only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from ppt_kit.data.dataset import MultiTrajDataset

ROWS_AT_ONCE = 65_536
NEAR_CONSTANT = 1e-4  # a range below this is noise: dividing by it would blow the noise up


@dataclass
class Stats:
    """normalised = (value - offset) * scale, element by element."""

    offset: list[float]
    scale: list[float]
    constant: list[int]  # dimensions that hardly move: centred, not scaled


def fit_normalizer(dataset: MultiTrajDataset) -> dict[str, dict[str, dict]]:
    """{domain: {"state" | "action": Stats as a dict}} of the dataset's own split: limits go to [-1, 1].

    Raises:
        ValueError: a value is not finite; the line names the domain, the key and the episode.
    """
    return {
        name: {kind: asdict(_limits(dataset, name, kind)) for kind in ("state", "action")} for name in dataset.domains
    }


def fingerprint(stats: dict) -> str:
    """Twelve hex digits that change with any number or key of the statistics."""
    return hashlib.sha256(json.dumps(stats, sort_keys=True).encode()).hexdigest()[:12]


def _limits(dataset: MultiTrajDataset, name: str, kind: str) -> Stats:
    rows = dataset.rows(name)
    low, high = None, None
    for start in range(0, len(rows), ROWS_AT_ONCE):
        values = dataset.values(name, kind, rows[start : start + ROWS_AT_ONCE]).astype(np.float64)
        if not np.isfinite(values).all():
            row = rows[start + int(np.argwhere(~np.isfinite(values))[0][0])]
            episode = int(np.searchsorted(dataset.stores[name].episode_ends, row, side="right"))
            raise ValueError(f"{dataset.stores[name].path}: {kind} of episode {episode} (row {row}) is not finite")
        low = values.min(0) if low is None else np.minimum(low, values.min(0))
        high = values.max(0) if high is None else np.maximum(high, values.max(0))
    assert low is not None
    assert high is not None
    constant = (high - low) < NEAR_CONSTANT
    scale = np.where(constant, 1.0, 2.0 / np.where(constant, 1.0, high - low))
    return Stats(((low + high) / 2).tolist(), scale.tolist(), np.flatnonzero(constant).tolist())
