"""Learned latents that gather from what was seen, by cross-attention; or what was seen, passed through.

Perceiver: Jaegle et al. 2021; in policies: HPT, Wang et al. 2024, and PPT in GenSim2, 2024.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ppt_kit.models.part import Sizes
from ppt_kit.models.trunk import Attention

# of the sines and cosines of a place: wavelengths of 2 (metres, or widths of an image in [-1, 1]) down to 1/8
NUM_OCTAVES = 5


class Latents(nn.Module):
    """Tokens of a window for the trunk: `num_latents` learned queries that attend to all local tokens of all frames.

    With num_latents null there is no query: the local tokens are the trunk's, each with its time and place.

    Args:
        place_dim: numbers that say where a local token is: 3 of a cloud (m), 2 of an image ([-1, 1]), 0 = no place.
    Attributes:
        dtype: of the weights, which the local tokens must have.
    """

    def __init__(self, sizes: Sizes, *, place_dim: int = 0):
        super().__init__()
        width = sizes.width
        self.gathers = sizes.num_latents is not None
        if sizes.num_latents is not None:
            # apart from the start where there are many places to look at: from 0.02 all latents see the same mean for
            # hundreds of steps (basketball: the ball of unseen scenes to 1.8 cm after 400 steps, from 1 to 1.1 cm)
            apart = 1.0 if place_dim else 0.02
            self.latents = nn.Parameter(torch.randn(sizes.num_latents, width) * apart)
        self.time = nn.Parameter(torch.randn(sizes.horizon.observation, width) * 0.02)
        self.place = nn.Linear(place_dim * (1 + 2 * NUM_OCTAVES), width) if place_dim else None
        if self.gathers:
            self.norm = nn.LayerNorm(width)
            self.attention = Attention(width, sizes.num_heads)

    @property
    def dtype(self) -> torch.dtype:
        return self.time.dtype

    def forward(
        self, tokens: torch.Tensor, *, places: torch.Tensor | None = None, missing: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, num_latents, width); passed through (B, To * N, width), frame by frame.

        Args:
            tokens: (B, To, N, width), N local tokens a frame; or (B, To, width), one.
            places: float32, (B, To, N, place_dim) or what broadcasts to it: where each local token is.
            missing: bool, (B, To, N) or what broadcasts to it: local tokens that were not seen, e.g. those of a camera
                that failed. No query attends to them, whatever they hold; passed through, they are zeros, which none
                that was seen is. None = all were seen.
        Raises:
            ValueError: places without place_dim, or the other way round.
        """
        if (places is None) != (self.place is None):
            raise ValueError("Latents: places are given where place_dim is, and only there")
        time = self.time if tokens.ndim == 3 else self.time[:, None]
        tokens = tokens + time
        if self.place is not None and places is not None:
            # sines and cosines in float32: bfloat16 holds metres to millimetres
            tokens = tokens + self.place(torch.cat([places, waves(places)], dim=-1).to(self.dtype))
        if missing is not None:
            missing = missing.expand(tokens.shape[:-1]).reshape(len(tokens), -1)
        tokens = tokens.flatten(1, -2)
        if missing is not None:
            # also what a weight of zero would not silence: NaN and infinity
            tokens = tokens.masked_fill(missing[..., None], 0.0)
        return self._gathered(tokens, missing) if self.gathers else tokens

    def _gathered(self, tokens: torch.Tensor, missing: torch.Tensor | None) -> torch.Tensor:
        queries = self.latents.expand(len(tokens), -1, -1)
        if missing is None:
            return queries + self.attention(queries, self.norm(tokens))
        # of no key at all a softmax is NaN: then all are looked at, and the result is left out
        nothing = missing.all(-1)[:, None, None]
        mask = (~missing[:, None] | nothing)[:, None]
        return queries + self.attention(queries, self.norm(tokens), mask=mask).masked_fill(nothing, 0.0)


def waves(places: torch.Tensor, *, octaves: int = NUM_OCTAVES) -> torch.Tensor:
    """(..., D) float32 -> (..., 2 * D * octaves) float32: sines, then cosines, of wavelengths 2, 1, … (1/8 of five)."""
    # made here, in float32: a buffer would be cast with the weights, and training and use would differ
    rates = math.pi * 2.0 ** torch.arange(octaves, device=places.device)
    angles = (places[..., None] * rates).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
