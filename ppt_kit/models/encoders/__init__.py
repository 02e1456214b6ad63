"""Encoders by name; each is imported when a policy has it."""

from ppt_kit.models.encoders.encoder import Encoder, Frozen, with_every_camera

ENCODERS: dict[str, str] = {}

__all__ = ["ENCODERS", "Encoder", "Frozen", "with_every_camera"]
