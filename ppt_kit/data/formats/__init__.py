"""The formats that datasets come in, and where a dataset is: ours by name, a user's own by the name of its module.

One more of ours is one more file here and one more line in FORMATS; what a format has is in contract.py.
"""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

from ppt_kit.data.disk.cache import CacheFolder, RowCache, default_cache_dir
from ppt_kit.data.formats.contract import Format, as_format, check_store, state_of_format
from ppt_kit.data.formats.wanted import Wanted
from ppt_kit.data.store import DecodedColumn, EpisodeStore, decoded_part
from ppt_kit.errors import UserError
from ppt_kit.lfs import refuse_lfs_pointer
from ppt_kit.parts import find_part
from ppt_kit.programs import to_type

log = logging.getLogger(__name__)

# imported when they are first asked: each brings a library of its own
FORMATS = {
    "replay_buffer": "ppt_kit.data.formats.replay_buffer.reader",
    "lerobot": "ppt_kit.data.formats.lerobot.reader",
    "robomimic": "ppt_kit.data.formats.robomimic",
    "maniskill": "ppt_kit.data.formats.maniskill",
    "rlds": "ppt_kit.data.formats.rlds.reader",
}

# neighbours, when a dataset is not found
MOST_LOOKED_AT = 200
# how a dataset called <domain> may be called on disk
ENDINGS = (".zarr", ".zarr.zip", ".hdf5", ".h5", "")


def open_store(
    path: str | Path,
    *,
    format: str | None = None,
    filter_key: str | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float = 20.0,
    wanted: Wanted | None = None,
) -> EpisodeStore:
    """The dataset at `path`, in whatever format it is, read in place.

    Args:
        format: a name in FORMATS, or `module` or `module:Name` of the user's own; None = the one of ours that
            recognises it.
        filter_key: the part to read where the format names parts: a robomimic mask, a LeRobot or RLDS split,
            ManiSkill's success; None = all.
        cache_dir: folder for decoded rows; None = see `default_cache_dir`.
        cache_gb: what that folder may hold, over all datasets; 0 = decode each row every time.
        wanted: what of it is going to be read; None = all. LeRobot's files that hold nothing of it need not be there.
    Raises:
        UserError: nothing is there, or the format does not recognise it (the line says what was looked for), or it is
            damaged, or there is no such format.
    """
    path = Path(path).expanduser()
    found = recognise(path, format=format)
    store = _opened(found, path, filter_key=filter_key, wanted=wanted or Wanted())
    if format is not None and format not in FORMATS:
        check_store(store, found)
        store.read_by = state_of_format(found)
    parts = {key: decoded_part(column) for key, column in store.columns.items()}
    decoded = {key: part for key, part in parts.items() if part is not None}
    if decoded and cache_gb > 0:
        attach_cache(store, decoded, folder=cache_folder(path, cache_dir=cache_dir, cache_gb=cache_gb))
    return store


def _opened(found: Format, path: Path, *, filter_key: str | None, wanted: Wanted) -> EpisodeStore:
    """What the format gives; those that have a file or more an episode take `wanted` too."""
    if "wanted" in inspect.signature(found.open_store).parameters:
        return found.open_store(path, filter_key=filter_key, wanted=wanted)  # type: ignore[call-arg]
    if wanted.whole_episodes_only:
        log.warning(
            "%s: %s changes nothing, the episodes of a %s are not in files of their own", path, wanted.only_whole,
            found.NAME,
        )  # fmt: skip
    return found.open_store(path, filter_key=filter_key)


def cache_folder(path: Path, *, cache_dir: str | Path | None, cache_gb: float) -> CacheFolder:
    """Where the decoded rows of one dataset are kept."""
    return CacheFolder(cache_dir or default_cache_dir(), path, limit_bytes=cache_gb * 1e9)


def attach_cache(store: EpisodeStore, columns: dict[str, DecodedColumn], *, folder: CacheFolder) -> None:
    """Gives decoded columns a cache; what one selects, and who reads it, belongs to its rows' identity."""
    selected = f"{store.format} {store.attrs.get('filter_key', '')} {len(store.episode_ends)}"
    selected += f" {store.read_by}" if store.read_by else ""
    for key, column in columns.items():
        column.cache = RowCache(folder, key, kind=selected, shape=column.shape, dtype=column.dtype)


def find_format(name: str) -> Format:
    """The format of that name, ours or `module` or `module:Name` of the user's own.

    Raises:
        UserError: there is none, or the user's lacks something that a format has.
    """
    part = find_part(name, FORMATS, option="dataset.format", modules=True)
    return part if name in FORMATS else as_format(part, option=f"dataset.format={name}")


def recognise(path: Path, *, format: str | None = None) -> Format:
    """The format of what is at `path`: the one named, or that of ours which recognises it.

    Raises:
        UserError: nothing is there, or no format recognises it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such dataset. {_neighbours(path)}")
    refuse_lfs_pointer(path)
    looked = []
    for name in FORMATS if format is None else [format]:
        found = find_format(name)
        if found.recognises(path):
            return found
        looked.append(f"{found.NAME}: {found.LOOKED_FOR}")
    why = "no format that ppt_kit knows" if format is None else f"dataset.format={format} does not recognise it"
    raise UserError(f"{path}: {why}. It holds {_contents(path)}. Looked for {'; '.join(looked)}.")


def find_domain(dataset_path: str | Path, domain: str, *, format: str | None = None) -> Path:
    """Where the dataset of one domain is.

    Args:
        format: as in `open_store`; of a user's own its ENDINGS are looked for.
    Raises:
        UserError: it is not there; the line names the datasets that are.
    """
    folder = Path(dataset_path).expanduser()
    found, endings = None if format is None else find_format(format), _endings(format)
    there = [path for ending in endings if (path := folder / f"{domain}{ending}").exists()]
    if there:
        return next((path for path in there if found is not None and found.recognises(path)), there[0])
    if folder.exists() and _is_dataset(folder, format):
        raise UserError(
            f"dataset_path={dataset_path} is a dataset itself. "
            f"Type dataset_path={folder.parent} domains={name_of(folder, format=format)}."
        )
    entries = sorted(folder.iterdir())[:MOST_LOOKED_AT] if folder.is_dir() else []
    names = [
        name_of(entry, format=format)
        for entry in entries
        if not entry.name.startswith(".") and _is_dataset(entry, format)
    ]
    others = [*(ending for ending in endings[1:] if ending), *(["folder"] if "" in endings[1:] else [])]
    raise UserError(
        f"domains={domain}: no {folder / domain}{endings[0]}" + (f" (nor {_listed(others)})" if others else "") + ". "
        f"{folder} holds {', '.join(names) if names else 'no dataset'}. Set domains=… and dataset_path=…"
        + (
            f"; of a simulator's task, collect it with `{to_type('collect_demos')} task={domain}`."
            if format is None
            else "."
        )
    )


def name_of(path: Path, *, format: str | None = None) -> str:
    """What a dataset is called as a domain: its name without the ending.

    Of a version's folder (RLDS: name/1.0.0) it is the name of the one above.
    """
    name = path.absolute().name
    if path.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", name):
        return path.absolute().parent.name
    endings = sorted(_endings(format), key=len, reverse=True)
    return name.removesuffix(next((ending for ending in endings if ending and name.endswith(ending)), ""))


def _endings(format: str | None) -> tuple[str, ...]:
    own = () if format is None else getattr(find_format(format), "ENDINGS", ())
    return tuple(own) or ENDINGS


def _is_dataset(path: Path, format: str | None) -> bool:
    # a user's format raises whatever it likes at a file that is none
    try:
        recognise(path, format=format)
        return True
    except Exception:
        return False


def _listed(words: list[str]) -> str:
    """a, b or c."""
    return " or ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])


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
