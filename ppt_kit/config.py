"""Words -> one checked, typed configuration.

A configuration is a YAML file (composed by Hydra, so `defaults:` lists, groups and `${…}` work) merged onto the
dataclasses below, then the words of the command line or the notebook cell. Keys that the schema does not have, values
of another type and numbers out of range are refused here, before any file or device is touched.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PACKAGE_CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = "quickstart"
NORMALIZER_MODES = ("limits", "gaussian", "quantiles", "identity")

# what numbers of a state or an action can be when the world is moved, and how many numbers one of each has
PART_WIDTHS = {
    "none": 1,
    "position": 3,
    "displacement": 3,
    "rotation_vector": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
}


class UserError(ValueError):
    """A mistake of the user's, told in one line: what was given, why it cannot work, what to type instead.

    The scripts print it without a traceback and exit with code 2.
    """


def key(default: Any, doc: str, *, choices: tuple = (), low: float | None = None, high: float | None = None) -> Any:
    """One key of a schema: its default, its line in --help (with the unit), and what values it takes."""
    metadata = {"doc": doc, "choices": choices, "low": low, "high": high}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DatasetConfig:
    observation_horizon: int = key(2, "frames the policy sees, To (control steps)", low=1)
    action_horizon: int = key(8, "actions in one chunk, Ta (control steps)", low=1)
    hist_action_cond: bool = key(False, "action window starts at t-To+1 instead of t")
    pad_before: int | None = key(
        None, "frames repeated at most before an episode's start; null = as many as needed", low=0
    )
    pad_after: int | None = key(
        None, "actions repeated at most after an episode's end; null = as many as needed", low=0
    )
    val_ratio: float = key(0.1, "share of the episodes held out for validation", low=0, high=0.9)
    episode_cnt: int | None = key(None, "use the first n episodes of each domain; null = all", low=1)
    data_ratio: float = key(1.0, "use this share of each domain's episodes", low=0.0001, high=1)
    state_keys: list[str] | None = key(
        ["eef_pos", "normalized_gripper_pos"],
        "stored keys concatenated to obs.state, in order; null = all that are numbers",
    )
    action_key: str | None = key("actions", "stored key of the action, or of the group of its parts; nested as a/b")
    ignored_keys: list[str] = key([], "stored observation keys that are not read")
    point_channels: int = key(
        3, "columns of a point: 3 xyz, 4 +height, 5 +segmentation and height, 6 +colour, 7 +colour and height"
    )
    num_points: int | None = key(
        512, "points of a cloud; larger stored clouds are subsampled evenly; null = as stored", low=1
    )
    crop_box: list[float] | None = key(
        None, "clouds made from depth: lower and upper corner x0,y0,z0,x1,y1,z1 (m); null = all that is seen"
    )
    filter_key: str | None = key(None, "read this part of the dataset only: a robomimic mask, an RLDS split")
    cache_dir: str | None = key(
        None, "folder for decoded rows (video, compressed arrays); null = $PPT_KIT_CACHE or ~/.cache/ppt_kit"
    )
    cache_gb: float = key(20.0, "what that folder may hold (GB); 0 = decode each row every time", low=0)


@dataclass
class NormalizerConfig:
    mode: str = key(
        "limits",
        "what becomes -1 and 1: the limits, or the 1 and 99 % quantiles; gaussian = mean 0, deviation 1",
        choices=NORMALIZER_MODES,
    )
    per_key: Any = key({}, "another mode for some keys, e.g. {eef_pos: gaussian, 'actions[6:7]': identity}")
    per_domain: Any = key({}, "another mode for some keys of one domain: {domain: {key: mode}}")
    leave_alone: list[str] = key(
        [], "keys, or parts as actions[3:7], that stay as they are; quaternions and one_hot find theirs"
    )
    path: str | None = key(None, "take the statistics of this run folder (or model*.pth) instead of fitting them")
    any_dataset: bool = key(False, "take them although they were made from other episodes")


@dataclass
class PolicyConfig:
    width: int = key(256, "token width of stems, trunk and head", low=8)
    depth: int = key(5, "transformer blocks in the trunk", low=1)
    num_heads: int = key(8, "attention heads", low=1)
    state_latents: int = key(4, "latent tokens a frame's state becomes", low=1)
    cloud_latents: int = key(8, "latent tokens a frame's cloud becomes", low=1)
    dropout: float = key(0.0, "dropout in trunk and head", low=0, high=0.9)
    loss: str = key("l1", "per-element action loss", choices=("l1", "mse"))


@dataclass
class OptimizerConfig:
    lr: float = key(1e-4, "peak learning rate of AdamW", low=0)
    betas: list[float] = key([0.95, 0.999], "AdamW betas")
    eps: float = key(1e-8, "AdamW epsilon", low=0)
    weight_decay: float = key(1e-6, "AdamW weight decay", low=0)
    warmup_steps: int = key(500, "linear warm-up (optimizer steps), then cosine to zero", low=0)


@dataclass
class TrainConfig:
    total_epochs: int = key(100, "passes over the training windows", low=1)
    total_iters: int | None = key(None, "stop after this many optimizer steps; null = total_epochs decides", low=1)
    epoch_iters: int | None = key(
        None, "optimizer steps that count as one epoch; null = one pass over the windows", low=1
    )
    freeze_trunk: bool = key(False, "keep the trunk's weights; needs train.pretrained_dir")
    pretrained_dir: str | None = key(None, "run folder (or model*.pth) whose trunk to start from")
    resume: str = key(
        "never",
        "auto = go on from the run folder's newest checkpoint, or start if there is none",
        choices=("never", "auto"),
    )
    save_every_minutes: float = key(0.0, "minutes between saves beside save_interval; 0 = none", low=0)
    on_nan: str = key("stop", "a loss that is not finite: stop the run, or skip its batch", choices=("stop", "skip"))
    last_k_checkpoints: int = key(3, "model_{epoch}.pth files kept; 0 = all", low=0)
    best_metric: str | None = key(
        None,
        "also keep the model_{epoch}.pth with the lowest of these; null = none",
        choices=(None, "loss", "val_loss"),
    )
    safetensors: bool = key(False, "write model.safetensors beside model.pth (averaged weights where they are kept)")
    ema_decay: float = key(0.999, "decay of the averaged weights; 0 = none", low=0, high=0.99999)
    val_interval: int = key(10, "epochs between validation losses; 0 = never", low=0)


@dataclass
class AugmentConfig:
    brightness: float = key(0.0, "rgb: factor drawn from 1 ± this", low=0, high=1)
    contrast: float = key(0.0, "rgb: factor of the distance to the window's mean grey, from 1 ± this", low=0, high=1)
    saturation: float = key(0.0, "rgb: factor of the distance to the pixel's own grey, from 1 ± this", low=0, high=1)
    hue: float = key(0.0, "rgb: turn of the hue, from ± this (whole turns)", low=0, high=0.5)
    blur_sigma: float = key(0.0, "rgb: Gaussian blur, largest sigma (pixels)", low=0, high=20)
    blur_probability: float = key(0.5, "share of the samples that augment.blur_sigma blurs", low=0, high=1)
    shift_px: int = key(0, "rgb and depth: largest shift along each axis, edges repeated (pixels)", low=0)
    crop_ratio: float = key(
        1.0,
        "rgb and depth: smallest share of height and width a random crop keeps; resized back; 1 = no crop",
        low=0.1,
        high=1,
    )
    depth_shift_m: float = key(0.0, "depth: added to a whole window, from ± this (m)", low=0)
    depth_scale: float = key(0.0, "depth: factor of a whole window, from 1 ± this", low=0, high=0.9)
    depth_noise_m: float = key(0.0, "depth: standard deviation of each pixel's noise (m)", low=0)
    depth_dropout: float = key(0.0, "depth: share of the pixels set to 0, no reading", low=0, high=1)
    cloud_jitter_m: float = key(0.0, "clouds: standard deviation of each coordinate's noise (m)", low=0)
    cloud_dropout: float = key(
        0.0, "clouds: share of the points replaced by copies of others of their frame", low=0, high=0.99
    )
    rotation_deg: list[float] = key(
        [0.0, 0.0, 0.0], "world: largest turn about x, y and z (degrees); clouds, states and actions follow"
    )
    translation_m: list[float] = key([0.0, 0.0, 0.0], "world: largest shift along x, y and z (m)")
    rotation_center: list[float] = key([0.0, 0.0, 0.0], "point that augment.rotation_deg turns about: x, y, z (m)")
    state_parts: Any = key(
        {"eef_pos": "position", "eef_quat": "quaternion_xyzw", "joint_pos": "none", "normalized_gripper_pos": "none"},
        "world: {state key: its parts}, as action_parts",
    )
    action_parts: Any = key(
        None,
        "world: what the action's numbers are, in order, e.g. [displacement,none]: "
        + ", ".join(f"{name} ({width})" for name, width in PART_WIDTHS.items())
        + "; a last none takes the rest; {domain: parts} where domains differ; none alone = the world's frame is not in them",
    )


@dataclass
class WandbConfig:
    mode: str = key(
        "auto", "auto = online when logged in, else offline", choices=("auto", "online", "offline", "disabled")
    )
    project: str = key("ppt_kit", "W&B project")


@dataclass
class Config:
    """What scripts/train.py and UnifiedTrainer read."""

    train_mode: str = key(
        "auto", "one process, several, or by what is there", choices=("single", "distributed", "auto")
    )
    world_size: int = key(
        1, "processes; read when this process starts the ranks itself or by a node's variables", low=1
    )
    seed: int = key(0, "initial weights, order of the data, noise", low=0)
    debug: bool = key(False, "two short epochs, no W&B, anomaly checks on")
    domains: Any = key("button-press-topdown", "datasets: a, or a,b, or with weights {a: 1, b: 3}")
    dataset_path: str = key("data", "folder that holds <domain>.zarr")
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch_size: int = key(
        64, "windows per process and micro step; the global batch is x world_size x accumulation", low=1
    )
    gradient_accumulation_steps: int = key(1, "micro steps per optimizer step", low=1)
    gradient_clipping: float = key(1.0, "largest gradient norm; 0 = no clipping", low=0)
    precision: str = key("fp32", "number format of the weights in the forward pass", choices=("fp32", "bf16", "fp16"))
    compile: bool = key(False, "torch.compile the policy; not with ZeRO stage 3")
    activation_checkpointing: bool = key(False, "recompute the trunk in the backward pass: less memory, more time")
    rendezvous_timeout_s: float = key(
        300.0, "how long the processes of a job wait for each other at the start (s)", low=1
    )
    deepspeed: str = key("zero0", "a name in ds_configs/, or the path of a DeepSpeed JSON file")
    log_interval: int = key(10, "optimizer steps between rows of metrics.jsonl", low=1)
    save_interval: int = key(10, "epochs between model_{epoch}.pth files; model.pth follows each", low=1)
    output_dir: str = key("outputs/models", "run folders are <output_dir>/<domain>/<suffix>")
    suffix: str | None = key(None, "name of the run; null = the time it starts")
    job_name: str = key("train", "name of the log file in the run folder")
    tensorboard: bool = key(False, "write TensorBoard event files into the run folder too")
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class CollectConfig:
    """What scripts/collect_demos.py and ppt_kit.collect read."""

    task: str = key("button-press-topdown", "Meta-World task")
    episodes: int = key(10, "successful demonstrations to keep", low=1)
    dataset_path: str = key("data", "folder that the <domain>.zarr goes into")
    domain: str | None = key(None, "name of the dataset; null = the task's name")
    seed: int = key(0, "seed of the first episode; each try takes the next one", low=0)
    overwrite: bool = key(False, "replace an existing dataset of that name")
    max_steps: int = key(200, "longest episode (control steps)", low=1)
    max_failures: int = key(50, "expert failures after which collecting gives up", low=0)
    num_points: int = key(512, "points of a cloud", low=1)
    use_color: bool = key(False, "store the points' colours")
    save_images: bool = key(False, "store rgb and metric depth of the camera")
    camera: str = key("corner2", "camera of the scene; corner2 is moved closer, as DP3 does")
    image_size: int = key(128, "height and width of the camera image (pixels)", low=16)
    goal_marker: bool = key(
        False, "show the goal's marker to the camera: reach needs it, elsewhere it gives the target away"
    )


@dataclass
class EvalTrainConfig:
    pretrained_dir: str | None = key(None, "run folder, or one model*.pth in it; required")


@dataclass
class EvaluateConfig:
    """What scripts/eval_sim.py reads."""

    train: EvalTrainConfig = field(default_factory=EvalTrainConfig)
    domains: str | None = key(None, "domains to evaluate, as a,b; null = all that the policy was trained on")
    task: str | None = key(None, "task to run; null = the task each domain was recorded in")
    episodes: int = key(20, "episodes a domain", low=1)
    seed: int = key(100_000, "seed of the first episode; must not meet the demonstrations' seeds", low=0)
    eval_mode: str = key("sequential", "one process, or several", choices=("sequential", "parallel"))
    n_procs: int = key(2, "processes of eval_mode=parallel", low=1)
    max_steps: int | None = key(None, "longest episode (control steps); null = as recorded", low=1)
    execute_steps: int = key(4, "actions executed of each chunk before the next is asked for", low=1)
    temporal_ensembling: bool = key(False, "ask at every step and average the overlapping chunks")
    use_ema: bool = key(True, "averaged weights instead of the raw ones")
    zero_keys: list[str] = key([], "observations set to zero, e.g. pointcloud: the control experiment")
    eval_log_name: str = key("eval", "name of the files in <run folder>/eval/")
    videos: int = key(1, "episodes filmed a domain", low=0)


@dataclass
class ConvertConfig:
    """What scripts/convert_dataset.py reads."""

    source: str | None = key(None, "dataset to read, in any format; required")
    target: str | None = key(None, "where to write it; required")
    to: str = key("zarr", "zarr replay buffer, or LeRobotDataset v3.0", choices=("zarr", "lerobot"))
    keys: list[str] = key([], "columns to write; [] = all")
    filter_key: str | None = key(None, "part of the source: a robomimic mask, a LeRobot or RLDS split; null = all")
    fps: float | None = key(None, "control steps a second, for lerobot; null = as recorded", low=0.001)
    video: bool = key(True, "lerobot: cameras as video; false = as PNG, which loses nothing")
    codec: str = key("av1", "lerobot: av1, h264, hevc, or an encoder of FFmpeg's")
    overwrite: bool = key(False, "replace the dataset at target")


def load_config(
    name: str = DEFAULT_CONFIG, *words: str, config_path: str | Path | None = None, schema: type = Config
) -> DictConfig:
    """The configuration `name`, changed by `words`.

    Args:
        name: a YAML file without its ending, in `config_path` or among the shipped ones; "" for the schema's defaults.
        words: `key=value` or `--key=value`, dots for nested keys.
        config_path: folder to look in before the shipped configs.
        schema: dataclass that types the result.
    Returns:
        A struct-mode DictConfig with every key of the schema, interpolations resolved.
    Raises:
        UserError: no such file, an unknown key, a wrong type, or a value out of range.
    """
    pairs = parse_words(words)
    group_words, value_pairs = _split_groups(pairs, _folder_of(name, config_path)) if name else ([], pairs)
    tree = OmegaConf.structured(schema)
    if name:
        tree = _merge(tree, _compose(name, config_path, group_words), schema, origin=f"{name}.yaml")
    for dotted, text in value_pairs:
        tree = _set(tree, dotted, text, schema)
    try:
        OmegaConf.resolve(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"an interpolation does not resolve: {_first_line(error)}") from None
    check_values(tree, schema)
    return tree


def from_file(path: str | Path, *, schema: type = Config) -> DictConfig:
    """The configuration that a run wrote to its folder.

    Raises:
        UserError: the file is not there or does not fit the schema.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file. A run folder holds a config.yaml; name that file.")
    tree = _merge(OmegaConf.structured(schema), OmegaConf.load(path), schema, origin=str(path))
    check_values(tree, schema)
    return tree


def from_mapping(values: Any, *, schema: type = Config) -> DictConfig:
    """The configuration in a mapping, plain or OmegaConf's, e.g. the one inside model.pth.

    Raises:
        UserError: it does not fit the schema.
    """
    return _merge(OmegaConf.structured(schema), OmegaConf.create(values), schema, origin="the configuration")


def parse_words(words: typing.Sequence[str]) -> list[tuple[str, str]]:
    """[(dotted key, text)] of `key=value`, `--key=value` and `--key value`; a bare `--flag` means true.

    Raises:
        UserError: a word that is none of these.
    """
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise UserError(f"{word!r} is not key=value. Type e.g. seed=1 or --seed=1; --help lists the keys.")
            text = rest.pop(0) if rest and not rest[0].startswith("--") and "=" not in rest[0] else "true"
        pairs.append((name.lstrip("+").replace("/", "."), text))
    return pairs


def describe_keys(schema: type = Config, *, defaults: DictConfig | None = None) -> str:
    """One line a key: name, default, what it means. `defaults` replaces the schema's own."""
    rows = []
    for dotted, (kind, leaf) in _leaves(schema).items():
        value = OmegaConf.select(defaults, dotted) if defaults is not None else _default_of(leaf)
        choices = (
            f" [{'|'.join(_show(choice) for choice in leaf.metadata['choices'])}]" if leaf.metadata["choices"] else ""
        )
        rows.append((dotted, _show(value), _type_name(kind), leaf.metadata["doc"] + choices))
    widths = [min(44, max(len(row[i]) for row in rows)) for i in range(3)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {doc}" for a, b, c, doc in rows)


def domain_names(domains: Any) -> list[str]:
    """Names in `domains`, whether it is "a,b", a list, or a mapping of name to weight.

    Raises:
        UserError: none, or one of them twice.
    """
    if isinstance(domains, str):
        names = [part.strip() for part in domains.split(",") if part.strip()]
    elif OmegaConf.is_config(domains) or isinstance(domains, (list, tuple, dict)):
        names = [str(name) for name in domains]
    else:
        names = []
    if not names:
        raise UserError(f"domains={domains!r} names no dataset. Type domains=a or domains=a,b.")
    if len(set(names)) < len(names):
        raise UserError(f"domains={domains!r} names a dataset twice. Name each once.")
    return names


def part_names(parts: Any) -> list[str]:
    """Names in `augment.action_parts` or one entry of `augment.state_parts`: "a,b" or a list."""
    if isinstance(parts, str):
        return [part.strip() for part in parts.split(",") if part.strip()]
    return [str(part) for part in parts] if isinstance(parts, (list, tuple)) or OmegaConf.is_list(parts) else []


def moves_world(augment: Any) -> bool:
    """Whether an AugmentConfig, or its part of a configuration, turns or shifts the world."""
    return any(augment.rotation_deg) or any(augment.translation_m)


def check_values(tree: DictConfig, schema: type = Config) -> None:
    """Choices, ranges and keys that only make sense together.

    Raises:
        UserError: the first that does not hold.
    """
    for dotted, (_, leaf) in _leaves(schema).items():
        value, meta = OmegaConf.select(tree, dotted), leaf.metadata
        if meta["choices"] and value not in meta["choices"]:
            near = difflib.get_close_matches(str(value), [str(choice) for choice in meta["choices"]], 1)
            raise UserError(
                f"{dotted}={value}: takes {', '.join(_show(choice) for choice in meta['choices'])}."
                + (f" Did you mean {near[0]}?" if near else "")
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise UserError(f"{dotted}={value}: takes a finite number.")
            if meta["low"] is not None and value < meta["low"]:
                raise UserError(f"{dotted}={value}: must be at least {meta['low']:g}.")
            if meta["high"] is not None and value > meta["high"]:
                raise UserError(f"{dotted}={value}: must be at most {meta['high']:g}.")
    if schema is Config:
        _check_together(tree)


def _check_together(cfg: DictConfig) -> None:
    domain_names(cfg.domains)
    if not isinstance(cfg.domains, str) and OmegaConf.is_dict(cfg.domains):
        bad = {name: weight for name, weight in cfg.domains.items() if not _positive(weight)}
        if bad:
            raise UserError(
                f"domains: the weight of {next(iter(bad))} is {next(iter(bad.values()))!r}. Weights are numbers above 0."
            )
    if cfg.dataset.point_channels not in (3, 4, 5, 6, 7):
        raise UserError(f"dataset.point_channels={cfg.dataset.point_channels}: takes 3, 4, 5, 6 or 7.")
    _check_normalizer(cfg)
    if cfg.dataset.crop_box is not None and len(cfg.dataset.crop_box) != 6:
        raise UserError(f"dataset.crop_box={list(cfg.dataset.crop_box)}: takes six numbers, x0,y0,z0,x1,y1,z1.")
    if cfg.dataset.crop_box is not None and not all(
        low < high for low, high in zip(cfg.dataset.crop_box[:3], cfg.dataset.crop_box[3:])
    ):
        raise UserError(
            f"dataset.crop_box={list(cfg.dataset.crop_box)}: the lower corner comes first, x0,y0,z0,x1,y1,z1 with x0 < x1, y0 < y1, z0 < z1."
        )
    if cfg.dataset.hist_action_cond and cfg.dataset.action_horizon < cfg.dataset.observation_horizon:
        raise UserError(
            f"dataset.hist_action_cond=true starts the chunk at t-To+1, but dataset.action_horizon={cfg.dataset.action_horizon} ends "
            f"before t. Set dataset.action_horizon to at least dataset.observation_horizon={cfg.dataset.observation_horizon}."
        )
    if len(cfg.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in cfg.optimizer.betas):
        raise UserError(f"optimizer.betas={list(cfg.optimizer.betas)}: takes two numbers in [0, 1), e.g. [0.95,0.999].")
    if cfg.policy.width % cfg.policy.num_heads:
        raise UserError(
            f"policy.width={cfg.policy.width} is not a multiple of policy.num_heads={cfg.policy.num_heads}."
        )
    if cfg.train.freeze_trunk and not cfg.train.pretrained_dir:
        raise UserError(
            "train.freeze_trunk=true, but train.pretrained_dir is empty: the trunk would stay random. "
            "Set train.pretrained_dir to a run folder, or train.freeze_trunk=false."
        )
    if cfg.train.best_metric == "val_loss" and not (cfg.train.val_interval and cfg.dataset.val_ratio):
        raise UserError(
            "train.best_metric=val_loss, but nothing is validated. Set train.val_interval and dataset.val_ratio above 0."
        )
    if cfg.train.resume == "auto" and cfg.suffix is None:
        raise UserError(
            "train.resume=auto, but suffix is empty: no run folder to resume. Type suffix=<the run's name>."
        )
    if cfg.suffix is not None and ("/" in cfg.suffix or cfg.suffix in ("", ".", "..")):
        raise UserError(f"suffix={cfg.suffix!r} must be one folder's name.")
    _check_augment(cfg.augment, domain_names(cfg.domains))


def _check_augment(augment: DictConfig, domains: list[str]) -> None:
    for name in ("rotation_deg", "translation_m", "rotation_center"):
        least = -math.inf if name == "rotation_center" else 0
        if len(augment[name]) != 3 or not all(least <= value < math.inf for value in augment[name]):
            raise UserError(
                f"augment.{name}={_show(augment[name])}: takes three numbers, for x, y and z, "
                f"{'' if name == 'rotation_center' else 'not negative, '}e.g. [0,0,0.1]."
            )
    if augment.blur_sigma and not augment.blur_probability:
        raise UserError(
            f"augment.blur_sigma={augment.blur_sigma:g}, but augment.blur_probability=0: nothing would be blurred. Set it above 0."
        )
    if not OmegaConf.is_dict(augment.state_parts):
        raise UserError(
            f"augment.state_parts={_show(augment.state_parts)}: takes {{state key: parts}}, e.g. {{eef_pos: position}}."
        )
    for state_key, parts in augment.state_parts.items():
        _check_parts(parts, f"augment.state_parts.{state_key}")
    if OmegaConf.is_dict(augment.action_parts):
        if set(augment.action_parts) != set(domains):
            raise UserError(
                f"augment.action_parts={_show(augment.action_parts)}: as {{domain: parts}} it takes one entry for each of {', '.join(domains)}."
            )
        for domain, parts in augment.action_parts.items():
            _check_parts(parts, f"augment.action_parts.{domain}")
    elif augment.action_parts is not None:
        _check_parts(augment.action_parts, "augment.action_parts")
    elif moves_world(augment):
        raise UserError(
            "augment.rotation_deg or augment.translation_m moves the world, but augment.action_parts is empty: how the actions follow is not known. "
            "Type e.g. augment.action_parts=[displacement,none] for steps of the hand and a gripper, [position,quaternion_xyzw,none] for its poses. "
            "Joint actions cannot follow: set rotation and translation to [0,0,0], "
            "or type augment.action_parts=none if the actions hold in any frame."
        )


def _check_parts(parts: Any, name: str) -> None:
    """Raises UserError unless `parts` names parts."""
    names = part_names(parts)
    wrong = next((part for part in names if part not in PART_WIDTHS), None)
    if wrong is not None or not names:
        near = difflib.get_close_matches(str(wrong), PART_WIDTHS, 1)
        raise UserError(
            f"{name}={_show(parts)}: takes a list of {', '.join(PART_WIDTHS)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )


def _check_normalizer(cfg: DictConfig) -> None:
    groups = {"normalizer.per_key": cfg.normalizer.per_key}
    for name, modes in dict(cfg.normalizer.per_domain or {}).items():
        if name not in domain_names(cfg.domains):
            raise UserError(
                f"normalizer.per_domain: {name} is none of the domains {', '.join(domain_names(cfg.domains))}."
            )
        groups[f"normalizer.per_domain.{name}"] = modes
    for where, modes in groups.items():
        if not OmegaConf.is_dict(modes):
            raise UserError(f"{where}={modes}: takes a mapping of keys to modes, e.g. {{eef_pos: gaussian}}.")
        for name, mode in modes.items():
            if mode not in NORMALIZER_MODES:
                raise UserError(f"{where}.{name}={mode}: takes {', '.join(NORMALIZER_MODES)}.")


def _positive(weight: Any) -> bool:
    return isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < float("inf")


def _compose(name: str, config_path: str | Path | None, group_words: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder = _folder_of(name, config_path)
    search = [] if folder == PACKAGE_CONFIGS else [f"hydra.searchpath=[file://{PACKAGE_CONFIGS}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            return compose(Path(name).stem if name.endswith(".yaml") else name, overrides=[*group_words, *search])
    except Exception as error:  # Hydra and YAML raise many kinds; each is about the user's file
        raise UserError(f"{folder / name}: cannot be read: {_first_line(error)}") from None


def _folder_of(name: str, config_path: str | Path | None) -> Path:
    if config_path is not None and not Path(config_path).is_dir():
        raise UserError(f"--config-path={config_path}: no such folder.")
    folders = [Path(config_path).resolve()] if config_path is not None else []
    folders.append(PACKAGE_CONFIGS)
    for folder in folders:
        if (folder / name).with_suffix(".yaml").is_file():
            return folder
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"--config-name={name}: no {name}.yaml in {' or '.join(map(_short, folders))}; there is {', '.join(known)}.{hint}"
    )


def _split_groups(pairs: list[tuple[str, str]], folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Words that choose a file of a config group (`policy=small`) go to Hydra, the others are values."""
    groups, values = [], []
    for dotted, text in pairs:
        in_group = any((root / dotted / f"{text}.yaml").is_file() for root in (folder, PACKAGE_CONFIGS))
        groups.append(f"+{dotted}={text}") if in_group else values.append((dotted, text))
    return groups, values


def _merge(tree: DictConfig, values: Any, schema: type, *, origin: str) -> DictConfig:
    leaves = _leaves(schema)
    for dotted in _flatten(values, leaves):
        if dotted not in leaves:
            raise UserError(f"{origin}: " + _unknown(dotted, leaves))
    try:
        return typing.cast(DictConfig, OmegaConf.merge(tree, values))
    except OmegaConfBaseException as error:
        raise UserError(f"{origin}: {error.full_key}: {_first_line(error)}") from None


def _flatten(values: Any, leaves: dict, prefix: str = "") -> list[str]:
    if not OmegaConf.is_dict(values):
        return []
    found = []
    for name in values:
        dotted = f"{prefix}{name}"
        inner = values._get_node(name)  # the node itself: an interpolation is resolved later
        nested = OmegaConf.is_dict(inner) and dotted not in leaves
        found += _flatten(inner, leaves, f"{dotted}.") if nested and len(inner) else [dotted]
    return found


def _set(tree: DictConfig, dotted: str, text: str, schema: type) -> DictConfig:
    leaves = _leaves(schema)
    owner = next((leaf for leaf in leaves if dotted.startswith(f"{leaf}.") and leaves[leaf][0] is Any), None)
    if dotted not in leaves and owner is None:
        raise UserError(_unknown(dotted, leaves))
    kind = leaves[dotted][0] if dotted in leaves else Any
    try:
        OmegaConf.update(tree, dotted, _typed(text, kind), merge=False, force_add=owner is not None)
    except (OmegaConfBaseException, ValueError):
        raise UserError(f"{dotted}={text}: takes {_type_name(kind)}, {text!r} is none.") from None
    return tree


def _typed(text: str, kind: Any) -> Any:
    """Text as the schema's type: text stays text (`1e5`, `rollout #3`), the rest is read as YAML."""
    optional, inner = _unwrap(kind)
    if optional and text in ("null", "None", ""):
        return None
    if inner is str:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if typing.get_origin(inner) is list:
        text = text if text.startswith("[") else f"[{text}]"
    value = OmegaConf.create({"value": OmegaConf.from_dotlist([f"value={text}"]).value}).value
    if inner is int and isinstance(value, (float, bool)):
        raise ValueError("not a whole number")
    if inner is float and isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _unknown(dotted: str, leaves: dict) -> str:
    near = difflib.get_close_matches(dotted, leaves, 1, cutoff=0.5)
    if not near:  # `lr` -> `optimizer.lr`: compare the last part alone
        near = [name for name in leaves if name.rsplit(".")[-1] == dotted.rsplit(".")[-1]][:1]
    same_end = [name for name in leaves if name.rsplit(".")[-1] == dotted]
    near = same_end[:1] or near
    groups = {name.rsplit(".", 1)[0] for name in leaves if "." in name}
    if dotted in groups:
        return f"{dotted} is a group of keys. Set one of them, e.g. {next(n for n in leaves if n.startswith(dotted + '.'))}."
    return f"unknown key {dotted}." + (f" Did you mean {near[0]}?" if near else "") + " --help lists the keys."


def _leaves(schema: type, prefix: str = "") -> dict[str, tuple[Any, dataclasses.Field]]:
    """Every dotted key of a schema with its type and field, in the order they are written."""
    hints = typing.get_type_hints(schema)
    found: dict[str, tuple[Any, dataclasses.Field]] = {}
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            found |= _leaves(typing.cast(type, kind), f"{prefix}{item.name}.")
        else:
            found[f"{prefix}{item.name}"] = (kind, item)
    return found


def _default_of(leaf: dataclasses.Field) -> Any:
    return leaf.default if leaf.default_factory is dataclasses.MISSING else leaf.default_factory()


def _unwrap(kind: Any) -> tuple[bool, Any]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return len(inner) < len(typing.get_args(kind)), inner[0]
    return False, kind


def _type_name(kind: Any) -> str:
    optional, inner = _unwrap(kind)
    if typing.get_origin(inner) is list:
        name = "list of " + {str: "text", float: "numbers", int: "whole numbers"}[typing.get_args(inner)[0]]
    else:
        name = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "names"}[inner]
    return f"{name} or null" if optional else name


def _show(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else str(value)


def _short(folder: Path) -> str:
    return "the shipped configs" if folder == PACKAGE_CONFIGS else str(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
