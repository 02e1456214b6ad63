"""Features in the place of pictures: what a frozen encoder made of every frame, read from the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Features:
    """Of one modality.

    Attributes:
        places: domain -> (N,) int64, where a stored row's features lie in its files; -1 = nowhere.
        files: domain -> camera -> .npy of (M, …) float16.
        shapes: camera -> shape of one frame's features, of the cameras of all domains.
    """

    places: Mapping[str, np.ndarray]
    files: Mapping[str, Mapping[str, Path]]
    shapes: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        maps = {
            domain: {camera: np.load(path, mmap_mode="r") for camera, path in files.items()}
            for domain, files in self.files.items()
        }
        object.__setattr__(self, "_maps", maps)

    def of(self, domain: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """{camera: (B, To, …) float16} of the windows that read `rows` (B, To); zeros of cameras it has not."""
        maps, places = self._maps[domain], self.places[domain][rows]  # type: ignore[attr-defined]
        nothing = lambda shape: np.zeros((*rows.shape, *shape), np.float16)
        return {
            camera: np.asarray(maps[camera][places]) if camera in maps else nothing(shape)
            for camera, shape in self.shapes.items()
        }
