"""Heads by name; each is imported when a policy has it."""

from ppt_kit.models.heads.head import NOTHING, Given, Head

HEADS: dict[str, str] = {"regression": "ppt_kit.models.heads.regression:RegressionHead"}

__all__ = ["HEADS", "NOTHING", "Given", "Head"]
