"""What overwrite=true may replace: a folder with a dataset of the kind that is about to be written, and nothing else.

Each file in it must be one that such a dataset has; a folder that holds anything more is somebody's, and stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ppt_kit.errors import UserError
from ppt_kit.files import put_back

# what the files of a kind are called, from its folder on
ZARR_FILES = r"(?:(?:data|meta)/(?:[^/]+/)*)?(?:\.zgroup|\.zattrs|\.zarray|\.zmetadata|zarr\.json)"
LEROBOT_FILES = (
    r"meta/(?:info|stats)\.json|meta/(?:tasks|episodes|episodes_stats)\.jsonl|meta/(?:sub)?tasks\.parquet"
    r"|meta/episodes/chunk-\d+/file-\d+\.parquet|data/chunk-\d+/(?:file-|episode_)\d+\.parquet"
    r"|videos/(?:[^/]+/)+(?:file-|episode_)\d+\.mp4"
)
FILES = {"zarr": re.compile(ZARR_FILES), "lerobot": re.compile(LEROBOT_FILES)}
# without which it is none; one of each line is there
NEEDED = {
    "zarr": ((".zgroup", "zarr.json"), ("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json")),
    "lerobot": (("meta/info.json",),),
}
# pieces of an array lie in its folder or below it
CHUNK = re.compile(r"\d+(\.\d+)*")
OF_ARRAYS = (".zarray", "zarr.json")
CALLED = {"zarr": "zarr replay buffer", "lerobot": "LeRobot dataset"}


def check_replaceable(path: Path, *, kind: str, overwrite: bool, key: str) -> None:
    """Whether a dataset may be written under the name `path`; asked before the work begins.

    A dataset that a killed process had moved aside gets its name back first.

    Args:
        kind: "zarr" or "lerobot", what is about to be written.
        key: what the user sets the place with.
    Raises:
        UserError: something stands there and `overwrite` is false, or it is no folder with such a dataset alone.
    """
    put_back(path)
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path} exists already. Type overwrite=true to replace it, or choose another {key}=….")
    why = _why_not(path, kind)
    if why is not None:
        raise UserError(
            f"overwrite=true replaces a {CALLED[kind]} and nothing else, and {path} {why}. "
            f"Choose another {key}=…, or move that away yourself."
        )


def _why_not(path: Path, kind: str) -> str | None:
    """Why what stands at `path` is not to be replaced; an empty folder may be."""
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}"
    if not path.is_dir():
        return "is a file"
    if Path(os.path.realpath(path)) in (Path.cwd(), *Path.cwd().parents):
        return "is the folder you are in, or around it"
    if os.path.ismount(path):
        return "is a disk of its own"
    try:
        foreign = next(_foreign(path, kind), None)
        if foreign is not None:
            return f"holds {foreign}, which is no part of one"
        return _what_it_lacks(path, kind) if any(path.iterdir()) else None
    except OSError as error:
        return f"cannot be looked through ({error.filename}: {error.strerror})"


def _what_it_lacks(path: Path, kind: str) -> str | None:
    for names in NEEDED[kind]:
        if not any((path / name).is_file() for name in names):
            return f"has no {names[0]}"
    if kind == "lerobot" and "codebase_version" not in (path / "meta/info.json").read_text(errors="replace"):
        return "has a meta/info.json without a codebase_version"
    return None


def _foreign(folder: Path, kind: str) -> Iterator[str]:
    """What under the folder such a dataset does not have: files of other names, links, folders without a file."""

    def refuse(error: OSError) -> None:
        raise error

    arrays: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse):
        inside = "" if place == str(folder) else os.path.relpath(place, folder) + "/"
        if kind == "zarr" and (os.path.dirname(place) in arrays or any(name in files for name in OF_ARRAYS)):
            arrays.add(place)
        for name in [*folders, *files]:
            known = name in folders or FILES[kind].fullmatch(inside + name)
            if os.path.islink(os.path.join(place, name)) or not (known or (place in arrays and CHUNK.fullmatch(name))):
                yield inside + name
        if inside and not folders and not files:
            yield inside
