"""Heads of ppt_learning that regress."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ppt_kit.errors import UserError
from ppt_kit.models.heads.head import NOTHING, Given, Head, mean_gap
from ppt_kit.models.heads.options import one_of, switch, whole
from ppt_kit.models.hpt.layers import perceptron
from ppt_kit.models.part import Sizes


class HPTMLPHead(Head):
    """Layers of ReLU over the tokens side by side.

    Args:
        widths: of the hidden layers.
        norm: LayerNorm in those behind the first.
        tanh: normalised actions are within -1 and 1.
        num_tokens: that there are behind policy.pooling: 1 of a mean.
        loss: "l1" or "mse", of each element.
    """

    takes_given = True

    def __init__(
        self, sizes: Sizes, *, widths: Sequence[int] = (512, 256), norm: bool = True, tanh: bool = False,
        num_tokens: int = 1, loss: str = "mse",
    ):  # fmt: skip
        super().__init__()
        if isinstance(widths, str) or not isinstance(widths, Sequence) or not widths:
            raise UserError(f"policy.head.options.widths={widths}: takes a list of whole numbers, e.g. [512,256].")
        for each in widths:
            whole("widths", each)
        for name, value in (("norm", norm), ("tanh", tanh)):
            switch(name, value)
        whole("num_tokens", num_tokens)
        one_of("loss", loss, ("l1", "mse"))
        self.squared, self.num_tokens = loss == "mse", num_tokens
        self.shape = (sizes.horizon.action, sizes.spec.action_dim)
        outside = self.shape[0] * self.shape[1]
        self.net = perceptron(num_tokens * sizes.width, widths, outside, norm=norm, tanh=tanh)

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        return mean_gap(self.act(tokens, seeds, given), target, given, squared=self.squared)

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        return self.net(side_by_side(tokens, self.num_tokens)).unflatten(-1, self.shape)


def side_by_side(tokens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(B, T, width) -> (B, T * width).

    Raises:
        ValueError: there are not as many as the head was made for.
    """
    if tokens.shape[1] != num_tokens:
        raise ValueError(
            f"policy.head.options.num_tokens={num_tokens}: {tokens.shape[1]} tokens come behind policy.pooling. "
            f"Set policy.head.options.num_tokens={tokens.shape[1]}, or policy.pooling=mean and 1"
        )
    return tokens.flatten(1)
