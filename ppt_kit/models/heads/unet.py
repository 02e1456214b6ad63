"""A 1-D U-Net over a chunk's actions, conditioned by FiLM: Chi et al. 2023, Diffusion Policy."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.heads.layers import Linear

KERNEL = 5
# of GroupNorm, or as many as divide the channels
NUM_GROUPS = 8


class UNet(nn.Module):
    """(B, Ta, in_dim) -> (B, Ta, out_dim), for every Ta: the chunk is padded with zeros to what the levels divide.

    Args:
        widths: channels of the levels; each halves the number of steps of the one before.
        condition_dim: of the vector that scales and shifts the channels of every block.
    """

    def __init__(self, in_dim: int, out_dim: int, *, widths: list[int], condition_dim: int):
        super().__init__()
        pair = lambda a, b: Pair(a, b, condition_dim=condition_dim)
        befores = [in_dim, *widths[:-1]]
        self.down = nn.ModuleList(pair(a, b) for a, b in zip(befores, widths))
        self.shrink = nn.ModuleList(nn.Conv1d(b, b, 3, stride=2, padding=1) for b in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        steps = list(zip(reversed(widths[1:]), reversed(widths[:-1])))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, b, 4, stride=2, padding=1) for a, b in steps)
        self.up = nn.ModuleList(pair(2 * b, b) for _, b in steps)
        self.out = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], out_dim, 1))
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, chunk: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """`condition` (B, condition_dim)."""
        steps = chunk.shape[1]
        x = F.pad(chunk.transpose(1, 2), (0, -steps % self.multiple))
        skips = []
        for level, blocks in enumerate(self.down):
            x = blocks(x, condition)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        x = self.middle(x, condition)
        for grow, blocks in zip(self.grow, self.up):
            x = blocks(torch.cat([grow(x), skips.pop()], dim=1), condition)
        return self.out(x)[..., :steps].transpose(1, 2)


class ConvBlock(nn.Sequential):
    """Convolution, GroupNorm (of each sample's own numbers), Mish."""

    def __init__(self, before: int, after: int):
        groups = next(n for n in range(min(NUM_GROUPS, after), 0, -1) if after % n == 0)
        super().__init__(nn.Conv1d(before, after, KERNEL, padding=KERNEL // 2), nn.GroupNorm(groups, after), nn.Mish())


class ResidualBlock(nn.Module):
    """Two convolutions; between them the condition scales and shifts each channel."""

    def __init__(self, before: int, after: int, *, condition_dim: int):
        super().__init__()
        self.first, self.second = ConvBlock(before, after), ConvBlock(after, after)
        self.film = nn.Sequential(nn.Mish(), Linear(condition_dim, 2 * after))
        self.skip = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, before, T) -> (B, after, T)."""
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class Pair(nn.Module):
    """Two residual blocks."""

    def __init__(self, before: int, after: int, *, condition_dim: int):
        super().__init__()
        self.first = ResidualBlock(before, after, condition_dim=condition_dim)
        self.second = ResidualBlock(after, after, condition_dim=condition_dim)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """(B, before, T) -> (B, after, T)."""
        return self.second(self.first(x, condition), condition)
