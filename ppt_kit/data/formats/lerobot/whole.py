"""Which files of a dataset are there and whole, and what can be read without the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppt_kit.data.disk.video import ends_inside
from ppt_kit.data.formats.lerobot.episodes import Episodes
from ppt_kit.data.formats.wanted import Wanted
from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError
from ppt_kit.lfs import LARGEST, is_lfs_pointer

log = logging.getLogger(__name__)


@dataclass
class Damage:
    """What is missing of the episodes `selected` (S,).

    Attributes:
        files: those that are not there or not whole -> why, the first episode's first.
        lost: (S,) bool, episodes that need one of them.
        lost_tables: (S,) bool, those whose numbers are among them.
        cameras: features whose videos are among them.
    """

    episodes: Episodes
    selected: np.ndarray
    files: dict[Path, str]
    lost: np.ndarray
    lost_tables: np.ndarray
    cameras: list[str]

    @property
    def first_whole(self) -> int:
        """How many episodes at the beginning are whole."""
        return int(np.argmax(self.lost)) if self.lost.any() else len(self.lost)


def whole_episodes(
    episodes: Episodes, selected: np.ndarray, store: EpisodeStore, wanted: Wanted
) -> tuple[np.ndarray, bool]:
    """The episodes that can be read, of those selected, and whether some had to be left out.

    A look at 10 000 files takes less than a second.

    Args:
        selected: (S,) into `episodes`.
        store: with all the columns of those; none is read.
    Raises:
        UserError: files of what is wanted are missing or cut off; the line says which, and what would do without them.
    """
    cameras = {column.stored_as: key for key, column in store.columns.items() if wanted.reads(store, key)}
    read = [feature for feature in episodes.videos if feature in cameras]
    found = _damage(episodes, selected, read)
    if not found.lost.any():
        return selected, False
    if wanted.whole_episodes_only and not found.lost.all():
        log.warning(
            "%s: %d of %d episodes are left out, their files are not all there and whole (%s=true): %s",
            episodes.path, int(found.lost.sum()), len(selected), wanted.only_whole.removesuffix("=true"),
            _numbers(episodes.index[selected[found.lost]]),
        )  # fmt: skip
        return selected[~found.lost], True
    if wanted.episode_cnt is not None and not wanted.whole_episodes_only:
        if found.first_whole >= wanted.episode_cnt:
            return selected[: wanted.episode_cnt], True
        found = _damage(episodes, selected[: wanted.episode_cnt], read)
    raise UserError(_line(found, store, wanted, cameras))


def why_not_whole(file: Path) -> str | None:
    """What is wrong with a file, by its size and its beginnings and ends; None where it looks whole."""
    try:
        size = os.stat(file).st_size
        if not size:
            return "empty"
        if size < LARGEST and is_lfs_pointer(file):
            return "a note of Git LFS, not the file itself"
        with open(file, "rb") as opened:
            if file.suffix == ".mp4":
                return f"cut off ({size} bytes)" if ends_inside(opened, size) else None
            opened.seek(max(0, size - 4))
            return None if opened.read() == b"PAR1" else f"cut off ({size} bytes, not ending as parquet does)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _damage(episodes: Episodes, selected: np.ndarray, cameras: Sequence[str]) -> Damage:
    files, lost_tables = _damaged(episodes.data_files, episodes.data_file[selected])
    lost, broken = lost_tables.copy(), []
    for feature in cameras:
        videos = episodes.videos[feature]
        more, hit = _damaged(videos.files, videos.file[selected])
        if hit.any():
            broken.append(feature)
            files, lost = files | more, lost | hit
    return Damage(episodes, selected, files, lost, lost_tables, broken)


def _damaged(files: Sequence[Path], used: np.ndarray) -> tuple[dict[Path, str], np.ndarray]:
    """The files that are not whole -> why, and (S,) whether an episode's is one of them."""
    whys = {number: why_not_whole(files[number]) for number in dict.fromkeys(used.tolist())}
    bad = {number: why for number, why in whys.items() if why}
    return {files[number]: why for number, why in bad.items()}, np.isin(used, list(bad))


def _line(found: Damage, store: EpisodeStore, wanted: Wanted, keys: Mapping[str, str]) -> str:
    (file, why), count = next(iter(found.files.items())), len(found.files)
    numbers = found.episodes.index[found.selected]
    lost, total = int(found.lost.sum()), len(numbers)
    line = f"{file}: {why}" + (f", as {count - 1} more files are missing or cut off" if count > 1 else "")
    line += f"; needed by {'episode' if lost == 1 else 'episodes'} {_numbers(numbers[found.lost])}"
    line += f" ({lost} of {total}). "
    line += f"Type `git lfs pull` in {found.episodes.path}" if "Git LFS" in why else "Copy or download what is missing"
    ways = list(_ways(found, store, wanted, keys))
    return f"{line}." if not ways else f"{line}, or go without: {'; or '.join(ways)}."


def _ways(found: Damage, store: EpisodeStore, wanted: Wanted, keys: Mapping[str, str]) -> Iterable[str]:
    """What to type to read the rest."""
    if not found.lost_tables.any():
        yield wanted.without(store, [keys[feature] for feature in found.cameras])
    if found.first_whole and not wanted.converting:
        yield f"dataset.episode_cnt={found.first_whole}"
    if not found.lost.all():
        yield f"{wanted.only_whole} for the {int((~found.lost).sum())} episodes that are whole"


def _numbers(numbers: np.ndarray, *, most: int = 5) -> str:
    """3, 5-9, 12 and 7 more."""
    numbers = np.sort(numbers)
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = [run.tolist() for run in np.split(numbers, cuts)]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:most]]
    left = sum(map(len, runs[most:]))
    return ", ".join(texts) + (f" and {left} more" if left else "")
