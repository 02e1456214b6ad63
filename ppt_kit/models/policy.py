"""PPT: a stem per modality and domain, one trunk, a head per domain (GenSim2, arXiv 2410.03645, is where the shape comes from).

`policy(batch) -> {"loss": ()}`; `policy.act(obs, domain) -> (B, Ta, Da)` in the dataset's own units. The policy knows
nothing of files, ranks or simulators; what it needs of the data are sizes and the normaliser's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ppt_kit.models.heads import RegressionHead
from ppt_kit.models.stems import CloudStem, StateStem
from ppt_kit.models.trunk import Trunk

MODALITIES = ("state", "pointcloud")


class Affine(nn.Module):
    """normalised = (value - offset) * scale, kept in float32 whatever the weights are cast to."""

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def normalize(self, value: torch.Tensor) -> torch.Tensor:
        return (value - self.offset) * self.scale

    def denormalize(self, value: torch.Tensor) -> torch.Tensor:
        return value / self.scale + self.offset

    def _apply(self, fn: Callable, recurse: bool = True) -> Affine:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():  # a cast to bfloat16 would round metres to centimetres
            self._buffers[name] = buffer.to(device=self._buffers[name].device)  # type: ignore[union-attr]
        return self


class PPTPolicy(nn.Module):
    """The policy.

    Args:
        shapes: domain -> {"state": Ds, "action": Da}.
        point_channels: columns of a point.
        observation_horizon, action_horizon: To and Ta, control steps.
        loss: "l1" or "mse", per element of the normalised action.
    The other arguments are the keys of `policy` in the configuration.
    """

    def __init__(
        self,
        shapes: Mapping[str, Mapping[str, int]],
        *,
        point_channels: int = 3,
        observation_horizon: int = 2,
        action_horizon: int = 8,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        state_latents: int = 4,
        cloud_latents: int = 8,
        dropout: float = 0.0,
        loss: str = "l1",
    ):
        super().__init__()
        self.card: dict[str, Any] = {}  # what a checkpoint says of itself; empty for a policy that was not loaded
        self.domains = list(shapes)
        self.shapes = {name: dict(shape) for name, shape in shapes.items()}
        self.observation_horizon, self.action_horizon, self.loss_kind = observation_horizon, action_horizon, loss
        sizes: dict[str, Any] = {"horizon": observation_horizon, "width": width, "num_heads": num_heads}
        keys = [_module_key(name) for name in self.domains]
        dims = list(self.shapes.values())
        self.state_norm = nn.ModuleDict({key: Affine(dim["state"]) for key, dim in zip(keys, dims)})
        self.action_norm = nn.ModuleDict({key: Affine(dim["action"]) for key, dim in zip(keys, dims)})
        self.state_stems = nn.ModuleDict(
            {key: StateStem(dim["state"], num_latents=state_latents, **sizes) for key, dim in zip(keys, dims)}
        )
        self.cloud_stems = nn.ModuleDict(
            {key: CloudStem(point_channels, num_latents=cloud_latents, **sizes) for key in keys}
        )
        self.modality_embedding = nn.Parameter(torch.randn(len(MODALITIES), width) * 0.02)
        self.trunk = Trunk(width=width, depth=depth, num_heads=num_heads, dropout=dropout)
        self.heads = nn.ModuleDict(
            {
                key: RegressionHead(
                    dim["action"],
                    action_horizon=action_horizon,
                    width=width,
                    num_heads=num_heads,
                    dropout=dropout,
                    name=f"head.{key}",
                )
                for key, dim in zip(keys, dims)
            }
        )

    def set_normalizer(self, stats: Mapping[str, Mapping[str, Mapping]]) -> None:
        """Takes {domain: {"state" | "action": {"offset", "scale"}}} into the buffers.

        Raises:
            ValueError: a domain or a size does not fit.
        """
        for name in self.domains:
            for kind, norms in (("state", self.state_norm), ("action", self.action_norm)):
                if name not in stats or len(stats[name][kind]["offset"]) != self.shapes[name][kind]:
                    raise ValueError(
                        f"normaliser: {name}.{kind} needs {self.shapes[name][kind]} numbers, got {stats.get(name, {}).get(kind)}"
                    )
                affine = norms[_module_key(name)]
                affine.offset.copy_(torch.tensor(stats[name][kind]["offset"]))  # type: ignore[operator]
                affine.scale.copy_(torch.tensor(stats[name][kind]["scale"]))  # type: ignore[operator]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The loss of a batch as data/dataset.py states it.

        Each supervised action element counts once: the sum over those that are not padding, over B * Ta * Da. The
        denominator is fixed so that the mean over ranks and micro steps is the loss of the whole batch. "weight" (B,)
        and "noise_seed" (B,) are read when the batch has them.
        """
        seeds = batch.get("noise_seed") if self.training else None
        groups = self._rows_by_domain(batch["domain"])
        tokens = [self._stem_tokens(key, select(batch["obs"], rows), size=size) for key, rows, size in groups]
        mixed = self.trunk(
            torch.cat(tokens),
            None if seeds is None else torch.cat([_seeds(seeds, rows, size) for _, rows, size in groups]),
        )
        total = mixed.new_zeros((), dtype=torch.float32)
        start = 0
        for key, rows, size in groups:
            part = mixed[start : start + max(size, 1)]
            chunk = self.heads[key](part, None if seeds is None else _seeds(seeds, rows, size)).float()
            start += max(size, 1)
            if size == 0:  # a head that one rank skips breaks ZeRO 1-3: every rank calls every head, in one order
                total = total + 0.0 * chunk.sum()
                continue
            target = select(batch["action"], rows)[..., : chunk.shape[-1]]
            total = total + self._chunk_loss(
                chunk,
                self.action_norm[key].normalize(target),  # type: ignore[operator]
                padding=select(batch["action_is_pad"], rows),
                weight=select(batch["weight"], rows) if "weight" in batch else None,
            )
        return {"loss": total / len(batch["domain"])}

    @torch.no_grad()
    def act(self, obs: Mapping[str, Any], domain: str | int = 0, *, seeds: torch.Tensor | None = None) -> torch.Tensor:
        """(B, Ta, Da) actions in the dataset's own units.

        Args:
            obs: "state" (B, To, Ds) and "pointcloud" (B, To, P, C), as in a batch.
            domain: name, or position in `domains`.
            seeds: (B,) int64, of what is drawn; a regression draws nothing.
        Raises:
            ValueError: the policy was not trained on that domain, or To differs.
        """
        name = self.domains[domain] if isinstance(domain, int) else domain
        if name not in self.domains:
            raise ValueError(f"domain {name!r}: this policy knows {', '.join(self.domains)}")
        if obs["state"].shape[1] != self.observation_horizon:
            raise ValueError(
                f"obs.state {tuple(obs['state'].shape)}: axis 1 must be observation_horizon={self.observation_horizon}"
            )
        key = _module_key(name)
        tokens = self.trunk(self._stem_tokens(key, obs, size=len(obs["state"])), None)
        return self.action_norm[key].denormalize(self.heads[key](tokens, None).float())  # type: ignore[operator]

    def _stem_tokens(self, key: str, obs: Mapping[str, Any], *, size: int) -> torch.Tensor:
        """Tokens (max(size, 1), n, width) of one domain's rows."""
        norm, kind = self.state_norm[key], self.modality_embedding.dtype
        state, cloud = obs["state"][..., : norm.offset.numel()], obs["pointcloud"]  # type: ignore[operator]
        if size == 0:
            state, cloud = state.new_zeros(1, *state.shape[1:]), cloud.new_zeros(1, *cloud.shape[1:])
        from_state = self.state_stems[key](norm.normalize(state).to(kind))  # type: ignore[operator]
        from_cloud = self.cloud_stems[key](cloud)
        return torch.cat([from_state + self.modality_embedding[0], from_cloud + self.modality_embedding[1]], dim=1)

    def _chunk_loss(
        self, chunk: torch.Tensor, target: torch.Tensor, *, padding: torch.Tensor, weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum over the rows of each row's mean loss over (Ta, Da), padding counted as zero."""
        error = (chunk - target).abs() if self.loss_kind == "l1" else (chunk - target).square()
        of_row = error.mean(-1).masked_fill(padding, 0.0).mean(-1)
        return (of_row if weight is None else of_row * weight).sum()

    def _rows_by_domain(self, domain: torch.Tensor) -> list[tuple[str, torch.Tensor | None, int]]:
        """(module key, rows or None for all, how many) of every domain, in the policy's order."""
        if len(self.domains) == 1:  # no look at the values: on a GPU that would wait for the device
            return [(_module_key(self.domains[0]), None, len(domain))]
        groups: list[tuple[str, torch.Tensor | None, int]] = []
        for number, name in enumerate(self.domains):
            rows = (domain == number).nonzero().squeeze(1)
            groups.append((_module_key(name), rows, len(rows)))
        return groups


def select(tree: Any, rows: torch.Tensor | None) -> Any:
    """The rows of every tensor in a nested batch; all of them when rows is None."""
    if rows is None:
        return tree
    if isinstance(tree, Mapping):
        return {name: select(value, rows) for name, value in tree.items()}
    return tree[rows] if isinstance(tree, torch.Tensor) else [tree[int(row)] for row in rows]


def _seeds(seeds: torch.Tensor, rows: torch.Tensor | None, size: int) -> torch.Tensor:
    return seeds.new_zeros(1) if size == 0 else select(seeds, rows)


def _module_key(name: str) -> str:
    """A domain's name as a module's: nn.ModuleDict refuses dots."""
    return name.replace(".", "·")


def build_policy(cfg: Any, shapes: Mapping[str, Mapping[str, int]]) -> PPTPolicy:
    """The policy of a configuration, for data of these shapes; its weights are random."""
    return PPTPolicy(
        shapes,
        point_channels=cfg.dataset.point_channels,
        observation_horizon=cfg.dataset.observation_horizon,
        action_horizon=cfg.dataset.action_horizon,
        **cfg.policy,
    )
