"""Regression: one pass from tokens to actions."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.heads.head import NOTHING, Given, Head, mean_gap
from ppt_kit.models.heads.options import one_of
from ppt_kit.models.part import Sizes
from ppt_kit.models.trunk import Block


class RegressionHead(Head):
    """One learned query an action, one block of cross-attention over the trunk's tokens, one linear layer.

    Args:
        loss: "l1" or "mse", of each element.
    """

    takes_given = True

    def __init__(self, sizes: Sizes, *, loss: str = "l1"):
        super().__init__()
        one_of("loss", loss, ("l1", "mse"))
        self.squared = loss == "mse"
        self.queries = nn.Parameter(torch.randn(sizes.horizon.action, sizes.width) * 0.02)
        self.block = Block(sizes.width, sizes.num_heads, dropout=sizes.dropout, name=sizes.name)
        self.out = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.spec.action_dim))

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        return mean_gap(self.act(tokens, seeds, given), target, given, squared=self.squared)

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        queries = self.queries.expand(len(tokens), -1, -1)
        return self.out(self.block(queries, seeds, keys=tokens))
