"""What a head is supervised with."""

from __future__ import annotations

import torch


def filled(actions: torch.Tensor, is_pad: torch.Tensor) -> torch.Tensor:
    """actions (B, Ta, Da) with the nearest action that is no padding in the place of each that is.

    A head that makes a chunk as a whole sees the padded ones too: they must not depend on what a batch holds there.

    Args:
        is_pad: (B, Ta) bool.
    """
    place = torch.arange(actions.shape[1], device=actions.device)
    before = torch.where(is_pad, -1, place).cummax(dim=1).values
    first = (~is_pad).int().argmax(dim=1, keepdim=True)
    nearest = torch.where(before < 0, first, before)
    return actions.gather(1, nearest[..., None].expand_as(actions))
