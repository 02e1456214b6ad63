"""What every part of a policy is built with, and how a part is found and built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ppt_kit.errors import UserError
from ppt_kit.horizon import Horizon
from ppt_kit.parts import find_part, place_of
from ppt_kit.spec import Spec


@dataclass(frozen=True)
class Sizes:
    """What a stem, a head or an encoder is told of the policy around it.

    Attributes:
        width: of a token.
        num_heads: of attention.
        dropout: share of the activations dropped in training.
        horizon: To and Ta, control steps.
        spec: sizes of the domain's observations and actions; of an encoder, which all domains share, the first's.
        name: of the part, unique in the policy; names the streams of its noise.
        modality: that a stem or an encoder reads, of spec.MODALITIES; "" of a head.
        num_latents: tokens that a stem gives, None = its local tokens are passed through; of its configuration.
        encoded: numbers of each token of the encoder before a stem; 0 = there is none, or it does not say.
    """

    width: int
    num_heads: int
    dropout: float
    horizon: Horizon
    spec: Spec
    name: str
    modality: str = ""
    num_latents: int | None = 0
    encoded: int = 0


def build_part(
    kind: str, sizes: Sizes, options: Mapping[str, Any] | None, *, known: Mapping[str, Any], base: type, option: str
) -> Any:
    """The part that `kind` names: `Class(sizes, **options)`.

    Args:
        kind: a name in `known`, or module:Class of the user's.
        options: keyword arguments of its own.
        base: class that it must be derived from.
        option: what the user names it with, without `.kind`, e.g. policy.head.
    Raises:
        UserError: there is no such part, it is none of this kind, or it does not take one of the options.
    """
    part = find_part(kind, known, option=f"{option}.kind")
    if not (isinstance(part, type) and issubclass(part, base)):
        raise UserError(
            f"{option}.kind={kind}: {kind} of {place_of(part)} is not derived from ppt_kit.{base.__name__}."
        )
    makes, options = cast(Callable, part), dict(options or {})
    signature = inspect.signature(makes)
    takes = list(signature.parameters.values())
    names = [each.name for each in takes[1:] if each.kind is not each.VAR_KEYWORD]
    for name in options if all(each.kind is not each.VAR_KEYWORD for each in takes) else ():
        if name not in names:
            has = f"it takes {', '.join(names)}" if names else "it takes none"
            raise UserError(f"{option}.options.{name}: {kind} has no such option; {has}.")
    try:
        signature.bind(sizes, **options)
    except TypeError as error:
        raise UserError(
            f"{option}.kind={kind}: {error}. A part is made as {part.__name__}(sizes, **options)."
        ) from None
    return makes(sizes, **options)
