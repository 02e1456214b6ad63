"""Encoders by name; each is imported when a policy has it."""

from ppt_kit.models.encoders.encoder import Encoder, Frozen, remade, with_every_camera

ENCODERS: dict[str, str] = {
    "resnet18": "ppt_kit.models.encoders.resnet:ResNet18",
    "resnet50": "ppt_kit.models.encoders.resnet:ResNet50",
    "dinov2": "ppt_kit.models.encoders.dinov2:DinoV2",
    "minilm": "ppt_kit.models.encoders.sentences:MiniLM",
}

__all__ = ["ENCODERS", "Encoder", "Frozen", "remade", "with_every_camera"]
