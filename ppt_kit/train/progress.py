"""How far a run is: what a resume file holds beside the engine's state, written and read here only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from ppt_kit.checkpoint import check_encoders, load_resume
from ppt_kit.config import from_mapping
from ppt_kit.data.normalizer import check_same_source
from ppt_kit.engine import Engine, from_first
from ppt_kit.errors import UserError

log = logging.getLogger(__name__)

# parts of the configuration that decide the data and the weights, and what may differ in them between two machines
DECIDING = ("domains", "dataset", "normalizer", "augment", "policy", "seed")
FREE = {"dataset": ("cache_dir", "cache_gb"), "normalizer": ("path", "any_dataset")}


@dataclass
class Progress:
    """What a run knows of its past, to go on as if it had never stopped: a field added here is saved and read back.

    Fields are plain: numbers, texts, None, and lists, tuples or mappings of them.

    Attributes:
        position: (pass, windows of it that were seen) where the next step begins.
        global_batch: windows an optimizer step saw.
        losses: of the steps since the last row of metrics.jsonl, the ranks' means.
        best: (value, epoch) of train.best_metric.
        schedule: what `Schedule.state` gives.
        wandb_id: of the W&B run that mirrors this one.
        loss: of the last row.
        val_loss: of the last validation.
        skipped: micro batches left out because their loss was not finite.
        steered: lr and epochs that were asked for while it trained, each as [the configuration's, what was asked].
    """

    position: tuple[int, int] = (0, 0)
    global_batch: int = 0
    losses: list[float] = field(default_factory=list)
    best: tuple[float, int | None] = (float("inf"), None)
    schedule: list = field(default_factory=list)
    wandb_id: str | None = None
    loss: float = float("nan")
    val_loss: float = float("nan")
    skipped: int = 0
    steered: dict[str, list] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Every field, as a copy of plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, stored: Mapping[str, Any]) -> Progress:
        """What `state` gave; fields that an older file lacks have their defaults."""
        progress = cls()
        for each in fields(cls):
            if each.name in stored:
                value = stored[each.name]
                setattr(progress, each.name, tuple(value) if isinstance(getattr(progress, each.name), tuple) else value)
        return progress


def resume_content(engine_state: dict, progress: Progress, card: dict) -> dict:
    """What a resume file holds; `card` is what a checkpoint carries beside its weights."""
    return {
        "engine": engine_state,
        "progress": progress.state(),
        "config": card["config"],
        "normalizer": card["normalizer"],
        "encoders": card["encoders"],
        "generators": {"torch": torch.get_rng_state()},
    }


def progress_of(content: Mapping[str, Any]) -> Progress:
    """Of a resume file; in older ones the same values lie flat, beside the engine's state."""
    return Progress.from_state(content.get("progress", content))


def resume(
    engine: Engine, run_dir: Path, *, config: dict, stats: dict, encoders: Mapping[str, str], modalities: Sequence[str]
) -> tuple[Progress, dict] | None:
    """Takes the newest state of a run into the engine; every rank must call it.

    Args:
        config: this run's, as plain values.
        stats: of the data at hand, from `fit_normalizer`.
        encoders: modality -> fingerprint of its frozen encoder, whose weights no file holds.
        modalities: that the policy sees.
    Returns:
        How far the run is and the statistics it began with; None when it has saved nothing yet.
    Raises:
        UserError: the state is damaged, or of another configuration or dataset. On every rank.
    """
    saved, problem = None, None
    if engine.world.is_first:
        saved, problem = _newest(run_dir, config=config, stats=stats, encoders=encoders, modalities=modalities)
    problem = from_first(problem)
    if problem:
        raise UserError(problem)
    if not from_first(saved is not None):
        log.info("nothing to resume in %s: starting", run_dir)
        return None
    try:
        engine.load_state(saved["engine"] if saved else None)
    except ValueError as error:
        raise UserError(f"{run_dir}: {error}. Resume with the configuration it was trained with.") from None
    if saved:
        torch.set_rng_state(saved["generators"]["torch"])
    progress, began_with = from_first((progress_of(saved), saved["normalizer"]) if saved else None)
    engine.skipped = progress.skipped
    return progress, began_with


def _newest(
    run_dir: Path, *, config: dict, stats: dict, encoders: Mapping[str, str], modalities: Sequence[str]
) -> tuple[dict | None, str | None]:
    """(the newest state if there is one, why it cannot be gone on from)."""
    try:
        saved = load_resume(run_dir)
        if saved is not None:
            # with today's names and the defaults of keys that are younger than the file
            stored = OmegaConf.to_container(from_mapping(saved["config"]), resolve=True)
            here, there = (_meant(each, modalities) for each in (config, cast(dict, stored)))
            _check_same(here, there, run_dir)
            check_same_source(saved["normalizer"], stats, any_dataset=config["normalizer"]["any_dataset"])
            check_encoders(saved.get("encoders", {}), encoders, run_dir)
    except UserError as error:
        return None, str(error)
    return saved, None


def _meant(config: dict, modalities: Sequence[str]) -> dict:
    """A configuration without what a policy that sees `modalities` does not read.

    What it sees, its weights tell, and which numbers a state has, the statistics: both are compared beside it.
    """
    free = {"modalities"} if "pointcloud" in modalities else {"modalities", "cloud_origin"}
    policy = {name: value for name, value in config["policy"].items() if name not in free}
    for group in ("stems", "encoders"):
        policy[group] = {name: each for name, each in policy[group].items() if name in modalities}
    dataset = {name: value for name, value in config["dataset"].items() if name != "state_keys"}
    sees_pictures = "rgb" in modalities or "depth" in modalities
    augment = {name: value for name, value in config["augment"].items() if sees_pictures or name != "shift_px"}
    return {**config, "policy": policy, "dataset": dataset, "augment": augment}


def _check_same(now: dict, stored: dict, run_dir: Path) -> None:
    """What decides the data and the weights must not change between the parts of a run."""
    for part in DECIDING:
        here, there = (_deciding(part, config[part]) for config in (now, stored))
        if here != there:
            raise UserError(
                f"{part} is {here} here and {there} in {run_dir}: the run would not go on as it began. "
                "Set it back, or choose another suffix."
            )


def _deciding(part: str, value: Any) -> Any:
    """A part of a configuration without what may differ between the machines that a run goes on on."""
    free = FREE.get(part, ())
    return {name: each for name, each in value.items() if name not in free} if isinstance(value, dict) else value
