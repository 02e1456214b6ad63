"""A policy's stems, heads and encoders, made as its configuration names them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import PolicyConfig
from ppt_kit.models.domains import Group
from ppt_kit.models.encoders import ENCODERS, Encoder, Frozen
from ppt_kit.models.heads import HEADS, Head
from ppt_kit.models.part import Sizes, build_part
from ppt_kit.models.stems import STEMS, Stem
from ppt_kit.models.trunk import Trunk
from ppt_kit.spec import MODALITIES, Spec


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

    def head(self, group: Group) -> Head:
        asked = self.options.head
        sizes = self._sizes(group.spec, f"head.{group.key}")
        return build_part(asked.kind, sizes, asked.options, known=HEADS, base=Head, option="policy.head")

    def stems(self, group: Group) -> nn.ModuleDict:
        """Modality -> stem."""
        made = {}
        for name in self.modalities:
            asked = getattr(self.options.stems, name)
            place = f"stem.{group.key}.{name}"
            sizes = self._sizes(group.spec, place, modality=name, num_latents=asked.num_latents)
            option = f"policy.stems.{name}"
            made[name] = build_part(asked.kind, sizes, asked.options, known=STEMS, base=Stem, option=option)
        return nn.ModuleDict(made)

    def trunk(self) -> Trunk:
        options = self.options
        return Trunk(width=options.width, depth=options.depth, num_heads=options.num_heads, dropout=options.dropout)

    def encoders(self, spec: Spec) -> dict[str, nn.Module]:
        """Modality -> encoder, of the modalities that have one."""
        made: dict[str, nn.Module] = {}
        for name in self.modalities:
            asked = getattr(self.options.encoders, name, None)
            if asked is None or asked.kind is None:
                continue
            sizes, option = self._sizes(spec, f"encoder.{name}", modality=name), f"policy.encoders.{name}"
            encoder = build_part(asked.kind, sizes, asked.options, known=ENCODERS, base=Encoder, option=option)
            made[name] = Frozen(encoder) if asked.frozen else encoder
        return made

    def _sizes(self, spec: Spec, name: str, *, modality: str = "", num_latents: int = 0) -> Sizes:
        options = self.options
        return Sizes(
            width=options.width, num_heads=options.num_heads, dropout=options.dropout, horizon=self.horizon, spec=spec,
            name=name, modality=modality, num_latents=num_latents,
        )  # fmt: skip


def modalities_of(options: PolicyConfig) -> list[str]:
    """What a policy with these options sees: the modalities that have a stem."""
    return [name for name in MODALITIES if getattr(options.stems, name).kind]


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
