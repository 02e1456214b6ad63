"""A mixture of Gaussians over whole chunks: Mandlekar et al. 2021 (robomimic's BC-GMM), with modes that are chunks."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.heads.head import NOTHING, Given, Head, seen_steps, sum_over_numbers, supervised, without_padding
from ppt_kit.models.heads.layers import Decoder
from ppt_kit.models.heads.options import number, switch, whole
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import normal, uniform


class MixtureHead(Head):
    """Each mode is a Gaussian over the chunk, its numbers independent of each other: one draw decides for all of them.

    Args:
        num_modes: Gaussians.
        min_std: least standard deviation, in normalised units; without one the likelihood has no bound.
        low_noise: act with the mean of the mode that was drawn, as robomimic evaluates; else a draw from it.
        num_layers: of the decoder.
    """

    takes_given = True

    def __init__(
        self, sizes: Sizes, *, num_modes: int = 5, min_std: float = 0.02, low_noise: bool = True, num_layers: int = 2
    ):
        super().__init__()
        whole("num_modes", num_modes)
        whole("num_layers", num_layers)
        number("min_std", min_std, low=1e-6)
        switch("low_noise", low_noise)
        self.num_modes, self.min_std, self.low_noise, self.name = num_modes, min_std, low_noise, sizes.name
        # one query an action, and one for the modes' shares
        self.queries = nn.Parameter(torch.randn(sizes.horizon.action + 1, sizes.width) * 0.02)
        self.decoder = Decoder(sizes, num_layers=num_layers)
        self.out = nn.Linear(sizes.width, num_modes * 2 * sizes.spec.action_dim)
        self.share = nn.Linear(sizes.width, num_modes)
        # the modes start apart, each as a chunk: those that start alike share what disagrees and stay in its middle
        with torch.no_grad():
            self.out.bias.view(num_modes, 2, -1)[:, 0].normal_(std=0.5)

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        """Negative log-likelihood of the numbers that count, nats a number."""
        given, target = supervised(given), without_padding(target, given)
        mean, std, log_share = self._modes(tokens, seeds)
        gap = (target[:, None] - mean) / std
        of_number = -0.5 * gap.square() - std.log() - 0.5 * math.log(2 * math.pi)
        sums, count = zip(*(sum_over_numbers(each, given) for each in of_number.unbind(1)))
        nll = -torch.logsumexp(torch.stack(sums, dim=1) + log_share, dim=1)
        return (nll / count[0])[:, None] * seen_steps(target, replace(given, known=None))

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        mean, std, log_share = self._modes(tokens, seeds)
        ends = log_share.exp().cumsum(dim=1)
        drawn = (uniform(seeds, (1,), stream=f"{self.name}.mode") > ends).sum(dim=1).clamp(max=self.num_modes - 1)
        rows = torch.arange(len(drawn), device=drawn.device)
        chunk = mean[rows, drawn]
        if self.low_noise:
            return chunk
        return chunk + std[rows, drawn] * normal(seeds, tuple(chunk.shape[1:]), stream=f"{self.name}.spread")

    def _modes(self, tokens: torch.Tensor, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means and deviations (B, K, Ta, Da) and the logarithms of the shares (B, K), float32."""
        x = self.decoder(self.queries.expand(len(tokens), -1, -1), tokens, seeds)
        mean, raw = self.out(x[:, :-1]).float().unflatten(-1, (self.num_modes, 2, -1)).unbind(3)
        std = F.softplus(raw) + self.min_std
        return mean.transpose(1, 2), std.transpose(1, 2), F.log_softmax(self.share(x[:, -1]).float(), dim=-1)
