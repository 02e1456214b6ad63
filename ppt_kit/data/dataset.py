"""Windows over episodes. The contract that everything downstream is built on:

batch = {
    "obs": {
        "state":      (B, To, Ds) float32   the state keys concatenated, in the dataset's units,
        "pointcloud": (B, To, P, C) float32 metres; C as dataset.point_channels says, colours in [0, 1],
        "rgb":   {camera: (B, To, H, W, 3) uint8},
        "depth": {camera: (B, To, H, W, 1) float32 metres},
        "language": [B sentences],
        "encoded": {modality: {camera: (B, To, …) float16}}   in the place of a modality: what an encoder made of it,
    },
    "action":        (B, Ta, Da) float32    in the dataset's units,
    "action_is_pad": (B, Ta) bool           true where the episode's edge was repeated: the loss leaves these out,
    "domain":        (B,) int64             position in `dataset.domains`,
    "index":         (B,) int64             the window's number in the dataset,
}

A window starts at every step t of every episode; obs = steps t-To+1..t, action = steps t..t+Ta-1 (from t-To+1 with
hist_action_cond); beyond an edge the first or last frame is repeated. Domains of different sizes are padded with zeros
to the widest, and a camera that one domain lacks is zero in its rows; `dataset.specs` has each one's own sizes.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from ppt_kit.checks import domain_names
from ppt_kit.config import typed
from ppt_kit.data.compatible import compatible_domains, shared_modalities
from ppt_kit.data.features import Features
from ppt_kit.data.formats import find_domain, name_of, open_store
from ppt_kit.data.formats.wanted import Wanted
from ppt_kit.data.store import EpisodeStore, check_finite
from ppt_kit.data.windows import Rows, split_episodes, windows_of
from ppt_kit.errors import UserError
from ppt_kit.files import path_of
from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import MODALITIES
from ppt_kit.schema import Config, DatasetConfig

KINDS = ("state", "action")
# options of open_dataset that are not keys of `dataset`
BESIDE = ("split", "seed", "modalities")


class MultiTrajDataset:
    """Windows of several domains, gathered a batch at a time.

    Args:
        stores: domain -> its opened episodes.
        options: `dataset` of a configuration.
        split: "train" or "val"; episodes are divided, never windows.
        seed: which episodes are held out.
        modalities: which of spec.MODALITIES to read; None = all there are.
        on_nan: "stop" refuses a value that is not finite, "skip" gives it and says so once a column.
    Attributes:
        domains: name -> Domain, in the order that a batch's "domain" counts.
        specs: name -> Spec of what the batches hold of it.
        modalities: those that are read.
        horizon: To and Ta.
        features: modality -> what a frozen encoder made of it, which batches hold in its place; {} unless it is set.
    Raises:
        UserError: a key is missing, domains do not fit together, or a split is empty.
    """

    def __init__(
        self,
        stores: Mapping[str, EpisodeStore],
        options: DatasetConfig | None = None,
        *,
        split: str = "train",
        seed: int = 0,
        modalities: Sequence[str] | None = None,
        on_nan: str = "stop",
    ):
        self.options = options or DatasetConfig()
        self.horizon, self._seed = Horizon.of(self.options), seed
        self.domains = compatible_domains(stores, self.options, modalities=modalities)
        for domain in self.domains.values():
            domain.on_nan = on_nan
        self.specs = {name: domain.spec for name, domain in self.domains.items()}
        first = next(iter(self.specs.values()))
        self.modalities = list(modalities) if modalities is not None else list(first.modalities)
        self.features: dict[str, Features] = {}
        self._names = list(self.domains)
        self._widest = {kind: max(getattr(spec, f"{kind}_dim") for spec in self.specs.values()) for kind in KINDS}
        self._take_split(split)

    def other_split(self, split: str) -> MultiTrajDataset:
        """The "train" or "val" episodes of the same data, through the same views."""
        other = copy.copy(self)
        other._take_split(split)
        return other

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __repr__(self) -> str:
        lines = [
            f"  {name}: {len(self.episodes[name])} of {len(domain.store.episode_ends)} episodes ({self.split}), "
            f"{', '.join(self.specs[name].modalities)}, action {self.specs[name].action_dim}"
            for name, domain in self.domains.items()
        ]
        return "\n".join([f"{len(self)} windows, To={self.horizon.observation}, Ta={self.horizon.action}", *lines])

    def __getitem__(self, index: int) -> dict:
        """One window: the contract without the leading B."""
        return _map(self.__getitems__([index]), lambda value: value[0])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict:
        """A batch as the contract says, as torch tensors.

        Args:
            indices: (B,) window numbers, any order, repeats allowed.
        Raises:
            IndexError: one lies outside the dataset.
            UserError: a value is not finite, or cannot be decoded; the line names file, column, episode and row.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if not len(chosen):
            raise IndexError("a batch needs one window at least")
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise IndexError(f"window {indices} of a dataset with {len(self)}")
        parts = self._by_domain(chosen)
        if len(parts) == 1:
            ((name, _, rows),) = parts
            batch = self._gather(name, rows)
        else:
            batch = {}
            for name, mine, rows in parts:
                _scatter(batch, self._gather(name, rows), mine, len(chosen))
        batch["domain"], batch["index"] = self._domain_of(chosen), chosen
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
        domain = self.domains[name]
        first, end = domain.store.bounds(number)
        rows = np.arange(first, end) if steps is None else np.arange(first, end)[np.asarray(steps)]
        kinds = self.modalities if modalities is None else [kind for kind in self.modalities if kind in modalities]
        seen, action = domain.frames(rows, kinds=kinds), domain.values("action", rows)
        return {"obs": seen, "action": action, "domain": name, "episode": number}

    def find_episode(self, index: int) -> tuple[str, int]:
        """(domain, its number in the domain's dataset) of an episode of this split.

        Raises:
            IndexError: there are fewer.
        """
        number = index + self.num_episodes if index < 0 else index
        for name, episodes in self.episodes.items():
            if 0 <= number < len(episodes):
                return name, int(episodes[number])
            number -= len(episodes)
        raise IndexError(f"episode {index} of a {self.split} split with {self.num_episodes}")

    def has_to_decode(self) -> bool:
        """Whether batches need rows that do not lie on disk as plain bytes."""
        return any(domain.has_to_decode() for domain in self.domains.values())

    def window_rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{domain: ((M, To) rows of the observations, (M, Ta) of the actions)} that the windows `indices` read."""
        return {name: rows.inside() for name, _, rows in self._by_domain(np.asarray(indices, dtype=np.int64))}

    def not_finite(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """What is no number in the data that the windows read: a line a column, with file, episode and row."""
        found = []
        for name, (seen, acted) in self.window_rows(indices).items():
            store = self.domains[name].store
            for kind, columns in self.domains[name].columns.items():
                rows = np.unique(acted if kind == "action" else seen)
                for column in columns:
                    try:
                        check_finite(store, column, rows, store.read(column, rows))
                    except UserError as error:
                        found.append(str(error))
        return found

    @property
    def num_episodes(self) -> int:
        """Episodes in this split, over all domains."""
        return sum(map(len, self.episodes.values()))

    def domain_sizes(self) -> dict[str, int]:
        """Windows of each domain."""
        return {name: len(windows) for name, windows in self._windows.items()}

    def rows(self, name: str) -> np.ndarray:
        """(N,) rows of one domain's episodes in this split, in order."""
        store = self.domains[name].store
        return np.concatenate([np.arange(*store.bounds(episode)) for episode in self.episodes[name]])

    # ---------------------------------------------------------------- gathering

    def _take_split(self, split: str) -> None:
        if split not in ("train", "val"):
            raise UserError(f"split={split!r}: takes train or val.")
        self.split = split
        stores = {name: domain.store for name, domain in self.domains.items()}
        self.episodes = {
            name: split_episodes(store, name, self.options, split=split, seed=self._seed)
            for name, store in stores.items()
        }
        self._windows = {name: windows_of(store, self.episodes[name], self.options) for name, store in stores.items()}
        for name, windows in self._windows.items():
            if not len(windows):
                raise UserError(
                    f"the {split} split of {name} has no window: every episode is shorter than dataset.pad_before "
                    "and pad_after allow."
                )
        self._offsets = np.concatenate([[0], np.cumsum([*map(len, self._windows.values())])]).astype(np.int64)

    def _domain_of(self, chosen: np.ndarray) -> np.ndarray:
        return (np.searchsorted(self._offsets, chosen, side="right") - 1).astype(np.int64)

    def _by_domain(self, chosen: np.ndarray) -> list[tuple[str, np.ndarray, Rows]]:
        """(domain, places in `chosen`, rows of its windows) of each domain that has some."""
        domain, found = self._domain_of(chosen), []
        for number, name in enumerate(self._names):
            mine = np.flatnonzero(domain == number)
            if len(mine):
                found.append((name, mine, self._windows[name].rows(chosen[mine] - self._offsets[number])))
        return found

    def _gather(self, name: str, rows: Rows) -> dict:
        domain, (seen, acted) = self.domains[name], rows.inside()
        obs = domain.observations(seen, kinds=[kind for kind in self.modalities if kind not in self.features])
        if self.features:
            obs["encoded"] = {kind: features.of(name, seen) for kind, features in self.features.items()}
        if "state" in obs:
            obs["state"] = _widen(obs["state"], self._widest["state"])
        actions = domain.values("action", acted.ravel()).reshape(*acted.shape, -1)
        return {"obs": obs, "action": _widen(actions, self._widest["action"]), "action_is_pad": rows.action_is_pad}


def open_dataset(path: str | Path | Mapping[str, str | Path], **options: Any) -> MultiTrajDataset:
    """A dataset in any format that ppt_kit knows, read in place, with everything that is in it.

    Args:
        path: file or folder; or several, as a mapping of names to paths.
        options: the keys of `dataset` in the configuration, and split, seed, modalities; state_keys, action_key,
            point_channels and num_points take what there is, and no episode is held out, unless they are given.
    Raises:
        UserError: nothing is there, no format recognises it, or it is damaged.
    """
    if OmegaConf.is_config(path) or isinstance(path, Config):
        raise UserError("this is a configuration. Its dataset is what ppt.load_dataset(cfg) gives.")
    if not isinstance(path, Mapping):
        given = path_of(path, what="the path of a dataset, as data/door-open.zarr, or several as {domain: path}")
        path = {name_of(given, format=options.get("format")): path}
    paths = {name: path_of(each, what="the path of a dataset") for name, each in path.items()}
    known = [field.name for field in dataclasses.fields(DatasetConfig)]
    for option in options:
        if option not in (*known, *BESIDE):
            near = difflib.get_close_matches(option, [*known, *BESIDE], 1)
            raise UserError(f"open_dataset: unknown option {option}." + (f" Did you mean {near[0]}?" if near else ""))
    beside = {name: options.pop(name) for name in BESIDE if name in options}
    everything = dict.fromkeys(("state_keys", "action_key", "point_channels", "num_points"), None)
    asked = DatasetConfig(**{"val_ratio": 0.0, **everything, **options})
    return MultiTrajDataset(open_stores(paths, asked, modalities=beside.get("modalities")), asked, **beside)


def load_dataset(
    cfg: DictConfig | Config, *, split: str = "train", modalities: Sequence[str] | None = None, shared: bool = False
) -> MultiTrajDataset:
    """The dataset a configuration names.

    Args:
        split: "train" or "val".
        modalities: what to read; None = everything that is there.
        shared: of `modalities` those that every domain has; otherwise one that a domain lacks is refused.
    Raises:
        UserError: no such domain, or see MultiTrajDataset.
    """
    options = cfg if isinstance(cfg, Config) else typed(cfg)
    paths = {
        name: find_domain(options.dataset_path, name, format=options.dataset.format)
        for name in domain_names(options.domains)
    }
    stores = open_stores(paths, options.dataset, modalities=modalities)
    if shared:
        modalities = shared_modalities(stores, options.dataset, among=modalities or MODALITIES)
    return MultiTrajDataset(
        stores, options.dataset, split=split, seed=options.seed, modalities=modalities, on_nan=options.train.on_nan
    )


def open_stores(
    paths: Mapping[str, str | Path], options: DatasetConfig, *, modalities: Sequence[str] | None = None
) -> dict[str, EpisodeStore]:
    """Domain -> the opened episodes at its path.

    Args:
        modalities: those that are going to be read; None = all.
    """
    wanted = Wanted(
        episode_cnt=options.episode_cnt, ignored_keys=options.ignored_keys, modalities=modalities,
        whole_episodes_only=options.whole_episodes_only,
    )  # fmt: skip
    opening: dict[str, Any] = {
        "format": options.format, "filter_key": options.filter_key, "cache_dir": options.cache_dir,
        "cache_gb": options.cache_gb, "wanted": wanted,
    }  # fmt: skip
    return {name: open_store(path, **opening) for name, path in paths.items()}


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
