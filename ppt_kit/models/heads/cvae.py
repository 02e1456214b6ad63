"""ACT's conditional variational autoencoder: Zhao et al. 2023."""

from __future__ import annotations

import torch
from torch import nn

from ppt_kit.models.heads.head import (
    NOTHING,
    Given,
    Head,
    mean_over_numbers,
    once_a_sample,
    seen_steps,
    supervised,
    without_padding,
)
from ppt_kit.models.heads.layers import Decoder
from ppt_kit.models.heads.options import number, switch, whole
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import normal


class CVAEHead(Head):
    """In training an encoder reads the chunk into a latent; a decoder makes the chunk of it and the trunk's tokens.

    Args:
        latent_dim: numbers of the latent.
        kl_weight: of the latent's divergence from a standard normal, nats a sample, beside the mean l1 of the numbers.
        sample: act with a latent drawn from the standard normal; else with its mean, 0, as ACT does.
        num_layers: of the decoder, and of the encoder.
    """

    takes_given = True

    def __init__(
        self, sizes: Sizes, *, latent_dim: int = 32, kl_weight: float = 10.0, sample: bool = False, num_layers: int = 2
    ):
        super().__init__()
        whole("latent_dim", latent_dim)
        whole("num_layers", num_layers)
        number("kl_weight", kl_weight, low=0)
        switch("sample", sample)
        self.latent_dim, self.kl_weight, self.draws, self.name = latent_dim, kl_weight, sample, sizes.name
        self.encoder = ChunkEncoder(sizes, latent_dim=latent_dim, num_layers=num_layers)
        self.latent = nn.Linear(latent_dim, sizes.width)
        self.queries = nn.Parameter(torch.randn(sizes.horizon.action, sizes.width) * 0.02)
        self.decoder = Decoder(sizes, num_layers=num_layers)
        self.out = nn.Linear(sizes.width, sizes.spec.action_dim)

    def loss(
        self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING
    ) -> torch.Tensor:
        seen, is_seen = without_padding(target, given), seen_steps(target, given)
        given = supervised(given)
        mean, log_var = self.encoder(seen, is_seen, tokens, seeds)
        z = mean + (0.5 * log_var).exp() * normal(seeds, (self.latent_dim,), stream=f"{self.name}.latent")
        gap = (self._decoded(z, tokens, seeds).float() - seen).abs()
        divergence = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=-1)
        return mean_over_numbers(gap, given) + self.kl_weight * once_a_sample(divergence, seen, given)

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        z = torch.zeros(len(tokens), self.latent_dim, device=tokens.device)
        if self.draws:
            z = normal(seeds, (self.latent_dim,), stream=f"{self.name}.latent")
        return self._decoded(z, tokens, seeds)

    def _decoded(self, z: torch.Tensor, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, Ta, Da) of latents (B, latent_dim)."""
        latent = self.latent(z.to(tokens.dtype))[:, None]
        queries = self.queries.expand(len(tokens), -1, -1)
        return self.out(self.decoder(queries, torch.cat([latent, tokens], dim=1), seeds))


class ChunkEncoder(nn.Module):
    """A chunk, and the trunk's tokens, -> mean and log variance of its latent, (B, latent_dim) float32 each."""

    def __init__(self, sizes: Sizes, *, latent_dim: int, num_layers: int):
        super().__init__()
        self.embed = nn.Linear(sizes.spec.action_dim, sizes.width)
        # the summary's query, then the actions' places
        self.places = nn.Parameter(torch.randn(sizes.horizon.action + 1, sizes.width) * 0.02)
        self.layers = Decoder(sizes, num_layers=num_layers, name="encoder")
        self.out = nn.Linear(sizes.width, 2 * latent_dim)

    def forward(
        self, chunk: torch.Tensor, is_seen: torch.Tensor, tokens: torch.Tensor, seeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`is_seen` (B, Ta) bool: the actions that are looked at, so none that is padding."""
        actions = self.embed(chunk.to(tokens.dtype))
        queries = torch.cat([torch.zeros_like(actions[:, :1]), actions], dim=1) + self.places
        mask = torch.cat([torch.ones_like(is_seen[:, :1]), is_seen], dim=1)
        summary = self.layers(queries, tokens, seeds, mask)[:, 0]
        mean, log_var = self.out(summary).float().chunk(2, dim=-1)
        return mean, log_var
