"""From observations to what heads read: encoders, stems, missing sources, trunk and pooling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ppt_kit.horizon import Horizon
from ppt_kit.model_keys import PolicyConfig
from ppt_kit.models.affine import Affine, normalized_by_row
from ppt_kit.models.domains import Group, Rows, groups_of, module_key
from ppt_kit.models.encoders import with_every_camera
from ppt_kit.models.making import Maker, modalities_of
from ppt_kit.models.missing import Missing, blanked, by_modality, left_out, of_modality, sources_of, sources_there
from ppt_kit.models.origin import from_origin, origin_columns, origin_of
from ppt_kit.models.pooling import Pooling, Positions
from ppt_kit.models.rows import first_row, own_cameras, select
from ppt_kit.models.stems import Stem
from ppt_kit.models.trunk import Trunk
from ppt_kit.spec import Spec


class Backbone(nn.Module):
    """What a policy is without its heads.

    Args:
        specs: domain -> sizes of its observations and actions.
        options: `policy` of a configuration.
    Attributes:
        modalities: those it sees, of spec.MODALITIES.
        domains: names, in the order that a batch's "domain" counts.
        groups: which modules serve which domains.
        cloud_origin: the state key that its clouds are told from; None = as recorded.
        frozen_parts: of "trunk" and "stems", those that are not trained.
    Raises:
        UserError: a part that the options name cannot be found or made, or cannot serve all domains.
    """

    def __init__(self, specs: Mapping[str, Spec], options: PolicyConfig, horizon: Horizon):
        super().__init__()
        self.options, self.horizon, self.modalities = options, horizon, modalities_of(options, specs)
        self.frozen_parts: tuple[str, ...] = ()
        self.specs = {name: spec.only(self.modalities) for name, spec in specs.items()}
        self.domains, self.groups = list(specs), groups_of(self.specs, options.share)
        self.make = Maker(options, horizon, self.modalities)
        sizes = {module_key(name): spec for name, spec in self.specs.items()}
        self.state_norm = nn.ModuleDict({key: Affine(spec.state_dim) for key, spec in sizes.items()})
        self.encoders = nn.ModuleDict(self.make.encoders(list(self.specs.values())))
        self.stems = nn.ModuleDict({group.key: self.make.stems(group) for group in self.groups})
        # one tensor of the policy's own: ZeRO-3 brings a module's weights when the module is called
        self.modality_embedding = nn.Parameter(torch.randn(len(self.modalities), options.width) * 0.02)
        own = options.share == "none"
        self.trunk = None if own or options.no_trunk else self.make.trunk()
        owners = self.groups if own and not options.no_trunk else []
        self.trunks = nn.ModuleDict({group.key: self.make.trunk() for group in owners})
        self._prepare_missing()
        self._make_between()
        self.cloud_origin = origin_of(options.cloud_origin, self.specs)
        columns = origin_columns(self.specs, self.cloud_origin) if self.cloud_origin else None
        self.register_buffer("_origin", columns, persistent=False)

    def all_trunks(self) -> Iterator[tuple[str, Trunk]]:
        """(name in the state dict, trunk): one, one of each domain (share=none), or none (no_trunk)."""
        if self.trunk is not None:
            yield "trunk", self.trunk
        for key, trunk in self.trunks.items():
            yield f"trunks.{key}", cast(Trunk, trunk)

    def freeze(self, *parts: str) -> None:
        """Takes "trunk" or "stems" (with their tokens' embeddings) out of training, and their dropout with them."""
        self.frozen_parts = tuple(dict.fromkeys((*self.frozen_parts, *parts)))
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if "stems" in self.frozen_parts:
            self.modality_embedding.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """A frozen part is never in training mode: it is trained around as it will be used."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _prepare_missing(self) -> None:
        """What can be missing by itself, and what stands in its place; a policy that never misses one has neither."""
        stems, specs = cast(nn.ModuleDict, self.stems[self.groups[0].key]), list(self.specs.values())
        self._by_camera = [name for name, stem in stems.items() if cast(Stem, stem).takes_missing]
        self._sources = sources_of(specs, self.modalities, by_camera=self._by_camera)
        there = sources_there(specs, self._sources)
        self._misses = self.options.modality_dropout > 0 or (self.options.share == "all" and not bool(there.all()))
        self.register_buffer("_there", there, persistent=False)
        self.missing_tokens = None
        if self.options.modality_dropout > 0:
            self.missing_tokens = nn.Parameter(torch.randn(len(self.modalities), self.options.width) * 0.02)

    def _make_between(self) -> None:
        """Places of tokens before the trunk, and pooling behind it, which know how many tokens there are."""
        options, counts = self.options, {}
        if options.position_embedding or options.pooling in ("concat", "modal_mean"):
            counts = {group.key: self._num_tokens(group) for group in self.groups}
        self.positions, self.pools = nn.ModuleDict(), nn.ModuleDict()
        for group in self.groups:
            of_group = counts.get(group.key, [])
            if options.position_embedding:
                self.positions[group.key] = Positions(sum(of_group), options.width)
            if options.pooling != "none":
                self.pools[group.key] = Pooling(options.pooling, counts=of_group, width=options.width)

    @torch.no_grad()
    def _num_tokens(self, group: Group) -> list[int]:
        """Of each modality: what the stems make of a window in which nothing is seen."""
        seeds = torch.zeros(1, dtype=torch.int64)
        obs = self._encoded(group.spec.blank(1, self.horizon), {})
        return [each.shape[1] for each in self._by_modality(group, obs, seeds=seeds, missing={})]

    def _frozen_modules(self) -> list[nn.Module]:
        stems, trunks = [self.stems, self.positions], [trunk for _, trunk in self.all_trunks()]
        return [module for part in self.frozen_parts for module in cast(list, trunks if part == "trunk" else stems)]

    def _missing(
        self, domain: torch.Tensor, seeds: torch.Tensor, *, absent: Mapping[str, list[str]] | None = None
    ) -> Missing:
        """What each window does without: what its domain has not, what is absent, what training leaves out."""
        if not self._misses:
            return {}
        there = cast(torch.Tensor, self._there)[domain]
        gone = ~there
        if self.training:
            gone = gone | left_out(there, seeds, rate=self.options.modality_dropout)
        missing = by_modality(gone, self._sources)
        everywhere = torch.ones_like(gone[:, 0])
        for name, cameras in (absent or {}).items():
            by_camera = isinstance(missing[name], dict)
            missing[name] = missing[name] | dict.fromkeys(cameras, everywhere) if by_camera else everywhere
        return missing

    def _encoded(self, obs: Mapping[str, Any], missing: Missing) -> dict[str, Any]:
        """What is seen, blank where it is missing; where there is an encoder, what it makes of all rows at once."""
        given = obs.get("encoded", {})
        encoded = blanked({name: given[name] if name in given else obs[name] for name in self.modalities}, missing)
        for name in self.modalities:
            cameras: dict[str, tuple[int, int]] = {}
            for spec in self.specs.values():
                cameras |= spec.cameras(name)
            if name in given:
                dtype, nothing = self.modality_embedding.dtype, torch.zeros_like(next(iter(encoded[name].values())))
                encoded[name] = {camera: encoded[name].get(camera, nothing).to(dtype) for camera in cameras}
            elif name in self.encoders:
                encoded[name] = self.encoders[name](with_every_camera(encoded[name], cameras))
            elif self.options.share == "all":
                encoded[name] = with_every_camera(encoded[name], cameras)
        return encoded

    def _tokens(
        self, group: Group, obs: Mapping[str, Any], rows: Rows, *, seeds: torch.Tensor, missing: Missing,
        domain: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """(max(size, 1), n, width) of the rows of a group; of a blank row where the batch has none."""
        if rows.size == 0:
            blank = group.spec.blank(1, self.horizon, device=seeds.device)
            seen = {name: first_row(obs[name]) if name in self.encoders else blank[name] for name in self.modalities}
            # masked as the others are: ZeRO-2 reduces gradients as they come, so in one order on every rank
            missing, domain = first_row(missing), torch.full((1,), group.domains[0], device=seeds.device)
        else:
            seen, missing, domain = select(obs, rows), select(missing, rows), select(domain, rows)
        if self._origin is not None:
            seen["pointcloud"] = from_origin(
                seen["pointcloud"], seen["state"], cast(torch.Tensor, self._origin)[domain]
            )
        if "state" in seen and "state" not in self.encoders:
            state, _ = self._normalized(self.state_norm, group, seen["state"][..., : group.spec.state_dim], domain)
            seen["state"] = state.to(self.modality_embedding.dtype)
        tokens = torch.cat(self._by_modality(group, seen, seeds=seeds, missing=missing), dim=1)
        return self.positions[group.key](tokens) if group.key in self.positions else tokens

    def _by_modality(
        self, group: Group, seen: Mapping[str, Any], *, seeds: torch.Tensor, missing: Missing
    ) -> list[torch.Tensor]:
        """(B, n, width) of each modality."""
        stems, found = cast(nn.ModuleDict, self.stems[group.key]), []
        for index, name in enumerate(self.modalities):
            stem, readings = cast(Stem, stems[name]), own_cameras(seen[name], group.spec, name)
            whole, cameras = of_modality(missing, name, group.spec)
            tokens = stem(readings, seeds, cameras) if stem.takes_missing else stem(readings, seeds)
            if whole is not None and self.missing_tokens is not None:
                tokens = torch.where(whole[:, None, None], self.missing_tokens[index], tokens)
            found.append(tokens + self.modality_embedding[index])
        return found

    def _mixed(
        self, tokens: list[torch.Tensor], seeds: list[torch.Tensor], *, groups: Sequence[Group] | None = None
    ) -> list[torch.Tensor]:
        """Each group's tokens behind trunk and pooling: all at once where one trunk reads as many tokens of each."""
        groups = groups or self.groups
        if self.trunk is None:
            mixed = [
                self.trunks[group.key](part, each) if group.key in self.trunks else part
                for group, part, each in zip(groups, tokens, seeds)
            ]
        elif len({part.shape[1] for part in tokens}) > 1:
            mixed = [self.trunk(part, each) for part, each in zip(tokens, seeds)]
        else:
            mixed = list(self.trunk(torch.cat(tokens), torch.cat(seeds)).split([len(part) for part in tokens]))
        return [self.pools[group.key](part) if group.key in self.pools else part for group, part in zip(groups, mixed)]

    def _normalized(
        self, norms: nn.ModuleDict, group: Group, value: torch.Tensor, domain: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows of a group normalised as each one's domain, and which numbers a domain has; None = all."""
        affines = [cast(Affine, norms[module_key(self.domains[number])]) for number in group.domains]
        if len(affines) == 1:
            return affines[0].normalize(value), None
        return normalized_by_row(value, affines, domain)
