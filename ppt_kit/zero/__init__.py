"""Checkpoint folders of DeepSpeed, whoever wrote them: what is there, which step is whole, and its weights."""

from ppt_kit.zero.folder import ds_checkpoints, ds_to_weights

__all__ = ["ds_checkpoints", "ds_to_weights"]
