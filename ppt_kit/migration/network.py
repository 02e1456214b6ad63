"""The groups network, stem and head of ppt_learning, as `policy` of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ppt_kit.migration.parts import HEAD_OPTIONS, HEADS, MODALITIES, POOLING, READ_BY, STEMS, last_name

if TYPE_CHECKING:
    from ppt_kit.migration.ancestor import Translated

# weights that torchvision and torch.hub downloaded, by the name that transformers has for them
RESNETS = {"resnet18": "microsoft/resnet-18", "resnet50": "microsoft/resnet-50"}
VITS = {
    "dinov2_vits14": "facebook/dinov2-small",
    "dinov2_vitb14": "facebook/dinov2-base",
    "dinov2_vitl14": "facebook/dinov2-large",
}


def take_head(done: Translated, rest: Mapping[str, Any]) -> set[str]:
    """Puts `policy.head` and `policy.pooling`; the keys that were used."""
    taken = {name for name in ("head._target_", *(f"head.{old}" for old in HEAD_OPTIONS)) if name in rest}
    for name in ("head.token_postprocessing", "network.token_postprocessing"):
        if name in rest:
            taken.add(name)
            if rest[name] in POOLING:
                done.put(name, "policy.pooling", POOLING[rest[name]])
            else:
                done.leave(name, rest[name], "tokens are pooled by mean, max or concat: policy.pooling")
    if "head._target_" not in rest:
        return taken - {f"head.{old}" for old in HEAD_OPTIONS}
    target = rest["head._target_"]
    if last_name(target) not in HEADS:
        done.leave("head._target_", target, "there is no such head: policy/head=NAME takes one, module:Class yours")
        return {"head._target_"} | (taken - {f"head.{old}" for old in HEAD_OPTIONS})
    kind, fixed = HEADS[last_name(target)]
    done.put("head._target_", "policy.head.kind", kind)
    for name, value in fixed.items():
        if not (name == "prediction" and "head.prediction_type" in rest):
            done.put("head._target_", f"policy.head.options.{name}", value)
    for old, (new, kinds) in HEAD_OPTIONS.items():
        value = rest.get(f"head.{old}")
        if f"head.{old}" in rest and kind in kinds:
            done.put(f"head.{old}", f"policy.head.options.{new}", str(value).lower() if new == "sampler" else value)
        else:
            taken.discard(f"head.{old}")
    if kind == "mlp" and rest.get("head.widths"):
        taken.add("head.widths")
        done.put("head.widths", "policy.head.options.num_layers", len(rest["head.widths"]))
        done.leave("head.widths", rest["head.widths"], "as many layers, each twice policy.width wide")
    return taken


def take_stems(done: Translated, rest: Mapping[str, Any]) -> set[str]:
    """Puts `policy.modalities`, `policy.stems` and `policy.encoders`; the keys that were used."""
    asked = rest.get("stem.modalities")
    if not isinstance(asked, list):
        return set()
    taken = {"stem.modalities"}
    seen = [name for name in asked if name in MODALITIES]
    for name in asked:
        if name not in MODALITIES:
            done.leave("stem.modalities", [name], f"a policy sees {', '.join(dict.fromkeys(MODALITIES.values()))}")
    done.put("stem.modalities", "policy.modalities", [MODALITIES[name] for name in seen])
    for name in seen:
        taken |= _take_stem(done, rest, name)
    if "stem.cross_attention" in rest:
        taken.add("stem.cross_attention")
        done.leave(
            "stem.cross_attention",
            rest["stem.cross_attention"],
            "stems gather by cross-attention into policy.stems.<modality>.num_latents tokens; null passes them on",
        )
    for dotted, value in rest.items():
        parts = dotted.split(".")
        other = parts[2] if parts[:2] == ["stem", "crossattn_latent"] else parts[1] if len(parts) > 2 else ""
        if parts[0] == "stem" and other in MODALITIES and other not in seen:
            taken.add(dotted)
            done.leave(dotted, value, f"{other} is not among stem.modalities, so nothing read it")
    return taken


def _take_stem(done: Translated, rest: Mapping[str, Any], name: str) -> set[str]:
    """One modality's stem, by its old name."""
    modality, target = MODALITIES[name], f"stem.{name}._target_"
    latents, taken = f"stem.crossattn_latent.{name}", {target}
    if rest.get(latents):
        taken.add(latents)
        done.put(latents, f"policy.stems.{modality}.num_latents", rest[latents])
    made_by = rest.get(target, "TextEncoder" if name == "language" else None)
    if made_by is None:
        done.leave(f"stem.{name}", None, f"it has no _target_: policy.stems.{modality} has its default")
        return taken
    kind, encoder = STEMS.get(last_name(made_by), ("", None))
    if modality not in READ_BY.get(kind, ()):
        done.leave(target, made_by, f"no such stem of {modality}: policy.stems.{modality}.kind has its default")
        return taken
    done.put(target, f"policy.stems.{modality}.kind", kind)
    return taken | (_take_encoder(done, rest, name, encoder) if encoder else set())


def _take_encoder(done: Translated, rest: Mapping[str, Any], name: str, encoder: str) -> set[str]:
    modality, old = MODALITIES[name], f"stem.{name}"
    new, taken = f"policy.encoders.{modality}", set()
    model = rest.get(f"{old}.resnet_model") or rest.get(f"{old}.model_name")
    known = {**dict.fromkeys(RESNETS, "resnet18"), **dict.fromkeys(VITS, "dinov2")}
    if model is not None and known.get(model) == encoder:
        taken |= {f"{old}.resnet_model", f"{old}.model_name"} & set(rest)
        encoder = model if model in RESNETS else encoder
    done.put(f"{old}._target_", f"{new}.kind", encoder)
    # a ViT of torch.hub always came with its weights
    weights = {**RESNETS, **VITS}.get(model or encoder) if rest.get(f"{old}.weights") or model in VITS else None
    if weights is not None:
        taken |= {f"{old}.weights"} & set(rest)
        done.put(f"{old}.weights", f"{new}.options.weights", weights)
    if f"{old}.finetune" in rest:
        taken.add(f"{old}.finetune")
        done.put(f"{old}.finetune", f"{new}.frozen", not rest[f"{old}.finetune"])
    elif encoder != "minilm":
        done.put(f"{old}._target_", f"{new}.frozen", False)
    return taken
