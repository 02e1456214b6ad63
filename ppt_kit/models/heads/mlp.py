"""MLP: the mean of the tokens -> all numbers of the chunk."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.heads.head import NOTHING, Given, Head, mean_gap
from ppt_kit.models.heads.options import one_of, whole
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import dropout


class MLPHead(Head):
    """The tokens' mean, then layers of GELU.

    Args:
        loss: "l1" or "mse", of each element.
        num_layers: hidden layers, each of twice the token width.
    """

    takes_given = True

    def __init__(self, sizes: Sizes, *, loss: str = "l1", num_layers: int = 2):
        super().__init__()
        one_of("loss", loss, ("l1", "mse"))
        whole("num_layers", num_layers)
        self.squared, self.rate, self.name = loss == "mse", sizes.dropout, sizes.name
        self.shape = (sizes.horizon.action, sizes.spec.action_dim)
        hidden = 2 * sizes.width
        self.norm = nn.LayerNorm(sizes.width)
        self.layers = nn.ModuleList(nn.Linear(hidden if i else sizes.width, hidden) for i in range(num_layers))
        self.out = nn.Linear(hidden, self.shape[0] * self.shape[1])

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        return mean_gap(self.act(tokens, seeds, given), target, given, squared=self.squared)

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        x = self.norm(tokens.mean(dim=1))
        for index, layer in enumerate(self.layers):
            x = nn.functional.gelu(layer(x))
            x = dropout(x, seeds, rate=self.rate if self.training else 0.0, stream=f"{self.name}.{index}")
        return self.out(x).unflatten(-1, self.shape)
