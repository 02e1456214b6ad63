"""Stems by name; each is imported when a policy has it."""

from ppt_kit.models.stems.stem import Stem

STEMS: dict[str, str] = {
    "mlp": "ppt_kit.models.stems.state:StateStem",
    "cnn": "ppt_kit.models.stems.image:CnnStem",
    "maps": "ppt_kit.models.stems.maps:MapStem",
    "points": "ppt_kit.models.stems.cloud:CloudStem",
    "dp3": "ppt_kit.models.stems.cloud_dp3:DP3Stem",
    "patches": "ppt_kit.models.stems.cloud_patches:PatchesStem",
    "pointnext": "ppt_kit.models.stems.cloud_pointnext:PointNeXtStem",
    "hpt_state": "ppt_kit.models.hpt.stems:HPTStateStem",
    "hpt_resnet": "ppt_kit.models.hpt.pictures:HPTResNetStem",
    "hpt_cloud": "ppt_kit.models.hpt.stems:HPTCloudStem",
    "hpt_pointnext": "ppt_kit.models.hpt.cloud:HPTPointNeXtStem",
    "sentence": "ppt_kit.models.stems.language:SentenceStem",
}

__all__ = ["STEMS", "Stem"]
