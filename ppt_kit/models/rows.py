"""Rows of a nested batch: those of one group of domains, the first, blank ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ppt_kit.models.domains import Rows
from ppt_kit.spec import Spec


def select(tree: Any, rows: Rows) -> Any:
    """The rows of every tensor and every list in a nested batch."""
    if rows.places is None or rows.on_host is None:
        return tree
    if isinstance(tree, Mapping):
        return {name: select(value, rows) for name, value in tree.items()}
    return tree[rows.places] if isinstance(tree, torch.Tensor) else [tree[row] for row in rows.on_host.tolist()]


def seeds_of(seeds: torch.Tensor, rows: Rows) -> torch.Tensor:
    """(max(size, 1),) seeds of some rows; of a blank row where there are none."""
    return seeds.new_zeros(1) if rows.size == 0 else select(seeds, rows)


def own_cameras(readings: Any, spec: Spec, modality: str) -> Any:
    """Without the cameras that other domains have."""
    own = spec.cameras(modality)
    return {name: readings[name] for name in own} if own and isinstance(readings, Mapping) else readings


def first_row(tree: Any) -> Any:
    """The first row of every tensor, as a batch of one."""
    if isinstance(tree, Mapping):
        return {name: first_row(value) for name, value in tree.items()}
    return tree[:1]


def zeros_like(tree: Any) -> Any:
    """Every tensor of a nested batch as zeros."""
    if isinstance(tree, Mapping):
        return {name: zeros_like(value) for name, value in tree.items()}
    return torch.zeros_like(tree) if isinstance(tree, torch.Tensor) else tree


def num_rows(tree: Any) -> int:
    """Samples in obs: rows of its tensors, or sentences."""
    value = next(iter(tree.values()))
    return num_rows(value) if isinstance(value, Mapping) else len(value)
