"""TFRecord's framing and the wire form of tf.train.Example: just enough to find lists in a record and to read them.

A record is length (u64), masked crc32c of the length (u32), data, masked crc32c of the data (u32), little-endian. Its
data is a tf.train.Example: a map from names to lists of bytes, float32 or int64. Finding reads the fields' headers and
steps over what they hold, so that a map of the file is hardly touched.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

# the fields of tf.train.Feature
BYTES, FLOATS, INTS = 1, 2, 3

# of protobuf
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5


class Damaged(Exception):
    """What is wrong with a record."""


def is_plain(data: mmap.mmap) -> bool:
    """Whether the file starts with a record, not with a compressed stream."""
    return len(data) >= 12 and _masked_crc(data[:8]) == struct.unpack("<I", data[8:12])[0]


def records(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where the data of each record begins and ends."""
    at = 0
    while at < len(data):
        header = data[at : at + 12]
        if len(header) < 12:
            raise Damaged("the file ends inside its header")
        length, crc = struct.unpack("<QI", header)
        if _masked_crc(header[:8]) != crc:
            raise Damaged("its length is damaged (crc32c)")
        at += 12
        if at + length + 4 > len(data):
            raise Damaged(f"the file ends {at + length + 4 - len(data)} bytes before it does")
        yield at, at + length
        at += length + 4


def check(data: mmap.mmap, begin: int, end: int) -> None:
    """
    Raises:
        Damaged: the data of a record is not what was written.
    """
    if _masked_crc(data[begin:end]) != struct.unpack("<I", data[end : end + 4])[0]:
        raise Damaged("its data is damaged (crc32c)")


def lists(data: mmap.mmap, begin: int, end: int) -> dict[str, tuple[int, int, int]]:
    """Kind, begin and end of each list of an Example, by its name."""
    found = {}
    for _, _, features, features_end in _fields(data, begin, end):
        for _, _, entry, entry_end in _fields(data, features, features_end):
            name, value = "", (0, 0, 0)
            for number, _, first, last in _fields(data, entry, entry_end):
                if number == 1:
                    name = data[first:last].decode(errors="replace")
                else:
                    for kind, _, list_begin, list_end in _fields(data, first, last):
                        value = kind, list_begin, list_end
            found[name] = value
    return found


def first(data: mmap.mmap, begin: int, end: int) -> bytes:
    """The first value of a list of bytes; empty when there is none."""
    return next((data[one:other] for _, _, one, other in _fields(data, begin, end)), b"")


def count(data: mmap.mmap, kind: int, begin: int, end: int) -> int:
    """How many values a list has."""
    if kind == INTS:
        return int((np.frombuffer(_joined(data, begin, end), np.uint8) < 0x80).sum())
    packed_bytes = 4 if kind == FLOATS else 0
    return sum(
        (last - first) // 4 if packed_bytes and wire == LENGTH else 1
        for _, wire, first, last in _fields(data, begin, end)
    )


def numbers(data: mmap.mmap, kind: int, begin: int, end: int) -> np.ndarray:
    """(n,) float32 or int64 of a list of numbers, packed or not."""
    raw = _joined(data, begin, end)
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<f4") if kind == FLOATS else _varints(np.frombuffer(raw, np.uint8))


def places(data: mmap.mmap, begin: int, end: int) -> np.ndarray:
    """(n, 2) int64 where each value of a list of bytes begins and ends."""
    found = [(first, last) for _, _, first, last in _fields(data, begin, end)]
    return np.array(found, np.int64).reshape(-1, 2)


def _joined(data: mmap.mmap, begin: int, end: int) -> bytes:
    return b"".join(data[first:last] for _, _, first, last in _fields(data, begin, end))


def _varints(raw: np.ndarray) -> np.ndarray:
    """(n,) int64 of base-128 numbers, low groups of seven bits first; the last byte of each is below 128."""
    is_last = raw < 0x80
    if is_last.all():
        return raw.astype(np.int64)
    last = np.flatnonzero(is_last)
    if not is_last[-1]:
        raise Damaged("a number of it is cut off")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(first, last - first + 1)
    return np.add.reduceat((raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64), first).view(np.int64)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, begin and end of the fields of a message."""
    while at < end:
        tag, at = _varint(data, at, end)
        wire, begin = tag & 7, at
        if wire == LENGTH:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif wire == VARINT:
            _, at = _varint(data, at, end)
        elif wire in (FOUR_BYTES, EIGHT_BYTES):
            at += 4 if wire == FOUR_BYTES else 8
        else:
            raise Damaged("it is no tf.train.Example")
        if at > end:
            raise Damaged("a field of it is longer than the record")
        yield tag >> 3, wire, begin, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Damaged("a number of it is cut off")


def _masked_crc(data: bytes) -> int:
    """As TensorFlow writes it: a crc of data that holds crcs would be weak, so it is turned by 15 bits and moved."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
