"""What a run of ppt_learning left: its weights by their names, and its configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ppt_kit.config import compose_file
from ppt_kit.errors import UserError
from ppt_kit.migration.ancestor import Translated, plain_values
from ppt_kit.migration.parts import MODALITIES
from ppt_kit.migration.reading import read_old
from ppt_kit.torch_file import read_state_dict

NAMED = re.compile(r"model_(\d+)\.pth")
PARTS = ("trunk", "stems", "heads", "normalizer", "modalities_tokens", "crossattn_modalities_latents")


class Differs(Exception):
    """A part that cannot be said in ours, with the reason."""


@dataclass(frozen=True)
class Part:
    """A part of the old policy in ours.

    Attributes:
        options: dotted key of a configuration -> value.
        tensors: name in our policy, or below its module -> value.
        told: what -> by which file it was said.
    """

    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)


class Old:
    """A state dict of ppt_learning beside its configuration.

    Args:
        weights: name -> tensor.
        values: dotted key -> value of the old configuration, resolved.
        project: folder of ppt_learning.
    Attributes:
        domains, modalities: by their old names, in their order.
        strange: modalities that no policy here sees.
        width: of a token.
        frames, actions: To and Ta.
    Raises:
        UserError: these are no weights of a policy of ppt_learning.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], values: Mapping[str, Any], *, project: Path, file: Path):
        self.weights, self.values, self.project, self.file = dict(weights), values, project, file
        self.domains = self._second_words("heads")
        if not self.domains or not self.below("normalizer"):
            raise UserError(
                f"{file}: no policy of ppt_learning: it has no heads.<domain> and normalizer.<domain> among its "
                f"{len(weights)} tensors ({', '.join(list(weights)[:3])} …)."
            )
        asked = self.value("stem.modalities", [])
        if not asked:
            raise UserError(f"{file.parent}/config.yaml: stem.modalities does not say what the policy sees.")
        self.modalities = [name for name in asked if name in MODALITIES]
        self.strange = [name for name in asked if name not in MODALITIES]
        self.width = self._width()
        self.frames = int(self._horizon("observation_horizon"))
        self.actions = int(self._horizon("action_horizon"))

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose names begin with `prefix.`, by what follows."""
        return {name[len(prefix) + 1 :]: value for name, value in self.weights.items() if name.startswith(f"{prefix}.")}

    def value(self, dotted: str, default: Any = None) -> Any:
        found = self.values.get(dotted)
        return default if found is None else found

    def stem(self, domain: str, modality: str) -> dict[str, torch.Tensor]:
        return self.below(f"stems.{domain}_{modality}")

    def latents(self, domain: str, modality: str) -> torch.Tensor | None:
        """(L, width) queries of a frame; None = there is no cross-attention."""
        found = self.weights.get(f"crossattn_modalities_latents.{domain}_{modality}")
        return None if found is None else found[0]

    def action_width(self, domain: str) -> int:
        scale = self.weights.get(f"normalizer.{domain}.params_dict.action.scale")
        width = len(scale) if scale is not None else self.value("network.action_dim", self.value("head.output_dim", -1))
        if not isinstance(width, int) or width < 1:
            raise UserError(f"{self.file}: nothing says how many numbers an action of {domain} has.")
        return width

    @property
    def crosses(self) -> bool:
        return bool(self.below("crossattn_modalities_latents"))

    def _second_words(self, first: str) -> list[str]:
        return list(dict.fromkeys(name.split(".")[1] for name in self.weights if name.startswith(f"{first}.")))

    def _width(self) -> int:
        tokens = next(iter(self.below("modalities_tokens").values()), None)
        norm = self.weights.get("trunk.blocks.0.norm_1.weight")
        for found in (norm, tokens):
            if found is not None:
                return found.shape[-1]
        raise UserError(f"{self.file}: neither trunk.blocks.0 nor modalities_tokens is there to tell a token's width.")

    def _horizon(self, name: str) -> Any:
        found = self.value(f"network.{name}", self.value(f"dataset.{name}"))
        if not isinstance(found, int) or found < 1:
            raise UserError(f"{self.file.parent}/config.yaml: network.{name} is {found!r}, where steps are read.")
        return found


def files_of(asked: Path) -> dict[str, Path]:
    """{name of ours: file of theirs}: model.pth, model_{epoch}.pth.

    Raises:
        UserError: there is none.
    """
    if asked.is_file():
        return {"model.pth": asked}
    if not asked.is_dir():
        raise UserError(f"--convert-checkpoint={asked}: no such folder.")
    numbered = [path for path in asked.glob("model_*.pth") if NAMED.fullmatch(path.name)]
    numbered.sort(key=lambda path: epoch_of(path.name))
    latest = asked / "model.pth"
    if not latest.is_file() and not numbered:
        raise UserError(
            f"--convert-checkpoint={asked}: there is neither model.pth nor model_<epoch>.pth in it. Give the folder "
            "that a run of ppt_learning wrote."
        )
    # which it did not write in the epochs that it numbered
    files = {"model.pth": latest if latest.is_file() else numbered[-1]}
    return files | {path.name: path for path in numbered}


def epoch_of(name: str) -> int:
    """Of model_7.pth 7, of model.pth 0: it does not say."""
    match = NAMED.fullmatch(name)
    return int(match[1]) if match else 0


def read_config(folder: Path) -> tuple[dict[str, Any], Translated]:
    """(old values by their dotted keys, the same in today's keys) of a run's config.yaml.

    Raises:
        UserError: it is not there, or not of ppt_learning.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder}: there is no config.yaml beside the weights, which do not say how they were put together. "
            "Copy the one of that run there: ppt_learning wrote it into its output folder."
        )
    read = compose_file(path.name, folder.resolve(), [])
    if not read.is_old:
        raise UserError(f"{path}: is not of ppt_learning: a run folder of ppt_kit loads as it is.")
    return plain_values(read.tree, origin=str(path)), read_old(read)


def read_old_policy(file: Path, values: Mapping[str, Any], *, project: Path) -> Old:
    """The weights of a file.

    Raises:
        UserError: it is damaged, needs code to be read, or holds no such policy.
    """
    weights = read_state_dict(file)
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return Old({name: value.float() for name, value in weights.items()}, values, project=project, file=file)
