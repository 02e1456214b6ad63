"""What is in the folder: versions, splits and their shards."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ppt_kit.errors import UserError

SHARD = re.compile(r"(.+)-([^-]+)\.tfrecord-(\d+)-of-(\d+)")


def versions_in(path: Path) -> list[Path]:
    """The folder itself, or the folders inside that hold a dataset."""
    folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
    found = [
        folder for folder in folders if (folder / "features.json").is_file() or any(folder.glob("*.tfrecord-*-of-*"))
    ]
    return found[:1] if path in found else found


def folder_of(path: Path) -> Path:
    versions = versions_in(path)
    if len(versions) > 1:
        names = ", ".join(version.name for version in versions)
        raise UserError(f"{path}: holds more than one version: {names}. Name one: {versions[-1]}.")
    return versions[0]


def info_of(folder: Path) -> dict:
    file = folder / "dataset_info.json"
    told = read_json(file) if file.is_file() else {}
    return {key: told[key] for key in ("name", "version", "description") if key in told}


def read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}). TFDS writes it beside the shards: copy it again.") from None


def shards_of(folder: Path, wanted: str | None) -> tuple[str, list[Path], list[int] | None]:
    """The split to read, its shards in order, and how many episodes dataset_info.json says each holds, if it does.

    Raises:
        UserError: no such split, or a shard of it is missing.
    """
    splits: dict[str, dict[int, Path]] = {}
    of: dict[str, int] = {}
    for file in folder.iterdir():
        if match := SHARD.fullmatch(file.name):
            splits.setdefault(match[2], {})[int(match[3])] = file
            of[match[2]] = int(match[4])
    split = wanted if wanted is not None else next(iter(splits)) if len(splits) == 1 else "train"
    if split not in splits:
        told = f"dataset.filter_key={wanted}" if wanted is not None else "dataset.filter_key is not set"
        known = ", ".join(sorted(splits)) or "none"
        raise UserError(f"{told}: {folder} has no shards of the split {split}; its splits: {known}. Name one of those.")
    missing = sorted(set(range(of[split])) - splits[split].keys())
    if missing:
        raise UserError(
            f"{folder}: shard {missing[0]} of {of[split]} of the split {split} is missing"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else ".")
            + " Copy it there."
        )
    return split, [splits[split][number] for number in range(of[split])], _promised(folder, split, of[split])


def _promised(folder: Path, split: str, num_shards: int) -> list[int] | None:
    file = folder / "dataset_info.json"
    told = read_json(file).get("splits", []) if file.is_file() else []
    for note in told if isinstance(told, list) else []:
        lengths = note.get("shardLengths") or note.get("shard_lengths")
        if note.get("name") == split and lengths and len(lengths) == num_shards:
            return [int(length) for length in lengths]
    return None
