"""Stems by name; each is imported when a policy has it."""

from ppt_kit.models.stems.stem import Stem

STEMS: dict[str, str] = {
    "mlp": "ppt_kit.models.stems.state:StateStem",
    "cnn": "ppt_kit.models.stems.image:CnnStem",
    "patches": "ppt_kit.models.stems.patches:PatchStem",
    "points": "ppt_kit.models.stems.cloud:CloudStem",
    "sentence": "ppt_kit.models.stems.language:SentenceStem",
}

__all__ = ["STEMS", "Stem"]
