"""A policy of ppt_learning in ours, part by part: its configuration and its weights, and what is not among them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ppt_kit.adopt.heads import head, num_read, pooled
from ppt_kit.adopt.old import PARTS, Differs, Old, Part
from ppt_kit.adopt.stems import stem
from ppt_kit.adopt.trunk import places, trunk
from ppt_kit.migration.parts import MODALITIES
from ppt_kit.model_keys import MODALITIES as IN_ORDER

NO_EMBEDDING = "network.use_modality_embedding=false: ppt_learning could not run so"


@dataclass
class Adopted:
    """Attributes:
    config: nested, of today's keys.
    tensors: name in our policy -> value.
    stats: domain -> "state", "action" -> {"offset", "scale", "mode", "constant"}.
    lacking: part of our policy -> why its weights are not there.
    left: old names, and why they are not needed.
    told: what the weights do not say -> by which file it was said.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def put(self, options: Mapping[str, Any]) -> None:
        """Sets dotted keys of the configuration."""
        for dotted, value in options.items():
            *groups, last = dotted.split(".")
            within = self.config
            for name in groups:
                if not isinstance(within.get(name), dict):
                    within[name] = {}
                within = within[name]
            within[last] = value


def adopt(old: Old, config: Mapping[str, Any], *, half_noise: bool = False) -> Adopted:
    """Every part that there is here.

    Args:
        config: of today's keys, as the old configuration was translated.
        half_noise: see adopt.heads.head.
    """
    made = Adopted(copy.deepcopy(dict(config)))
    order = [name for name in IN_ORDER if name in [MODALITIES[each] for each in old.modalities]]
    was_called = {MODALITIES[name]: name for name in old.modalities}
    made.put(
        {
            "policy.width": old.width, "policy.modalities": order, "policy.share": "trunk",
            "train.pretrained_dir": None,
            "dataset.observation_horizon": old.frames, "dataset.action_horizon": old.actions,
        }
    )  # fmt: skip
    _take_trunk(made, old)
    for name in order:
        called = was_called[name]
        make = lambda domain, called=called: stem(old, domain, called)
        _take(made, old, f"stems.{{}}.{name}", make, group=("stems", name))
    for name in old.strange:
        made.lacking |= {f"stems.{domain}.{name}": f"a policy sees {', '.join(IN_ORDER)}" for domain in old.domains}
    was_at = _take_places(made, old, [was_called[name] for name in order])
    _take_heads(made, old, was_at, half_noise=half_noise)
    made.stats = {domain: statistics(old, domain) for domain in old.domains}
    _leave(made, old)
    return made


def statistics(old: Old, domain: str) -> dict[str, Any]:
    """Of an old domain: (x - offset) * scale is what x * scale + offset was there; nothing where nothing was done."""
    width = next((value.shape[1] for value in old.stem(domain, "state").values() if value.ndim == 2), 0)
    # only behind cross-attention, whatever the configuration says
    seen = old.crosses and bool(old.value("stem.normalize_state", False))
    acts = bool(old.value("head.normalize_action", True))
    return {
        "state": _stats(old, domain, "state", applied=seen, width=width),
        "action": _stats(old, domain, "action", applied=acts, width=old.action_width(domain)),
    }


def _stats(old: Old, domain: str, kind: str, *, applied: bool, width: int) -> dict[str, Any]:
    found = old.below(f"normalizer.{domain}.params_dict.{kind}")
    if not applied or "scale" not in found:
        return {"offset": [0.0] * width, "scale": [1.0] * width, "mode": ["identity"] * width, "constant": []}
    scale, offset = found["scale"].double(), found["offset"].double()
    return {
        "offset": (-offset / scale).tolist(), "scale": scale.tolist(), "mode": ["limits"] * len(scale), "constant": [],
    }  # fmt: skip


def _take(
    made: Adopted, old: Old, place: str, make: Callable[[str], Part], *, group: tuple[str, ...]
) -> None:  # fmt: skip
    """A part that each domain has, whose options all of them share.

    Args:
        place: of its tensors; {} for the domain.
        group: of its options, below policy.
    """
    try:
        parts = {domain: make(domain) for domain in old.domains}
    except Differs as reason:
        made.lacking |= {place.format(domain): str(reason) for domain in old.domains}
        return
    first, *others = parts.values()
    if any(each.options != first.options for each in others):
        told = {key for each in others for key in each.options if each.options[key] != first.options.get(key)}
        reason_ = f"the domains differ in {', '.join(sorted(told))}, which all of them share here"
        made.lacking |= {place.format(domain): reason_ for domain in old.domains}
        return
    made.put({f"policy.{'.'.join(group)}": {}})
    made.put(first.options)
    made.told |= first.told
    for domain, part in parts.items():
        made.tensors |= {f"{place.format(domain)}.{name}": value for name, value in part.tensors.items()}


def _take_trunk(made: Adopted, old: Old) -> None:
    if old.value("network.no_trunk", False):
        made.put({"policy.no_trunk": True})
        made.left["trunk"] = "network.no_trunk=true: nothing read it"
        return
    try:
        part = trunk(old)
    except Differs as reason:
        made.lacking["trunk"] = str(reason)
        return
    made.put(part.options)
    made.tensors |= part.tensors


def _take_places(made: Adopted, old: Old, order: list[str]) -> list[int] | None:
    """Modalities' vectors and tokens' places; of each of our tokens its place among the old ones, None = not known."""
    per_frame = {name: _per_frame(made, old, name) for name in order}
    _fill(per_frame, old)
    told = old.below("modalities_tokens")
    known = {name: count for name, count in per_frame.items() if count is not None}
    if set(order) - set(told) or len(known) < len(order) or old.strange:
        unknown = [name for name in order if name not in known] + old.strange
        reason = NO_EMBEDDING if not unknown else f"how many tokens {', '.join(unknown)} becomes is not known"
        made.lacking |= {"modality_embedding": reason} | {f"positions.{domain}": reason for domain in old.domains}
        return None
    added, was_at = places(old, known, order)
    made.put({"policy.position_embedding": True})
    made.tensors["modality_embedding"] = torch.stack([told[name].flatten() for name in order])
    for domain in old.domains:
        made.tensors[f"positions.{domain}.position"] = added.clone()
    for name in order:
        if f"stems.{old.domains[0]}.{MODALITIES[name]}" in made.lacking:
            # so many tokens as before, of a stem that begins anew
            made.put({f"policy.stems.{MODALITIES[name]}.num_latents": old.frames * known[name]})
    return was_at


def _per_frame(made: Adopted, old: Old, name: str) -> int | None:
    """Tokens of a frame of a modality; None where the weights do not tell."""
    latents = [old.latents(domain, name) for domain in old.domains]
    counts = {len(each) for each in latents if each is not None}
    if len(counts) == 1 and all(each is not None for each in latents):
        return counts.pop()
    whole = f"stems.{old.domains[0]}.{MODALITIES[name]}" not in made.lacking
    return 1 if whole and not counts and MODALITIES[name] in ("state", "pointcloud") else None


def _fill(per_frame: dict[str, int | None], old: Old) -> None:
    """The one that is not known, of all that a head reads side by side."""
    unknown, reads = [name for name, count in per_frame.items() if count is None], num_read(old)
    if len(unknown) == 1 and reads is not None:
        left = reads // old.frames - sum(count for count in per_frame.values() if count is not None)
        per_frame[unknown[0]] = left if left > 0 and reads % old.frames == 0 else None


def _take_heads(made: Adopted, old: Old, was_at: list[int] | None, *, half_noise: bool) -> None:
    try:
        seen = pooled(old, was_at)
    except Differs as reason:
        made.lacking |= {f"heads.{domain}": str(reason) for domain in old.domains}
        return
    made.put({"policy.pooling": seen.pooling})
    make = lambda domain: head(old, domain, seen, half_noise=half_noise)
    _take(made, old, "heads.{}", make, group=("head",))


def _leave(made: Adopted, old: Old) -> None:
    """Tensors of the file that no part of ours was made of, and that no part lacks."""
    strange = sorted({name.split(".")[0] for name in old.weights} - set(PARTS))
    made.left |= dict.fromkeys(strange, "no part of ppt_learning's policy that is known is called so")
    owners = {name.split(".")[1] for name in old.weights if name.startswith("stems.")}
    pairs = [(domain, name) for domain in old.domains for name in old.modalities]
    known = {f"{domain}_{name}" for domain, name in pairs} | {f"{domain}_attend_{name}" for domain, name in pairs}
    made.left |= {f"stems.{name}": "it is of no modality in stem.modalities" for name in sorted(owners - known)}
