"""The old trunk as ours of the kind hpt, and the places of tokens before it."""

from __future__ import annotations

import torch

from ppt_kit.adopt.old import Differs, Old, Part

# below a block: name of theirs -> name of ours
SAME = {
    "attn.out_proj.weight": "attention.out.weight", "attn.out_proj.bias": "attention.out.bias",
    "norm_1.weight": "norm_attention.weight", "norm_1.bias": "norm_attention.bias",
    "norm_2.weight": "norm_mlp.weight", "norm_2.bias": "norm_mlp.bias",
    "mlp.fc1.weight": "mlp.0.weight", "mlp.fc1.bias": "mlp.0.bias",
    "mlp.fc2.weight": "mlp.2.weight", "mlp.fc2.bias": "mlp.2.bias",
}  # fmt: skip
OTHERS = {"attn.in_proj_weight", "attn.in_proj_bias", "attn.bias_k", "attn.bias_v"}
# the default of ppt_learning's class
NUM_HEADS = 16


def trunk(old: Old) -> Part:
    """The transformer.

    Raises:
        Differs: its blocks are other ones.
    """
    blocks: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in old.below("trunk.blocks").items():
        place, rest = name.split(".", 1)
        blocks.setdefault(int(place), {})[rest] = value
    if not blocks or len(old.below("trunk")) != sum(map(len, blocks.values())):
        raise Differs("it is not made of blocks alone")
    tensors: dict[str, torch.Tensor] = {}
    for number, block in blocks.items():
        strange = set(block) ^ (set(SAME) | OTHERS)
        if strange:
            raise Differs(f"block {number} is another one: {', '.join(sorted(strange)[:3])}")
        tensors |= {f"trunk.blocks.{number}.{name}": value for name, value in _block(block, old.width).items()}
    heads = old.value("network.num_heads", NUM_HEADS)
    options = {"policy.depth": len(blocks), "policy.num_heads": heads, "policy.trunk_kind": "hpt"}
    return Part(options=options, tensors=tensors)


def _block(block: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    ours = {name: block[before] for before, name in SAME.items()}
    for kind in ("weight", "bias"):
        together = block[f"attn.in_proj_{kind}"]
        ours[f"attention.query.{kind}"], ours[f"attention.key_value.{kind}"] = together[:width], together[width:]
    ours["attention.more_key"], ours["attention.more_value"] = (block[f"attn.bias_{kind}"].flatten() for kind in "kv")
    return ours


def places(old: Old, per_frame: dict[str, int], order: list[str]) -> tuple[torch.Tensor, list[int]]:
    """((n, width) what was added to each token beside its modality's vector, in our order; its place in the old one).

    Sines and cosines of the frame, and of the place among all tokens.

    Args:
        per_frame: modality -> tokens of a frame.
        order: of the modalities, ours.
    """
    first, begins = 0, {}
    for name in old.modalities:
        begins[name], first = first, first + old.frames * per_frame[name]
    everywhere, of_frames = sinusoids(first, old.width), sinusoids(old.frames, old.width)
    added, was_at = [], []
    for name in order:
        for token in range(old.frames * per_frame[name]):
            was_at.append(begins[name] + token)
            added.append(of_frames[token // per_frame[name]] + everywhere[was_at[-1]])
    return torch.stack(added), was_at


def sinusoids(length: int, width: int) -> torch.Tensor:
    """(length, width) float32: of place p sine and cosine in turn of p / 10000^(2i / width)."""
    rates = 10_000.0 ** (-2 * torch.arange((width + 1) // 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].float()
