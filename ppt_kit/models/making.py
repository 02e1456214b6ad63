"""A policy's stems, heads and encoders, made as its configuration names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import MODALITIES, PolicyConfig, can_see
from ppt_kit.models.domains import Group
from ppt_kit.models.encoders import ENCODERS, Encoder, Frozen
from ppt_kit.models.heads import ADOPTED, HEADS, Head
from ppt_kit.models.hpt.trunk import HPTTrunk
from ppt_kit.models.part import Sizes, build_part
from ppt_kit.models.stems import STEMS, Stem
from ppt_kit.models.trunk import Trunk
from ppt_kit.spec import Spec


class Maker:
    """Makes parts of one size.

    Args:
        options: `policy` of a configuration.
        modalities: those that the policy sees.
    Raises:
        UserError: each of its methods, when a part cannot be found or made.
    """

    def __init__(self, options: PolicyConfig, horizon: Horizon, modalities: Sequence[str]):
        self.options, self.horizon, self.modalities = options, horizon, modalities
        self._encoded: dict[str, int] = {}

    def head(self, group: Group) -> Head:
        asked = self.options.head
        sizes = self._sizes(group.spec, f"head.{group.key}")
        known = HEADS | ADOPTED
        return build_part(asked.kind, sizes, asked.options, known=known, base=Head, option="policy.head")

    def stems(self, group: Group) -> nn.ModuleDict:
        """Modality -> stem."""
        made = {}
        for name in self.modalities:
            asked = getattr(self.options.stems, name)
            place = f"stem.{group.key}.{name}"
            sizes = replace(
                self._sizes(group.spec, place, modality=name), num_latents=asked.num_latents,
                encoded=self._encoded.get(name, 0),
            )  # fmt: skip
            option = f"policy.stems.{name}"
            made[name] = build_part(asked.kind, sizes, asked.options, known=STEMS, base=Stem, option=option)
        return nn.ModuleDict(made)

    def trunk(self) -> Trunk:
        options = self.options
        made = HPTTrunk if options.trunk_kind == "hpt" else Trunk
        return made(width=options.width, depth=options.depth, num_heads=options.num_heads, dropout=options.dropout)

    def encoders(self, specs: Sequence[Spec]) -> dict[str, nn.Module]:
        """Modality -> encoder of all domains, of the modalities that have one; made before the stems behind them."""
        made: dict[str, nn.Module] = {}
        spec = specs[0]
        for other in specs[1:]:
            spec = replace(spec, rgb=spec.rgb | other.rgb, depth=spec.depth | other.depth)
        for name in self.modalities:
            asked = getattr(self.options.encoders, name, None)
            if asked is None or asked.kind is None:
                continue
            sizes, option = self._sizes(spec, f"encoder.{name}", modality=name), f"policy.encoders.{name}"
            with torch.random.fork_rng(devices=[], enabled=asked.frozen):
                if asked.frozen:
                    # random weights that no checkpoint holds are the same wherever they are made
                    torch.manual_seed(0)
                encoder = build_part(asked.kind, sizes, asked.options, known=ENCODERS, base=Encoder, option=option)
            if encoder.stays and not asked.frozen:
                raise UserError(f"{option}.frozen=false: {asked.kind} is never trained. Leave it true.")
            self._encoded[name] = encoder.width
            made[name] = Frozen(encoder) if asked.frozen else encoder
        return made

    def _sizes(self, spec: Spec, name: str, *, modality: str = "") -> Sizes:
        options = self.options
        return Sizes(
            width=options.width, num_heads=options.num_heads, dropout=options.dropout, horizon=self.horizon, spec=spec,
            name=name, modality=modality,
        )  # fmt: skip


def modalities_of(options: PolicyConfig, specs: Mapping[str, Spec]) -> list[str]:
    """What a policy with these options sees of domains of these sizes.

    Raises:
        UserError: a domain lacks one that the options name.
    """
    has = {name: spec.modalities for name, spec in specs.items()}
    for modality in options.modalities or ():
        without = next((name for name in has if modality not in has[name]), None)
        if without is not None:
            raise UserError(
                f"policy.modalities names {modality}, and domain {without} has {', '.join(has[without])} only. "
                f"Type policy.modalities=[{','.join(name for name in MODALITIES if name in has[without])}]."
            )
    return [name for name in can_see(options) if all(name in seen for seen in has.values())]


def check_shared(head: Head, stems: nn.ModuleDict, specs: dict[str, Spec]) -> None:
    """Whether one head and one stem a modality can serve domains of these sizes.

    Raises:
        UserError: they cannot be told which numbers, or which cameras, a domain has.
    """
    widths = {name: spec.action_dim for name, spec in specs.items()}
    if len(set(widths.values())) > 1 and not head.takes_given:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(
            f"policy.share=all: actions differ in width ({told}), and {type(head).__name__} cannot be told which "
            "numbers count. Give it takes_given = True (ppt_kit.models.heads.Given), or set policy.share=trunk."
        )
    for modality, stem in stems.items():
        seen = {name: sorted(spec.cameras(modality)) for name, spec in specs.items()}
        if len({*map(tuple, seen.values())}) > 1 and not getattr(stem, "takes_missing", False):
            told = "; ".join(f"{name} has {', '.join(cameras)}" for name, cameras in seen.items())
            raise UserError(
                f"policy.share=all: {modality} cameras differ ({told}), and {type(stem).__name__} cannot be told which "
                "are missing. Take a stem with takes_missing = True, or set policy.share=trunk."
            )
