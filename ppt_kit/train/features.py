"""Features of frozen encoders, made once for every frame that a run reads, and kept on the disk."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ppt_kit.augment.augmenter import CHANGED, is_asked
from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.data.domain import Domain
from ppt_kit.data.features import Features
from ppt_kit.data.formats import cache_folder
from ppt_kit.engine import World
from ppt_kit.errors import UserError
from ppt_kit.files import write_whole
from ppt_kit.keys import show
from ppt_kit.model_keys import MODALITIES
from ppt_kit.models.encoders import Frozen, with_every_camera
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.schema import Config
from ppt_kit.tracking import bar_pace

log = logging.getLogger(__name__)

CACHED = ("rgb", "depth")
# frames that an encoder is given at a time
FRAMES_AT_ONCE = 64
# of how pictures become features, beside what the configuration says: a change of the code counts it up
RECIPE = 1
POLL_S = 0.2


def check_cached(cfg: Config, modalities: Sequence[str]) -> None:
    """Refuses a cache of features that would not be the same in every epoch.

    Args:
        modalities: that the policy sees.
    Raises:
        UserError: says which key stands in the way.
    """
    for name in MODALITIES:
        asked = getattr(cfg.policy.encoders, name, None)
        if asked is None or not asked.cache:
            continue
        option = f"policy.encoders.{name}.cache=true"
        if name not in CACHED:
            raise UserError(f"{option}: takes {' and '.join(CACHED)}; sentences are encoded once as it is.")
        if asked.kind is None or name not in modalities:
            raise UserError(f"{option}, but the policy has no encoder of {name}. Set policy.encoders.{name}.kind.")
        if not asked.frozen:
            raise UserError(
                f"{option}, but policy.encoders.{name}.frozen=false: what it gives changes with every step. "
                f"Set policy.encoders.{name}.frozen=true, or cache=false."
            )
        for key, changes in CHANGED.items():
            by_default = key == "shift_px" and cfg.augment.shift_px is None
            if name in changes and (by_default or is_asked(key, cfg.augment)):
                neutral = 1 if key == "crop_ratio" else 0
                raise UserError(
                    f"{option}, but augment.{key}={show(getattr(cfg.augment, key))} changes each picture at random "
                    f"before the encoder. Set augment.{key}={neutral}, or policy.encoders.{name}.cache=false."
                )


def use_features(
    policy: PPTPolicy, cfg: Config, datasets: Sequence[MultiTrajDataset], world: World
) -> dict[str, Features]:
    """Makes what is not there yet and lets batches hold it in the place of pictures; {} where no cache is asked for.

    One process of each machine makes it, the others wait for its files.

    Args:
        datasets: views of the same data; the rows of all of them are encoded.
    Raises:
        UserError: the disk or dataset.cache_gb do not hold it.
    """
    found = {}
    for name in policy.modalities:
        asked = getattr(cfg.policy.encoders, name, None)
        if asked is not None and asked.cache:
            encoder = policy.encoders[name]
            assert isinstance(encoder, Frozen), "checked at the door"
            found[name] = _features(encoder, name, cfg, datasets, world)
    for dataset in datasets:
        dataset.features = found
    return found


def _features(
    encoder: Frozen, modality: str, cfg: Config, datasets: Sequence[MultiTrajDataset], world: World
) -> Features:
    cameras: dict[str, tuple[int, int]] = {}
    for spec in datasets[0].specs.values():
        cameras |= spec.cameras(modality)
    places: dict[str, np.ndarray] = {}
    files: dict[str, dict[str, Path]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, domain in datasets[0].domains.items():
        rows = np.unique(np.concatenate([dataset.rows(name) for dataset in datasets]))
        places[name] = np.full(domain.store.episode_ends[-1], -1)
        places[name][rows] = np.arange(len(rows))
        job = _Job(encoder, modality, domain, rows, cameras, cfg)
        files[name] = job.files()
        if world.local_rank == 0:
            job.make(world.device)
        while not all(path.is_file() for path in files[name].values()):
            time.sleep(POLL_S)
        shapes |= {camera: np.load(path, mmap_mode="r").shape[1:] for camera, path in files[name].items()}
    return Features(places, files, shapes)


class _Job:
    """One domain's frames of one modality.

    Args:
        rows: (M,) those that are read.
        cameras: of all domains, which an encoder is always given.
    """

    def __init__(
        self, encoder: Frozen, modality: str, domain: Domain, rows: np.ndarray, cameras: dict[str, tuple[int, int]],
        cfg: Config,
    ):  # fmt: skip
        self.encoder, self.modality, self.domain, self.rows, self.cameras = encoder, modality, domain, rows, cameras
        self.options = getattr(cfg.policy.encoders, modality)
        self.limit_gb = cfg.dataset.cache_gb
        self.folder = cache_folder(domain.store.path, cache_dir=cfg.dataset.cache_dir, cache_gb=cfg.dataset.cache_gb)

    def files(self) -> dict[str, Path]:
        """camera -> where its features are, or will be: named by all that they depend on."""
        store, found = self.domain.store, {}
        selected = f"{store.format} {store.attrs.get('filter_key', '')} {store.read_by}"
        for camera, column in getattr(self.domain.view, self.modality).items():
            made_by = f"{RECIPE} {self.encoder.fingerprint} {self.options.kind} {self.options.options}"
            digest = hashlib.sha256(f"{made_by} {self.modality} {camera} {column} {selected}".encode())
            digest.update(self.rows.astype("<i8").tobytes())
            plain = re.sub("[^A-Za-z0-9._-]", "_", camera)
            found[camera] = self.folder.path / f"features-{plain}-{digest.hexdigest()[:12]}.npy"
        return found

    def make(self, device: torch.device) -> None:
        """Writes the files that are not there; each is whole or absent."""
        left = {camera: path for camera, path in self.files().items() if not path.is_file()}
        if not left:
            return
        self.encoder.to(device)
        first = self._encoded(self.rows[:1], device)
        num_bytes = sum(2 * first[camera][0].size * len(self.rows) for camera in left)
        if not self.folder.may_grow(num_bytes):
            raise UserError(
                f"policy.encoders.{self.modality}.cache=true: the features of {self.domain.name} take "
                f"{num_bytes / 1e9:.2f} GB, and the cache {self.folder.root} takes dataset.cache_gb={self.limit_gb:g} "
                "in all. Set dataset.cache_gb higher, or cache=false."
            )
        self._write(left, {camera: first[camera].shape[1:] for camera in left}, device, {})
        log.info("features of %s of %s: %.2f GB", self.modality, self.domain.name, num_bytes / 1e9)

    def _write(self, left: dict[str, Path], shapes: dict[str, tuple], device: torch.device, beside: dict) -> None:
        """Opens the files of all cameras that are left beside their names, and fills them together."""
        if not left:
            self._fill(beside, device)
            return
        (camera, path), *others = left.items()
        shape = (len(self.rows), *shapes[camera])

        def write(where: Path) -> None:
            array = np.lib.format.open_memmap(where, "w+", np.float16, shape)
            self._write(dict(others), shapes, device, {**beside, camera: array})
            array.flush()

        write_whole(path, write)

    def _fill(self, arrays: dict[str, np.ndarray], device: torch.device) -> None:
        title = f"encoding {self.modality} of {self.domain.name}"
        with tqdm(total=len(self.rows), desc=title, unit="frame", **bar_pace()) as bar:
            for start in range(0, len(self.rows), FRAMES_AT_ONCE):
                rows = self.rows[start : start + FRAMES_AT_ONCE]
                made = self._encoded(rows, device)
                for camera, array in arrays.items():
                    array[start : start + len(rows)] = made[camera]
                bar.update(len(rows))

    def _encoded(self, rows: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
        """{camera: (n, …) float16} of the domain's own cameras."""
        seen = self.domain.observations(rows[:, None], kinds=[self.modality])[self.modality]
        given = {camera: torch.from_numpy(np.ascontiguousarray(value)).to(device) for camera, value in seen.items()}
        made = self.encoder(with_every_camera(given, self.cameras))
        found = {camera: made[camera][:, 0].to(torch.float16).cpu().numpy() for camera in seen}
        if not all(np.isfinite(value).all() for value in found.values()):
            raise UserError(
                f"policy.encoders.{self.modality}.cache=true: features of {self.domain.name} are larger than the "
                f"float16 that they are kept in. Set policy.encoders.{self.modality}.cache=false."
            )
        return found
