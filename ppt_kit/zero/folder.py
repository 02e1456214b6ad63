"""A checkpoint folder of DeepSpeed: its tags, what `latest` names, and one tag's weights as a safetensors file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppt_kit.errors import UserError
from ppt_kit.files import path_of, write_whole
from ppt_kit.tables import Table, shown
from ppt_kit.zero.saved import MODEL_FILE, OTHER_FILE, REMEDY, SHARD_FILE, Saved, read_saved
from ppt_kit.zero.weights import whole_weights

log = logging.getLogger(__name__)

LATEST = "latest"
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Found:
    """What is in a checkpoint folder.

    Attributes:
        folder: its path.
        latest: the tag that the file `latest` names; None where there is no such file.
        asked: the one tag that was asked for; None = all.
        torn: why the file `latest` cannot be read; "" = it can be, or there is none.
        table: a row a tag, the oldest step first: tag, step, stage, ranks, parameters, gb (1e9 bytes), whole, problem.
    """

    folder: Path
    latest: str | None
    asked: str | None
    table: Table
    torn: str = ""

    @property
    def newest_whole(self) -> str | None:
        """The tag of the last step that is whole."""
        tags = self.table.loc[self.table["whole"], "tag"]
        return None if tags.empty else str(tags.iloc[-1])

    @property
    def loads(self) -> bool:
        """Whether the step that was asked for is whole; where none was, the one that `latest` names."""
        wanted = self.asked or self.latest
        return wanted is not None and bool(self.table.loc[self.table["tag"] == wanted, "whole"].any())

    def told(self) -> list[str]:
        """What is to be known, in sentences."""
        said = "whole" if self.loads else "not whole"
        if self.asked is not None:
            first = f"{self.asked} is {said}."
        elif self.torn:
            first = f"DeepSpeed would load nothing: {self.torn}"
        elif self.latest is None:
            first = "There is no file latest, so DeepSpeed would load nothing."
        else:
            first = f"latest names {self.latest}, which is {said}."
        torn = [f"{row.tag}: {row.problem}" for row in self.table.itertuples() if not row.whole]
        newest = self.newest_whole
        last = f"The newest whole step is {newest}." if newest else "No step is whole."
        return [first, *torn, *([] if self.asked or newest == self.latest else [last])]

    def __str__(self) -> str:
        table = self.table.drop(columns="problem").to_string(index=False, na_rep="–")
        return "\n".join([str(self.folder), table, *self.told()])

    def _repr_html_(self) -> str:
        return shown(self.table.drop(columns="problem"), above=[str(self.folder), *self.told()])


def ds_checkpoints(folder: str | Path, *, tag: str | None = None) -> Found:
    """What is in a checkpoint folder of DeepSpeed, ZeRO stage 0-3, of any number of ranks; every byte is read.

    Nothing in the files is run: they may be a stranger's.

    Args:
        folder: what was given to `engine.save_checkpoint`; or one tag in it.
        tag: this one alone; None = all.
    Raises:
        UserError: there is no checkpoint of DeepSpeed.
    """
    place, only = _opened(folder)
    latest, torn = _latest_or_why(place)
    only = tag or only
    rows = [_row(place, each) for each in ([only] if only else _tags(place, latest))]
    rows.sort(key=lambda row: (row["step"] or _digits(row["tag"]), row["tag"]))
    # whole numbers also where one is missing
    table = Table(rows).astype(dict.fromkeys(("step", "stage", "ranks", "parameters"), "Int64"))
    return Found(place, latest, only, table, torn)


def ds_to_weights(
    folder: str | Path, *, tag: str | None = None, out: str | Path | None = None, overwrite: bool = False
) -> Path:
    """Writes the weights of one tag as plain tensors, the exact float32 ones where the optimizer has them.

    What was saved in half precision alone becomes float32 too, other types stay; so it is with training in half
    precision at stage 0, whose exact weights are saved without their names (a warning says so). What was written is
    read again and compared with what was read. Nothing in the files is run.

    Args:
        folder: what was given to `engine.save_checkpoint`; or one tag in it.
        tag: None = the one that `latest` names.
        out: the .safetensors file; None = <tag>.safetensors in the folder.
        overwrite: replace a file at `out`.
    Returns:
        The file; `safetensors.torch.load_file` gives what `load_state_dict` takes.
    Raises:
        UserError: a file is missing or damaged, or files are not of one save: names it, and the newest whole step.
    """
    place, only = _opened(folder)
    tag = tag or only or _latest(place)
    if tag is None:
        raise UserError(f"{place}: there is no file latest. Name a step, as tag={_tags(place, None)[-1]}.")
    target = Path(out).expanduser() if out else place / f"{tag}.safetensors"
    if target.is_dir():
        raise UserError(f"out={target}: a folder. Name the file, as out={target / f'{tag}.safetensors'}.")
    if target.exists() and not overwrite:
        raise UserError(f"out={target}: is there already. Name another file, or type overwrite=true.")
    try:
        saved, weights = _whole(place, tag)
    except UserError as error:
        newest = next(
            (each for each in reversed(_tags(place, None)) if each != tag and _problem(place, each) is None), None
        )
        raise UserError(f"{error} {f'Whole is tag={newest}.' if newest else 'No other step is whole.'}") from None
    if not saved.shards and any(value.dtype in HALF for value in weights.values()):
        log.warning("%s: trained in half precision at stage 0, so these are the rounded weights", place / tag)
    _write(target, weights, about={"format": "pt", "tag": tag, "step": str(saved.step)})
    return target


def _write(target: Path, weights: Mapping[str, torch.Tensor], *, about: dict[str, str]) -> None:
    """
    Raises:
        UserError: the place cannot be written to, or the disk gives back something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    # two names of one tensor are two tensors there
    plain = {
        name: (value.float() if value.dtype in HALF else value).clone(memory_format=torch.contiguous_format)
        for name, value in weights.items()
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda beside: save_file(plain, str(beside), metadata=about))
        read = load_file(target)
    except (OSError, SafetensorError) as error:
        # its own errors have the system's words in them
        said = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise UserError(f"out={target}: cannot be written ({said}).") from None
    for name, value in plain.items():
        # bytes, so that what is not a number is compared too
        if not torch.equal(_bytes(read[name]), _bytes(value)):
            raise UserError(f"{target}: the disk gives back another {name} than was written. Write elsewhere: out=….")


def _bytes(value: torch.Tensor) -> torch.Tensor:
    return value.flatten().view(torch.uint8)


def _opened(folder: str | Path) -> tuple[Path, str | None]:
    """The folder of tags, and the tag, where one was given."""
    path = path_of(folder, what="the folder that engine.save_checkpoint was given")
    if not path.is_dir():
        raise UserError(f"{path}: {'a file' if path.exists() else 'no such folder'}. Give the folder of a checkpoint.")
    if _is_tag(path):
        path = path.resolve()
        return path.parent, path.name
    if not _tags(path, _latest_or_why(path)[0]):
        raise UserError(
            f"{path}: holds no checkpoint of DeepSpeed (<tag>/mp_rank_00_model_states.pt). Give the folder that "
            "engine.save_checkpoint was given; a run of ppt_kit has plain weights already, model.pth."
        )
    return path, None


def _latest_or_why(place: Path) -> tuple[str | None, str]:
    """(the tag that `latest` names, why it cannot be read)."""
    try:
        return _latest(place), ""
    except UserError as error:
        return None, str(error)


def _latest(place: Path) -> str | None:
    try:
        text = (place / LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{place / LATEST}: cannot be read. Name a step, as tag=….") from None
    if not text or Path(text).name != text:
        raise UserError(f"{place / LATEST}: {text[:80]!r} is the name of no step. Name one, as tag=….")
    return text


def _tags(place: Path, latest: str | None) -> list[str]:
    """Of the oldest step first, as far as names tell; what `latest` names is one also where it is not there."""
    found = {path.name for path in place.iterdir() if path.is_dir() and _is_tag(path)}
    return sorted(found | ({latest} if latest else set()), key=lambda tag: (_digits(tag), tag))


def _is_tag(folder: Path) -> bool:
    patterns = (MODEL_FILE, SHARD_FILE, OTHER_FILE)
    return any(pattern.fullmatch(path.name) for path in folder.iterdir() for pattern in patterns)


def _digits(tag: str) -> int:
    return int((re.findall(r"\d+", tag) or ["0"])[-1])


def _row(place: Path, tag: str) -> dict[str, Any]:
    folder = place / tag
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0
    row: dict[str, Any] = {"tag": tag, "step": None, "stage": None, "ranks": None, "parameters": None, "gb": size / 1e9}
    try:
        saved, weights = _whole(place, tag)
    except UserError as error:
        return row | {"whole": False, "problem": str(error)}
    buffers = saved.first.get("buffer_names") or ()
    # two names of one tensor have one address
    sizes = {value.data_ptr(): value.numel() for name, value in weights.items() if name not in buffers}
    row |= {"step": saved.step, "stage": saved.stage, "ranks": saved.world_size, "parameters": sum(sizes.values())}
    return row | {"whole": True, "problem": ""}


def _problem(place: Path, tag: str) -> str | None:
    try:
        _whole(place, tag)
    except UserError as error:
        return str(error)
    return None


def _whole(place: Path, tag: str) -> tuple[Saved, dict[str, torch.Tensor]]:
    with _described(place / tag):
        saved = read_saved(place / tag)
        return saved, dict(whole_weights(saved))


@contextmanager
def _described(folder: Path) -> Iterator[None]:
    """Inside, what the files hold is taken to be laid out as DeepSpeed lays it out."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: not laid out as DeepSpeed does it ({type(error).__name__}: {str(error)[:120]}). {REMEDY}"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from None
