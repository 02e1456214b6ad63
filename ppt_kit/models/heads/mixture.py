"""A mixture of Gaussians over whole chunks: Mandlekar et al. 2021 (robomimic's BC-GMM), with modes that are chunks."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.heads.head import (
    NOTHING,
    Given,
    Head,
    mean_gap,
    seen_steps,
    sum_over_numbers,
    supervised,
    without_padding,
)
from ppt_kit.models.heads.layers import Decoder
from ppt_kit.models.heads.options import number, switch, whole
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import normal, uniform


class MixtureHead(Head):
    """Each mode is a Gaussian over the chunk, its numbers independent of each other: one draw decides for all of them.

    Args:
        num_modes: Gaussians.
        follow: weight of every mode's mean distance from the chunk: where demonstrations agree, all modes do. The
            likelihood alone lets each know a part of the task only, and what is drawn elsewhere is of no use.
        min_std: least standard deviation, in normalised units. The likelihood learns a number that it is sure of up to
            1 / min_std times as hard as one that varies: with 0.02 what depends on where the goal is was left aside.
        low_noise: act with the mean of the mode that was drawn, as robomimic evaluates; else a draw from it.
        num_layers: of the decoder.
    """

    takes_given = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        num_modes: int = 5,
        follow: float = 0.1,
        min_std: float = 0.1,
        low_noise: bool = True,
        num_layers: int = 2,
    ):
        super().__init__()
        whole("num_modes", num_modes)
        whole("num_layers", num_layers)
        number("follow", follow, low=0)
        number("min_std", min_std, low=1e-6)
        switch("low_noise", low_noise)
        self.num_modes, self.follow, self.min_std = num_modes, follow, min_std
        self.low_noise, self.name = low_noise, sizes.name
        self.queries = nn.Parameter(torch.randn(sizes.horizon.action, sizes.width) * 0.02)
        self.decoder = Decoder(sizes, num_layers=num_layers)
        self.out = nn.Linear(sizes.width, num_modes * 2 * sizes.spec.action_dim)
        # of the tokens themselves: one more query of the decoder hardly learned which mode's turn it is
        self.share = nn.Sequential(
            nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.width), nn.GELU(), nn.Linear(sizes.width, num_modes)
        )
        # the modes start apart, each as a chunk: those that start alike share what disagrees and stay in its middle
        with torch.no_grad():
            self.out.bias.view(num_modes, 2, -1)[:, 0].normal_(std=0.5)

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        """Negative log-likelihood of the numbers that count, nats a number, and the modes' distances."""
        given, target = supervised(given), without_padding(target, given)
        mean, std, log_share = self._modes(tokens, seeds)
        gap = (target[:, None] - mean) / std
        of_number = -0.5 * gap.square() - std.log() - 0.5 * math.log(2 * math.pi)
        sums, count = zip(*(sum_over_numbers(each, given) for each in of_number.unbind(1)))
        joint = torch.stack(sums, dim=1) + log_share
        nll = -torch.logsumexp(joint, dim=1) / count[0] + _turns(joint, log_share)
        likelihood = nll[:, None] * seen_steps(target, replace(given, known=None))
        apart = torch.stack([mean_gap(each, target, given, squared=False) for each in mean.unbind(1)]).mean(0)
        return likelihood + self.follow * apart

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
        mean, raw = self.out(x).float().unflatten(-1, (self.num_modes, 2, -1)).unbind(3)
        std = F.softplus(raw) + self.min_std
        return mean.transpose(1, 2), std.transpose(1, 2), F.log_softmax(self.share(tokens.mean(1)).float(), dim=-1)


def _turns(joint: torch.Tensor, log_share: torch.Tensor) -> torch.Tensor:
    """(B,) zeros, whose gradient is that of the shares' cross-entropy with whose turn it is (B, K).

    In a likelihood a number they learn as much slower as a chunk has numbers.
    """
    turn = joint.detach().softmax(dim=1)
    return -(turn * (log_share - log_share.detach())).sum(dim=1)
