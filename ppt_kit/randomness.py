"""Counted randomness: every number is a function of (seed, stream, position), never of the process that asks.

One process with a batch of 2B, two with B, and a run that was killed and resumed all see the same noise.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

_MIX_1 = -0x00AE502812AA7333  # the 64-bit finalizer constants of MurmurHash3 (Appleby, public domain), as signed
_MIX_2 = -0x3B314601E57A13AD
_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as signed


def sample_seeds(seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(B,) int64 seeds, one a sample, that differ with the run's seed, the optimizer step and the sample.

    Args:
        samples: (B,) int64 indices of the windows.
    """
    with np.errstate(over="ignore"):
        mixed = samples.astype(np.int64) * np.int64(_GOLDEN)
        mixed ^= np.int64(zlib.crc32(f"{seed}/{step}".encode())) * np.int64(_MIX_1)
    return mixed


def uniform(seeds: torch.Tensor, shape: tuple[int, ...], *, stream: str) -> torch.Tensor:
    """(B, *shape) float32 in (0, 1): row b depends on seeds[b], the stream's name and the position alone.

    Args:
        seeds: (B,) int64.
        shape: what one sample needs.
        stream: names the use (`"trunk.3.dropout"`), so that two uses do not share numbers.
    """
    count = math.prod(shape)
    position = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64) * _GOLDEN
    start = seeds ^ _signed(zlib.crc32(stream.encode()) * _GOLDEN)
    bits = _mix(_mix(start)[:, None] + position)
    return (((bits >> 40) & 0xFFFFFF).float() + 0.5).div_(1 << 24).view(-1, *shape)


def normal(seeds: torch.Tensor, shape: tuple[int, ...], *, stream: str) -> torch.Tensor:
    """(B, *shape) float32 standard normal, counted as in `uniform`."""
    return torch.special.ndtri(uniform(seeds, shape, stream=stream))


def dropout(x: torch.Tensor, seeds: torch.Tensor, *, rate: float, stream: str) -> torch.Tensor:
    """x (B, ...) with a share `rate` of its elements zeroed and the others scaled by 1 / (1 - rate)."""
    if rate == 0:
        return x
    keep = uniform(seeds, tuple(x.shape[1:]), stream=stream) >= rate
    return x * keep.to(x.dtype).div_(1 - rate)


def _signed(number: int) -> int:
    """The low 64 bits as a signed integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ ((bits >> 33) & 0x7FFFFFFF)) * _MIX_1  # the mask makes the shift a logical one
    bits = (bits ^ ((bits >> 33) & 0x7FFFFFFF)) * _MIX_2
    return bits ^ ((bits >> 33) & 0x7FFFFFFF)
