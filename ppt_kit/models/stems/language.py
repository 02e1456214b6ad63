"""Sentences, as the vectors that an encoder made of them."""

from __future__ import annotations

import math

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.stem import Stem


class SentenceStem(Stem):
    """Vectors (B, c) of an encoder, of length 1 -> (B, num_latents, width)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        if sizes.modality != "language":
            raise UserError(f"policy.stems.{sizes.modality}.kind=sentence: it makes tokens of language.")
        if not sizes.encoded:
            raise UserError(
                "policy.stems.language.kind=sentence: it reads the vectors of an encoder. "
                "Set policy.encoders.language.kind=minilm."
            )
        self.num_tokens, self.scale = sizes.num_latents or 1, math.sqrt(sizes.encoded)
        self.embed = nn.Sequential(
            nn.Linear(sizes.encoded, sizes.width), nn.GELU(), nn.Linear(sizes.width, self.num_tokens * sizes.width)
        )

    def forward(self, readings: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        # numbers of a vector of length 1 are small
        vectors = readings.to(next(self.embed.parameters()).dtype) * self.scale
        return self.embed(vectors).unflatten(-1, (self.num_tokens, -1))
