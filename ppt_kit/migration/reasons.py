"""Keys of ppt_learning that have no counterpart here, each with the reason, and what to type instead."""

from __future__ import annotations

import fnmatch

from ppt_kit.migration.parts import CLOUD_POINTS
from ppt_kit.programs import to_type

COMPUTED = "computed from the data and the other keys"
LOADER = "batches are gathered from memory-mapped arrays in one place: there is nothing to choose"
EVALUATION = f"of evaluation, which is a command of its own: {to_type('eval_sim')}"
STORED = "pictures stay as they are stored; an encoder resizes: policy.encoders.rgb.options.size, .depth.options.size"
MEMORY = "arrays are memory-mapped, and what must be decoded is cached: dataset.cache_gb"
CLOUDS = "whether clouds are seen, and by what, is said by policy.modalities and policy.stems.pointcloud.kind"
SHAPES = (
    "the parts' inner sizes are their own; policy.stems.<modality>.options and policy.head.options set what they take"
)
POINTS = ", ".join(f"{domain}: {points}" for domain, points in CLOUD_POINTS.items())

# asked in this order; * stands for anything
REASONS: tuple[tuple[str, str], ...] = (
    ("hydra*", "Hydra's own part: runs go to <output_dir>/<domain>/<suffix>, and nothing else of Hydra runs"),
    ("wb_tag", "W&B's runs are called by their suffix, and have no further tag"),
    ("script_name", "nothing read it"),
    ("parallel_eval", f"{EVALUATION} eval_mode=parallel"),
    ("env_names", f"{EVALUATION} env_names=[…]"),
    ("rollout_runner.episode_num", f"{EVALUATION} episodes=…"),
    ("rollout_runner.max_timestep", f"{EVALUATION} max_steps=…"),
    ("rollout_runner.save_video", f"{EVALUATION} videos=-1"),
    ("rollout_runner*", EVALUATION),
    ("eval_*", EVALUATION),
    ("n_procs", EVALUATION),
    ("train.model_names", EVALUATION),
    ("state_dim", COMPUTED),
    ("action_dim", COMPUTED),
    ("dataset.domain", f"{COMPUTED}: domains"),
    ("dataset.horizon", f"{COMPUTED}: dataset.observation_horizon, dataset.action_horizon"),
    ("dataset.mode", COMPUTED),
    ("dataset.rank", COMPUTED),
    ("dataset.seed", f"{COMPUTED}: seed"),
    ("dataset.step_cnt", "datasets are limited by whole episodes: dataset.episode_cnt, dataset.data_ratio"),
    ("dataset.use_disk", MEMORY),
    ("dataset.use_lru_cache", MEMORY),
    ("dataset.load_from_cache", MEMORY),
    ("dataset.from_empty", MEMORY),
    ("dataset.precompute_feat", "what a frozen encoder makes of pictures is kept by policy.encoders.rgb.cache=true"),
    ("dataset.image_encoder", "the encoder is said once: policy.encoders.rgb.kind"),
    ("dataset.dataset_*postfix", "datasets have their names, without endings: domains"),
    ("dataset.resize_img", STORED),
    ("dataset.img_size", STORED),
    ("dataset.use_multiview", "every stored camera is seen; one is left out by dataset.ignored_keys=[NAME]"),
    ("dataset.use_pcd", CLOUDS),
    ("dataset.pcdnet_pretrain_domain", CLOUDS),
    ("dataset.env_rollout_fn", EVALUATION),
    ("dataset.vox*", "clouds are subsampled to dataset.num_points evenly; there are no voxels"),
    ("dataset.norm_depth", "depth is in metres, and enters as nearness, 1 / (1 + m)"),
    ("dataset.pose_transform", "actions are learned as they are stored: write them as poses into the dataset"),
    ("dataset.data_augmentation", "set augment.cloud_jitter_m, augment.cloud_dropout"),
    ("dataset.augment_pcd", "set augment.cloud_jitter_m, augment.cloud_dropout"),
    ("dataset.se3_augmentation", "set augment.rotation_deg, augment.translation_m and augment.action_parts"),
    ("dataset.augment_img", "set augment.brightness, contrast, saturation, hue or blur_sigma"),
    ("dataset.img_augment_prob", "every window is changed, by what augment says"),
    ("dataset.augment_depth", "set augment.shift_px, crop_ratio, depth_shift_m, depth_scale or depth_noise_m"),
    ("dataloader.*", LOADER),
    (
        "val_dataloader.*",
        f"windows held out by dataset.val_ratio are measured whole, train.val_interval says when; {LOADER}",
    ),
    ("warmup_lr.lr", "the warm-up starts at zero"),
    ("lr_scheduler.*", "the rate falls to zero over the whole run"),
    ("train.validation_iters", "all held-out windows are measured: dataset.val_ratio, train.val_interval"),
    ("network.*_dim", COMPUTED),
    ("network.*_horizon", f"{COMPUTED}: dataset.observation_horizon, dataset.action_horizon"),
    ("network.weight_init_style", "weights are initialised in one way"),
    ("network.cross_stem_attention", "stems do not look at each other; the trunk mixes their tokens"),
    ("network.drop_path", "blocks are not dropped; policy.dropout=… drops within them"),
    ("network.temporal_agg", f"{EVALUATION} temporal_ensembling=true"),
    ("network.max_timesteps", f"{EVALUATION} max_steps=…"),
    ("network.use_modality_embedding", "tokens tell their modality by their stems"),
    ("head.input_dim", COMPUTED),
    ("head.output_dim", COMPUTED),
    ("head.token_dim", COMPUTED),
    ("head.embed_dim", COMPUTED),
    ("head.horizon", f"{COMPUTED}: dataset.action_horizon"),
    ("head.hist_horizon", f"{COMPUTED}: dataset.hist_action_cond"),
    ("head.tanh_end", "actions are bounded by their statistics: normalizer.mode=limits"),
    ("head.*", SHAPES),
    ("stem.*embed_dim", f"{COMPUTED}: policy.width"),
    ("stem.*.input_dim", COMPUTED),
    ("stem.*.output_dim", f"{COMPUTED}: policy.width"),
    ("stem.*.out_channels", f"{COMPUTED}: policy.width"),
    ("stem.*.in_channels", f"{COMPUTED}: dataset.point_channels"),
    ("stem.num_heads", "stems have policy.num_heads"),
    ("stem.dim_head", "heads are policy.width / policy.num_heads wide; the kinds hpt_… have options.dim_head"),
    (
        "stem.language.pretrained_*",
        "sentences are encoded by policy.encoders.language.kind, of which minilm is this one",
    ),
    ("stem.*.cfg_name", "the network is that of policy.stems.pointcloud.options"),
    ("stem.*.finetune", "stems are trained; train.freeze_stems=true leaves pretrained ones as they are"),
    ("stem.*.pretrained_*", "weights of that library do not load; a run folder's do: train.pretrained_dir"),
    (
        "stem.*.pcd_domain",
        f"its pcd_setup.yaml said how many points a cloud has ({POINTS}), and what changes them in training:  "
        "set dataset.num_points, augment.rotation_deg, augment.cloud_jitter_m",
    ),
    ("stem.*_only", "rgb and depth are modalities, each with a stem: policy.modalities"),
    ("stem.*", SHAPES),
)

# (key, value): what is off in both, or said in another way
SAME: dict[str, tuple[tuple[object, ...], str]] = {
    "dataset.data_augmentation": ((False,), "off, and off here"),
    "dataset.augment_pcd": ((False,), "off, and off here"),
    "dataset.se3_augmentation": ((False,), "off, and off here"),
    "dataset.augment_img": ((False,), "off, and off here"),
    "dataset.augment_depth": ((False,), "off, and off here"),
    "dataset.voxelization": ((False,), "off, and off here"),
    "dataset.normalize_state": ((True,), "states are normalised always"),
    "network.drop_path": ((0, 0.0), "none, and none here"),
    "network.cross_stem_attention": ((False,), "off, and off here"),
    "network.temporal_agg": ((False,), f"off, and off by default in {to_type('eval_sim')}"),
    "head.normalize_action": ((True,), "actions are normalised always"),
    "stem.normalize_state": ((True,), "states are normalised always"),
}


def reason_for(dotted: str, value: object) -> str:
    """Why a key of ppt_learning is left out."""
    return known_reason(dotted, value) or "neither ppt_kit nor the part of ppt_learning that it replaces has such a key"


def known_reason(dotted: str, value: object) -> str | None:
    """The same of a key that ppt_learning had; None of others."""
    same, said = SAME.get(dotted, ((), ""))
    if any(value is each or (value == each and not isinstance(value, bool)) for each in same):
        return said
    return next((reason for pattern, reason in REASONS if fnmatch.fnmatchcase(dotted, pattern)), None)
