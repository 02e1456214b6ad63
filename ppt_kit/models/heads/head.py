"""The contract of heads: the trunk's tokens -> the next chunk of normalised actions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ppt_kit.models.targets import filled


@dataclass(frozen=True)
class Given:
    """What is known of a chunk beside the trunk's tokens; any part of it may be absent.

    Attributes:
        counts: (B, Ta, Da) bool: the numbers that are made. Not those that only another domain's wider action has, and
            in training not those of an action that repeats an episode's edge. None = all.
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

# names of the heads that sample in steps and can in-paint, for what is said to who asks others to
GENERATIVE = ("diffusion", "flow", "meanflow")


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
        """`loss` where there is a target, else `act`. ZeRO-3 brings a module's weights when the module is called.

        Raises:
            ValueError: in acting, this head does not take what is given.
        """
        given = given or NOTHING
        more = (given,) if self.takes_given else ()
        if target is not None:
            return self.loss(tokens, target, seeds, *more)
        self._refuse(given)
        return self.act(tokens, seeds, *more)

    def _refuse(self, given: Given) -> None:
        name, others = type(self).__name__, ", ".join(GENERATIVE)
        if given.known is not None and not self.inpaints:
            raise ValueError(
                f"known actions were given, but {name} cannot in-paint. Heads that can: {others}; or give none."
            )
        if given.num_steps is not None and not self.samples:
            raise ValueError(
                f"num_steps={given.num_steps}: {name} has no sampling steps. Heads that have: {others}; or give none."
            )
        if given.num_steps is not None and given.num_steps < 1:
            raise ValueError(f"num_steps={given.num_steps}: at least 1 sampling step is needed.")


def supervised(given: Given) -> Given:
    """The same, in which known actions do not count."""
    if given.known is None or given.counts is None:
        return given
    return replace(given, counts=given.counts & ~given.known[..., None])


def without_padding(target: torch.Tensor, given: Given) -> torch.Tensor:
    """A target (B, Ta, Da) without anything that must not be learned from.

    A number that neither counts nor is known becomes the nearest one of its kind that does, and 0 where a sample has
    none of its kind, as of another domain's wider action.
    """
    if given.counts is None:
        return target
    there = given.counts
    if given.known is not None:
        there = there | (given.known[..., None] & own_numbers(given))
    rows, steps, width = target.shape
    flat = lambda x: x.transpose(1, 2).reshape(rows * width, steps)
    nearest = filled(flat(target)[..., None], ~flat(there)).view(rows, width, steps).transpose(1, 2)
    return nearest.masked_fill(~there.any(dim=1, keepdim=True), 0.0)


def seen_steps(target: torch.Tensor, given: Given) -> torch.Tensor:
    """(B, Ta) bool: the actions of a target that are no padding, known ones among them."""
    if given.counts is None:
        return torch.ones_like(target[..., 0], dtype=torch.bool)
    seen = given.counts.any(dim=-1)
    return seen if given.known is None else seen | given.known


def own_numbers(given: Given) -> torch.Tensor:
    """(B, 1, Da) bool: the numbers that an action of the sample has at all."""
    return given.counts.any(dim=1, keepdim=True)  # type: ignore[union-attr]


def mean_over_numbers(error: torch.Tensor, given: Given) -> torch.Tensor:
    """(B, Ta) mean of an error (B, Ta, Da) over the numbers of each action that count; 0 where none does."""
    if given.counts is None:
        return error.mean(-1)
    counts = given.counts.to(error.dtype)
    return (error.masked_fill(~given.counts, 0.0)).sum(-1) / counts.sum(-1).clamp(min=1.0)


def mean_gap(chunk: torch.Tensor, target: torch.Tensor, given: Given, *, squared: bool) -> torch.Tensor:
    """(B, Ta) mean distance of a chunk (B, Ta, Da) from its target, over the numbers that count."""
    if given.counts is not None:
        # not after the distance: what is infinite there would make its gradient nan
        target = target.masked_fill(~given.counts, 0.0)
    gap = chunk.float() - target
    return mean_over_numbers(gap.square() if squared else gap.abs(), given)


def sum_over_numbers(error: torch.Tensor, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) sum of an error (B, Ta, Da) over a chunk's numbers that count; (B,) how many they are, at least 1."""
    if given.counts is None:
        return error.sum((1, 2)), torch.full_like(error[:, 0, 0], error[0].numel())
    return error.masked_fill(~given.counts, 0.0).sum((1, 2)), given.counts.sum((1, 2)).to(error.dtype).clamp(min=1.0)


def once_a_sample(value: torch.Tensor, like: torch.Tensor, given: Given) -> torch.Tensor:
    """(B, Ta) whose mean over Ta is `value` (B,), spread over the actions that count: the policy masks the others.

    Args:
        like: (B, Ta, Da) any, for Ta.
    """
    steps = like.shape[1]
    if given.counts is None:
        return value[:, None].expand(-1, steps)
    counts = given.counts.any(-1).to(value.dtype)
    return value[:, None] * counts * (steps / counts.sum(-1, keepdim=True).clamp(min=1.0))
