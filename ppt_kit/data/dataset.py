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

import difflib
import inspect
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from ppt_kit.checks import domain_names
from ppt_kit.data.clouds import cloud_column, compose_cloud
from ppt_kit.data.disk.rows import spread
from ppt_kit.data.formats import attach_cache, cache_folder, find_domain, name_of, open_store
from ppt_kit.data.store import EpisodeStore, check_finite, decoded_part, metres
from ppt_kit.errors import UserError

MODALITIES = ("state", "pointcloud", "rgb", "depth", "language")
WHERE_FROM = {
    "pointcloud": "The PPT policy sees clouds: they are stored as obs/pointcloud/pos (N, P, 3) in metres, or made from obs/depths/<camera> "
    "where that camera's intrinsics and extrinsics are stored.",
    "state": "Type dataset.state_keys=null for every observation that is numbers.",
}
DEFAULT_POINTS = 512  # of clouds that are made from depth, when no number is asked for


@dataclass(frozen=True)
class Windows:
    """Rows of one domain's windows: (W,) each."""

    steps: np.ndarray  # row of step t
    first: np.ndarray  # first row of the episode
    last: np.ndarray  # last row of the episode


class MultiTrajDataset:
    """Windows of several domains, gathered a batch at a time.

    Args:
        dataset_path: folder that holds <domain>.zarr, or <domain> in another format; None when `stores` is given.
        domains: "a,b", a list, or a mapping of name to weight.
        split: "train" or "val"; episodes are divided, never windows.
        seed: which episodes are held out.
        stores: domain -> opened episodes, instead of files under dataset_path.
        modalities: which of MODALITIES to read; None = all there are.
    The other arguments are the keys of `dataset` in the configuration.
    Attributes:
        layouts: domain -> {"state" | "action": {key: (first, last + 1)}}, where each key's numbers stand.
        shapes: domain -> {"state": Ds, "action": Da}.
    Raises:
        UserError: a domain or key is missing, domains do not fit together, or a split is empty.
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
        state_keys: Sequence[str] | None = ("eef_pos", "normalized_gripper_pos"),
        action_key: str | None = "actions",
        ignored_keys: Sequence[str] = (),
        point_channels: int | None = 3,
        num_points: int | None = 512,
        crop_box: Sequence[float] | None = None,
        filter_key: str | None = None,
        cache_dir: str | Path | None = None,
        cache_gb: float = 20.0,
        stores: Mapping[str, EpisodeStore] | None = None,
        modalities: Sequence[str] | None = None,
    ):
        if split not in ("train", "val"):
            raise UserError(f"split={split!r}: takes train or val.")
        opening: dict[str, Any] = {"filter_key": filter_key, "cache_dir": cache_dir, "cache_gb": cache_gb}
        self.domains = list(stores) if stores is not None else domain_names(domains)
        self.stores = (
            dict(stores)
            if stores is not None
            else {name: open_store(find_domain(dataset_path or ".", name), **opening) for name in self.domains}
        )
        self.split, self.observation_horizon, self.action_horizon = split, observation_horizon, action_horizon
        self.hist_action_cond, self._ignored = hist_action_cond, set(ignored_keys)
        self._check_ignored()
        self._action_keys = {name: self._actions_of(name, action_key) for name in self.domains}
        self._states = {name: self._states_of(name, state_keys) for name in self.domains}
        self._cameras = {
            kind: {name: self._cameras_of(name, kind) for name in self.domains} for kind in ("rgb", "depth")
        }
        self._clouds = {name: self._cloud_parts(name) for name in self.domains}
        self._color_ranges: dict[str, float] = {}
        self.point_channels = self._point_channels(point_channels)
        self.num_points = num_points or min(self._stored_points(name) for name in self.domains)
        wanted = modalities is None or "pointcloud" in modalities
        for name in self.domains if wanted else ():
            self._cloud_from_depth(name, crop_box=crop_box, cache_dir=cache_dir, cache_gb=cache_gb)
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
        for name, size in zip(self.domains, sizes):
            if not size:
                raise UserError(
                    f"the {split} split of {name} has no window: every episode is shorter than dataset.pad_before and pad_after allow."
                )
        self.layouts = {
            name: {
                "state": self._layout(name, self._states[name]),
                "action": self._layout(name, self._action_keys[name]),
            }
            for name in self.domains
        }
        self.shapes = {
            name: {kind: _width(layout) for kind, layout in self.layouts[name].items()} for name in self.domains
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
        if not len(chosen):
            raise IndexError("a batch needs one window at least")
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise IndexError(f"window {indices} of a dataset with {len(self)}")
        domain = np.searchsorted(self._offsets, chosen, side="right") - 1
        if len(self.domains) == 1:
            batch = self._gather(self.domains[0], chosen)
        else:
            batch = self._gather_mixed(chosen, domain)
        batch["domain"], batch["index"] = domain.astype(np.int64), chosen
        return _map(batch, _tensor)

    def episode(
        self, index: int, *, steps: Sequence[int] | None = None, modalities: Sequence[str] | None = None
    ) -> dict:
        """One episode of this split, keys nested as in a batch: "action" (T, Da), "obs" -> "state" (T, Ds), …

        Args:
            steps: which of its steps, negative ones from its end; None = all T.
            modalities: which of the dataset's; None = all. Images of a long episode fill the memory.
        Raises:
            IndexError: there are fewer episodes, or the episode has fewer steps.
        """
        name, number = self.find_episode(index)
        first, end = self.stores[name].bounds(number)
        rows = np.arange(first, end) if steps is None else np.arange(first, end)[np.asarray(steps)]
        kinds = self.modalities if modalities is None else [kind for kind in self.modalities if kind in modalities]
        return {
            "obs": self._observations(name, rows[:, None], kinds=kinds, squeeze=True),
            "action": self._actions(name, rows), "domain": name, "episode": number,
        }  # fmt: skip

    def find_episode(self, index: int) -> tuple[str, int]:
        """(domain, its number in the domain's dataset) of an episode of this split.

        Raises:
            IndexError: there are fewer.
        """
        number = index + self.num_episodes if index < 0 else index
        for name in self.domains:
            if 0 <= number < len(self.episodes[name]):
                return name, int(self.episodes[name][number])
            number -= len(self.episodes[name])
        raise IndexError(f"episode {index} of a {self.split} split with {self.num_episodes}")

    def read_columns(self, name: str) -> dict[str, list[str]]:
        """{modality or "action": stored columns} that the batches of one domain are read from."""
        read = {"action": self._action_keys[name], "state": self._states[name], "pointcloud": self._cloud_columns(name)}
        read |= {kind: list(self._cameras[kind][name].values()) for kind in ("rgb", "depth")}
        return {
            kind: columns for kind, columns in read.items() if columns and (kind in self.modalities or kind == "action")
        }

    def has_to_decode(self) -> bool:
        """Whether batches need rows that do not lie on disk as plain bytes."""
        columns = [
            self.stores[name].columns[key]
            for name in self.domains
            for keys in self.read_columns(name).values()
            for key in keys
        ]
        return any(decoded_part(column) for column in columns)

    def window_rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{domain: ((M, To) rows of the observations, (M, Ta) rows of the actions)} that the windows `indices` read."""
        chosen = np.asarray(indices, dtype=np.int64)
        domain = np.searchsorted(self._offsets, chosen, side="right") - 1
        found = {}
        for number, name in enumerate(self.domains):
            if (domain == number).any():
                seen, acted, low, high = self._rows_of(name, chosen[domain == number])
                found[name] = np.clip(seen, low, high), np.clip(acted, low, high)
        return found

    def not_finite(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """What is no number in the data that the windows `indices` read: a line a column, with file, episode and row."""
        found = []
        for name, (seen, acted) in self.window_rows(indices).items():
            for kind, columns in self.read_columns(name).items():
                rows = np.unique(acted if kind == "action" else seen)
                for column in columns:
                    try:
                        check_finite(self.stores[name], column, rows, self.stores[name].read(column, rows))
                    except UserError as error:
                        found.append(str(error))
        return found

    @property
    def num_episodes(self) -> int:
        """Episodes in this split, over all domains."""
        return sum(map(len, self.episodes.values()))

    def domain_sizes(self) -> dict[str, int]:
        """Windows of each domain."""
        return {name: len(windows.steps) for name, windows in self._windows.items()}

    def rows(self, name: str) -> np.ndarray:
        """(N,) rows of one domain's episodes in this split, in order."""
        return np.concatenate([np.arange(*self.stores[name].bounds(episode)) for episode in self.episodes[name]])

    def values(self, name: str, kind: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), D) float32 of `kind` "state" or "action" of one domain, not padded."""
        return self._actions(name, rows) if kind == "action" else self._state(name, rows)

    def sentences(self, name: str) -> list[str]:
        """What each episode of one domain's dataset shows, in words; the domain's name where nothing was written down."""
        store = self.stores[name]
        return store.sentences or [name] * len(store.episode_ends)

    def columns_of(self, name: str, kind: str) -> list[str]:
        """Stored columns that make up `kind` "state" or "action" of one domain, in order."""
        return list(self._action_keys[name] if kind == "action" else self._states[name])

    def describe_source(self, name: str) -> dict:
        """What a policy trained on one domain has to be shown, and what was recorded: simulator, task, seeds of the demonstrations."""
        attrs = self.stores[name].attrs
        return {
            "env": attrs.get("env"), "seeds": attrs.get("seeds", []), "state_keys": list(self.layouts[name]["state"]),
            "point_channels": self.point_channels, "num_points": self.num_points,
        }  # fmt: skip

    # ---------------------------------------------------------------- gathering

    def _gather_mixed(self, chosen: np.ndarray, domain: np.ndarray) -> dict:
        out: dict = {}
        for number, name in enumerate(self.domains):
            mine = np.flatnonzero(domain == number)
            if len(mine):
                _scatter(out, self._gather(name, chosen[mine]), mine, len(chosen))
        return out

    def _gather(self, name: str, chosen: np.ndarray) -> dict:
        seen, acted, low, high = self._rows_of(name, chosen)
        actions = self._actions(name, np.clip(acted, low, high).ravel())
        return {
            "obs": self._observations(name, np.clip(seen, low, high), kinds=self.modalities),
            "action": _widen(actions.reshape(*acted.shape, -1), self._widest("action")),
            "action_is_pad": (acted < low) | (acted > high),
        }

    def _rows_of(self, name: str, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows (M, To) seen and (M, Ta) acted, which may lie beyond the episode's first and last (M, 1)."""
        windows = self._windows[name]
        local = chosen - self._offsets[self.domains.index(name)]
        step, first, last = windows.steps[local], windows.first[local], windows.last[local]
        seen = step[:, None] + np.arange(1 - self.observation_horizon, 1)
        start = step - (self.observation_horizon - 1 if self.hist_action_cond else 0)
        return seen, start[:, None] + np.arange(self.action_horizon), first[:, None], last[:, None]

    def _observations(self, name: str, rows: np.ndarray, *, kinds: Sequence[str], squeeze: bool = False) -> dict:
        """obs of `rows` (B, To); with `squeeze`, of (T, 1) rows without the second axis."""
        shape = rows.shape[:1] if squeeze else rows.shape
        flat = rows.ravel()
        obs: dict = {}
        if "state" in kinds:
            state = self._state(name, flat)
            wide = state.shape[1] if squeeze else self._widest("state")
            obs["state"] = _widen(state, wide).reshape(*shape, wide)
        if "pointcloud" in kinds:
            cloud = self._cloud(name, flat)
            obs["pointcloud"] = cloud.reshape(*shape, *cloud.shape[1:])
        for kind in ("rgb", "depth"):
            if kind in kinds:
                obs[kind] = {}
                for camera, stored in self._cameras[kind][name].items():
                    images = self.stores[name].read(stored, flat)
                    images = metres(images) if kind == "depth" else images
                    obs[kind][camera] = images.reshape(*shape, *images.shape[1:])
        if "language" in kinds:
            sentences = self.sentences(name)
            of_row = np.searchsorted(self.stores[name].episode_ends, rows[:, -1], side="right")
            obs["language"] = [sentences[episode] for episode in of_row]
        return obs

    def _state(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._numbers(name, self._states[name], rows)

    def _actions(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._numbers(name, self._action_keys[name], rows)

    def _numbers(self, name: str, keys: list[str], rows: np.ndarray) -> np.ndarray:
        """(len(rows), D) float32 of columns one after the other."""
        parts = [self.stores[name].read(stored, rows).reshape(len(rows), -1) for stored in keys]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1) if parts else np.zeros((len(rows), 0))
        return joined.astype(np.float32, copy=False)

    def _cloud(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(N, P, C) float32: xyz, then what point_channels asks for."""
        folder = "obs/pointcloud/"
        read = {key.removeprefix(folder): self.stores[name].read(key, rows) for key in self._cloud_columns(name)}
        return compose_cloud(
            read["pos"], color=read.get("colors"), segmentation=read.get("seg"), channels=self.point_channels,
            num_points=self.num_points, color_range=self._color_range(name),
        )  # fmt: skip

    def _color_range(self, name: str) -> float:
        """What a domain's float colours go to, 1 or 255: decided once, by 16 of its clouds."""
        if name not in self._color_ranges:
            parts, store = self._clouds[name], self.stores[name]
            colors = store.columns[parts.get("colors", parts["pos"])]
            known = store.attrs.get("float_colors_go_to")
            if known is None and self.point_channels >= 6 and colors.dtype.kind == "f":
                known = 255.0 if np.nanmax(colors.read(spread(16, colors.shape[0]))[..., -3:], initial=0) > 1.5 else 1.0
            self._color_ranges[name] = known or 1.0
        return self._color_ranges[name]

    def _cloud_columns(self, name: str) -> list[str]:
        """Stored columns that a cloud of point_channels needs."""
        wanted = ["pos"] + ["colors"] * (self.point_channels >= 6) + ["seg"] * (self.point_channels == 5)
        return [self._clouds[name][part] for part in wanted if part in self._clouds[name]]

    # ---------------------------------------------------------------- what is there

    def _readable(self, name: str) -> list[str]:
        """Columns of one domain that are not ignored."""
        store = self.stores[name]
        return [key for key in store.columns if not any(self._means(name, text, key) for text in self._ignored)]

    def _means(self, name: str, text: str, key: str) -> bool:
        """Whether a user's word means a column: its name here, the dataset's own, a group's, or a modality's."""
        short = key.removeprefix("obs/")
        group = {"rgb": "images", "depth": "depths"}.get(text, text)
        return text in (key, short, self.stores[name].columns[key].stored_as) or f"{short}/".startswith(f"{group}/")

    def _check_ignored(self) -> None:
        for text in self._ignored:
            if not any(self._means(name, text, key) for name in self.domains for key in self.stores[name].columns):
                have = sorted({key.removeprefix("obs/") for store in self.stores.values() for key in store.columns})
                near = difflib.get_close_matches(text, have, 1)
                raise UserError(
                    f"dataset.ignored_keys: no domain has {text}; there is {', '.join(have)}."
                    + (f" Did you mean {near[0]}?" if near else "")
                )

    def _find(self, name: str, asked: str, option: str) -> str:
        """The column that a user's word means: its name here, without obs/, or the dataset's own."""
        store = self.stores[name]
        own = {column.stored_as: key for key, column in store.columns.items()}
        own |= {stored.split("/", 1)[-1]: key for stored, key in own.items()}
        for candidate in (f"obs/{asked}", asked, own.get(asked, "")):
            if candidate in store.columns:
                return candidate
        remedy = f"Type dataset.{option}=<one of them>."
        if option == "state_keys":
            numbers = ",".join(key.removeprefix("obs/") for key in self._states_of(name, None))
            remedy = (
                f"Type dataset.state_keys=[{numbers}], or those of them that the policy is to see; null takes them all."
            )
        raise UserError(f"dataset.{option}: {store.path} has no {asked}; it has {', '.join(store.columns)}. {remedy}")

    def _actions_of(self, name: str, asked: str | None) -> list[str]:
        """Columns of the action: the one asked for, or every part below it."""
        store, wanted = self.stores[name], asked or "actions"
        parts = [key for key in store.columns if key.startswith(f"{wanted}/")]
        if wanted not in store.columns and parts:
            return parts
        if asked is None and wanted not in store.columns:
            raise UserError(
                f"{store.path} has no action; it has {', '.join(store.columns)}. Say which it is with action_key=…."
            )
        return [self._find(name, wanted, "action_key")]

    def _states_of(self, name: str, asked: Sequence[str] | None) -> list[str]:
        """Columns of obs.state, in order: those asked for, or every observation that is a number or a vector."""
        if asked is not None:
            return [self._find(name, key, "state_keys") for key in asked]
        store, pictures = self.stores[name], ("obs/images/", "obs/depths/", "obs/pointcloud/")
        return [
            key for key in self._readable(name)
            if key.startswith("obs/") and not key.startswith(pictures) and len(store.shape(key)) <= 2 and store.dtype(key).kind in "biuf"
        ]  # fmt: skip

    def _cameras_of(self, name: str, kind: str) -> dict[str, str]:
        folder = {"rgb": "obs/images/", "depth": "obs/depths/"}[kind]
        return {key.removeprefix(folder): key for key in self._readable(name) if key.startswith(folder)}

    def _cloud_parts(self, name: str) -> dict[str, str]:
        folder = "obs/pointcloud/"
        return {key.removeprefix(folder): key for key in self._readable(name) if key.startswith(folder)}

    def _seen_in_depth(self, name: str) -> list[str]:
        """Cameras that a cloud can be made from."""
        return [camera for camera in self._cameras["depth"][name] if camera in self.stores[name].cameras]

    def _stored_points(self, name: str) -> int:
        parts = self._clouds[name]
        return self.stores[name].shape(parts["pos"])[1] if "pos" in parts else DEFAULT_POINTS

    def _has_color(self, name: str) -> bool:
        parts = self._clouds[name]
        if "pos" in parts:
            return "colors" in parts or self.stores[name].shape(parts["pos"])[-1] >= 6
        cameras = self._seen_in_depth(name)
        return bool(cameras) and all(self._same_size(name, camera) for camera in cameras)

    def _same_size(self, name: str, camera: str) -> bool:
        """Whether a camera has colour images of its depth's size."""
        store, rgb = self.stores[name], self._cameras["rgb"][name].get(camera)
        return rgb is not None and store.shape(rgb)[1:3] == store.shape(self._cameras["depth"][name][camera])[1:3]

    def _point_channels(self, asked: int | None) -> int:
        return asked or (6 if all(self._has_color(name) for name in self.domains) else 3)

    def _cloud_from_depth(
        self, name: str, *, crop_box: Sequence[float] | None, cache_dir: str | Path | None, cache_gb: float
    ) -> None:
        """Adds the cloud that the store has not, where its depth and cameras give one."""
        store, cameras = self.stores[name], self._seen_in_depth(name)
        if "pos" in self._clouds[name] or not cameras:
            return
        box = None if crop_box is None else np.asarray(crop_box, dtype=np.float64).reshape(2, 3)
        colored = self.point_channels >= 6 and self._has_color(name)
        column = cloud_column(store, cameras, num_points=self.num_points, with_color=colored, crop_box=box)
        if cache_gb > 0:
            folder = cache_folder(store.path, cache_dir=cache_dir, cache_gb=cache_gb)
            attach_cache(store, {f"cloud {crop_box}": column}, folder=folder)
        columns = {**store.columns, "obs/pointcloud/pos": column}
        self.stores[name] = replace(store, columns=columns, attrs={**store.attrs, "float_colors_go_to": 1.0})
        self._clouds[name] = {"pos": "obs/pointcloud/pos"}

    def _has(self, name: str, modality: str) -> bool:
        if modality == "pointcloud":
            return "pos" in self._clouds[name]
        if modality in ("rgb", "depth"):
            return bool(self._cameras[modality][name])
        return modality == "language" or bool(self._states[name])

    def _choose(self, asked: Sequence[str] | None) -> list[str]:
        """What is read; domains that share a batch must have the same.

        Raises:
            UserError: one of them lacks a modality or a camera.
        """
        chosen = (
            list(asked) if asked is not None else [m for m in MODALITIES if any(self._has(d, m) for d in self.domains)]
        )
        for modality in chosen:
            for name in self.domains:
                if not self._has(name, modality):
                    others = [other for other in self.domains if self._has(other, modality)]
                    remedy = (
                        f"{', '.join(others)} has it: leave it out there with dataset.ignored_keys=[{modality}], or modalities=[…]."
                        if others
                        else WHERE_FROM.get(modality, "")
                    )
                    raise UserError(
                        f"{self.stores[name].path} has no {modality}; it has {', '.join(self.stores[name].columns)}. {remedy}"
                    )
        for kind in {"rgb", "depth"} & set(chosen):
            cameras = {name: sorted(self._cameras[kind][name]) for name in self.domains}
            first = cameras[self.domains[0]]
            for name in self.domains:
                if cameras[name] != first:
                    raise UserError(
                        f"{self.stores[name].path} has the {kind} cameras {', '.join(cameras[name])}, {self.stores[self.domains[0]].path} has "
                        f"{', '.join(first)}: one batch cannot hold both. Leave some out with dataset.ignored_keys=[…]."
                    )
                for camera in first:
                    sizes = {
                        d: self.stores[d].shape(self._cameras[kind][d][camera])[1:3] for d in (self.domains[0], name)
                    }
                    if len(set(sizes.values())) > 1:
                        told = ", ".join(
                            f"{self.stores[d].path} has {height}x{width}" for d, (height, width) in sizes.items()
                        )
                        raise UserError(
                            f"{kind} camera {camera}: {told} pixels: one batch cannot hold both. Resize one dataset, or leave the camera out "
                            f"with dataset.ignored_keys=[{self._cameras[kind][name][camera].removeprefix('obs/')}]."
                        )
        self._check_clouds(chosen)
        return chosen

    def _check_clouds(self, asked: Sequence[str]) -> None:
        if "pointcloud" not in asked:
            return
        for name in self.domains:
            parts, channels = self._clouds[name], self.point_channels
            if channels >= 6 and not self._has_color(name):
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
            first, end = self.stores[name].bounds(episode)
            before = self.observation_horizon - 1
            after = self.action_horizon - 1 - (before if self.hist_action_cond else 0)
            skip_head = 0 if pad_before is None else max(0, before - pad_before)
            skip_tail = 0 if pad_after is None else max(0, after - pad_after)
            rows = np.arange(first + skip_head, end - skip_tail)
            steps.append(rows)
            firsts.append(np.full(len(rows), first))
            lasts.append(np.full(len(rows), end - 1))
        return Windows(*(np.concatenate(part) for part in (steps, firsts, lasts)))

    def _layout(self, name: str, keys: list[str]) -> dict[str, tuple[int, int]]:
        widths = [int(np.prod(self.stores[name].shape(key)[1:], dtype=np.int64)) for key in keys]
        ends = np.cumsum(widths).tolist()
        return {key.removeprefix("obs/"): (end - width, end) for key, width, end in zip(keys, widths, ends)}

    def _widest(self, kind: str) -> int:
        return max(shape[kind] for shape in self.shapes.values())


def open_dataset(path: str | Path | Mapping[str, str | Path], **options: Any) -> MultiTrajDataset:
    """A dataset in any format that ppt_kit knows, read in place, with everything that is in it.

    Args:
        path: file or folder; or several, as a mapping of names to paths.
        options: the keys of `dataset` in the configuration; state_keys, action_key, point_channels and num_points take
            what there is unless they are given.
    Raises:
        UserError: nothing is there, no format recognises it, or it is damaged.
    """
    paths = path if isinstance(path, Mapping) else {name_of(Path(path).expanduser()): path}
    known = inspect.signature(MultiTrajDataset).parameters
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            raise UserError(f"open_dataset: unknown option {option}." + (f" Did you mean {near[0]}?" if near else ""))
    opening = {name: options[name] for name in ("filter_key", "cache_dir", "cache_gb") if name in options}
    stores = {name: open_store(where, **opening) for name, where in paths.items()}
    everything: dict[str, Any] = {"state_keys": None, "action_key": None, "point_channels": None, "num_points": None}
    return MultiTrajDataset(None, None, stores=stores, **{**everything, **options})


def load_dataset(
    cfg: DictConfig,
    *,
    split: str = "train",
    modalities: Sequence[str] | None = None,
    stores: Mapping[str, EpisodeStore] | None = None,
) -> MultiTrajDataset:
    """The dataset a configuration names.

    Args:
        split: "train" or "val".
        modalities: what to read; None = everything that is there.
        stores: what the other split has opened already.
    Raises:
        UserError: see MultiTrajDataset.
    """
    return MultiTrajDataset(
        cfg.dataset_path, cfg.domains, split=split, seed=cfg.seed, modalities=modalities, stores=stores, **cfg.dataset
    )


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


def _width(layout: Mapping[str, tuple[int, int]]) -> int:
    return max((end for _, end in layout.values()), default=0)


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
