"""The arrays of a step, as features.json describes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
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

    @property
    def is_picture(self) -> bool:
        return self.kind == "Image"

    @property
    def is_numbers(self) -> bool:
        return self.kind == "Tensor" and all(self.shape) and re.match("bool|u?int|float", self.dtype) is not None

    @property
    def is_read(self) -> bool:
        return self.is_numbers or self.is_picture

    @property
    def values_a_step(self) -> int:
        """How many values a record's list has for each step."""
        return 1 if self.is_picture or self.encoding != "none" else math.prod(self.fixed_shape)

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        return tuple(size or 0 for size in self.shape)


def features_of(folder: Path) -> dict[str, Feature]:
    """The arrays of a step, by their names in a record."""
    file = folder / "features.json"
    if not file.is_file():
        raise UserError(
            f"{file} is missing: shapes and encodings stand there alone. Copy it from where the shards are from."
        )
    found = {name: feature for name, feature in _walk(read_json(file), "") if name.startswith("steps/")}
    if not any(feature.is_read for feature in found.values()):
        raise UserError(f"{file}: describes no steps: this is no RLDS dataset, whose records are episodes of steps.")
    return found


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
        # the steps; a sequence within a step has no fixed shape
        if depth == 0:
            yield from _walk(node.get("sequence", content)["feature"], prefix, depth=1)
    else:
        yield prefix, _leaf(node, kind, content)


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
