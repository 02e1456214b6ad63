"""The records of a split, one an episode, and what their steps hold."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ppt_kit.data.formats.rlds import tfrecord
from ppt_kit.data.formats.rlds.features import Feature
from ppt_kit.data.formats.rlds.shards import Shard, Split, Unpacked
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
    """The records of splits: where they lie, how long they are, what their first sentence is.

    Attributes:
        features: those that are read: of sequences in a step the ones that have one length in every step.
        ragged: sequences in a step that have not -> the least and greatest length; None = the records do not say.
    Raises:
        UserError: a shard is damaged or holds another number of episodes.
    """

    def __init__(self, splits: list[Split], features: dict[str, Feature]):
        unpacked = Unpacked()
        self.shards = [Shard(path, unpacked) for split in splits for path in split.shards]
        promised: list[int | None] = []
        for split in splits:
            promised += split.promised or [None] * len(split.shards)
        self.records: list[_Record] = []
        self.sentences: list[str] = []
        self._features, self._needed = features, {name for name, feature in features.items() if feature.is_read}
        self.ragged: dict[str, tuple[int, int] | None] = {}
        lengths = [length for shard, count in enumerate(promised) for length in self._scan(shard, count)]
        if not self.records:
            raise UserError(f"{self.shards[0].path}: holds no episode.")
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.features = {name: feature for name, feature in features.items() if feature.is_read}
        self._take_even()
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
                f"{self.shards[record.shard].path}: episode {episode} (record {record.number} of the shard): {error}. "
                "Copy the shard again."
            ) from None

    def numbers(self, episode: int, name: str, feature: Feature) -> np.ndarray:
        """(T, ...) of one array of an episode."""
        kind, begin, end = self._lists(episode)[feature.list_of(name)]
        shape = (self.length(episode), *feature.fixed_shape)
        if feature.encoding == "none":
            with self._shard(episode).mapped() as data:
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
        with self._shard(episode).opened() as read:
            for step in steps:
                yield read(*places[step].tolist())

    def _take_even(self) -> None:
        """Sequences that have as many values in every step of every episode are arrays like any other."""
        for name, lengths in list(self.ragged.items()):
            if lengths is not None and lengths[0] == lengths[1] > 0:
                self.features[name] = self._features[name].evened(lengths[0])
                del self.ragged[name]

    def _note_ragged(self, data: mmap.mmap, found: dict[str, tuple[int, int, int]]) -> None:
        """The least and greatest length of sequences, as far as one record tells."""
        for name in (name for name, feature in self._features.items() if feature.is_ragged):
            told, before = found.get(f"{name}/ragged_row_lengths_0"), self.ragged.get(name, (2**62, 0))
            lengths = np.zeros(0) if told is None else tfrecord.numbers(data, *told)
            self.ragged[name] = None
            if before is not None and len(lengths):
                self.ragged[name] = min(before[0], int(lengths.min())), max(before[1], int(lengths.max()))

    def _scan(self, shard: int, promised: int | None) -> list[int]:
        """Notes the records of a shard; how many steps each has."""
        path, before, lengths = self.shards[shard].path, len(self.records), []
        with self.shards[shard].mapped() as data:
            try:
                for begin, end in tfrecord.records(data):
                    found = tfrecord.lists(data, begin, end)
                    lengths.append(self._length(data, found))
                    self._note_ragged(data, found)
                    self.sentences.append(_first_text(data, [found[name] for name in SENTENCES if name in found]))
                    self.records.append(_Record(shard, len(lengths) - 1, begin, end))
            except tfrecord.Damaged as error:
                number = len(self.records)
                raise UserError(
                    f"{path}: episode {number} (record {number - before} of the shard): {error}. Copy the shard again."
                ) from None
        if promised is not None and len(lengths) != promised:
            raise UserError(
                f"{path}: holds {len(lengths)} episodes, where dataset_info.json says {promised}. Copy the shard again."
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

    def _shard(self, episode: int) -> Shard:
        return self.shards[self.records[episode].shard]

    def _read_lists(self, episode: int) -> dict[str, tuple[int, int, int]]:
        record = self.records[episode]
        with self._shard(episode).mapped() as data:
            tfrecord.check(data, record.begin, record.end)
            return tfrecord.lists(data, record.begin, record.end)

    def _read_places(self, episode: int, name: str) -> np.ndarray:
        _, begin, end = self._lists(episode)[name]
        with self._shard(episode).mapped() as data:
            return tfrecord.places(data, begin, end)


def _first_text(data: mmap.mmap, candidates: list[tuple[int, int, int]]) -> str:
    for _, begin, end in candidates:
        if text := tfrecord.first(data, begin, end).decode(errors="replace").strip():
            return text
    return ""
