"""Every key of `policy`: what it sees, what it is made of; and what it may begin with of another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.keys import key, show
from ppt_kit.spec import MODALITIES

# what can be taken of another policy
PRETRAINED_PARTS = ("trunk", "stems", "heads", "encoders")


@dataclass
class HeadConfig:
    kind: str = key(
        "regression",
        "what makes actions of tokens: regression, mlp, decoder, diffusion, flow, meanflow, mixture, cvae, or "
        "module:Class of yours; policy/head=flow takes a tuned one with its options",
    )
    options: Any = key({}, "keyword arguments of the head; a wrong name lists those it takes")


@dataclass
class StemConfig:
    kind: str | None = key(None, "what makes tokens of it, module:Class of yours; null = the policy does not see it")
    num_latents: int = key(8, "latent tokens that a window's readings become", low=1, high=4096)
    options: Any = key({}, "keyword arguments of the stem")


@dataclass
class StateStemConfig(StemConfig):
    kind: str | None = key("mlp", "what makes tokens of the state: mlp, or module:Class of yours; null = not seen")
    num_latents: int = key(4, "latent tokens that a window's states become", low=1, high=4096)


@dataclass
class CloudStemConfig(StemConfig):
    kind: str | None = key("points", "what makes tokens of clouds: points, or module:Class of yours; null = not seen")


@dataclass
class StemsConfig:
    state: StateStemConfig = field(default_factory=StateStemConfig)
    pointcloud: CloudStemConfig = field(default_factory=CloudStemConfig)
    rgb: StemConfig = field(default_factory=StemConfig)
    depth: StemConfig = field(default_factory=StemConfig)
    language: StemConfig = field(default_factory=StemConfig)


@dataclass
class EncoderConfig:
    kind: str | None = key(
        None, "backbone that all domains share, before the stems: module:Class of yours; null = none"
    )
    frozen: bool = key(True, "not trained, and named in checkpoints instead of stored")
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


def check_policy(policy: Any) -> None:
    """Keys of `policy` that only make sense together.

    Raises:
        UserError: the first that does not hold.
    """
    seen = [name for name in MODALITIES if policy.stems[name].kind]
    if not seen:
        raise UserError(
            "policy.stems: every kind is null, so the policy sees nothing. Set one, e.g. policy.stems.state.kind=mlp."
        )
    if policy.width % policy.num_heads:
        raise UserError(f"policy.width={policy.width} is not a multiple of policy.num_heads={policy.num_heads}.")


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
