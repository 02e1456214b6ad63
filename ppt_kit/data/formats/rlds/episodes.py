"""The records of a split, one an episode, and what their steps hold."""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ppt_kit.data.formats.rlds import tfrecord
from ppt_kit.data.formats.rlds.features import Feature
from ppt_kit.errors import UserError

SENTENCES = tuple(
    f"steps/{place}{name}"
    for name in ("language_instruction", "natural_language_instruction")
    for place in ("", "observation/")
)
# what tells an episode's length at the least cost: one byte a step
COUNTED = ("steps/is_first", "steps/is_last", "steps/is_terminal", "steps/reward", "steps/discount", "steps/action")


@dataclass(frozen=True)
class _Record:
    shard: int
    number: int  # in its shard
    begin: int
    end: int


class Episodes:
    """The records of a split: where they lie, how long they are, what their first sentence is.

    Args:
        promised: how many episodes each shard should hold; None = nobody says.
    Raises:
        UserError: a shard is damaged or holds another number of episodes.
    """

    def __init__(self, shards: list[Path], features: dict[str, Feature], promised: list[int] | None):
        self.shards = shards
        self.records: list[_Record] = []
        self.sentences: list[str] = []
        self._features, self._needed = features, {name for name, feature in features.items() if feature.is_read}
        lengths = [length for shard in range(len(shards)) for length in self._scan(shard, promised)]
        if not self.records:
            raise UserError(f"{shards[0]}: holds no episode.")
        self.ends = np.cumsum(lengths, dtype=np.int64)
        # places take 16 bytes a picture
        self._lists, self._places = lru_cache(4096)(self._read_lists), lru_cache(4096)(self._read_places)

    def steps(self, rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(episode, its first row, (n,) its steps) of sorted rows."""
        owner = np.searchsorted(self.ends, rows, side="right")
        for episode in np.unique(owner).tolist():
            start = int(self.ends[episode - 1]) if episode else 0
            yield episode, start, rows[owner == episode] - start

    def length(self, episode: int) -> int:
        return int(self.ends[episode]) - (int(self.ends[episode - 1]) if episode else 0)

    @contextmanager
    def reading(self, episode: int) -> Iterator[None]:
        """Says which episode it is that is damaged."""
        try:
            yield
        except tfrecord.Damaged as error:
            record = self.records[episode]
            raise UserError(
                f"{self.shards[record.shard]}: episode {episode} (record {record.number} of the shard): {error}. "
                "Copy the shard again."
            ) from None

    def numbers(self, episode: int, name: str, feature: Feature) -> np.ndarray:
        """(T, ...) of one array of an episode."""
        kind, begin, end = self._lists(episode)[name]
        shape = (self.length(episode), *feature.fixed_shape)
        if feature.encoding == "none":
            with _mapped(self._path(episode)) as data:
                values = tfrecord.numbers(data, kind, begin, end)
        else:
            undo = zlib.decompress if feature.encoding == "zlib" else bytes
            raw = b"".join(undo(text) for text in self.texts(episode, name, range(shape[0])))
            values = np.frombuffer(raw, feature.dtype)
        if values.size != math.prod(shape):
            raise tfrecord.Damaged(f"{name} has {values.size} values, expected {shape}")
        return values.reshape(shape)

    def texts(self, episode: int, name: str, steps: Iterable[int]) -> Iterator[bytes]:
        """The bytes that some steps of an episode have."""
        places = self._places(episode, name)
        if len(places) != self.length(episode):
            raise tfrecord.Damaged(f"{name} has {len(places)} values, expected {self.length(episode)}")
        with self._path(episode).open("rb", buffering=0) as file:
            for step in steps:
                begin, end = places[step].tolist()
                yield os.pread(file.fileno(), end - begin, begin)

    def _scan(self, shard: int, promised: list[int] | None) -> list[int]:
        """Notes the records of a shard; how many steps each has."""
        path, before, lengths = self.shards[shard], len(self.records), []
        with _mapped(path) as data:
            try:
                for begin, end in tfrecord.records(data):
                    found = tfrecord.lists(data, begin, end)
                    lengths.append(self._length(data, found))
                    self.sentences.append(_first_text(data, [found[name] for name in SENTENCES if name in found]))
                    self.records.append(_Record(shard, len(lengths) - 1, begin, end))
            except tfrecord.Damaged as error:
                number = len(self.records)
                raise UserError(
                    f"{path}: episode {number} (record {number - before} of the shard): {error}. Copy the shard again."
                ) from None
        if promised is not None and len(lengths) != promised[shard]:
            raise UserError(
                f"{path}: holds {len(lengths)} episodes, where dataset_info.json says {promised[shard]}. "
                "Copy the shard again."
            )
        return lengths

    def _length(self, data: mmap.mmap, found: dict[str, tuple[int, int, int]]) -> int:
        """How many steps a record has, told by the array that says so at the least cost."""
        if absent := self._needed - found.keys():
            raise tfrecord.Damaged(f"it has no {min(absent)}, which features.json describes")
        counted = next(name for name in (*COUNTED, *self._features) if name in self._needed)
        length = tfrecord.count(data, *found[counted]) // self._features[counted].values_a_step
        if length == 0:
            raise tfrecord.Damaged("it has no steps")
        return length

    def _path(self, episode: int) -> Path:
        return self.shards[self.records[episode].shard]

    def _read_lists(self, episode: int) -> dict[str, tuple[int, int, int]]:
        record = self.records[episode]
        with _mapped(self._path(episode)) as data:
            tfrecord.check(data, record.begin, record.end)
            return tfrecord.lists(data, record.begin, record.end)

    def _read_places(self, episode: int, name: str) -> np.ndarray:
        _, begin, end = self._lists(episode)[name]
        with _mapped(self._path(episode)) as data:
            return tfrecord.places(data, begin, end)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """A shard's bytes."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # ValueError: it is empty
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Copy the shard again.") from None
    with data:
        # most of it is stepped over
        data.madvise(mmap.MADV_RANDOM)
        if data[:2] == b"\x1f\x8b" and not tfrecord.is_plain(data):
            raise UserError(f"{path}: GZIP-compressed records are not supported. Write them uncompressed.")
        yield data


def _first_text(data: mmap.mmap, candidates: list[tuple[int, int, int]]) -> str:
    for _, begin, end in candidates:
        if text := tfrecord.first(data, begin, end).decode(errors="replace").strip():
            return text
    return ""
