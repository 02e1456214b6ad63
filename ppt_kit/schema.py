"""Every key of every configuration: its type, its default, its unit and what values it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ppt_kit.keys import MAX_SEED, key
from ppt_kit.model_keys import NORMALIZER_MODES, PolicyConfig
from ppt_kit.train_keys import OptimizerConfig, TrainConfig

# the file in configs/ that is meant where none is named
DEFAULT_CONFIG = "quickstart"

# what numbers of a state or an action can be when the world is moved, and how many numbers one of each has
PART_WIDTHS = {
    "none": 1,
    "position": 3,
    "displacement": 3,
    "rotation_vector": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
}


@dataclass
class DatasetConfig:
    observation_horizon: int = key(2, "frames the policy sees, To (control steps)", low=1, high=1000)
    action_horizon: int = key(8, "actions in one chunk, Ta (control steps)", low=1, high=1000)
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
        None, "stored keys concatenated to obs.state, in order; null = all that are numbers"
    )
    action_key: str | None = key("actions", "stored key of the action, or of the group of its parts; nested as a/b")
    ignored_keys: list[str] = key([], "stored observation keys that are not read")
    ignore_absent: bool = key(False, "ignored_keys may name what no domain has: one list for several datasets")
    point_channels: int = key(
        3, "columns of a point: 3 xyz, 4 +height, 5 +segmentation and height, 6 +colour, 7 +colour and height"
    )
    num_points: int | None = key(
        512, "points of a cloud; larger stored clouds are subsampled evenly; null = as stored", low=1, high=100_000
    )
    crop_box: list[float] | None = key(
        None, "clouds made from depth: lower and upper corner x0,y0,z0,x1,y1,z1 (m); null = all that is seen"
    )
    format: str | None = key(
        None,
        "null = recognised by what is on disk; or replay_buffer, lerobot, robomimic, maniskill, rlds; or module or "
        "module:Name of a file of yours",
    )
    filter_key: str | None = key(
        None, "read this part of the dataset only: a robomimic mask, a LeRobot or RLDS split, ManiSkill's success"
    )
    whole_episodes_only: bool = key(
        False,
        "LeRobot: leave out episodes whose files are missing or cut off, and say how many; other formats have none",
    )
    cache_dir: str | None = key(
        None, "folder for decoded rows (video, compressed arrays); null = $PPT_KIT_CACHE or ~/.cache/ppt_kit"
    )
    cache_gb: float = key(20.0, "what that folder may hold (GB); 0 = decode each row every time", low=0)
    env: Any = key(
        {},
        "simulator to evaluate in, where the data does not say which it comes from, e.g. {simulator: gymnasium, "
        "task: gym_pusht/PushT-v0}",
    )


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


# keys of configurations that were written before stems and heads had groups of their own
RENAMED = {
    "policy.state_latents": "policy.stems.state.num_latents",
    "policy.cloud_latents": "policy.stems.pointcloud.num_latents",
    "policy.loss": "policy.head.options.loss",
}
# of them those of policies that could see nothing but states and clouds
BEFORE_STEMS = ("policy.state_latents", "policy.cloud_latents")
# what options of parts were by default while they were keys
DEFAULT_OPTIONS = {"policy.head.options.loss": "l1"}


@dataclass
class AugmentConfig:
    brightness: float = key(0.0, "rgb: factor drawn from 1 ± this", low=0, high=1)
    contrast: float = key(0.0, "rgb: factor of the distance to the window's mean grey, from 1 ± this", low=0, high=1)
    saturation: float = key(0.0, "rgb: factor of the distance to the pixel's own grey, from 1 ± this", low=0, high=1)
    hue: float = key(0.0, "rgb: turn of the hue, from ± this (whole turns)", low=0, high=0.5)
    blur_sigma: float = key(0.0, "rgb: Gaussian blur, largest sigma (pixels)", low=0, high=20)
    blur_probability: float = key(0.5, "share of the samples that augment.blur_sigma blurs", low=0, high=1)
    shift_px: int | None = key(
        None,
        "rgb and depth: largest shift along each axis, edges repeated (pixels); null = 4 of 84 pixels of the height",
        low=0,
        high=1000,
    )
    crop_ratio: float = key(
        1.0,
        "rgb and depth: smallest share of height and width a random crop keeps; resized back; 1 = no crop",
        low=0.1,
        high=1,
    )
    depth_shift_m: float = key(0.0, "depth: added to a whole window, from ± this (m)", low=0, high=1000)
    depth_scale: float = key(0.0, "depth: factor of a whole window, from 1 ± this", low=0, high=0.9)
    depth_noise_m: float = key(0.0, "depth: standard deviation of each pixel's noise (m)", low=0, high=1000)
    depth_dropout: float = key(0.0, "depth: share of the pixels set to 0, no reading", low=0, high=1)
    cloud_jitter_m: float = key(0.0, "clouds: standard deviation of each coordinate's noise (m)", low=0, high=1000)
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
        + "; a last none takes the rest; {domain: parts} where domains differ; "
        + "none alone = the world's frame is not in them",
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
        1, "processes; read when this process starts the ranks itself or by a node's variables", low=1, high=100_000
    )
    seed: int = key(0, "initial weights, order of the data, noise", low=0, high=MAX_SEED)
    debug: bool = key(False, "two short epochs, no W&B, anomaly checks on")
    domains: Any = key("button-press-topdown", "datasets: a, or a,b, or with weights {a: 1, b: 3}")
    dataset_path: str = key("data", "folder that holds <domain>.zarr, .zarr.zip, .hdf5, .h5, or a folder <domain>")
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    normalizer: NormalizerConfig = field(default_factory=NormalizerConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch_size: int = key(
        64, "windows per process and micro step; the global batch is x world_size x accumulation", low=1, high=1_000_000
    )
    gradient_accumulation_steps: int = key(1, "micro steps per optimizer step", low=1, high=100_000)
    gradient_clipping: float = key(1.0, "largest gradient norm; 0 = no clipping", low=0)
    precision: str = key(
        "fp32",
        "number format of the weights in the forward pass; autocast = fp32 weights, bf16 in products of matrices",
        choices=("fp32", "bf16", "fp16", "autocast"),
    )
    compile: bool = key(False, "torch.compile the policy; not with ZeRO stage 3")
    deterministic: bool = key(
        True, "on a GPU: the same numbers in every run, to the bit, where torch has a way; a CPU's always are"
    )
    activation_checkpointing: bool = key(False, "recompute the trunk in the backward pass: less memory, more time")
    rendezvous_timeout_s: float = key(
        300.0, "how long the processes of a job wait for each other at the start (s)", low=1, high=604_800
    )
    deepspeed: str = key("zero0", "a name in ds_configs/, or the path of a DeepSpeed JSON file")
    log_interval: int = key(10, "optimizer steps between rows of metrics.jsonl", low=1)
    save_interval: int = key(10, "epochs between model_{epoch}.pth files; model.pth follows each", low=1)
    output_dir: str = key("outputs/models", "run folders are <output_dir>/<domain>/<suffix>")
    suffix: str | None = key(None, "name of the run; null = the time it starts", is_name=True)
    job_name: str = key("train", "name of the log file in the run folder", is_name=True)
    tensorboard: bool = key(False, "write TensorBoard event files into the run folder too")
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class CollectConfig:
    """What scripts/collect_demos.py and ppt_kit.collect read."""

    task: str = key("button-press-topdown", "task of the simulator, e.g. one of Meta-World's 50")
    simulator: str = key("metaworld", "a simulator's name, or module:Class of one in a file of yours")
    options: Any = key({}, "further options of the simulator, e.g. options.wind=0.3")
    episodes: int = key(10, "successful demonstrations to keep", low=1, high=1_000_000)
    dataset_path: str = key("data", "folder that the <domain>.zarr goes into")
    domain: str | None = key(None, "name of the dataset; null = the task's name", is_name=True)
    seed: int = key(0, "seed of the first episode; each try takes the next one", low=0, high=MAX_SEED)
    overwrite: bool = key(False, "replace an existing dataset of that name")
    max_failures: int = key(50, "expert failures after which collecting gives up", low=0, high=1_000_000)
    # null leaves a value to the simulator; one that is set and that the simulator does not take is refused
    max_steps: int | None = key(None, "longest episode (control steps); null = 200 in metaworld", low=1, high=1_000_000)
    num_points: int | None = key(None, "points of a cloud, 0 = no cloud; null = 512 in metaworld", low=0, high=100_000)
    use_color: bool | None = key(None, "store the points' colours; null = false in metaworld")
    save_images: Any = key(
        None, "store pictures of each camera: true = rgb and metric depth, or rgb, or depth; null = false in metaworld"
    )
    camera: Any = key(
        None,
        "camera of the scene, or several as a,b; null = in metaworld corner2, moved closer as DP3 does; corner4 where "
        "that does not see the goal",
    )
    image_size: int | None = key(
        None, "height and width of the camera image (pixels); null = 128 in metaworld", low=16, high=4096
    )
    goal_marker: str | None = key(
        None,
        "where the goal's marker is drawn, into clouds too: auto = in the tasks where nothing else tells the goal "
        "(list_tasks=true says which); null = auto in metaworld",
        choices=(None, "auto", "all", "none"),
    )
    list_tasks: bool = key(False, "print the table of the simulator's tasks, and collect nothing")


@dataclass
class EvalTrainConfig:
    pretrained_dir: str | None = key(None, "run folder, or one model*.pth in it, or several as a,b; required")
    model_names: list[str] = key(
        [], "checkpoints of a run folder, e.g. [model_10,model_20]; all = every one; [] = model.pth"
    )


# what the block rollout_runner of a command calls a key of EvaluateConfig: another word for the same key
ROLLOUT_RUNNER = {
    "rollout_runner.episode_num": "episodes", "rollout_runner.max_timestep": "max_steps",
    "rollout_runner.save_video": "videos", "rollout_runner.obs_mode": "obs_mode",
    "rollout_runner.warmup_step": "warmup_steps",
}  # fmt: skip


@dataclass
class EvaluateConfig:
    """What scripts/eval_sim.py reads."""

    train: EvalTrainConfig = field(default_factory=EvalTrainConfig)
    domains: str | None = key(None, "domains to evaluate, as a,b; null = all that the policy was trained on")
    task: str | None = key(None, "task to run; null = the task each domain was recorded in")
    env_names: list[str] = key([], "several tasks to run, e.g. [door-open,drawer-open]; [] = as task says")
    episodes: int = key(
        20, "episodes a domain and task; rollout_runner.episode_num is another word for it", low=1, high=1_000_000
    )
    seed: int = key(100_000, "seed of the first episode; must not meet the demonstrations' seeds", low=0, high=MAX_SEED)
    eval_mode: str = key(
        "sequential",
        "one process, or several: the same episodes to the bit; auto = by cores and episodes",
        choices=("sequential", "parallel", "auto"),
    )
    n_procs: int | None = key(
        None, "processes of eval_mode=parallel, most of eval_mode=auto; null = one a core", low=1, high=1000
    )
    batch_envs: int = key(
        1,
        "environments a process steps together, the policy asked once for all; last bits depend on it",
        low=1,
        high=1000,
    )
    retries: int = key(0, "how often an episode that ended in an error is run again", low=0, high=100)
    episode_timeout_s: float | None = key(
        None,
        "longest time of an episode (s), beyond which it is an error; null = 3600 in several processes, none in one",
        low=0.1,
    )
    max_steps: int | None = key(
        None,
        "longest episode (control steps); null = as recorded; rollout_runner.max_timestep is another word for it",
        low=1,
        high=1_000_000,
    )
    warmup_steps: int = key(
        0,
        "control steps of an episode in which the robot is held still before the policy acts; "
        "rollout_runner.warmup_step is another word for it",
        low=0,
        high=1_000_000,
    )
    obs_mode: str | None = key(
        None,
        "what the policy is taken to see, e.g. pointcloud or rgb+depth: something else is refused; "
        "rollout_runner.obs_mode is another word for it",
    )
    execute_steps: int = key(4, "actions executed of each chunk before the next is asked for", low=1, high=1000)
    temporal_ensembling: bool = key(False, "ask at every step and average the overlapping chunks")
    delay: int = key(0, "control steps that inference takes; the chunk before is executed meanwhile", low=0, high=1000)
    real_time_chunking: bool = key(
        True, "with a delay, each chunk is made to begin with what is executed meanwhile; false = it is not told"
    )
    num_steps: int | None = key(None, "sampling steps of the head; null = as it was made", low=1, high=10_000)
    use_ema: bool = key(True, "averaged weights instead of the raw ones")
    zero_keys: list[str] = key([], "observations set to zero, e.g. pointcloud: the control experiment")
    sentence: str | None = key(None, "what the policy is told; null = what the simulator says of the task")
    stop_at_success: bool = key(True, "an episode ends with its first success; false = it goes on to max_steps")
    controls: list[str] = key(
        [], "floor and ceiling in the table: all, or some of hold, blind, no_<modality>, sentence, replay, expert"
    )
    eval_log_name: str = key("eval", "name of the files in <run folder>/eval/", is_name=True)
    videos: int = key(
        1, "episodes filmed a domain and task; -1 = all; rollout_runner.save_video (true = all) is another word", low=-1
    )
    compare: str | None = key(
        None,
        "another run folder, checkpoint or rows file, to be compared on the same goals, goal by goal until it is "
        "decided or episodes are over; with several training runs as a,b of each, all episodes are run; none is filmed",
    )
    confidence: float = key(0.95, "of compare: of its intervals and of what it decides", low=0.5, high=0.999999)
    margin: float | None = key(
        None, "of compare: a difference of success rates that would not matter, e.g. 0.05", low=0.001, high=0.999
    )
    until_decided: bool = key(True, "of compare: end when it is decided; false = run all episodes")
    differ_in: list[str] = key(
        [], "of compare: what beside the weights may differ: options, max_steps, simulator, control"
    )


@dataclass
class VerifyConfig:
    """What scripts/verify_card.py reads."""

    card: str | None = key(None, "card.json, its folder or a run folder; the first word may be it alone; required")
    episodes: int = key(3, "episodes to replay of each evaluation in it, spread over its seeds", low=1, high=1_000_000)
    eval_log_name: str | None = key(None, "of its evaluations those of this name; null = all", is_name=True)
    checkpoint: str | None = key(None, "file of weights; null = the one that the card names, from its own folder")
    dataset_path: str | None = key(None, "folder of the data that was trained on; null = where it was then")


@dataclass
class DeepSpeedFolderConfig:
    """What scripts/ds_checkpoint.py reads."""

    action: str = key("inspect", "what to do; the first word may be it alone", choices=("inspect", "to-weights"))
    folder: str | None = key(None, "a checkpoint folder of DeepSpeed; the second word may be it alone; required")
    tag: str | None = key(None, "which step of it, as inspect names them; null = the one that its file latest names")
    out: str | None = key(None, "to-weights: the file to write; null = <tag>.safetensors in the folder")
    overwrite: bool = key(False, "to-weights: replace the file at out")


@dataclass
class ConvertConfig:
    """What scripts/convert_dataset.py reads."""

    source: str | None = key(None, "dataset to read, in any format; required")
    target: str | None = key(None, "where to write it; required")
    to: str = key("zarr", "zarr replay buffer, or LeRobotDataset v3.0", choices=("zarr", "lerobot"))
    keys: list[str] = key([], "columns to write; [] = all, for lerobot those that it has features for")
    format: str | None = key(None, "format of the source: null = recognised by what is on disk; else as dataset.format")
    filter_key: str | None = key(
        None, "part of the source: a robomimic mask, a LeRobot or RLDS split, ManiSkill's success; null = all"
    )
    whole_episodes_only: bool = key(
        False, "LeRobot source: leave out episodes whose files are missing or cut off, and say how many"
    )
    fps: float | None = key(None, "control steps a second, for lerobot; null = as recorded", low=0.001, high=100_000)
    video: bool = key(True, "lerobot: cameras as video; false = as PNG, which loses nothing")
    codec: str = key("av1", "lerobot: av1, h264, hevc, or an encoder of FFmpeg's")
    overwrite: bool = key(False, "replace the dataset at target")
