"""Heads by name; each is imported when a policy has it."""

from ppt_kit.models.heads.head import NOTHING, Given, Head

HEADS: dict[str, str] = {
    "regression": "ppt_kit.models.heads.regression:RegressionHead",
    "mlp": "ppt_kit.models.heads.mlp:MLPHead",
    "decoder": "ppt_kit.models.heads.decoder:DecoderHead",
    "diffusion": "ppt_kit.models.heads.diffusion:DiffusionHead",
    "flow": "ppt_kit.models.heads.flow:FlowHead",
    "meanflow": "ppt_kit.models.heads.meanflow:MeanFlowHead",
    "mixture": "ppt_kit.models.heads.mixture:MixtureHead",
    "cvae": "ppt_kit.models.heads.cvae:CVAEHead",
}
# those of policies that ppt_learning trained: they need its trunk and its pooling beside them
ADOPTED: dict[str, str] = {
    "hpt_mlp": "ppt_kit.models.hpt.heads:HPTMLPHead",
    "hpt_diffusion": "ppt_kit.models.hpt.diffusion:HPTDiffusionHead",
}

__all__ = ["ADOPTED", "HEADS", "NOTHING", "Given", "Head"]
