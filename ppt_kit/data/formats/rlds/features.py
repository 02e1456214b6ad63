"""The arrays of a step, as features.json describes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ppt_kit.data.formats.rlds.shards import read_json
from ppt_kit.errors import UserError


@dataclass(frozen=True)
class Feature:
    """One array of a step, as features.json describes it."""

    kind: str  # "Tensor", "Image", "Text"
    shape: tuple[int | None, ...]
    dtype: str
    encoding: str  # of a tensor: "none", "bytes", "zlib"
    # how often it repeats within a step, a number of times that features.json does not tell
    ragged: int = 0
    # it has as many values in each step, although that is not told
    even: bool = False

    @property
    def is_picture(self) -> bool:
        return self.kind == "Image"

    @property
    def is_numbers(self) -> bool:
        return self._has_numbers and not self.ragged

    @property
    def is_ragged(self) -> bool:
        """Whether it may be an array after all, if the records show that it has one length."""
        return self._has_numbers and self.ragged == 1 and self.encoding == "none"

    @property
    def _has_numbers(self) -> bool:
        return self.kind == "Tensor" and all(self.shape) and re.match("bool|u?int|float", self.dtype) is not None

    def evened(self, length: int) -> Feature:
        """A sequence as the array that it is where each step has `length` values."""
        return replace(self, shape=(length, *self.shape), ragged=0, even=True)

    def list_of(self, name: str) -> str:
        """The list of a record that holds its values."""
        return f"{name}/ragged_flat_values" if self.even else name

    def why_not(self) -> str:
        """Why it is no column."""
        if self.kind == "Text" or self.dtype == "string":
            return "texts, no numbers"
        if self.ragged or not all(self.shape):
            return f"{self.dtype} whose shape differs from step to step"
        return f"{self.dtype}, no numbers"

    @property
    def is_read(self) -> bool:
        return self.is_numbers or self.is_picture and not self.ragged

    @property
    def values_a_step(self) -> int:
        """How many values a record's list has for each step."""
        return 1 if self.is_picture or self.encoding != "none" else math.prod(self.fixed_shape)

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        return tuple(size or 0 for size in self.shape)


def features_of(folder: Path) -> tuple[dict[str, Feature], list[str]]:
    """The arrays of a step, by their names in a record; and the names of what an episode has once.

    Raises:
        UserError: features.json is missing, or describes no steps.
    """
    file = folder / "features.json"
    if not file.is_file():
        raise UserError(
            f"{file} is missing: shapes and encodings stand there alone. Copy it from where the shards are from."
        )
    described = read_json(file)
    try:
        everything = dict(_walk(described, ""))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not as TFDS writes it ({type(error).__name__}: {error}). Copy it again.") from None
    found = {name: feature for name, feature in everything.items() if name.startswith("steps/")}
    if not any(feature.is_read for feature in found.values()):
        raise UserError(f"{file}: describes no steps: this is no RLDS dataset, whose records are episodes of steps.")
    return found, [name for name in everything if name not in found]


def _walk(node: dict, prefix: str, *, depth: int = 0) -> Iterator[tuple[str, Feature]]:
    """Leaves of a feature: of what TFDS writes now (`pythonClassName`), and of what it wrote (`type`, `content`)."""
    kind = str(node.get("pythonClassName") or node.get("type") or "").rsplit(".", 1)[-1]
    content = node.get("content") or {}
    content = json.loads(content) if isinstance(content, str) else content
    if kind == "FeaturesDict" or "featuresDict" in node:
        inside = node.get("featuresDict", content)
        inside = inside.get("features", {}) if "featuresDict" in node or "proto_cls" in node else inside
        for name, child in inside.items():
            yield from _walk(child, f"{prefix}/{name}" if prefix else name, depth=depth)
    elif kind in ("Dataset", "Sequence") or "sequence" in node:
        inside = node.get("sequence", content)
        for name, feature in _walk(inside["feature"], prefix, depth=depth + 1):
            # depth 0: the steps themselves
            yield name, _repeated(feature, inside.get("length")) if depth else feature
    else:
        yield prefix, _leaf(node, kind, content)


def _repeated(feature: Feature, length: str | int | None) -> Feature:
    """A feature that each step has `length` times; null or below 1: it is not told how often."""
    told = int(length or -1)
    if told > 0 and not feature.ragged:
        return replace(feature, shape=(told, *feature.shape))
    return replace(feature, ragged=feature.ragged + 1)


def _leaf(node: dict, kind: str, content: dict) -> Feature:
    names = {
        "tensor": "Tensor",
        "image": "Image",
        "text": "Text",
        "boundingBox": "BBoxFeature",
        "classLabel": "ClassLabel",
    }
    key = next((name for name in names if name in node), None)
    about = node[key] if key else content
    kind = names[key] if key else kind
    if kind == "Text":
        return Feature("Text", (), "string", "none")
    if kind == "Image":
        return Feature("Image", _shape(about) or (None, None, 3), _dtype(about, "uint8"), "none")
    default = {"ClassLabel": "int64", "BBox": "float32", "BBoxFeature": "float32"}.get(kind, "unknown")
    shape = (4,) if kind.startswith("BBox") else _shape(about)
    return Feature("Tensor", shape, _dtype(about, default), str(about.get("encoding") or "none").lower())


def _shape(about: dict) -> tuple[int | None, ...]:
    shape = about.get("shape") or []
    shape = shape.get("dimensions", []) if isinstance(shape, dict) else shape
    return tuple(None if size is None or int(size) < 0 else int(size) for size in shape)


def _dtype(about: dict, default: str) -> str:
    match = re.search(r"bool|string|u?int\d+|float\d+", str(about.get("dtype") or default))
    return match[0] if match else "unknown"
