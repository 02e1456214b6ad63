"""Heads, stems and classes that ppt_learning names by `_target_`, as the parts that there are here."""

from __future__ import annotations

from typing import Any

# the last name of a `_target_` -> (policy.head.kind, options)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "MLP": ("mlp", {}),
    "Diffusion": ("diffusion", {"network": "unet", "prediction": "epsilon"}),
    "DiffusionHead": ("diffusion", {"network": "unet", "prediction": "epsilon"}),
    "DiffusionTransformer": ("diffusion", {"network": "transformer", "prediction": "epsilon"}),
    "FlowMatching": ("flow", {"network": "unet", "prediction": "velocity"}),
    "TransformerDecoder": ("decoder", {}),
}
# an option of an old head -> ours, for the heads that take it
HEAD_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "num_inference_steps": ("num_steps", ("diffusion", "flow")),
    "num_train_timesteps": ("num_train_steps", ("diffusion",)),
    "noise_scheduler_type": ("sampler", ("diffusion",)),
    "prediction_type": ("prediction", ("diffusion",)),
    "beta_schedule": ("betas", ("diffusion",)),
    "down_dims": ("widths", ("diffusion", "flow")),
}
POOLING = {"mean": "mean", "max": "max", "concat": "concat", "": "none", "no-op": "none", "none": "none", None: "none"}
MODALITIES = {
    "state": "state", "pointcloud": "pointcloud", "image": "rgb", "rgb": "rgb", "depth": "depth",
    "language": "language",
}  # fmt: skip
# the last name of a `_target_` -> the stem's kind, and the encoder's before it
STEMS: dict[str, tuple[str, str | None]] = {
    "MLP": ("mlp", None),
    "StateOnlyModule": ("mlp", None),
    "PointNet": ("pointnext", None),
    "PointcloudModule": ("points", None),
    "DP3PointNetEncoderXYZ": ("dp3", None),
    "DP3PointNetEncoderXYZRGB": ("dp3", None),
    "DepthCNN": ("cnn", None),
    "ResNet": ("maps", "resnet18"),
    "ViT": ("maps", "dinov2"),
    "TextEncoder": ("sentence", "minilm"),
}
READ_BY = {
    "mlp": ("state",), "pointnext": ("pointcloud",), "points": ("pointcloud",), "dp3": ("pointcloud",),
    "cnn": ("rgb", "depth"), "maps": ("rgb", "depth"), "sentence": ("language",),
}  # fmt: skip
# what ppt_learning concatenated as the state where dataset.state_keys did not say; those that the data had
STATE_KEYS = ["eef_pos", "eef_quat", "joint_pos", "normalized_gripper_pos"]
# points of a cloud by stem.pointcloud.pcd_domain, as its own two pcd_setup.yaml have it
CLOUD_POINTS = {"dense": 4096, "scanobjectnn": 1024}


def last_name(target: Any) -> str:
    """Diffusion of ppt_learning.models.policy_head.Diffusion."""
    return str(target).rsplit(".", 1)[-1]


def is_dataset(target: Any) -> bool:
    """Whether a `_target_` is one of ppt_learning's datasets that are read here as they lie on the disk."""
    return str(target).startswith("ppt_learning.dataset.") and last_name(target) in ("TrajDataset", "MultiTrajDataset")
