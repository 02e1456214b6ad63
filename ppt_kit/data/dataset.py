"""Windows over episodes. The contract that everything downstream is built on:

batch = {
    "obs": {
        "state":      (B, To, Ds) float32   the state keys concatenated, in the dataset's units,
        "pointcloud": (B, To, P, C) float32 metres; C as dataset.point_channels says, colours in [0, 1],
        "rgb":   {camera: (B, To, H, W, 3) uint8},
        "depth": {camera: (B, To, H, W, 1) float32 metres},
        "language": [B sentences],
    },
    "action":        (B, Ta, Da) float32    in the dataset's units,
    "action_is_pad": (B, Ta) bool           true where the episode's edge was repeated: the loss leaves these out,
    "domain":        (B,) int64             position in `dataset.domains`,
    "index":         (B,) int64             the window's number in the dataset,
}

A window starts at every step t of every episode; obs = steps t-To+1..t, action = steps t..t+Ta-1 (from t-To+1 with
hist_action_cond); beyond an edge the first or last frame is repeated. Domains of different sizes are padded with zeros
to the widest; `dataset.shapes` has each one's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from ppt_kit.config import UserError, domain_names
from ppt_kit.data.store import EpisodeStore, open_store

MODALITIES = ("state", "pointcloud", "rgb", "depth", "language")


@dataclass(frozen=True)
class Windows:
    """Rows of one domain's windows: (W,) each."""

    steps: np.ndarray  # row of step t
    first: np.ndarray  # first row of the episode
    last: np.ndarray  # last row of the episode


class MultiTrajDataset:
    """Windows of several domains, gathered a batch at a time.

    Args:
        dataset_path: folder that holds <domain>.zarr; None when `stores` is given.
        domains: "a,b", a list, or a mapping of name to weight.
        split: "train" or "val"; episodes are divided, never windows.
        seed: which episodes are held out.
        stores: domain -> opened episodes, instead of files under dataset_path.
        modalities: which of MODALITIES to read; None = every one that all domains have.
    The other arguments are the keys of `dataset` in the configuration.
    Raises:
        UserError: a domain or key is missing, or a split is empty.
    """

    def __init__(
        self,
        dataset_path: str | Path | None,
        domains: Any,
        *,
        split: str = "train",
        seed: int = 0,
        observation_horizon: int = 2,
        action_horizon: int = 8,
        hist_action_cond: bool = False,
        pad_before: int | None = None,
        pad_after: int | None = None,
        val_ratio: float = 0.0,
        episode_cnt: int | None = None,
        data_ratio: float = 1.0,
        state_keys: Sequence[str] = ("eef_pos", "normalized_gripper_pos"),
        action_key: str = "actions",
        ignored_keys: Sequence[str] = (),
        point_channels: int = 3,
        num_points: int = 512,
        stores: Mapping[str, EpisodeStore] | None = None,
        modalities: Sequence[str] | None = None,
    ):
        if split not in ("train", "val"):
            raise UserError(f"split={split!r}: takes train or val.")
        self.domains = list(stores) if stores is not None else domain_names(domains)
        self.stores = (
            dict(stores)
            if stores is not None
            else {name: open_store(dataset_path or ".", name) for name in self.domains}
        )
        self.split, self.observation_horizon, self.action_horizon = split, observation_horizon, action_horizon
        self.hist_action_cond, self.point_channels, self.num_points = hist_action_cond, point_channels, num_points
        self._state_keys, self._action_key, self._ignored = list(state_keys), action_key, set(ignored_keys)
        self._action_keys = {
            name: self._find(name, [action_key, f"obs/{action_key}"], "action_key") for name in self.domains
        }
        self._states = {
            name: [self._find(name, [f"obs/{key}", key], "state_keys") for key in state_keys] for name in self.domains
        }
        self._clouds = {name: self._cloud_keys(name) for name in self.domains}
        self._cameras = {
            kind: {name: self._camera_keys(name, kind) for name in self.domains} for kind in ("rgb", "depth")
        }
        self.modalities = self._choose(modalities)
        self.episodes = {
            name: _split_episodes(
                store, name, split=split, seed=seed, val_ratio=val_ratio, cnt=episode_cnt, ratio=data_ratio
            )
            for name, store in self.stores.items()
        }
        self._windows = {
            name: self._windows_of(name, pad_before=pad_before, pad_after=pad_after) for name in self.domains
        }
        sizes = [len(windows.steps) for windows in self._windows.values()]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if not self._offsets[-1]:
            raise UserError(
                f"the {split} split of {', '.join(self.domains)} has no window: every episode is shorter than the padding allows."
            )
        self.shapes = {
            name: {"state": self._state_dim(name), "action": self._action_dim(name)} for name in self.domains
        }

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __getitem__(self, index: int) -> dict:
        """One window: the contract without the leading B."""
        batch = self.__getitems__([index])
        return _map(batch, lambda value: value[0])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict:
        """A batch as the contract says, as torch tensors.

        Args:
            indices: (B,) window numbers, any order, repeats allowed.
        Raises:
            IndexError: one lies outside the dataset.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"window {indices} of a dataset with {len(self)}")
        domain = np.searchsorted(self._offsets, chosen, side="right") - 1
        if len(self.domains) == 1:
            batch = self._gather(self.domains[0], chosen)
        else:
            batch = self._gather_mixed(chosen, domain)
        batch["domain"], batch["index"] = domain.astype(np.int64), chosen
        return _map(batch, _tensor)

    def episode(self, index: int) -> dict:
        """One whole episode of this split, keys nested as in a batch: "action" (T, Da), "obs" -> "state" (T, Ds), …

        Raises:
            IndexError: there are fewer.
        """
        number = index
        for name in self.domains:
            if number < len(self.episodes[name]):
                first, last = self._bounds(name, self.episodes[name][number])
                rows = np.arange(first, last + 1)
                whole: dict = {"obs": self._observations(name, rows[:, None], squeeze=True)}
                whole["action"] = self._actions(name, rows)
                whole["domain"], whole["episode"] = name, int(self.episodes[name][number])
                return whole
            number -= len(self.episodes[name])
        raise IndexError(f"episode {index} of a {self.split} split with {sum(map(len, self.episodes.values()))}")

    @property
    def num_episodes(self) -> int:
        """Episodes in this split, over all domains."""
        return sum(map(len, self.episodes.values()))

    def domain_sizes(self) -> dict[str, int]:
        """Windows of each domain."""
        return {name: len(windows.steps) for name, windows in self._windows.items()}

    def rows(self, name: str) -> np.ndarray:
        """(N,) rows of one domain's episodes in this split, in order."""
        bounds = [self._bounds(name, episode) for episode in self.episodes[name]]
        return np.concatenate([np.arange(first, last + 1) for first, last in bounds])

    def values(self, name: str, kind: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), D) float32 of `kind` "state" or "action" of one domain, not padded."""
        return self._actions(name, rows) if kind == "action" else self._state(name, rows)

    def describe_source(self, name: str) -> dict:
        """What was recorded with one domain's data: simulator, task, camera, seeds of the demonstrations."""
        attrs = self.stores[name].attrs
        return {"env": attrs.get("env"), "seeds": attrs.get("seeds", [])}

    # ---------------------------------------------------------------- gathering

    def _gather_mixed(self, chosen: np.ndarray, domain: np.ndarray) -> dict:
        out: dict = {}
        for number, name in enumerate(self.domains):
            mine = np.flatnonzero(domain == number)
            if len(mine):
                _scatter(out, self._gather(name, chosen[mine]), mine, len(chosen))
        return out

    def _gather(self, name: str, chosen: np.ndarray) -> dict:
        windows = self._windows[name]
        local = chosen - self._offsets[self.domains.index(name)]
        step, first, last = windows.steps[local], windows.first[local], windows.last[local]
        seen = step[:, None] + np.arange(1 - self.observation_horizon, 1)
        start = step - (self.observation_horizon - 1 if self.hist_action_cond else 0)
        acted = start[:, None] + np.arange(self.action_horizon)
        low, high = first[:, None], last[:, None]
        actions = self._actions(name, np.clip(acted, low, high).ravel())
        return {
            "obs": self._observations(name, np.clip(seen, low, high)),
            "action": _widen(actions.reshape(*acted.shape, -1), max(map(self._action_dim, self.domains))),
            "action_is_pad": (acted < low) | (acted > high),
        }

    def _observations(self, name: str, rows: np.ndarray, *, squeeze: bool = False) -> dict:
        """obs of `rows` (B, To); with `squeeze`, of (T, 1) rows without the second axis."""
        shape = rows.shape[:1] if squeeze else rows.shape
        flat = rows.ravel()
        obs: dict = {}
        if "state" in self.modalities:
            state = self._state(name, flat)
            wide = state.shape[1] if squeeze else max(map(self._state_dim, self.domains))
            obs["state"] = _widen(state, wide).reshape(*shape, wide)
        if "pointcloud" in self.modalities:
            cloud = self._cloud(name, flat)
            obs["pointcloud"] = cloud.reshape(*shape, *cloud.shape[1:])
        for kind in ("rgb", "depth"):
            if kind in self.modalities:
                images = {
                    camera: self.stores[name].read(stored, flat) for camera, stored in self._cameras[kind][name].items()
                }
                obs[kind] = {
                    camera: _image(image, kind).reshape(*shape, *_image(image, kind).shape[1:])
                    for camera, image in images.items()
                }
        if "language" in self.modalities:
            sentences = self._sentences(name)
            of_row = np.searchsorted(self.stores[name].episode_ends, rows[:, -1], side="right")
            obs["language"] = [sentences[episode] for episode in of_row]
        return obs

    def _state(self, name: str, rows: np.ndarray) -> np.ndarray:
        parts = [self.stores[name].read(stored, rows).reshape(len(rows), -1) for stored in self._states[name]]
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)

    def _actions(self, name: str, rows: np.ndarray) -> np.ndarray:
        values = self.stores[name].read(self._action_keys[name], rows)
        return values.reshape(len(rows), -1).astype(np.float32, copy=False)

    def _cloud(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(N, P, C) float32: xyz, then what point_channels asks for."""
        parts, store = self._clouds[name], self.stores[name]
        return compose_cloud(
            store.read(parts["pos"], rows),
            color=store.read(parts["color"], rows) if "color" in parts and self.point_channels >= 6 else None,
            segmentation=store.read(parts["seg"], rows) if "seg" in parts and self.point_channels == 5 else None,
            channels=self.point_channels,
            num_points=self.num_points,
        )

    def _sentences(self, name: str) -> list[str]:
        texts = self.stores[name].attrs.get("descriptions")
        return [str(text) for text in texts] if texts is not None else [name] * len(self.stores[name].episode_ends)

    # ---------------------------------------------------------------- what is there

    def _find(self, name: str, candidates: list[str], option: str) -> str:
        have = self.stores[name].keys()
        for candidate in candidates:
            if candidate in have:
                return candidate
        raise UserError(f"dataset.{option}: {self.stores[name].path} has no {candidates[0]}; it has {', '.join(have)}.")

    def _cloud_keys(self, name: str) -> dict[str, str]:
        have = [stored for stored in self.stores[name].keys() if stored.removeprefix("obs/") not in self._ignored]  # noqa: SIM118
        names = {
            "pos": ("obs/pointcloud/pos", "point_cloud"),
            "color": ("obs/pointcloud/colors", "obs/pointcloud/color"),
            "seg": ("obs/pointcloud/seg",),
        }
        return {part: stored for part, options in names.items() for stored in options if stored in have}

    def _camera_keys(self, name: str, kind: str) -> dict[str, str]:
        folder, alone = {"rgb": ("obs/images/", "img"), "depth": ("obs/depths/", "depth")}[kind]
        have = [stored for stored in self.stores[name].keys() if stored.removeprefix("obs/") not in self._ignored]  # noqa: SIM118
        found = {stored.removeprefix(folder): stored for stored in have if stored.startswith(folder)}
        return found or ({"camera": alone} if alone in have else {})

    def _has(self, name: str, modality: str) -> bool:
        if modality == "pointcloud":
            return "pos" in self._clouds[name]
        if modality in ("rgb", "depth"):
            return bool(self._cameras[modality][name])
        return modality == "language" or bool(self._states[name])

    def _choose(self, asked: Sequence[str] | None) -> list[str]:
        if asked is None:
            return [modality for modality in MODALITIES if all(self._has(name, modality) for name in self.domains)]
        for modality in asked:
            for name in self.domains:
                if not self._has(name, modality):
                    raise UserError(
                        f"{self.stores[name].path} has no {modality}; it has {', '.join(self.stores[name].keys())}."
                    )
        self._check_channels(asked)
        return list(asked)

    def _check_channels(self, asked: Sequence[str]) -> None:
        if "pointcloud" not in asked:
            return
        for name in self.domains:
            parts, channels = self._clouds[name], self.point_channels
            packed = self.stores[name].shape(parts["pos"])[-1] >= 6
            if channels >= 6 and "color" not in parts and not packed:
                raise UserError(
                    f"dataset.point_channels={channels} needs colours, {self.stores[name].path} has none. Collect with use_color=true, or set dataset.point_channels=3."
                )
            if channels == 5 and "seg" not in parts:
                raise UserError(
                    f"dataset.point_channels=5 needs a segmentation, {self.stores[name].path} has none. Set dataset.point_channels=3 or 4."
                )
            stored = self.stores[name].shape(parts["pos"])[1]
            if stored < self.num_points:
                raise UserError(
                    f"dataset.num_points={self.num_points}: {self.stores[name].path} has clouds of {stored} points. Set dataset.num_points={stored}."
                )

    def _windows_of(self, name: str, *, pad_before: int | None, pad_after: int | None) -> Windows:
        steps, firsts, lasts = [], [], []
        for episode in self.episodes[name]:
            first, last = self._bounds(name, episode)
            before = self.observation_horizon - 1
            after = self.action_horizon - 1 - (before if self.hist_action_cond else 0)
            skip_head = 0 if pad_before is None else max(0, before - pad_before)
            skip_tail = 0 if pad_after is None else max(0, after - pad_after)
            rows = np.arange(first + skip_head, last + 1 - skip_tail)
            steps.append(rows)
            firsts.append(np.full(len(rows), first))
            lasts.append(np.full(len(rows), last))
        return Windows(*(np.concatenate(part) for part in (steps, firsts, lasts)))

    def _bounds(self, name: str, episode: int) -> tuple[int, int]:
        ends = self.stores[name].episode_ends
        return int(ends[episode - 1]) if episode else 0, int(ends[episode]) - 1

    def _state_dim(self, name: str) -> int:
        return sum(int(np.prod(self.stores[name].shape(stored)[1:])) for stored in self._states[name])

    def _action_dim(self, name: str) -> int:
        return int(np.prod(self.stores[name].shape(self._action_keys[name])[1:]))


def load_dataset(cfg: DictConfig, *, split: str = "train", modalities: Sequence[str] | None = None) -> MultiTrajDataset:
    """The dataset a configuration names.

    Args:
        split: "train" or "val".
        modalities: what to read; None = everything that is there.
    Raises:
        UserError: see MultiTrajDataset.
    """
    return MultiTrajDataset(
        cfg.dataset_path, cfg.domains, split=split, seed=cfg.seed, modalities=modalities, **cfg.dataset
    )


def compose_cloud(
    position: np.ndarray,
    *,
    channels: int,
    num_points: int,
    color: np.ndarray | None = None,
    segmentation: np.ndarray | None = None,
) -> np.ndarray:
    """(..., num_points, channels) float32: xyz, then colour in [0, 1], segmentation and height as `channels` asks.

    Args:
        position: (..., P, 3) metres, or (..., P, 6) with the colour behind.
        color: (..., P, 3) uint8 or [0, 1]; None takes the columns behind the position.
        segmentation: (..., P) or (..., P, 1).
    """
    xyz, columns = position[..., :3].astype(np.float32, copy=False), []
    if channels >= 6:
        color = position[..., 3:6] if color is None else color
        columns.append(color.astype(np.float32) / 255 if color.dtype == np.uint8 else color.astype(np.float32))
    if channels == 5 and segmentation is not None:
        columns.append(segmentation.astype(np.float32).reshape(*xyz.shape[:-1], 1))
    if channels in (4, 5, 7):
        columns.append(xyz[..., 2:3])
    cloud = np.concatenate([xyz, *columns], axis=-1) if columns else xyz
    if cloud.shape[-2] > num_points:
        cloud = cloud[..., np.linspace(0, cloud.shape[-2] - 1, num_points).round().astype(int), :]
    return np.ascontiguousarray(cloud)


def _split_episodes(
    store: EpisodeStore, name: str, *, split: str, seed: int, val_ratio: float, cnt: int | None, ratio: float
) -> np.ndarray:
    total = len(store.episode_ends)
    used = np.arange(total if cnt is None else min(cnt, total))
    order = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if ratio < 1:
        used = np.sort(order.permutation(used)[: max(1, round(len(used) * ratio))])
    held = max(1, round(len(used) * val_ratio)) if val_ratio > 0 else 0
    if held >= len(used) and held:
        raise UserError(
            f"{store.path}: {len(used)} episode(s) and dataset.val_ratio={val_ratio} leave none to train on. Set dataset.val_ratio=0."
        )
    shuffled = order.permutation(used)
    chosen = shuffled[:held] if split == "val" else shuffled[held:]
    if not len(chosen):
        raise UserError(
            f"{store.path}: the {split} split is empty with dataset.val_ratio={val_ratio}. Set dataset.val_ratio above 0."
        )
    return np.sort(chosen)


def _image(image: np.ndarray, kind: str) -> np.ndarray:
    if kind == "depth":
        image = image.astype(np.float32, copy=False)
        return image if image.ndim == 4 else image[..., None]
    return image


def _widen(values: np.ndarray, width: int) -> np.ndarray:
    if values.shape[-1] == width:
        return values
    out = np.zeros((*values.shape[:-1], width), values.dtype)
    out[..., : values.shape[-1]] = values
    return out


def _scatter(out: dict, part: dict, rows: np.ndarray, total: int) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            _scatter(out.setdefault(name, {}), value, rows, total)
        elif isinstance(value, list):
            target = out.setdefault(name, [""] * total)
            for row, item in zip(rows, value):
                target[row] = item
        else:
            if name not in out:
                out[name] = np.zeros((total, *value.shape[1:]), value.dtype)
            out[name][rows] = value


def _map(tree: Any, change: Any) -> Any:
    return {name: _map(value, change) for name, value in tree.items()} if isinstance(tree, dict) else change(tree)


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
