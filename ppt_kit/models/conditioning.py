"""Which actions of a chunk a policy is given, so that it goes on from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.models.heads.head import GENERATIVE
from ppt_kit.randomness import uniform

# for who asks others to
INPAINTING = ", ".join(GENERATIVE)


@dataclass(frozen=True)
class Conditioning:
    """Which actions of a chunk a policy is given, in training and in acting alike; the others go on from them.

    Attributes:
        horizon: of the policy.
        history: those of the frames before now (policy.history=inpaint).
        max_delay: the next ones, as many as pass at most while a chunk is made (policy.max_delay). Training with a
            given prefix is what makes real-time chunking in-distribution: Black et al. 2025, training-time action
            conditioning, arXiv 2512.05964.
        inpaints, samples: whether the policy's heads take given actions, and whether they act in sampling steps.
        head: their name.
    """

    horizon: Horizon
    history: bool = False
    max_delay: int = 0
    inpaints: bool = False
    samples: bool = False
    head: str = "a head"

    @classmethod
    def of(cls, options: Any, horizon: Horizon, heads: Iterable[Any]) -> Conditioning:
        """As `policy` of a configuration asks for it.

        Args:
            heads: of the policy, all of one class.
        Raises:
            UserError: the windows or the heads do not allow it.
        """
        head = next(iter(heads))
        asked = cls(
            horizon, options.history == "inpaint", options.max_delay, inpaints=head.inpaints, samples=head.samples,
            head=type(head).__name__,
        )  # fmt: skip
        asked._check()
        return asked

    def prepares(self, delay: int) -> bool:
        """Whether training gave beginnings as long as `delay`."""
        return delay <= self.max_delay

    def known(self, is_pad: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor | None:
        """(B, Ta) bool, in training: the given actions, which enter no loss; None = there are none.

        Args:
            is_pad: (B, Ta) bool; an action that repeats an edge is never given.
            seeds: (B,) int64; the length of each prefix is counted of them, 0 to max_delay alike.
        """
        if not (self.history or self.max_delay):
            return None
        step = torch.arange(self.horizon.action, device=is_pad.device) - self.horizon.now
        length = uniform(seeds, (1,), stream="policy.max_delay") * (self.max_delay + 1)
        known = (step >= 0) & (step < length.floor())
        return (known | (step < 0) if self.history else known) & ~is_pad

    def _check(self) -> None:
        held = self.horizon.action - self.horizon.now
        if self.history and self.horizon.now == 0:
            raise UserError(
                "policy.history=inpaint: chunks have no actions of frames before. Set dataset.hist_action_cond=true "
                "and dataset.observation_horizon to at least 2, or policy.history=none."
            )
        if self.max_delay >= held:
            raise UserError(
                f"policy.max_delay={self.max_delay}: a chunk holds {held} actions from the current step on, and one "
                f"must be left to make. Set it to at most {held - 1}, or dataset.action_horizon higher."
            )
        if (self.history or self.max_delay) and not self.inpaints:
            key, off = ("history=inpaint", "history=none") if self.history else ("max_delay", "max_delay=0")
            raise UserError(
                f"policy.{key}: {self.head} cannot be given actions. Set policy.head.kind to a head that can, "
                f"{INPAINTING}, or policy.{off}."
            )
