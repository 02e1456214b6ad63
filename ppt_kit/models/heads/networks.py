"""The networks of the heads that take noise out of a chunk, and what they are told beside it."""

from __future__ import annotations

import math

import torch
from torch import nn

from ppt_kit.errors import UserError
from ppt_kit.models.heads.layers import Decoder, Linear, Pool
from ppt_kit.models.heads.options import one_of, whole
from ppt_kit.models.heads.unet import UNet
from ppt_kit.models.part import Sizes

# per unit of time: the last still tells 1 / 100 from its neighbour
FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
WIDTHS = [64, 128]
NUM_LAYERS = 3


class TimeEmbedding(nn.Module):
    """Times (B, n) float32 in [0, 1] -> (B, width)."""

    frequencies: torch.Tensor

    def __init__(self, width: int, *, num_times: int):
        super().__init__()
        features = num_times * 2 * len(FREQUENCIES)
        self.first, self.second = Linear(features, width), Linear(width, width)
        # already on the device: made from numbers at every call, a GPU would be waited for
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES), persistent=False)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        # in float32: bfloat16 does not tell neighbouring times apart, but holds these powers of two
        angles = times[..., None] * self.frequencies.float() * (2 * math.pi)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return self.second(nn.functional.silu(self.first(features.to(self.first.weight.dtype))))


class Network(nn.Module):
    """A noisy chunk, its times and what was seen -> what is wanted of it: noise, chunk or velocity.

    Attributes:
        forward_derivative: whether one is taken through it, which ZeRO-3's hooks on its parts and torch's compiler do
            not admit.
    """

    forward_derivative = False

    def forward(
        self,
        chunk: torch.Tensor,
        known: torch.Tensor,
        times: torch.Tensor,
        context: torch.Tensor,
        seeds: torch.Tensor,
        *,
        velocity: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(B, Ta, Da) float32; with a velocity also how fast that changes, when all times grow at the rate of 1.

        Args:
            chunk: (B, Ta, Da) float32, noisy where it is not known.
            known: (B, Ta) bool.
            times: (B, num_times) float32.
            context: what this network's `Context` gave.
            velocity: (B, Ta, Da) of the chunk.
        """
        if velocity is None:
            return self._made(chunk, known, times, context, seeds)
        # a forward derivative passes autocast by: the weights stay as they are stored
        with torch.autocast(chunk.device.type, enabled=False):
            stored = context.to(next(self.parameters()).dtype)
            along = lambda noisy, at: self._made(noisy, known, at, stored, seeds)
            made, rate, *_ = torch.func.jvp(along, (chunk, times), (velocity, torch.ones_like(times)))
        return made, rate

    def _made(
        self, chunk: torch.Tensor, known: torch.Tensor, times: torch.Tensor, context: torch.Tensor, seeds: torch.Tensor
    ) -> torch.Tensor:
        shown = torch.cat([chunk, known[..., None].to(chunk.dtype)], dim=-1).to(context.dtype)
        return self.of_shown(shown, times, context, seeds).to(chunk.dtype)

    def of_shown(
        self, shown: torch.Tensor, times: torch.Tensor, context: torch.Tensor, seeds: torch.Tensor
    ) -> torch.Tensor:
        """(B, Ta, Da) of a noisy chunk beside which stands what is known, (B, Ta, Da + 1)."""
        raise NotImplementedError


class UNetNetwork(Network):
    """FiLM U-Net; what was seen enters as one vector."""

    def __init__(self, sizes: Sizes, *, widths: list[int], num_times: int):
        super().__init__()
        self.time = TimeEmbedding(sizes.width, num_times=num_times)
        action_dim = sizes.spec.action_dim
        self.unet = UNet(action_dim + 1, action_dim, widths=widths, condition_dim=sizes.width)

    def of_shown(
        self, shown: torch.Tensor, times: torch.Tensor, context: torch.Tensor, seeds: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(shown, self.time(times) + context)


class TransformerNetwork(Network):
    """A query an action, of the noisy action, its place and the time; they look at each other and at the tokens."""

    def __init__(self, sizes: Sizes, *, num_layers: int, num_times: int):
        super().__init__()
        width, action_dim = sizes.width, sizes.spec.action_dim
        self.time = TimeEmbedding(width, num_times=num_times)
        self.embed = Linear(action_dim + 1, width)
        self.places = nn.Parameter(torch.randn(sizes.horizon.action, width) * 0.02)
        self.decoder = Decoder(sizes, num_layers=num_layers)
        self.out = Linear(width, action_dim)

    def of_shown(
        self, shown: torch.Tensor, times: torch.Tensor, context: torch.Tensor, seeds: torch.Tensor
    ) -> torch.Tensor:
        queries = self.embed(shown) + self.places + self.time(times)[:, None]
        return self.out(self.decoder(queries, context, seeds))


class Context(nn.Module):
    """What a network needs of the trunk's tokens (B, T, width), once for all steps: one vector, or all tokens."""

    def __init__(self, sizes: Sizes, *, pooled: bool):
        super().__init__()
        self.pool = Pool(sizes) if pooled else None
        self.norm = None if pooled else nn.LayerNorm(sizes.width)

    def forward(self, tokens: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return self.norm(tokens) if self.pool is None else self.pool(tokens, seeds)  # type: ignore[misc]


def build_network(
    sizes: Sizes, network: str, *, widths: list[int] | None, num_layers: int | None, num_times: int = 1
) -> tuple[Context, Network]:
    """A head's `options.network`: what it needs of the tokens, and the network itself.

    Args:
        widths: channels of the U-Net's levels; None = WIDTHS.
        num_layers: of the transformer; None = NUM_LAYERS.
        num_times: that it is told.
    Raises:
        UserError: there is no such network, or an option is the other's or out of range.
    """
    one_of("network", network, ("unet", "transformer"))
    if network == "unet":
        if num_layers is not None:
            raise UserError(f"policy.head.options.num_layers={num_layers}: of network=transformer; a unet has widths.")
        widths = list(WIDTHS if widths is None else widths)
        if not widths:
            raise UserError("policy.head.options.widths=[]: takes channels of one level or more, e.g. [64,128].")
        for each in widths:
            whole("widths", each)
        return Context(sizes, pooled=True), UNetNetwork(sizes, widths=widths, num_times=num_times)
    if widths is not None:
        raise UserError(f"policy.head.options.widths={widths}: of network=unet; a transformer has num_layers.")
    num_layers = NUM_LAYERS if num_layers is None else num_layers
    whole("num_layers", num_layers)
    return Context(sizes, pooled=False), TransformerNetwork(sizes, num_layers=num_layers, num_times=num_times)
