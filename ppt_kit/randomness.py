"""Counted randomness: every number is a function of (seed, stream, position), never of the process that asks.

One process with a batch of 2B, two with B, and a run that was killed and resumed all see the same noise.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

# the 64-bit finalizer constant of MurmurHash3 (Appleby, public domain), as signed
_SEED_1 = -0x00AE502812AA7333
# 2^64 / golden ratio, as signed
_SEED_2 = -0x61C8864680B583EB
# the 32-bit mixer of least bias that is known (Wellons, "hash-prospector"), as signed
_MIX_1 = 0x21F0AAAD
_MIX_2 = -0x2CA5D269


def sample_seeds(seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """(B,) int64 seeds, one a sample, that differ with the run's seed, the optimizer step and the sample.

    Args:
        samples: (B,) int64 indices of the windows.
    """
    with np.errstate(over="ignore"):
        mixed = samples.astype(np.int64) * np.int64(_SEED_2)
        mixed ^= np.int64(zlib.crc32(f"{seed}/{step}".encode())) * np.int64(_SEED_1)
    return mixed


def uniform(seeds: torch.Tensor, shape: tuple[int, ...], *, stream: str) -> torch.Tensor:
    """(B, *shape) float32 in (0, 1): row b depends on seeds[b], the stream's name and the position alone.

    Args:
        seeds: (B,) int64.
        shape: what one sample needs.
        stream: names the use (`"trunk.3.dropout"`), so that two uses do not share numbers.
    """
    # in 32 bits: half the memory of 64, and torch.compile cannot bound 64-bit products of its own
    first, second = _row_keys(seeds, _stream_key(stream))
    bits = torch.arange(math.prod(shape), device=seeds.device, dtype=torch.int32) + first[:, None]
    # the mask makes the shift a logical one
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _MIX_1
    # the second key: rows whose first keys are neighbours share nothing
    bits = bits ^ second[:, None]
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * _MIX_2
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    return _open_interval(bits).view(-1, *shape)


def normal(seeds: torch.Tensor, shape: tuple[int, ...], *, stream: str) -> torch.Tensor:
    """(B, *shape) float32 standard normal, counted as in `uniform`."""
    return torch.special.ndtri(uniform(seeds, shape, stream=stream))


def dropout(x: torch.Tensor, seeds: torch.Tensor, *, rate: float, stream: str) -> torch.Tensor:
    """x (B, ...) with a share `rate` of its elements zeroed and the others scaled by 1 / (1 - rate)."""
    if rate == 0:
        return x
    keep = uniform(seeds, tuple(x.shape[1:]), stream=stream) >= rate
    return x * keep.to(x.dtype).div_(1 - rate)


def _open_interval(bits: torch.Tensor) -> torch.Tensor:
    """int32 -> float32, evenly over the odd multiples of 2^-24, so never 0 nor 1: `normal` would be infinite there."""
    # exact: 24 bits are what float32 holds
    return (((bits >> 9) & 0x7FFFFF).float() + 0.5).div_(1 << 23)


def _stream_key(stream: str) -> int:
    """Of a use's name, in the range of int32."""
    return zlib.crc32(stream.encode()) - (1 << 31)


# what torch.compiler.assume_constant_result does; the decorator itself imports the compiler, 2 s in every process
_stream_key._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _row_keys(seeds: torch.Tensor, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (B,) int32 keys: for one stream, a permutation of the 64 bits of the seeds."""
    low, high = (((seeds >> shift) & 0xFFFFFFFF) - (1 << 31) for shift in (0, 32))
    first = _mix(low.int() ^ stream)
    second = _mix(high.int() + first)
    return _mix(first + second), second


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """A permutation of the int32 numbers."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _MIX_1
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * _MIX_2
    return bits ^ ((bits >> 15) & 0x1FFFF)
