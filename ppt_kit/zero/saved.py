"""One tag of a checkpoint folder: the files that `engine.save_checkpoint` writes for it, read and held together.

Every rank writes one file of optimizer state with its part of the float32 weights; the model's file is written by
rank 0, at stage 3 by every rank. All of them are read as data: nothing of DeepSpeed is imported, no object is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ppt_kit.errors import UserError
from ppt_kit.torch_file import Inert, read_foreign

MODEL_FILE = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<part>\d+)_model_states\.pt")
SHARD_FILE = re.compile(r"(?P<half>bf16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<part>\d+)_?optim_states\.pt")
# of models that are cut in a way that only they know: layers of a pipeline, experts
OTHER_FILE = re.compile(r"(layer_\d+|expp?_rank_\d+).*\.pt")
# where a rank's file keeps its part of the float32 weights, at stages up to 2 and at stage 3
FLAT_GROUPS, FLAT_GROUPS_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"
REMEDY = "Take another step of the folder (tag=…), or a copy of the file."


@dataclass(frozen=True)
class Saved:
    """What the files of one tag hold.

    Attributes:
        folder: of the tag.
        models: of each model file what is in it, by rank; one at stages 0-2.
        shards: of each rank its optimizer state; {} where the model's file has all there is (stage 0).
        stage: ZeRO's, 0-3; None where no file says.
    """

    folder: Path
    models: dict[int, dict]
    shards: dict[int, dict] = field(default_factory=dict)
    stage: int | None = None

    @property
    def first(self) -> dict:
        """Of rank 0."""
        return self.models[0]

    @property
    def step(self) -> int | None:
        """Optimizer steps that were taken."""
        return _number(self.first.get("global_steps"))

    @property
    def world_size(self) -> int:
        return len(self.shards) or _number(self.first.get("dp_world_size")) or 1

    @property
    def is_cut(self) -> bool:
        """Whether the weights themselves are in parts: stage 3."""
        return bool(self.shards) and FLAT_GROUPS_3 in self.shards[0]


def read_saved(folder: Path) -> Saved:
    """Reads every file of a tag: each byte is as it was written, none is missing, all are of the same step.

    Raises:
        UserError: names the file that is missing, damaged, or of another save; or how the model is cut, where the
            parts cannot be joined without it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. The save was stopped before it began, or it was deleted.")
    names = sorted(path.name for path in folder.iterdir())
    _refuse_other_cuts(folder, names)
    models, shards = _by_rank(folder, MODEL_FILE, names), _by_rank(folder, SHARD_FILE, names)
    whole_model = folder / "mp_rank_00_model_states.pt"
    # a save at another stage into the same tag leaves the files of the one before
    if whole_model.name in names and any(path != whole_model for path in models.values()):
        other = next(path for path in models.values() if path != whole_model)
        raise UserError(
            f"{folder}: has {whole_model.name} and {other.name}, of two saves at different stages. {REMEDY}"
        )
    if 0 not in models:
        expected = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt" if models else whole_model
        raise UserError(f"{expected}: missing. {REMEDY}")
    first = _read(models[0], needs={"module": Mapping})
    if first.get("param_shapes") is None:
        return Saved(folder, {0: first}, stage=_stage([first]))
    return _with_shards(folder, first, models, shards)


def _with_shards(folder: Path, first: dict, models: dict[int, Path], shards: dict[int, Path]) -> Saved:
    half = "bf16_" if any(path.name.startswith("bf16_") for path in shards.values()) else ""
    shard_name, model_name = (
        f"{half}zero_pp_rank_{{}}_mp_rank_00_optim_states.pt",
        models[0].name.replace("_0_mp", "_{}_mp"),
    )
    said = _number(first.get("dp_world_size")) or len(shards) or 1
    opened = {0: _read_shard(_there(folder, shards, 0, shard_name, of=said))}
    counts = opened[0].get("partition_count", said)
    # parts of the model may be cut among fewer ranks
    count = max(map(int, counts)) if isinstance(counts, list) and counts else _number(counts) or said
    for rank in range(1, count):
        opened[rank] = _read_shard(_there(folder, shards, rank, shard_name, of=count))
    read = {0: first}
    if FLAT_GROUPS_3 in opened[0]:
        for rank in range(1, count):
            read[rank] = _read(_there(folder, models, rank, model_name, of=count), needs={"module": Mapping})
    for rank in sorted((shards.keys() | models.keys()) - set(range(count))):
        stray = shards.get(rank) or models[rank]
        raise UserError(f"{stray}: of another save: this one is of {count} rank(s). {REMEDY}")
    saved = Saved(folder, read, opened, _stage([opened[0], first]) or (3 if FLAT_GROUPS_3 in opened[0] else None))
    _check_steps(saved)
    return saved


def _there(folder: Path, files: dict[int, Path], rank: int, name: str, *, of: int) -> Path:
    if rank not in files:
        raise UserError(f"{folder / name.format(rank)}: missing, the part of rank {rank} of {of}. {REMEDY}")
    return files[rank]


def _read(path: Path, *, needs: dict[str, type]) -> dict:
    content = read_foreign(path, kind_of_file="a file of a DeepSpeed checkpoint", remedy=REMEDY)
    for name, kind in needs.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path}: not a file of a DeepSpeed checkpoint: it has no {name}. {REMEDY}")
    return content


def _read_shard(path: Path) -> dict:
    state = _read(path, needs={"optimizer_state_dict": Mapping})["optimizer_state_dict"]
    groups = state.get(FLAT_GROUPS, state.get(FLAT_GROUPS_3))
    if not isinstance(groups, list) or not all(isinstance(group, torch.Tensor) for group in groups):
        raise UserError(f"{path}: holds no part of the float32 weights ({FLAT_GROUPS} or {FLAT_GROUPS_3}). {REMEDY}")
    return state


def _refuse_other_cuts(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        match = MODEL_FILE.fullmatch(name) or SHARD_FILE.fullmatch(name)
        if match is not None and int(match["part"]) > 0:
            raise UserError(
                f"{folder / name}: of a model that is cut by tensor parallelism, and only that model knows how it is "
                "joined. Have the program that trained it load and save it whole."
            )
        if match is None and OTHER_FILE.fullmatch(name):
            raise UserError(
                f"{folder / name}: of a pipeline or of experts, which only their model knows how to join. "
                "Have the program that trained it load and save it whole."
            )


def _by_rank(folder: Path, pattern: re.Pattern[str], names: Iterable[str]) -> dict[int, Path]:
    found = [(pattern.fullmatch(name), name) for name in names]
    return {int(match["rank"] or 0): folder / name for match, name in reversed(found) if match is not None}


def _check_steps(saved: Saved) -> None:
    """A killed save over an older one of the same tag leaves files of both."""
    for rank, model in saved.models.items():
        if model.get("global_steps") != saved.first.get("global_steps"):
            raise UserError(
                f"{saved.folder}: rank 0 is at step {saved.step}, rank {rank} at {model.get('global_steps')}: "
                f"files of two saves. {REMEDY}"
            )
    steps = {rank: _optimizer_steps(shard) for rank, shard in saved.shards.items()}
    for rank, taken in steps.items():
        if taken and steps[0] and taken != steps[0]:
            raise UserError(
                f"{saved.folder}: the optimizer of rank 0 took {max(steps[0])} steps, that of rank {rank} "
                f"{max(taken)}: files of two saves. {REMEDY}"
            )


def _optimizer_steps(shard: dict) -> set[float]:
    """How many steps its optimizer counts; the empty set where it counts none."""
    state = shard.get("base_optimizer_state") or shard.get("optimizer_state_dict") or {}
    counted = state.get("state") if isinstance(state, Mapping) else None
    each = counted.values() if isinstance(counted, Mapping) else ()
    return {float(values["step"]) for values in each if isinstance(values, Mapping) and "step" in values}


def _stage(contents: Iterable[dict]) -> int | None:
    """What the first that says so says."""
    for content in contents:
        settings = content.get("ds_config")
        zero = settings.get("zero_optimization") if isinstance(settings, Mapping) else None
        told = content.get("zero_stage", zero.get("stage") if isinstance(zero, Mapping) else None)
        # an enumeration of DeepSpeed's, made of its number
        number = _number(told.args[0] if isinstance(told, Inert) and told.args else told)
        if number is not None:
            return number
    return None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
