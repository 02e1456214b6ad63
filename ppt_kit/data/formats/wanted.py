"""What of a dataset is going to be read, for formats whose files need not all be there.

A format whose `open_store` has a parameter `wanted` is given this; the others read what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppt_kit.data.columns import IMAGES, means
from ppt_kit.data.store import EpisodeStore


@dataclass(frozen=True)
class Wanted:
    """Files that hold nothing of this are not asked for.

    Attributes:
        episode_cnt: the first so many episodes; None = all.
        ignored_keys: words for columns that are not read.
        modalities: of spec.MODALITIES; None = all.
        keys: the only columns that are read; None = all.
        whole_episodes_only: episodes of which a file is missing or cut off are left out.
        converting: how a message calls these: as options of a conversion, not as keys of `dataset`.
    """

    episode_cnt: int | None = None
    ignored_keys: Sequence[str] = ()
    modalities: Sequence[str] | None = None
    keys: Sequence[str] | None = None
    whole_episodes_only: bool = False
    converting: bool = False

    def reads(self, store: EpisodeStore, key: str) -> bool:
        """Whether a column is read."""
        if self.keys is not None:
            return key in self.keys
        if any(means(store, text, key) for text in self.ignored_keys):
            return False
        return self.modalities is None or not key.startswith(IMAGES) or "rgb" in self.modalities

    def without(self, store: EpisodeStore, keys: Sequence[str]) -> str:
        """What to type to go without some columns."""
        if self.converting:
            rest = [key for key in store.columns if self.reads(store, key) and key not in keys]
            return f"keys=[{','.join(rest)}]"
        images = [key for key in store.columns if key.startswith(IMAGES)]
        left = ["rgb"] if set(keys) == set(images) else [key.removeprefix("obs/") for key in keys]
        return f"dataset.ignored_keys=[{','.join([*self.ignored_keys, *left])}]"

    @property
    def only_whole(self) -> str:
        """What to type to read the whole episodes alone."""
        return f"{'' if self.converting else 'dataset.'}whole_episodes_only=true"
