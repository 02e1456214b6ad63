"""Heads: the trunk's tokens -> the next chunk of normalised actions."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.models.part import Sizes
from ppt_kit.models.trunk import Block


class Head(nn.Module):
    """What turns tokens into actions; one of each domain's own.

    A head of yours is derived from this, takes `sizes` (ppt_kit.models.part.Sizes) and options of its own, and says
    `loss` and `act`. Noise is made of the seeds alone (ppt_kit.randomness): runs, validation and rollouts repeat.
    """

    def loss(self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, Ta) loss of each action; the policy masks what is padded, weighs and averages.

        Args:
            tokens: (B, T, width) of the trunk.
            target: (B, Ta, Da) float32, normalised.
            seeds: (B,) int64, one a sample and step.
        """
        raise NotImplementedError

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, Ta, Da) normalised actions."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        """`loss` where there is a target, else `act`. ZeRO-3 brings a module's weights when the module is called."""
        return self.act(tokens, seeds) if target is None else self.loss(tokens, target, seeds)


class RegressionHead(Head):
    """One learned query an action, one block of cross-attention over the trunk's tokens, one linear layer.

    Args:
        loss: "l1" or "mse", of each element.
    """

    def __init__(self, sizes: Sizes, *, loss: str = "l1"):
        super().__init__()
        if loss not in ("l1", "mse"):
            raise UserError(f"policy.head.options.loss={loss}: takes l1, mse.")
        self.squared = loss == "mse"
        self.queries = nn.Parameter(torch.randn(sizes.horizon.action, sizes.width) * 0.02)
        self.block = Block(sizes.width, sizes.num_heads, dropout=sizes.dropout, name=sizes.name)
        self.out = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.spec.action_dim))

    def loss(self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        gap = self.act(tokens, seeds).float() - target
        return (gap.square() if self.squared else gap.abs()).mean(-1)

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        queries = self.queries.expand(len(tokens), -1, -1)
        return self.out(self.block(queries, seeds, keys=tokens))


HEADS: dict[str, type[Head]] = {"regression": RegressionHead}
