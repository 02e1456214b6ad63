"""A transformer decoder with one learned query an action."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.heads.head import NOTHING, Given, Head, mean_gap
from ppt_kit.models.heads.layers import Decoder
from ppt_kit.models.heads.options import one_of, whole
from ppt_kit.models.part import Sizes


class DecoderHead(Head):
    """Queries look at each other and at the trunk's tokens, `num_layers` times; then one linear layer.

    Args:
        loss: "l1" or "mse", of each element.
        num_layers: of the decoder.
    """

    takes_given = True

    def __init__(self, sizes: Sizes, *, loss: str = "l1", num_layers: int = 2):
        super().__init__()
        one_of("loss", loss, ("l1", "mse"))
        whole("num_layers", num_layers)
        self.squared = loss == "mse"
        self.queries = nn.Parameter(torch.randn(sizes.horizon.action, sizes.width) * 0.02)
        self.decoder = Decoder(sizes, num_layers=num_layers)
        self.out = nn.Linear(sizes.width, sizes.spec.action_dim)

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        return mean_gap(self.act(tokens, seeds, given), target, given, squared=self.squared)

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        return self.out(self.decoder(self.queries.expand(len(tokens), -1, -1), tokens, seeds))
