"""Encoders: large backbones that all domains share, run once a batch on the readings of one modality."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn


class Encoder(nn.Module):
    """Readings of one modality -> what its stems get in their place.

    An encoder of yours is derived from this, takes `sizes` and options of its own, and says `forward(readings)`:
    readings are those of all domains' rows, (B, To, …), or {camera: (B, To, H, W, c)}; what it gives has the rows first
    too. A frozen one loads its own weights when it is made: it is not trained, and a checkpoint holds its name and a
    hash in their place.

    Attributes:
        width: numbers of each token that it gives, for the stems behind it; 0 = it does not say.
        architecture: what one that is trained is made of, as plain values: a checkpoint holds it, so that no file of
            weights is needed where it is `remade`; None = its options say all.
        stays: whether it cannot be trained.
    """

    width = 0
    stays = False
    architecture: dict[str, Any] | None = None

    def all_weights(self) -> dict[str, torch.Tensor]:
        """What its fingerprint is of; beside state_dict() also what no device holds."""
        return self.state_dict()


# modality -> architecture of the encoders that are made for weights which a checkpoint has
_REMADE: ContextVar[Mapping[str, dict[str, Any]] | None] = ContextVar("remade", default=None)


@contextmanager
def remade(architectures: Mapping[str, dict[str, Any]]) -> Iterator[None]:
    """Inside, encoders of these modalities are made for weights that are loaded afterwards, without reading a file."""
    token = _REMADE.set(architectures)
    try:
        yield
    finally:
        _REMADE.reset(token)


def architecture_of(modality: str) -> dict[str, Any] | None:
    """Of the encoder that is being remade; None = it is a new one."""
    return (_REMADE.get() or {}).get(modality)


class Frozen(nn.Module):
    """An encoder that stays as it is: no gradient, no moments, no average, not in a state dict.

    Attributes:
        fingerprint: twelve hex digits of its weights.
    """

    def __init__(self, inner: Encoder):
        super().__init__()
        self.inner = inner.requires_grad_(False).eval()
        # of the weights as they were loaded: a cast and ZeRO-3's shards come later
        self.fingerprint = _fingerprint_of(inner)
        self.register_state_dict_post_hook(_leave_out)

    def train(self, mode: bool = True) -> Frozen:
        """Never in training mode: its statistics and its dropout stay."""
        super().train(mode)
        self.inner.eval()
        return self

    @torch.no_grad()
    def forward(self, readings: Any) -> Any:
        return self.inner(readings)


def with_every_camera(readings: Any, sizes: Mapping[str, tuple[int, int]]) -> Any:
    """Readings with zeros for cameras that no row of the batch has: each rank calls an encoder on the same cameras."""
    if not isinstance(readings, dict) or not readings:
        return readings
    some = next(iter(readings.values()))
    blank = lambda size: some.new_zeros(*some.shape[:2], *size, some.shape[-1])
    # in one order: ranks that gather weights camera by camera must do so alike
    return {name: readings[name] if name in readings else blank(size) for name, size in sizes.items()}


def _fingerprint_of(module: Encoder) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.all_weights().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _leave_out(module: nn.Module, state: dict, prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}inner.")]:
        del state[name]
