"""The contract of heads: the trunk's tokens -> the next chunk of normalised actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Given:
    """What is known of a chunk beside the trunk's tokens; any part of it may be absent.

    Attributes:
        counts: (B, Ta, Da) bool, in training: the numbers that are supervised, so neither those of an action that
            repeats an episode's edge nor those that only another domain's wider action has. None = all.
        known: (B, Ta) bool: actions that are given, so that the others are made to go on from them: executed ones of
            the frames before (dataset.hist_action_cond), or those that will be executed meanwhile. None = none.
        actions: (B, Ta, Da) float32 normalised, in acting: their values; anything where they are not known. In training
            the target holds them.
        num_steps: sampling steps, in acting; None = as the head was made.
    """

    counts: torch.Tensor | None = None
    known: torch.Tensor | None = None
    actions: torch.Tensor | None = None
    num_steps: int | None = None


NOTHING = Given()


class Head(nn.Module):
    """What turns tokens into actions; one of each domain's own.

    A head of yours is derived from this, takes `sizes` (ppt_kit.models.part.Sizes) and options of its own, and says
    `loss` and `act`. Noise is made of the seeds alone (ppt_kit.randomness): runs, validation and rollouts repeat.

    Attributes:
        takes_given: whether `loss` and `act` have a last argument `given: Given = NOTHING`. One without cannot
            in-paint, has no sampling steps, and must not mix the actions of a chunk in its loss.
        inpaints: whether it takes known actions in acting: they come out as they are, and the others go on from them.
        samples: whether it acts in sampling steps, whose number can be chosen.
    """

    takes_given = False
    inpaints = False
    samples = False

    def loss(self, tokens: torch.Tensor, target: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, Ta) loss of each action; the policy masks what is padded or known, weighs and averages.

        Args:
            tokens: (B, T, width) of the trunk.
            target: (B, Ta, Da) float32, normalised; a padded action is the nearest one that is not.
            seeds: (B,) int64, one a sample and step.
        """
        raise NotImplementedError

    def act(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """(B, Ta, Da) normalised actions."""
        raise NotImplementedError

    def forward(
        self, tokens: torch.Tensor, seeds: torch.Tensor, target: torch.Tensor | None = None, given: Given | None = None
    ) -> torch.Tensor:
        """`loss` where there is a target, else `act`. ZeRO-3 brings a module's weights when the module is called."""
        more = (given or NOTHING,) if self.takes_given else ()
        return self.act(tokens, seeds, *more) if target is None else self.loss(tokens, target, seeds, *more)


def mean_over_numbers(error: torch.Tensor, given: Given) -> torch.Tensor:
    """(B, Ta) mean of an error (B, Ta, Da) over the numbers of each action that count; 0 where none does."""
    if given.counts is None:
        return error.mean(-1)
    counts = given.counts.to(error.dtype)
    return (error.masked_fill(~given.counts, 0.0)).sum(-1) / counts.sum(-1).clamp(min=1.0)
