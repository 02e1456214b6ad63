"""Every key of `policy`: what it sees, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ppt_kit.keys import key


@dataclass
class HeadConfig:
    kind: str = key("regression", "what makes actions of tokens: regression, or module:Class of yours")
    options: Any = key({}, "keyword arguments of the head; regression takes loss: l1 or mse")


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
    head: HeadConfig = field(default_factory=HeadConfig)
    stems: StemsConfig = field(default_factory=StemsConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
