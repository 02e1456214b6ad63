"""The formats that datasets come in. A tenth one is one more file here, and one more line in FORMATS.

A format is a module with
    NAME             for people
    LOOKED_FOR       what `recognises` looks for on disk, in words
    recognises(path) whether the path holds this format; looks at names and a few bytes only
    open_store(path, *, filter_key) -> EpisodeStore
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from ppt_kit.data.disk.cache import CacheFolder, RowCache, default_cache_dir
from ppt_kit.data.store import DecodedColumn, EpisodeStore, decoded_part
from ppt_kit.errors import UserError

FORMATS = ("replay_buffer.reader", "lerobot.reader", "robomimic", "maniskill", "rlds.reader")

MOST_LOOKED_AT = 200  # neighbours, when a dataset is not found
# how a dataset called <domain> may be called on disk
ENDINGS = (".zarr", ".zarr.zip", ".hdf5", ".h5", "")


def open_store(
    path: str | Path, *, filter_key: str | None = None, cache_dir: str | Path | None = None, cache_gb: float = 20.0
) -> EpisodeStore:
    """The dataset at `path`, in whatever format it is, read in place.

    Args:
        filter_key: the part to read where the format names parts: a robomimic mask, an RLDS split; None = all.
        cache_dir: folder for decoded rows; None = see `default_cache_dir`.
        cache_gb: what that folder may hold, over all datasets; 0 = decode each row every time.
    Raises:
        UserError: nothing is there, or no format recognises it (the line says what was looked for), or it is damaged.
    """
    path = Path(path).expanduser()
    store = recognise(path).open_store(path, filter_key=filter_key)
    parts = {key: decoded_part(column) for key, column in store.columns.items()}
    decoded = {key: part for key, part in parts.items() if part is not None}
    if decoded and cache_gb > 0:
        attach_cache(store, decoded, folder=cache_folder(path, cache_dir=cache_dir, cache_gb=cache_gb))
    return store


def cache_folder(path: Path, *, cache_dir: str | Path | None, cache_gb: float) -> CacheFolder:
    """Where the decoded rows of one dataset are kept."""
    return CacheFolder(cache_dir or default_cache_dir(), path, limit_bytes=cache_gb * 1e9)


def attach_cache(store: EpisodeStore, columns: dict[str, DecodedColumn], *, folder: CacheFolder) -> None:
    """Gives decoded columns a cache; what one selects belongs to its rows' identity."""
    selected = f"{store.format} {store.attrs.get('filter_key', '')} {len(store.episode_ends)}"
    for key, column in columns.items():
        column.cache = RowCache(folder, key, kind=selected, shape=column.shape, dtype=column.dtype)


def recognise(path: Path) -> ModuleType:
    """The format of what is at `path`.

    Raises:
        UserError: nothing is there, or no format recognises it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such dataset. {_neighbours(path)}")
    formats = []
    for name in FORMATS:  # one after the other: each imports a library of its own
        formats.append(importlib.import_module(f"ppt_kit.data.formats.{name}"))
        if formats[-1].recognises(path):
            return formats[-1]
    looked = "; ".join(f"{module.NAME}: {module.LOOKED_FOR}" for module in formats)
    raise UserError(f"{path}: no format that ppt_kit knows. It holds {_contents(path)}. Looked for {looked}.")


def find_domain(dataset_path: str | Path, domain: str) -> Path:
    """Where the dataset of one domain is.

    Raises:
        UserError: it is not there; the line names the datasets that are.
    """
    folder = Path(dataset_path).expanduser()
    for ending in ENDINGS:
        if (folder / f"{domain}{ending}").exists():
            return folder / f"{domain}{ending}"
    if folder.exists() and _is_dataset(folder):
        raise UserError(
            f"dataset_path={dataset_path} is a dataset itself. Type dataset_path={folder.parent} domains={name_of(folder)}."
        )
    entries = sorted(folder.iterdir())[:MOST_LOOKED_AT] if folder.is_dir() else []
    there = [name_of(entry) for entry in entries if not entry.name.startswith(".") and _is_dataset(entry)]
    known = f"{folder} holds {', '.join(there)}. " if there else f"{folder} holds no dataset. "
    raise UserError(
        f"domains={domain}: no {folder / domain}.zarr (nor {', '.join(ENDINGS[1:-1])} or folder). {known}Set domains=… and "
        f"dataset_path=…, or collect it with `python scripts/collect_demos.py task={domain}`."
    )


def name_of(path: Path) -> str:
    """What a dataset is called as a domain: its name without the ending; of a version's folder (RLDS: name/1.0.0), the one above."""
    name = path.absolute().name
    if path.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", name):
        return path.absolute().parent.name
    ending = next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if ending and name.endswith(ending)), "")
    return name.removesuffix(ending)


def _is_dataset(path: Path) -> bool:
    try:
        recognise(path)
        return True
    except (UserError, OSError):
        return False


def _contents(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as file:
            return f"{path.stat().st_size} bytes that start with {file.read(8)!r}"
    names = sorted(entry.name for entry in path.iterdir())
    return (", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")) if names else "nothing"


def _neighbours(path: Path) -> str:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    return f"{parent} holds {', '.join(names[:8])}." if names else f"{parent} is empty."
