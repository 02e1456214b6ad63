"""Which episodes a split has, and which rows each window of them reads."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.schema import DatasetConfig


@dataclass(frozen=True)
class Rows:
    """Rows of some windows, which may lie beyond their episode."""

    # (M, To) of the observations, (M, Ta) of the actions
    seen: np.ndarray
    acted: np.ndarray
    # (M, 1) first and last row of the episode
    first: np.ndarray
    last: np.ndarray

    def inside(self) -> tuple[np.ndarray, np.ndarray]:
        """(M, To) and (M, Ta) with the episode's first and last row repeated beyond its edges."""
        return tuple(np.clip(rows, self.first, self.last) for rows in (self.seen, self.acted))

    @property
    def action_is_pad(self) -> np.ndarray:
        """(M, Ta) bool: beyond an edge."""
        return (self.acted < self.first) | (self.acted > self.last)


@dataclass(frozen=True)
class Windows:
    """The windows of one domain's split, one a step: (W,) each."""

    horizon: Horizon
    # row of step t
    steps: np.ndarray
    # first and last row of the episode
    first: np.ndarray
    last: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self, chosen: np.ndarray) -> Rows:
        """Rows of the windows `chosen` (M,)."""
        step = self.steps[chosen][:, None]
        return Rows(
            step + self.horizon.seen, step + self.horizon.acted, self.first[chosen][:, None], self.last[chosen][:, None]
        )


def windows_of(store: EpisodeStore, episodes: Sequence[int] | np.ndarray, options: DatasetConfig) -> Windows:
    """A window for every step of the episodes, less those that pad_before and pad_after leave out."""
    horizon = Horizon.of(options)
    before, after = -int(horizon.seen[0]), int(horizon.acted[-1])
    skip_head = 0 if options.pad_before is None else max(0, before - options.pad_before)
    skip_tail = 0 if options.pad_after is None else max(0, after - options.pad_after)
    steps, firsts, lasts = [], [], []
    for episode in episodes:
        first, end = store.bounds(int(episode))
        rows = np.arange(first + skip_head, end - skip_tail)
        steps.append(rows)
        firsts.append(np.full(len(rows), first))
        lasts.append(np.full(len(rows), end - 1))
    return Windows(horizon, *(np.concatenate(part) for part in (steps, firsts, lasts)))


def split_episodes(store: EpisodeStore, name: str, options: DatasetConfig, *, split: str, seed: int) -> np.ndarray:
    """Numbers of the episodes in a split: episodes are divided, never windows.

    Raises:
        UserError: the split is empty.
    """
    total = len(store.episode_ends)
    used = np.arange(total if options.episode_cnt is None else min(options.episode_cnt, total))
    order = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if options.data_ratio < 1:
        used = np.sort(order.permutation(used)[: max(1, round(len(used) * options.data_ratio))])
    held = max(1, round(len(used) * options.val_ratio)) if options.val_ratio > 0 else 0
    if held >= len(used) and held:
        raise UserError(
            f"{store.path}: {len(used)} episode(s) and dataset.val_ratio={options.val_ratio} leave none to train on. "
            "Set dataset.val_ratio=0."
        )
    shuffled = order.permutation(used)
    chosen = shuffled[:held] if split == "val" else shuffled[held:]
    if not len(chosen):
        raise UserError(
            f"{store.path}: the {split} split is empty with dataset.val_ratio={options.val_ratio}. "
            "Set dataset.val_ratio above 0."
        )
    return np.sort(chosen)
