"""One dataset as arrays of the contract."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ppt_kit.data.clouds import CloudSource
from ppt_kit.data.columns import Columns
from ppt_kit.data.disk.rows import spread
from ppt_kit.data.formats import attach_cache, cache_folder
from ppt_kit.data.store import EpisodeStore, check_finite, decoded_part
from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.schema import DatasetConfig
from ppt_kit.spec import Spec

log = logging.getLogger(__name__)


class Domain:
    """The episodes of one dataset, seen through a view.

    Attributes:
        store: its columns and episodes; clouds that are made from depth are a column of it like any other.
        view: which columns are seen, and how; `spec` has the sizes.
        on_nan: what a value that is not finite does that is read for a batch: "stop" refuses it, "skip" says it once a
            column and gives it, for a training that leaves such batches out.
    """

    def __init__(self, name: str, store: EpisodeStore, view: View, *, env: Mapping[str, Any] | None = None):
        """`env`: the simulator that the data comes from, where it does not say."""
        self.name, self.store, self.view = name, store, view
        self._env = dict(env) if env else None
        self.spec: Spec = view.spec
        self.columns = view.columns()
        self.on_nan, self._told = "stop", set[str]()
        self._known: dict[str, np.ndarray] = {}

    def observations(self, rows: np.ndarray, *, kinds: Iterable[str] | None = None) -> dict[str, Any]:
        """obs of the windows that read `rows` (B, To); the sentence is that of their last frame.

        Raises:
            UserError: a value is not finite; the line names file, column, episode and row.
        """
        kinds = self.spec.modalities if kinds is None else list(kinds)
        flat = rows.ravel()
        seen = self.view.observe(lambda column: self._read(column, flat), kinds=kinds)
        obs = _reshaped(seen, rows.shape)
        if "language" in kinds:
            episodes = np.searchsorted(self.store.episode_ends, rows[:, -1], side="right")
            sentences = self.sentences()
            obs["language"] = [sentences[episode] for episode in episodes]
        return obs

    def frames(self, rows: np.ndarray, *, kinds: Iterable[str]) -> dict[str, Any]:
        """obs of the rows (T,) themselves: state (T, Ds), …, a sentence a row."""
        obs = self.observations(rows[:, None], kinds=kinds)
        return {name: value if name == "language" else _squeezed(value) for name, value in obs.items()}

    def values(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), D) float32 of "state" or "action", not padded.

        Raises:
            UserError: as `observations`.
        """
        if kind not in self.columns:
            return np.zeros((len(rows), 0), np.float32)
        return self.view.numbers(kind, lambda column: self._read(column, rows))

    def _read(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a column, looked at when they are read for the first time: each look costs a third of reading."""
        values = self.store.read(column, rows)
        known = self._known.setdefault(column, np.zeros(self.store.shape(column)[0], bool))
        if known[rows].all():
            return values
        try:
            check_finite(self.store, column, rows, values)
            known[rows] = True
        except UserError as error:
            if self.on_nan != "skip":
                raise
            if column not in self._told:
                log.warning("%s train.on_nan=skip: it is read as it is", error)
            self._told.add(column)
        return values

    def sentences(self) -> list[str]:
        """What each episode shows, in words; the domain's name where nothing was written down."""
        return self.store.sentences or [self.name] * len(self.store.episode_ends)

    def has_to_decode(self) -> bool:
        """Whether batches need rows that do not lie on disk as plain bytes."""
        columns = [self.store.columns[key] for keys in self.columns.values() for key in keys]
        return any(decoded_part(column) for column in columns)

    def source(self) -> dict[str, Any]:
        """What was recorded with the data: simulator, seeds of the demonstrations."""
        return {"env": self.store.attrs.get("env") or self._env, "seeds": self.store.attrs.get("seeds", [])}


def seen_through(
    name: str, columns: Columns, options: DatasetConfig, *, modalities: Sequence[str], points: int, channels: int
) -> Domain:
    """The domain as the options want it seen.

    Args:
        modalities: which of them batches hold.
        points, channels: of a cloud.
    """
    store, seen = columns.store, View(action=columns.widths(columns.action), language="language" in modalities)
    if "state" in modalities:
        seen = replace(seen, state=columns.widths(columns.state))
    rgb, depth = (getattr(columns, kind) if kind in modalities else {} for kind in ("rgb", "depth"))
    sizes = {column: _pixels(store, column) for column in (*rgb.values(), *depth.values())}
    seen = replace(seen, rgb=rgb, depth=depth, sizes=sizes)
    if "pointcloud" not in modalities:
        return Domain(name, store, seen, env=options.env)
    cloud = dict(columns.cloud)
    if "pos" not in cloud:
        made = _made_from(columns, options, channels=channels)
        store, seen = _with_clouds(store, made, options, points=points), replace(seen, made_from=made)
        cloud = {"pos": "obs/pointcloud/pos"}
    wanted = ["pos"] + ["colors"] * (channels >= 6) + ["seg"] * (channels == 5)
    cloud = {part: cloud[part] for part in wanted if part in cloud}
    range_ = _color_range(store, cloud) if channels >= 6 and seen.made_from is None else 1.0
    seen = replace(seen, cloud=cloud, points=points, channels=channels, color_range=range_)
    return Domain(name, store, seen, env=options.env)


def _pixels(store: EpisodeStore, column: str) -> tuple[int, int]:
    height, width = store.shape(column)[1:3]
    return height, width


def _made_from(columns: Columns, options: DatasetConfig, *, channels: int) -> CloudSource:
    colored = channels >= 6 and columns.has_color()
    box = None if options.crop_box is None else [float(value) for value in options.crop_box]
    return CloudSource(columns.seen_in_depth(), colored, box)


def _with_clouds(store: EpisodeStore, made: CloudSource, options: DatasetConfig, *, points: int) -> EpisodeStore:
    column = made.column(store, num_points=points)
    if options.cache_gb > 0:
        folder = cache_folder(store.path, cache_dir=options.cache_dir, cache_gb=options.cache_gb)
        attach_cache(store, {f"cloud {made.crop_box}": column}, folder=folder)
    return replace(store, columns={**store.columns, "obs/pointcloud/pos": column})


def _color_range(store: EpisodeStore, cloud: dict[str, str]) -> float:
    """What float colours go to, 1 or 255: decided once, by 16 of the clouds."""
    colors = store.columns[cloud.get("colors", cloud["pos"])]
    if colors.dtype.kind != "f":
        return 1.0
    some = colors.read(spread(16, colors.shape[0]))[..., -3:]
    return 255.0 if np.nanmax(some, initial=0) > 1.5 else 1.0


def _reshaped(tree: Any, shape: tuple[int, ...]) -> Any:
    """(B * To, ...) to (B, To, ...), in every array of a tree."""
    if isinstance(tree, dict):
        return {name: _reshaped(value, shape) for name, value in tree.items()}
    return tree.reshape(*shape, *tree.shape[1:])


def _squeezed(tree: Any) -> Any:
    return {name: _squeezed(value) for name, value in tree.items()} if isinstance(tree, dict) else tree[:, 0]
