"""Every key of `policy`: what it sees, is made of, may begin with of another one; and the modes of statistics."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppt_kit.errors import UserError
from ppt_kit.keys import key, show

if TYPE_CHECKING:
    from omegaconf import DictConfig

# of each modality the stems that there are
KINDS: dict[str, tuple[str, ...]] = {
    "state": ("mlp", "hpt_state"),
    "pointcloud": ("points", "dp3", "patches", "pointnext", "hpt_cloud", "hpt_pointnext"),
    "rgb": ("cnn", "maps", "hpt_resnet"), "depth": ("cnn", "maps", "hpt_resnet"), "language": ("sentence",),
}  # fmt: skip
# what can be seen
MODALITIES = ("state", "pointcloud", "rgb", "depth", "language")
NORMALIZER_MODES = ("limits", "gaussian", "quantiles", "identity")
# what can be taken of another policy
PRETRAINED_PARTS = ("trunk", "stems", "heads", "encoders")


@dataclass
class HeadConfig:
    kind: str = key(
        "regression",
        "what makes actions of tokens: regression, mlp, decoder, diffusion, flow, meanflow, mixture, cvae, hpt_mlp, "
        "hpt_diffusion, or module:Class of yours; policy/head=flow takes a tuned one with its options",
    )
    options: Any = key({}, "keyword arguments of the head; a wrong name lists those it takes")


@dataclass
class StemConfig:
    kind: str | None = key(None, "what makes tokens of it, module:Class of yours; null = the policy does not see it")
    num_latents: int | None = key(
        8, "tokens that a window's readings become; null = the stem's local tokens, passed through", low=1, high=4096
    )
    options: Any = key({}, "keyword arguments of the stem")


@dataclass
class StateStemConfig(StemConfig):
    kind: str | None = key(
        "mlp", "what makes tokens of the state: mlp, hpt_state, or module:Class of yours; null = not seen"
    )
    num_latents: int | None = key(
        4, "tokens that a window's states become; null = one a frame, passed through", low=1, high=4096
    )


@dataclass
class CloudStemConfig(StemConfig):
    kind: str | None = key(
        "points",
        "what makes tokens of clouds: points, dp3, patches, pointnext, hpt_cloud, hpt_pointnext, or module:Class of "
        "yours; null = not seen",
    )


@dataclass
class PictureStemConfig(StemConfig):
    kind: str | None = key(
        "cnn",
        "what makes tokens of pictures: cnn; maps = the feature maps of an encoder; hpt_resnet; or module:Class of "
        "yours; null = not seen",
    )


@dataclass
class LanguageStemConfig(StemConfig):
    kind: str | None = key(
        None,
        "what makes tokens of sentences: sentence, behind policy.encoders.language.kind=minilm; or module:Class of "
        "yours; null = not seen",
    )
    num_latents: int | None = key(4, "tokens that a sentence becomes", low=1, high=4096)


@dataclass
class StemsConfig:
    state: StateStemConfig = field(default_factory=StateStemConfig)
    pointcloud: CloudStemConfig = field(default_factory=CloudStemConfig)
    rgb: PictureStemConfig = field(default_factory=PictureStemConfig)
    depth: PictureStemConfig = field(default_factory=PictureStemConfig)
    language: LanguageStemConfig = field(default_factory=LanguageStemConfig)


@dataclass
class EncoderConfig:
    kind: str | None = key(
        None,
        "backbone that all domains share, before the stems: resnet18, resnet50 or dinov2 of rgb and depth, minilm of "
        "language, or module:Class of yours; null = none",
    )
    frozen: bool = key(True, "not trained, and named in checkpoints instead of stored")
    cache: bool = key(
        False,
        "rgb and depth: encode each frame once, before the first step, and keep what a frozen encoder makes of it on "
        "the disk (float16, in dataset.cache_dir, within dataset.cache_gb)",
    )
    options: Any = key({}, "keyword arguments of the encoder")


@dataclass
class EncodersConfig:
    pointcloud: EncoderConfig = field(default_factory=EncoderConfig)
    rgb: EncoderConfig = field(default_factory=EncoderConfig)
    depth: EncoderConfig = field(default_factory=EncoderConfig)
    language: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass
class PolicyConfig:
    width: int = key(256, "token width of stems, trunk and head", low=8, high=16_384)
    depth: int = key(5, "transformer blocks in the trunk", low=1, high=1000)
    num_heads: int = key(8, "attention heads", low=1, high=1024)
    dropout: float = key(0.0, "dropout in trunk and head", low=0, high=0.9)
    trunk_kind: str = key(
        "plain",
        "plain; or hpt, as HPT and ppt_learning have it: a learned key and value in each attention, no norm at the end",
        choices=("plain", "hpt"),
    )
    modalities: list[str] | None = key(
        None,
        "what the policy sees, of state, pointcloud, rgb, depth and language; null = what every domain has, less the "
        "kinds of policy.stems that are null",
    )
    cloud_origin: str | None = key(
        None,
        "state key with x, y, z (m) that the points of a cloud are told from, so that what lies before the hand looks "
        "alike wherever it is; auto = eef_pos where every domain has it; null = as recorded",
    )
    history: str = key(
        "none",
        "inpaint = chunks are given the executed actions of the frames before; needs dataset.hist_action_cond",
        choices=("none", "inpaint"),
    )
    max_delay: int = key(
        0, "longest delay of real-time chunking that training prepares for (control steps); 0 = none", low=0, high=1000
    )
    share: str = key(
        "trunk",
        "what domains share: none, the trunk, or all: stems and head too, the widest state and action padded",
        choices=("none", "trunk", "all"),
    )
    no_trunk: bool = key(False, "the stems' tokens go to pooling and head as they are")
    pooling: str = key(
        "none",
        "tokens behind the trunk: all; their mean or max; all concatenated and projected to one; each modality's mean",
        choices=("none", "mean", "max", "concat", "modal_mean"),
    )
    position_embedding: bool = key(False, "add a learned vector to each token before the trunk")
    modality_dropout: float = key(
        0.0,
        "share of the windows in which each modality, or camera, is left out in training: act() does without it then",
        low=0,
        high=0.9,
    )
    head: HeadConfig = field(default_factory=HeadConfig)
    stems: StemsConfig = field(default_factory=StemsConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)


def can_see(policy: PolicyConfig) -> list[str]:
    """The modalities that a policy with these options sees where the data has them, in the order of MODALITIES."""
    asked = MODALITIES if policy.modalities is None else policy.modalities
    return [name for name in MODALITIES if name in asked and getattr(policy.stems, name).kind]


def check_modalities(policy: Any) -> None:
    """Refuses a policy that sees nothing, or is to see what nothing makes tokens of.

    Args:
        policy: a PolicyConfig, or its part of a configuration.
    Raises:
        UserError: says which kinds of stem there are.
    """
    if not any(getattr(policy.stems, name).kind for name in MODALITIES):
        raise UserError(
            "policy.stems: every kind is null, so the policy sees nothing. Set one, e.g. policy.stems.state.kind=mlp."
        )
    every = {kind for kinds in KINDS.values() for kind in kinds}
    for name, kinds in KINDS.items():
        kind = getattr(policy.stems, name).kind
        if kind in every and kind not in kinds:
            raise UserError(
                f"policy.stems.{name}.kind={kind}: it does not read {name}. "
                f"Set {' or '.join(kinds)}, or module:Class of yours."
            )
    if policy.modalities is None:
        return
    if not policy.modalities:
        raise UserError("policy.modalities=[]: the policy would see nothing. Name some, or set null for all there are.")
    for name in policy.modalities:
        if name not in MODALITIES:
            near = difflib.get_close_matches(name, MODALITIES, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"policy.modalities names {name[:80]}: takes {', '.join(MODALITIES)}.{hint}")
        if not getattr(policy.stems, name).kind:
            raise UserError(
                f"policy.modalities names {name}, but policy.stems.{name}.kind=null: nothing would make tokens of it. "
                f"Set policy.stems.{name}.kind to {' or '.join(KINDS[name])}, or module:Class of yours."
            )


def check_policy(policy: Any) -> None:
    """Keys of `policy` that only make sense together.

    Raises:
        UserError: the first that does not hold.
    """
    check_modalities(policy)
    if policy.width % policy.num_heads:
        raise UserError(f"policy.width={policy.width} is not a multiple of policy.num_heads={policy.num_heads}.")


def check_normalizer(cfg: DictConfig, domains: Sequence[str]) -> None:
    """Modes of the statistics that do not go together with the head, or of what is not there.

    Raises:
        UserError: the first that does not hold.
    """
    head, mode = cfg.policy.head, cfg.normalizer.mode
    if head.kind == "diffusion" and mode in ("gaussian", "identity") and "clip" not in (head.options or {}):
        raise UserError(
            f"normalizer.mode={mode} lets actions leave [-1, 1], where policy.head.kind=diffusion cuts them off. "
            "Set policy.head.options.clip=null or a bound of yours, or normalizer.mode=limits."
        )
    groups = {"normalizer.per_key": cfg.normalizer.per_key}
    per_domain = cfg.normalizer.per_domain
    if not isinstance(per_domain, Mapping):
        raise UserError(f"normalizer.per_domain={show(per_domain)}: takes {{domain: {{key: mode}}}}.")
    for name, modes in per_domain.items():
        if name not in domains:
            raise UserError(f"normalizer.per_domain: {name} is none of the domains {', '.join(domains)}.")
        groups[f"normalizer.per_domain.{name}"] = modes
    for where, modes in groups.items():
        if not isinstance(modes, Mapping):
            raise UserError(
                f"{where}={show(modes)[:80]}: takes a mapping of keys to modes, e.g. {{eef_pos: gaussian}}."
            )
        for name, mode in modes.items():
            if mode not in NORMALIZER_MODES:
                raise UserError(f"{where}.{name}={mode}: takes {', '.join(NORMALIZER_MODES)}.")


def check_pretrained(train: Any, policy: Any) -> None:
    """Keys of `train` that say what a policy begins with of another one, and what of it stays as it is.

    Raises:
        UserError: the first that does not hold.
    """
    parts = list(train.pretrained_parts)
    strange = next((part for part in parts if part not in PRETRAINED_PARTS), None)
    if strange is not None or not parts or len(set(parts)) < len(parts):
        raise UserError(
            f"train.pretrained_parts={show(parts)}: takes some of {', '.join(PRETRAINED_PARTS)}, each once."
        )
    if not train.pretrained_dir and (parts != ["trunk"] or train.pretrained_domain is not None):
        name = "pretrained_parts" if parts != ["trunk"] else "pretrained_domain"
        raise UserError(
            f"train.{name} says what to take of another run, but train.pretrained_dir is empty. Set it to a run folder."
        )
    for part in ("trunk", "stems"):
        if not train[f"freeze_{part}"]:
            continue
        if not train.pretrained_dir:
            raise UserError(
                f"train.freeze_{part}=true, but train.pretrained_dir is empty: the {part} would stay random. "
                f"Set train.pretrained_dir to a run folder, or train.freeze_{part}=false."
            )
        if part not in parts:
            raise UserError(
                f"train.freeze_{part}=true, but train.pretrained_parts={show(parts)} leaves them random. "
                f"Set train.pretrained_parts=[{','.join([*parts, part])}]."
            )
    if policy.no_trunk and "trunk" in parts and train.pretrained_dir:
        raise UserError(
            "train.pretrained_parts has the trunk, but policy.no_trunk=true has none. "
            "Set train.pretrained_parts=[stems], say."
        )
