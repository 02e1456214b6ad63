"""What diffusion, flow and mean-flow heads share: the noisy chunk, what is known of it, and the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ppt_kit.models.heads.head import NOTHING, Given, Head, own_numbers, supervised, without_padding
from ppt_kit.models.heads.networks import Network, build_network
from ppt_kit.models.heads.options import whole
from ppt_kit.models.part import Sizes
from ppt_kit.randomness import normal


@dataclass(frozen=True)
class Fixed:
    """What of a chunk is no noise.

    Attributes:
        known: (B, Ta) bool: actions that are shown as they are.
        actions: (B, Ta, Da) float32 normalised: their values; anything elsewhere.
        own: (B, 1, Da) bool: the numbers that an action of the sample has; None = all. The others are 0.
    """

    known: torch.Tensor
    actions: torch.Tensor
    own: torch.Tensor | None

    def held(self, chunk: torch.Tensor) -> torch.Tensor:
        """A chunk (B, Ta, Da) with the known actions in it, and 0 where an action has no number."""
        chunk = torch.where(self.known[..., None], self.actions, chunk)
        return self._owned(chunk)

    def moving(self, velocity: torch.Tensor) -> torch.Tensor:
        """A change (B, Ta, Da) of a chunk, 0 where it is fixed."""
        return self._owned(velocity.masked_fill(self.known[..., None], 0.0))

    def _owned(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.own is None else x.masked_fill(~self.own, 0.0)


# a noisy chunk (B, Ta, Da) and its times (each a number in [0, 1]) -> (B, Ta, Da)
Predict = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class DenoisingOptions:
    """Options of every head that makes a chunk of noise.

    Attributes:
        network: "unet" or "transformer".
        widths: channels of the U-Net's levels; None = networks.WIDTHS.
        num_layers: of the transformer; None = networks.NUM_LAYERS.
        num_steps: sampling steps.
    """

    network: str = "unet"
    widths: list[int] | None = None
    num_layers: int | None = None
    num_steps: int = 10

    def __post_init__(self) -> None:
        whole("num_steps", self.num_steps)


class DenoisingHead(Head):
    """A head that makes a chunk of noise, in steps.

    Known actions stand in the chunk as they are, in training as in acting, and the network is told which they are.
    """

    takes_given = inpaints = samples = True
    num_times = 1

    def __init__(self, sizes: Sizes, options: DenoisingOptions):
        super().__init__()
        self.name, self.num_steps = sizes.name, options.num_steps
        self.shape = (sizes.horizon.action, sizes.spec.action_dim)
        self.context, self.network = self._networks(sizes, options)

    def _networks(self, sizes: Sizes, options: Any) -> tuple[nn.Module, Network]:
        """What it needs of the tokens, and the network."""
        return build_network(
            sizes, options.network, widths=options.widths, num_layers=options.num_layers, num_times=self.num_times
        )

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor, given: Given = NOTHING) -> torch.Tensor:
        context, noise = self.context(tokens, seeds), normal(seeds, self.shape, stream=f"{self.name}.start")
        known = torch.zeros_like(noise[..., 0], dtype=torch.bool) if given.known is None else given.known
        actions = noise if given.actions is None else given.actions
        fixed = Fixed(known=known, actions=actions, own=None if given.counts is None else own_numbers(given))

        def predict(chunk: torch.Tensor, *times: float) -> torch.Tensor:
            at = torch.stack([chunk.new_full((len(chunk),), time) for time in times], dim=-1)
            return self.network(chunk, known, at, context, seeds)

        return self.sampled(fixed.held(noise), fixed, predict, seeds=seeds, num_steps=given.num_steps or self.num_steps)

    def sampled(
        self, chunk: torch.Tensor, fixed: Fixed, predict: Predict, *, seeds: torch.Tensor, num_steps: int
    ) -> torch.Tensor:
        """The chunk that `num_steps` steps make of a noisy one."""
        raise NotImplementedError

    def shown(
        self, target: torch.Tensor, seeds: torch.Tensor, given: Given
    ) -> tuple[torch.Tensor, torch.Tensor, Fixed, Given]:
        """What a training sample shows: (clean target, noise, what is fixed, which numbers count).

        Target and noise are 0 where an action has no number.
        """
        known = torch.zeros_like(target[..., 0], dtype=torch.bool) if given.known is None else given.known
        given = replace(given, known=known)
        clean = without_padding(target, given)
        own = None if given.counts is None else own_numbers(given)
        counted = supervised(replace(given, counts=torch.ones_like(target, dtype=torch.bool)) if own is None else given)
        fixed = Fixed(known=known, actions=clean, own=own)
        noise = normal(seeds, self.shape, stream=f"{self.name}.noise")
        return clean, noise if own is None else noise.masked_fill(~own, 0.0), fixed, counted


def backwards(num_steps: int) -> list[tuple[float, float]]:
    """[(time, the next one)] from 1 to 0 in even steps."""
    return [(1 - step / num_steps, 1 - (step + 1) / num_steps) for step in range(num_steps)]
