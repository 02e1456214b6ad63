"""The U-Net of Diffusion Policy as LeRobot and ppt_learning lay it out: Chi et al. 2023."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.models.heads.layers import Linear
from ppt_kit.models.heads.networks import Network
from ppt_kit.models.heads.unet import ConvBlock, Pair

# of the sines of a step: from 1 to this, in steps
LONGEST = 10_000


class StepEmbedding(nn.Module):
    """Training steps (B,) float32, 0 … -> (B, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.first, self.second = Linear(dim, 4 * dim), Linear(4 * dim, dim)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=steps.device) * (-math.log(LONGEST) / (half - 1)))
        angles = steps[:, None] * rates
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.second(F.mish(self.first(features.to(self.first.weight.dtype))))


class HPTUNet(nn.Module):
    """(B, Ta, Da) -> (B, Ta, Da); a level joins what came down before its blocks, and grows behind them.

    Args:
        widths: channels of the levels; each halves the number of steps of the one before.
        condition_dim: of the vector that scales and shifts the channels of every block.
    """

    def __init__(self, dim: int, *, widths: list[int], condition_dim: int):
        super().__init__()
        pair = lambda a, b: Pair(a, b, condition_dim=condition_dim)
        self.down = nn.ModuleList(pair(a, b) for a, b in zip([dim, *widths], widths))
        self.shrink = nn.ModuleList(nn.Conv1d(b, b, 3, stride=2, padding=1) for b in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        steps = list(zip(reversed(widths[1:]), reversed(widths[:-1])))
        self.up = nn.ModuleList(pair(2 * a, b) for a, b in steps)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(b, b, 4, stride=2, padding=1) for _, b in steps)
        self.out = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Conv1d(widths[0], dim, 1))
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, chunk: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """`condition` (B, condition_dim)."""
        steps = chunk.shape[1]
        x, joined = F.pad(chunk.transpose(1, 2), (0, -steps % self.multiple)), []
        for level, blocks in enumerate(self.down):
            x = blocks(x, condition)
            joined.append(x)
            x = self.shrink[level](x) if level < len(self.shrink) else x
        x = self.middle(x, condition)
        for blocks, grow in zip(self.up, self.grow):
            x = grow(blocks(torch.cat([x, joined.pop()], dim=1), condition))
        return self.out(x)[..., :steps].transpose(1, 2)


class HPTUNetNetwork(Network):
    """What was seen enters as a vector beside the step's; which actions are known does not.

    Args:
        num_train_steps: levels of noise.
        step_dim: of a step's vector.
        seen_dim: of what was seen.
    """

    def __init__(self, dim: int, *, widths: list[int], num_train_steps: int, step_dim: int, seen_dim: int):
        super().__init__()
        self.num_train_steps = num_train_steps
        self.step = StepEmbedding(step_dim)
        self.unet = HPTUNet(dim, widths=widths, condition_dim=step_dim + seen_dim)

    def of_shown(
        self, shown: torch.Tensor, times: torch.Tensor, context: torch.Tensor, seeds: torch.Tensor
    ) -> torch.Tensor:
        steps = (times[:, 0] * self.num_train_steps - 1).round()
        return self.unet(shown[..., :-1], torch.cat([self.step(steps), context], dim=-1))
