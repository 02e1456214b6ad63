"""PPT: stems per modality and domain, one trunk, a head per domain (the shape is GenSim2's, arXiv 2410.03645).

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
from ppt_kit.models.encoders import ENCODERS, Encoder, Frozen, with_every_camera
from ppt_kit.models.heads import HEADS, Given, Head
from ppt_kit.models.part import Sizes, build_part
from ppt_kit.models.rows import first_row, num_rows, own_cameras, seeds_of, select, zeros_like
from ppt_kit.models.stems import STEMS, Stem
from ppt_kit.models.targets import Conditioning, filled
from ppt_kit.models.trunk import Trunk
from ppt_kit.parts import place_of
from ppt_kit.schema import Config, PolicyConfig
from ppt_kit.spec import MODALITIES, Spec

# (module key, rows or None for all, how many): of each domain, in the policy's order
Groups = list[tuple[str, torch.Tensor | None, int]]


class PPTPolicy(nn.Module):
    """The policy.

    Args:
        specs: domain -> sizes of its observations and actions.
        options: `policy` of a configuration.
        horizon: To and Ta.
    Attributes:
        card: what a checkpoint says of itself; empty for a policy that was not loaded.
        modalities: those it sees, of spec.MODALITIES.
        conditioning: which actions of a chunk it is given.
    Raises:
        UserError: a part that the options name cannot be found or made.
    """

    def __init__(
        self, specs: Mapping[str, Spec], options: PolicyConfig | None = None, *, horizon: Horizon | None = None
    ):
        super().__init__()
        options = options or PolicyConfig()
        self.card: dict[str, Any] = {}
        self.horizon, self.modalities = horizon or Horizon(), modalities_of(options)
        self.specs = {name: spec.only(self.modalities) for name, spec in specs.items()}
        self.domains, keys = list(specs), [module_key(name) for name in specs]
        dims = list(self.specs.values())
        self._spec_of = dict(zip(keys, dims))
        self.state_norm = nn.ModuleDict({key: Affine(spec.state_dim) for key, spec in zip(keys, dims)})
        self.action_norm = nn.ModuleDict({key: Affine(spec.action_dim) for key, spec in zip(keys, dims)})
        self.encoders = nn.ModuleDict(self._encoders(options))
        self.stems = nn.ModuleDict({key: self._stems(key, spec, options) for key, spec in zip(keys, dims)})
        # one tensor of the policy's own: ZeRO-3 brings a module's weights when the module is called
        self.modality_embedding = nn.Parameter(torch.randn(len(self.modalities), options.width) * 0.02)
        self.trunk = Trunk(
            width=options.width, depth=options.depth, num_heads=options.num_heads, dropout=options.dropout
        )
        self.heads = nn.ModuleDict({key: self._head(key, spec, options) for key, spec in zip(keys, dims)})
        self.conditioning = Conditioning.of(options, self.horizon, self.heads.values())
        self.register_load_state_dict_post_hook(_without_frozen)

    @property
    def encoder_fingerprints(self) -> dict[str, str]:
        """Modality -> what its frozen encoder's weights are told by, which checkpoints leave out."""
        return {name: each.fingerprint for name, each in self.encoders.items() if isinstance(each, Frozen)}

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
        is read when the batch has it; "noise_seed" (B,) makes all noise, the window's number where a batch has none.
        """
        seeds = batch["noise_seed"] if "noise_seed" in batch else batch["index"]
        groups, obs = self._rows_by_domain(batch["domain"]), self._encoded(batch["obs"])
        of_group = [seeds_of(seeds, rows, size) for _, rows, size in groups]
        tokens = [self._tokens(obs, *group, seeds=each) for group, each in zip(groups, of_group)]
        mixed = self._mixed(tokens, of_group)
        total = mixed[0].new_zeros((), dtype=torch.float32)
        for (key, rows, size), part, each in zip(groups, mixed, of_group):
            target, is_pad = self._target(key, batch, rows, size)
            known = self.conditioning.known(is_pad, each)
            left_out = is_pad if known is None else is_pad | known
            given = Given(counts=(~left_out)[..., None].expand_as(target), known=known)
            error = self.heads[key](part, each, target, given).float()
            if error.shape != (len(each), batch["action"].shape[1]):
                raise ValueError(
                    f"the loss of {type(self.heads[key]).__name__} is {tuple(error.shape)}; it must be one number an "
                    f"action, (B, Ta) = {(len(each), batch['action'].shape[1])}"
                )
            if size == 0:
                # a head that one rank skips breaks ZeRO 1-3: every rank calls every head, in one order
                total = total + 0.0 * error.sum()
                continue
            of_row = error.masked_fill(left_out, 0.0).mean(-1)
            weight = select(batch["weight"], rows) if "weight" in batch else None
            total = total + (of_row if weight is None else of_row * weight).sum()
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
            obs: what the policy sees, as in a batch: "state" (B, To, Ds), "pointcloud" (B, To, P, C), …
            domain: name, or position in `domains`.
            seeds: (B,) int64 that make the noise of heads that draw some; None = 0, 1, …: a call repeats.
            known: (B, Ta, Da) actions in the dataset's units that the chunk must hold, NaN where it is free; None =
                all are free. For heads that in-paint.
            num_steps: sampling steps; None = as the head was made.
        Raises:
            ValueError: the policy was not trained on that domain, a modality is missing, To differs, or the head cannot
                in-paint or takes no steps.
        """
        name = self.domains[domain] if isinstance(domain, int) else domain
        if name not in self.domains:
            raise ValueError(f"domain {name!r}: this policy knows {', '.join(self.domains)}")
        self._check_seen(obs, self.specs[name])
        key, size = module_key(name), num_rows(obs)
        if seeds is None:
            seeds = torch.arange(size, device=self.modality_embedding.device)
        tokens = self._tokens(self._encoded(obs), key, None, size, seeds=seeds)
        given = self._given(key, known, num_steps)
        chunk = self.heads[key](self.trunk(tokens, seeds), seeds, None, given)
        return self.action_norm[key].denormalize(chunk.float())  # type: ignore[operator]

    def blank(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch in the place of one that is left out: nothing in it, weight 0; loss and gradients are zero."""
        kept = {"domain", "noise_seed", "index"}
        zeros = {name: value if name in kept else zeros_like(value) for name, value in batch.items()}
        return {**zeros, "weight": torch.zeros(len(batch["domain"]), device=batch["domain"].device)}

    # ---------------------------------------------------------------- parts

    def _sizes(
        self, options: PolicyConfig, spec: Spec, name: str, *, modality: str = "", num_latents: int = 0
    ) -> Sizes:
        return Sizes(
            width=options.width, num_heads=options.num_heads, dropout=options.dropout, horizon=self.horizon, spec=spec,
            name=name, modality=modality, num_latents=num_latents,
        )  # fmt: skip

    def _head(self, key: str, spec: Spec, options: PolicyConfig) -> Head:
        sizes, asked = self._sizes(options, spec, f"head.{key}"), options.head
        return build_part(asked.kind, sizes, asked.options, known=HEADS, base=Head, option="policy.head")

    def _stems(self, key: str, spec: Spec, options: PolicyConfig) -> nn.ModuleDict:
        made = {}
        for name in self.modalities:
            asked = getattr(options.stems, name)
            sizes = self._sizes(options, spec, f"stem.{key}.{name}", modality=name, num_latents=asked.num_latents)
            option = f"policy.stems.{name}"
            made[name] = build_part(asked.kind, sizes, asked.options, known=STEMS, base=Stem, option=option)
        return nn.ModuleDict(made)

    def _encoders(self, options: PolicyConfig) -> dict[str, nn.Module]:
        made: dict[str, nn.Module] = {}
        for name in self.modalities:
            asked = getattr(options.encoders, name, None)
            if asked is None or asked.kind is None:
                continue
            sizes = self._sizes(options, next(iter(self.specs.values())), f"encoder.{name}", modality=name)
            option = f"policy.encoders.{name}"
            encoder = build_part(asked.kind, sizes, asked.options, known=ENCODERS, base=Encoder, option=option)
            made[name] = Frozen(encoder) if asked.frozen else encoder
        return made

    # ---------------------------------------------------------------- rows

    def _encoded(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """obs with what the encoders make of their modalities, of all rows at once."""
        encoded = dict(obs)
        for name, encoder in self.encoders.items():
            cameras: dict[str, tuple[int, int]] = {}
            for spec in self.specs.values():
                cameras |= spec.cameras(name)
            encoded[name] = encoder(with_every_camera(obs[name], cameras))
        return encoded

    def _tokens(
        self, obs: Mapping[str, Any], key: str, rows: torch.Tensor | None, size: int, *, seeds: torch.Tensor
    ) -> torch.Tensor:
        """(max(size, 1), n, width) of one domain's rows; of a blank row where the batch has none."""
        spec, stems = self._spec_of[key], self.stems[key]
        if size == 0:
            blank = spec.blank(1, self.horizon, device=seeds.device)
            seen = {name: first_row(obs[name]) if name in self.encoders else blank[name] for name in self.modalities}
        else:
            seen = {name: select(obs[name], rows) for name in self.modalities}
        if "state" in seen and "state" not in self.encoders:
            norm = self.state_norm[key]
            state = norm.normalize(seen["state"][..., : spec.state_dim])  # type: ignore[operator]
            seen["state"] = state.to(self.modality_embedding.dtype)
        tokens = [
            stems[name](own_cameras(seen[name], spec, name), seeds) + embedding  # type: ignore[index]
            for name, embedding in zip(self.modalities, self.modality_embedding)
        ]
        return torch.cat(tokens, dim=1)

    def _mixed(self, tokens: list[torch.Tensor], seeds: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each domain's tokens after the trunk: all at once, or in turn where the domains' numbers of tokens differ."""
        if len({each.shape[1] for each in tokens}) > 1:
            return [self.trunk(each, of_them) for each, of_them in zip(tokens, seeds)]
        return list(self.trunk(torch.cat(tokens), torch.cat(seeds)).split([len(each) for each in seeds]))

    def _target(
        self, key: str, batch: Mapping[str, Any], rows: torch.Tensor | None, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(max(size, 1), Ta, Da) normalised actions of one domain's rows, and which of them are padding (…, Ta)."""
        action, width = batch["action"], self._spec_of[key].action_dim
        if size == 0:
            blank = action.new_zeros(1, action.shape[1], width)
            return blank, torch.zeros(blank.shape[:2], dtype=torch.bool, device=action.device)
        is_pad = select(batch["action_is_pad"], rows)
        own = filled(select(action, rows)[..., :width], is_pad)
        return self.action_norm[key].normalize(own), is_pad  # type: ignore[operator]

    def _given(self, key: str, known: torch.Tensor | None, num_steps: int | None) -> Given:
        """What act() was told of the chunk."""
        if known is None:
            return Given(num_steps=num_steps)
        free = known.isnan()
        actions = self.action_norm[key].normalize(known.masked_fill(free, 0.0))  # type: ignore[operator]
        return Given(known=~free.any(-1), actions=actions, num_steps=num_steps)

    def _rows_by_domain(self, domain: torch.Tensor) -> Groups:
        if len(self.domains) == 1:
            # no look at the values: on a GPU that would wait for the device
            return [(module_key(self.domains[0]), None, len(domain))]
        groups: Groups = []
        for number, name in enumerate(self.domains):
            rows = (domain == number).nonzero().squeeze(1)
            groups.append((module_key(name), rows, len(rows)))
        return groups

    def _check_seen(self, obs: Mapping[str, Any], spec: Spec) -> None:
        for name in self.modalities:
            if name not in obs:
                raise ValueError(f"obs has no {name}: this policy sees {', '.join(self.modalities)}")
            missing = [camera for camera in spec.cameras(name) if camera not in obs[name]]
            if missing:
                seen = ", ".join(spec.cameras(name))
                raise ValueError(f"obs.{name} has no camera {missing[0]}: this policy sees {seen}")
            values = obs[name].values() if isinstance(obs[name], Mapping) else [obs[name]]
            for value in values:
                if isinstance(value, torch.Tensor) and value.shape[1] != self.horizon.observation:
                    frames = self.horizon.observation
                    raise ValueError(f"obs.{name} {tuple(value.shape)}: axis 1 must be observation_horizon={frames}")


def modalities_of(options: PolicyConfig) -> list[str]:
    """What a policy with these options sees: the modalities that have a stem."""
    return [name for name in MODALITIES if getattr(options.stems, name).kind]


def build_policy(cfg: Config, specs: Mapping[str, Spec]) -> PPTPolicy:
    """The policy of a configuration, for data of these sizes; its weights are random."""
    return PPTPolicy(specs, cfg.policy, horizon=Horizon.of(cfg.dataset))


def module_key(name: str) -> str:
    """A domain's name as a module's: nn.ModuleDict refuses dots and the names of its own methods."""
    key = name.replace(".", "·")
    return f"{key}·" if hasattr(nn.ModuleDict(), key) else key


def _without_frozen(policy: nn.Module, incompatible: Any) -> None:
    """What a checkpoint leaves out is not missing."""
    frozen = [name for name, each in cast(PPTPolicy, policy).encoders.items() if isinstance(each, Frozen)]
    gone = tuple(f"encoders.{name}.inner." for name in frozen)
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not name.startswith(gone)]
