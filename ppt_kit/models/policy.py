"""PPT: stems per modality, a trunk, a head, of each domain's own or shared (the shape is GenSim2's, arXiv 2410.03645).

`policy(batch) -> {"loss": ()}`; `policy.act(obs, domain) -> (B, Ta, Da)` in the dataset's own units. The policy knows
nothing of files, ranks or simulators; what it needs of the data are sizes and the normaliser's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ppt_kit.horizon import Horizon
from ppt_kit.models.affine import Affine
from ppt_kit.models.backbone import Backbone
from ppt_kit.models.conditioning import Conditioning
from ppt_kit.models.describe import describe
from ppt_kit.models.domains import Group, Rows, module_key, rows_of
from ppt_kit.models.door import absent, check_absent, check_batch, check_given, check_obs
from ppt_kit.models.encoders import Encoder, Frozen
from ppt_kit.models.heads import Given, Head
from ppt_kit.models.making import check_shared, modalities_of
from ppt_kit.models.rows import seeds_of, select, zeros_like
from ppt_kit.models.stems import Stem
from ppt_kit.models.targets import filled
from ppt_kit.parts import place_of
from ppt_kit.schema import Config, PolicyConfig
from ppt_kit.spec import Spec

__all__ = ["PPTPolicy", "build_policy", "modalities_of", "module_key"]


class PPTPolicy(Backbone):
    """The policy.

    Args:
        specs: domain -> sizes of its observations and actions.
        options: `policy` of a configuration.
        horizon: To and Ta.
    Attributes:
        card: what a checkpoint says of itself; empty for a policy that was not loaded.
        conditioning: which actions of a chunk it is given.
        modalities, domains, groups, frozen_parts: see Backbone.
    Raises:
        UserError: a part that the options name cannot be found or made, or cannot serve all domains.
    """

    def __init__(
        self, specs: Mapping[str, Spec], options: PolicyConfig | None = None, *, horizon: Horizon | None = None
    ):
        options = options or PolicyConfig()
        super().__init__(specs, options, horizon or Horizon())
        self.card: dict[str, Any] = {}
        sizes = {module_key(name): spec for name, spec in self.specs.items()}
        self.action_norm = nn.ModuleDict({key: Affine(spec.action_dim) for key, spec in sizes.items()})
        self.heads = nn.ModuleDict({group.key: self.make.head(group) for group in self.groups})
        if options.share == "all":
            key = self.groups[0].key
            check_shared(cast(Head, self.heads[key]), cast(nn.ModuleDict, self.stems[key]), self.specs)
        self.conditioning = Conditioning.of(options, self.horizon, self.heads.values())
        self.register_load_state_dict_post_hook(_without_frozen)

    @property
    def encoder_fingerprints(self) -> dict[str, str]:
        """Modality -> what its frozen encoder's weights are told by, which checkpoints leave out."""
        return {name: each.fingerprint for name, each in self.encoders.items() if isinstance(each, Frozen)}

    @property
    def encoder_architectures(self) -> dict[str, dict[str, Any]]:
        """Modality -> what its encoder is made of, of those whose weights checkpoints hold."""
        trained = {name: each for name, each in self.encoders.items() if isinstance(each, Encoder)}
        return {name: each.architecture for name, each in trained.items() if each.architecture is not None}

    @property
    def foreign_parts(self) -> dict[str, str]:
        """Class -> the file it comes from, of the parts that are not ppt_kit's."""
        kinds = {type(module) for module in self.modules() if isinstance(module, (Head, Stem, Encoder))}
        return {
            f"{kind.__module__}:{kind.__qualname__}": place_of(kind)
            for kind in kinds
            if not kind.__module__.startswith("ppt_kit.")
        }

    def set_normalizer(self, stats: Mapping[str, Mapping[str, Mapping]]) -> None:
        """Takes {domain: {"state" | "action": {"offset", "scale"}}} into the buffers.

        Raises:
            ValueError: a domain or a size does not fit.
        """
        for name, spec in self.specs.items():
            for kind, norms, width in (
                ("state", self.state_norm, spec.state_dim), ("action", self.action_norm, spec.action_dim),
            ):  # fmt: skip
                if width == 0:
                    continue
                if name not in stats or len(stats[name][kind]["offset"]) != width:
                    given = stats.get(name, {}).get(kind)
                    raise ValueError(f"normaliser: {name}.{kind} needs {width} numbers, got {given}")
                affine = norms[module_key(name)]
                affine.offset.copy_(torch.tensor(stats[name][kind]["offset"]))  # type: ignore[operator]
                affine.scale.copy_(torch.tensor(stats[name][kind]["scale"]))  # type: ignore[operator]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The loss of a batch as data/dataset.py states it.

        Each supervised action element counts once: the sum over those that are not padding, over B * Ta * Da. The
        denominator is fixed so that the mean over ranks and micro steps is the loss of the whole batch. "weight" (B,)
        is read when the batch has it; "noise_seed" (B,) makes all noise, the window's number where a batch has none;
        "rows", see models/domains.py, spares the host a look at "domain".

        Raises:
            ValueError: a shape does not fit.
        """
        raw = [name for name in self.modalities if name not in self.encoders]
        check_batch(batch, self.specs.values(), self.horizon, raw=raw)
        seeds = batch["noise_seed"] if "noise_seed" in batch else batch["index"]
        missing = self._missing(batch["domain"], seeds)
        obs, every = self._encoded(batch["obs"], missing), rows_of(self.groups, batch)
        of_group = [seeds_of(seeds, rows) for rows in every]
        tokens = [
            self._tokens(group, obs, rows, seeds=each, missing=missing, domain=batch["domain"])
            for group, rows, each in zip(self.groups, every, of_group)
        ]
        total = tokens[0].new_zeros((), dtype=torch.float32)
        for group, rows, part, each in zip(self.groups, every, self._mixed(tokens, of_group), of_group):
            total = total + self._loss(group, batch, rows, tokens=part, seeds=each)
        return {"loss": total / len(batch["domain"])}

    @torch.no_grad()
    def act(
        self,
        obs: Mapping[str, Any],
        domain: str | int = 0,
        *,
        seeds: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        num_steps: int | None = None,
    ) -> torch.Tensor:
        """(B, Ta, Da) actions in the dataset's own units.

        Args:
            obs: what the policy sees, as in a batch: "state" (B, To, Ds), "pointcloud" (B, To, P, C), … A modality or
                a camera may be absent where policy.modality_dropout trained for it.
            domain: name, or position in `domains`.
            seeds: (B,) int64 that make the noise of heads that draw some; None = 0, 1, …: a call repeats.
            known: (B, Ta, Da) actions in the dataset's units that the chunk must hold, NaN where it is free; None =
                all are free. For heads that in-paint.
            num_steps: sampling steps; None = as the head was made.
        Raises:
            ValueError: the policy was not trained on that domain, what it sees is missing or of another shape, kind or
                horizon, or the head cannot in-paint or takes no steps.
        """
        number = self._number_of(domain)
        spec, group = self.specs[self.domains[number]], next(each for each in self.groups if number in each.domains)
        device = self.modality_embedding.device
        size = check_obs(obs, spec, self.horizon, device=device)
        check_absent(obs, spec, learned=self.missing_tokens is not None, by_camera=self._by_camera)
        check_given(self.heads[group.key], seeds, known, num_steps, takes=(size, self.horizon.action, spec.action_dim))
        seeds = torch.arange(size, device=device) if seeds is None else seeds
        numbers = torch.full((size,), number, device=device)
        missing = self._missing(numbers, seeds, absent=absent(obs, spec))
        seen = self._encoded(_completed(obs, group.spec.blank(size, self.horizon, device=device)), missing)
        tokens = self._tokens(group, seen, Rows(size), seeds=seeds, missing=missing, domain=numbers)
        mixed = self._mixed([tokens], [seeds], groups=[group])[0]
        norm = cast(Affine, self.action_norm[module_key(self.domains[number])])
        given = _given(norm, known, num_steps, shape=(size, self.horizon.action, group.spec.action_dim))
        chunk = self.heads[group.key](mixed, seeds, None, given)
        return norm.denormalize(chunk[..., : spec.action_dim].float())

    def blank(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch in the place of one that is left out: nothing in it, weight 0; loss and gradients are zero."""
        kept = {"domain", "noise_seed", "index", "rows"}
        zeros = {name: value if name in kept else zeros_like(value) for name, value in batch.items()}
        return {**zeros, "weight": torch.zeros(len(batch["domain"]), device=batch["domain"].device)}

    def __repr__(self) -> str:
        return describe(self)

    # ---------------------------------------------------------------- actions

    def _loss(
        self, group: Group, batch: Mapping[str, Any], rows: Rows, *, tokens: torch.Tensor, seeds: torch.Tensor
    ) -> torch.Tensor:
        """() the sum over a group's windows."""
        head = self.heads[group.key]
        target, is_pad, counts = self._target(group, batch, rows)
        known = self.conditioning.known(is_pad, seeds)
        if known is not None:
            is_pad, counts = is_pad | known, counts & ~known[..., None]
        error = head(tokens, seeds, target, Given(counts=counts, known=known)).float()
        if error.shape != is_pad.shape:
            raise ValueError(
                f"the loss of {type(head).__name__} is {tuple(error.shape)}; it must be one number an "
                f"action, (B, Ta) = {tuple(is_pad.shape)}"
            )
        if rows.size == 0:
            # a head that one rank skips breaks ZeRO 1-3: every rank calls every head, in one order
            return 0.0 * error.sum()
        of_row = error.masked_fill(is_pad, 0.0).mean(-1)
        return (of_row * select(batch["weight"], rows) if "weight" in batch else of_row).sum()

    def _target(
        self, group: Group, batch: Mapping[str, Any], rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a group's rows (…, Ta, Da) normalised actions, (…, Ta) which are padding, (…, Ta, Da) what counts."""
        action, width = batch["action"], group.spec.action_dim
        if rows.size == 0:
            blank = action.new_zeros(1, action.shape[1], width)
            counts = torch.ones_like(blank, dtype=torch.bool)
            return blank, ~counts[..., 0], counts
        is_pad = select(batch["action_is_pad"], rows)
        chunk = filled(select(action, rows)[..., :width], is_pad)
        target, own = self._normalized(self.action_norm, group, chunk, select(batch["domain"], rows))
        counts = ~is_pad[..., None]
        return target, is_pad, (counts if own is None else counts & own).expand_as(target)

    def _number_of(self, domain: str | int) -> int:
        known = ", ".join(self.domains)
        if isinstance(domain, int) and not 0 <= domain < len(self.domains):
            raise ValueError(f"domain {domain}: this policy knows {len(self.domains)}, {known}")
        if not isinstance(domain, int) and domain not in self.domains:
            raise ValueError(f"domain {domain!r}: this policy knows {known}")
        return domain if isinstance(domain, int) else self.domains.index(domain)


def build_policy(cfg: Config, specs: Mapping[str, Spec]) -> PPTPolicy:
    """The policy of a configuration, for data of these sizes; its weights are random."""
    return PPTPolicy(specs, cfg.policy, horizon=Horizon.of(cfg.dataset))


def _given(norm: Affine, known: torch.Tensor | None, num_steps: int | None, *, shape: tuple[int, int, int]) -> Given:
    """What act() was told of the chunk, for a head that makes one of `shape`, as wide as the widest domain's."""
    own = len(norm.offset)
    counts = (torch.arange(shape[-1], device=norm.offset.device) < own).expand(shape) if own < shape[-1] else None
    if known is None:
        return Given(counts=counts, num_steps=num_steps)
    free = known.isnan()
    actions = norm.normalize(known.masked_fill(free, 0.0))
    actions = nn.functional.pad(actions, (0, shape[-1] - own))
    return Given(counts=counts, known=~free.any(-1), actions=actions, num_steps=num_steps)


def _completed(obs: Mapping[str, Any], blank: Mapping[str, Any]) -> dict[str, Any]:
    """obs with blank readings for what it lacks, and a state as wide as the blank one."""
    seen: dict[str, Any] = {}
    for name, nothing in blank.items():
        given = obs.get(name, nothing)
        seen[name] = (
            {camera: given.get(camera, empty) for camera, empty in nothing.items()}
            if isinstance(nothing, dict)
            else given
        )
    if "state" in seen:
        short = blank["state"].shape[-1] - seen["state"].shape[-1]
        seen["state"] = nn.functional.pad(seen["state"], (0, short)) if short else seen["state"]
    return seen


def _without_frozen(policy: nn.Module, incompatible: Any) -> None:
    """What a checkpoint leaves out is not missing."""
    frozen = [name for name, each in cast(PPTPolicy, policy).encoders.items() if isinstance(each, Frozen)]
    gone = tuple(f"encoders.{name}.inner." for name in frozen)
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not name.startswith(gone)]
