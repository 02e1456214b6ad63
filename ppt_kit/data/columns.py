"""What one dataset holds, and which of its columns a user's words mean."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence

from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError
from ppt_kit.model_keys import MODALITIES
from ppt_kit.schema import DatasetConfig

log = logging.getLogger(__name__)

IMAGES, DEPTHS, CLOUD = "obs/images/", "obs/depths/", "obs/pointcloud/"
# what users call the groups
GROUPS = {"rgb": "images", "depth": "depths"}


class Columns:
    """The columns of one dataset by what they are for.

    Args:
        options: state_keys, action_key and ignored_keys of `dataset` in the configuration.
    Attributes:
        action, state: stored columns, in the order their numbers are concatenated.
        rgb, depth: camera -> stored column.
        cloud: "pos", "colors", "seg" -> stored column.
    Raises:
        UserError: a key is not there.
    """

    def __init__(self, store: EpisodeStore, options: DatasetConfig):
        self.store, self._ignored = store, set(options.ignored_keys)
        self.action = self._actions(options.action_key)
        self.state = self._states(options.state_keys)
        self.rgb, self.depth, self.cloud = (self._below(folder) for folder in (IMAGES, DEPTHS, CLOUD))

    def has(self, modality: str) -> bool:
        """Whether batches of this dataset can hold a modality; a cloud may be made from depth."""
        if modality == "pointcloud":
            return "pos" in self.cloud or bool(self.seen_in_depth())
        return modality == "language" or bool(getattr(self, modality))

    def modalities(self) -> list[str]:
        """Those of MODALITIES that batches of this dataset can hold."""
        return [kind for kind in MODALITIES if self.has(kind)]

    def has_color(self) -> bool:
        """Whether its clouds have colours, or can be given some by images of the depth's size."""
        if "pos" in self.cloud:
            return "colors" in self.cloud or self.store.shape(self.cloud["pos"])[-1] >= 6
        cameras = self.seen_in_depth()
        return bool(cameras) and all(self._same_size(camera) for camera in cameras)

    def seen_in_depth(self) -> list[str]:
        """Cameras that a cloud can be made from: those with depth and a calibration."""
        return [camera for camera in self.depth if camera in self.store.cameras]

    def widths(self, columns: Sequence[str]) -> dict[str, int]:
        """Stored column -> how many numbers a row of it has."""
        found = {}
        for name in columns:
            width = 1
            for size in self.store.shape(name)[1:]:
                width *= size
            found[name] = width
        return found

    def _same_size(self, camera: str) -> bool:
        rgb = self.rgb.get(camera)
        return rgb is not None and self.store.shape(rgb)[1:3] == self.store.shape(self.depth[camera])[1:3]

    def _readable(self) -> list[str]:
        return [key for key in self.store.columns if not any(means(self.store, text, key) for text in self._ignored)]

    def _below(self, folder: str) -> dict[str, str]:
        return {key.removeprefix(folder): key for key in self._readable() if key.startswith(folder)}

    def _actions(self, asked: str | None) -> list[str]:
        """The column that was asked for, or every part below it."""
        store, wanted = self.store, asked or "actions"
        parts = [key for key in store.columns if key.startswith(f"{wanted}/")]
        if wanted not in store.columns and parts:
            return parts
        if asked is None and wanted not in store.columns:
            raise UserError(
                f"{store.path} has no action; it has {', '.join(store.columns)}. Say which it is with action_key=…."
            )
        return [self._find(wanted, "action_key")]

    def _states(self, asked: Sequence[str] | None) -> list[str]:
        """Those that were asked for, in order, or every observation that is a number or a vector."""
        if asked is not None:
            return [self._find(key, "state_keys") for key in asked]
        return [key for key in self._readable() if self._is_state(key)]

    def _is_state(self, key: str) -> bool:
        if not key.startswith("obs/") or key.startswith((IMAGES, DEPTHS, CLOUD)):
            return False
        return len(self.store.shape(key)) <= 2 and self.store.dtype(key).kind in "biuf"

    def _find(self, asked: str, option: str) -> str:
        """The column that a user's word means: its name here, without obs/, or the dataset's own."""
        store = self.store
        own = {column.stored_as: key for key, column in store.columns.items()}
        own |= {stored.split("/", 1)[-1]: key for stored, key in own.items()}
        for candidate in (f"obs/{asked}", asked, own.get(asked, "")):
            if candidate in store.columns:
                return candidate
        remedy = f"Type dataset.{option}=<one of them>."
        if option == "state_keys":
            numbers = ",".join(key.removeprefix("obs/") for key in self._states(None))
            remedy = (
                f"Type dataset.state_keys=[{numbers}], or those of them that the policy is to see; null takes them all."
            )
        raise UserError(f"dataset.{option}: {store.path} has no {asked}; it has {', '.join(store.columns)}. {remedy}")


def means(store: EpisodeStore, text: str, key: str) -> bool:
    """Whether a user's word means a column: its name here, the dataset's own, a group's, or a modality's."""
    short, group = key.removeprefix("obs/"), GROUPS.get(text, text)
    return text in (key, short, store.columns[key].stored_as) or f"{short}/".startswith(f"{group}/")


def check_ignored(stores: Mapping[str, EpisodeStore], ignored: Iterable[str], *, may_be_absent: bool) -> None:
    """Refuses a word in dataset.ignored_keys that means no column of any domain, or tells of it.

    Raises:
        UserError: names the word, and the nearest column.
    """
    for text in ignored:
        if any(means(store, text, key) for store in stores.values() for key in store.columns):
            continue
        have = sorted({key.removeprefix("obs/") for store in stores.values() for key in store.columns})
        near = difflib.get_close_matches(text, have, 1)
        said = f"dataset.ignored_keys: no domain has {text}; there is {', '.join(have)}."
        if not may_be_absent:
            raise UserError(said + (f" Did you mean {near[0]}?" if near else ""))
        log.info("%s", said)
