"""Old heads, and the pooling before them, as ours of the kind hpt."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from ppt_kit.adopt.layers import sequence
from ppt_kit.adopt.old import Differs, Old, Part
from ppt_kit.migration.parts import last_name

KERNEL, GROUPS, STEPS = 5, 8, 100
# of diffusers, where the schedule asks for them
BETAS = (1e-4, 0.02)
OTHERS = {
    "TransformerDecoder": "its attention was held in a list, which no state_dict has: only its last layer was ever "
    "saved. policy.head.kind=decoder is trained whole",
    "Transformer": "it added the pair that attention returns to a tensor, so that it never ran: "
    "policy.head.kind=decoder is of its kind",
    "RNN": "there is no recurrent head here",
    "FlowMatching": "policy.head.kind=flow is of its kind, and its weights are other ones",
    "DiffusionTransformer": "policy.head.options.network=transformer is of its kind, and its weights are other ones",
}


class Pooled(NamedTuple):
    """What a head reads.

    Attributes:
        pooling: policy.pooling.
        num_tokens: that come out of it, side by side.
        was_at: of each of them, its place among the old ones.
    """

    pooling: str
    num_tokens: int
    was_at: list[int]


def pooled(old: Old, was_at: list[int] | None) -> Pooled:
    """The pooling of an old policy.

    Args:
        was_at: of each of our tokens, its place among the old ones; None = not known.
    Raises:
        Differs: there is none like it here.
    """
    kind = old.value("head.token_postprocessing", old.value("network.token_postprocessing", ""))
    if kind == "mean":
        return Pooled("mean", 1, [0])
    if kind == "concat" and was_at is not None:
        return Pooled("none", len(was_at), was_at)
    if kind == "concat":
        raise Differs("token_postprocessing=concat: how many tokens come is not known")
    raise Differs(f"token_postprocessing={kind!r}: heads like it read the mean of the tokens, or all side by side")


def num_read(old: Old) -> int | None:
    """Tokens that a head reads side by side; None where it reads their mean, or does not say."""
    if old.value("head.token_postprocessing", old.value("network.token_postprocessing", "")) != "concat":
        return None
    weights = old.below(f"heads.{old.domains[0]}")
    first = weights.get("net.0.weight")
    film = weights.get("unet.mid_modules.0.cond_encoder.1.weight")
    if film is not None:
        return (film.shape[1] - weights["unet.diffusion_step_encoder.1.weight"].shape[1]) // old.width
    return None if first is None else first.shape[1] // old.width


def head(old: Old, domain: str, seen: Pooled, *, half_noise: bool) -> Part:
    """The head of a domain; tensors below its module.

    Args:
        half_noise: the diffusion head was sampled from half the noise and with eta 0.5.
    Raises:
        Differs: there is none like it here.
    """
    kind = last_name(old.value("head._target_", ""))
    if kind == "MLP":
        return _mlp(old, domain, seen)
    if kind in ("Diffusion", "DiffusionHead") and old.below(f"heads.{domain}.unet"):
        return _diffusion(old, domain, seen, half_noise=half_noise)
    raise Differs(OTHERS.get(kind, f"there is no head like {kind or 'it'} here"))


def _mlp(old: Old, domain: str, seen: Pooled) -> Part:
    found = sequence(old.below(f"heads.{domain}.net"))
    wanted = old.actions * old.action_width(domain)
    if found.outside != wanted:
        raise Differs(
            f"it gives {found.outside} numbers, and {old.actions} actions of {old.action_width(domain)} are {wanted}"
        )
    _check_seen(found.inside, seen, old.width)
    options = {
        "widths": found.widths, "norm": found.norm, "tanh": bool(old.value("head.tanh_end", False)),
        "num_tokens": seen.num_tokens,
    }  # fmt: skip
    tensors = {f"net.{below}": value for below, value in found.tensors.items()}
    tensors["net.0.weight"] = _in_our_order(tensors["net.0.weight"], seen, width=old.width, before=0)
    return Part(options=_options("hpt_mlp", options), tensors=tensors)


def _check_seen(inside: int, seen: Pooled, width: int) -> None:
    if inside != seen.num_tokens * width:
        raise Differs(f"it reads {inside} numbers, and {seen.num_tokens} tokens of {width} come")


def _in_our_order(weight: torch.Tensor, seen: Pooled, *, width: int, before: int) -> torch.Tensor:
    """(…, before + T * width) with the columns of the tokens in our order."""
    tokens = weight[:, before:].unflatten(1, (seen.num_tokens, width))[:, seen.was_at]
    return torch.cat([weight[:, :before], tokens.flatten(1)], dim=1)


def _options(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"policy.head.kind": kind} | {f"policy.head.options.{name}": value for name, value in options.items()}


# ---------------------------------------------------------------- diffusion


def _diffusion(old: Old, domain: str, seen: Pooled, *, half_noise: bool) -> Part:
    weights = old.below(f"heads.{domain}.unet")
    weights.pop("diffusion_step_encoder.0.freq_multipliers", None)
    step_dim = weights["diffusion_step_encoder.1.weight"].shape[1]
    tensors: dict[str, torch.Tensor] = {}
    widths: dict[int, int] = {}
    for name, value in weights.items():
        ours = _renamed(name)
        if name.endswith("cond_encoder.1.weight"):
            _check_seen(value.shape[1] - step_dim, seen, old.width)
            value = _in_our_order(value, seen, width=old.width, before=step_dim)
        if "cond_encoder.1" in name:
            value = _scales(value, channels=_channels(weights, name))
        if match := re.fullmatch(r"down_modules\.(\d+)\.0\.conv1\.block\.0\.weight", name):
            widths[int(match[1])] = value.shape[0]
            if value.shape[-1] != KERNEL:
                raise Differs(f"head.kernel_size={value.shape[-1]}: the U-Net here has {KERNEL}")
        tensors[f"network.{ours}"] = value
    options = {"widths": [widths[level] for level in sorted(widths)], "step_dim": step_dim}
    options |= {"num_tokens": seen.num_tokens, **_sampling(old, half_noise=half_noise)}
    return Part(options=_options("hpt_diffusion", options), tensors=tensors)


def _sampling(old: Old, *, half_noise: bool) -> dict[str, Any]:
    groups, betas = old.value("head.n_groups", GROUPS), old.value("head.beta_schedule", "squaredcos_cap_v2")
    ends = (old.value("head.beta_start", BETAS[0]), old.value("head.beta_end", BETAS[1]))
    if groups != GROUPS:
        raise Differs(f"head.n_groups={groups}: the U-Net here has {GROUPS}")
    if betas not in ("squaredcos_cap_v2", "linear", "scaled_linear") or (
        betas != "squaredcos_cap_v2" and ends != BETAS
    ):
        raise Differs(f"head.beta_schedule={betas} from {ends[0]} to {ends[1]}: there is no such schedule here")
    steps = old.value("head.num_train_timesteps", STEPS)
    clips = old.value("head.clip_sample", True)
    return {
        "num_train_steps": steps, "num_steps": old.value("head.num_inference_steps", steps), "betas": betas,
        "sampler": str(old.value("head.noise_scheduler_type", "DDPM")).lower(),
        "prediction": old.value("head.prediction_type", "epsilon"),
        "clip": float(old.value("head.clip_sample_range", 1.0)) if clips else None,
        **({"eta": 0.5, "start": 0.5} if half_noise else {}),
    }  # fmt: skip


# what begins a name of theirs -> of ours; behind it a block's own names
RENAMED = (
    (r"diffusion_step_encoder\.1\.", r"step.first."),
    (r"diffusion_step_encoder\.3\.", r"step.second."),
    (r"down_modules\.(\d+)\.0\.", r"unet.down.\1.first."),
    (r"down_modules\.(\d+)\.1\.", r"unet.down.\1.second."),
    (r"down_modules\.(\d+)\.2\.", r"unet.shrink.\1."),
    (r"mid_modules\.0\.", r"unet.middle.first."),
    (r"mid_modules\.1\.", r"unet.middle.second."),
    (r"up_modules\.(\d+)\.0\.", r"unet.up.\1.first."),
    (r"up_modules\.(\d+)\.1\.", r"unet.up.\1.second."),
    (r"up_modules\.(\d+)\.2\.", r"unet.grow.\1."),
    (r"final_conv\.0\.block\.", r"unet.out.0."),
    (r"final_conv\.1\.", r"unet.out.1."),
)
INSIDE = (
    ("conv1.block.", "first."), ("conv2.block.", "second."), ("cond_encoder.", "film."), ("residual_conv.", "skip."),
)  # fmt: skip


def _renamed(name: str) -> str:
    for before, after in RENAMED:
        ours, found = re.subn(f"^{before}", after, name)
        if found:
            for inner, inner_after in INSIDE:
                ours = ours.replace(inner, inner_after)
            return ours
    raise Differs(f"its U-Net has {name}, which that of ppt_learning has not")


def _channels(weights: dict[str, torch.Tensor], name: str) -> int:
    """Of the block that a FiLM layer belongs to."""
    return len(weights[f"{name.split('cond_encoder')[0]}conv1.block.0.bias"])


def _scales(film: torch.Tensor, *, channels: int) -> torch.Tensor:
    """A FiLM layer's weight or bias as ours, whose channels are multiplied by 1 + what it gives first."""
    if len(film) == channels:
        # it added only
        return torch.cat([torch.zeros_like(film), film])
    if film.ndim == 1:
        return torch.cat([film[:channels] - 1, film[channels:]])
    return film
