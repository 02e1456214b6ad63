"""The JSON files of DeepSpeed: found, checked key by key, and completed with the configuration's own numbers."""

from __future__ import annotations

import difflib
import json
import shutil
import typing
from pathlib import Path
from typing import Any

import torch

from ppt_kit.engine.quiet import import_deepspeed
from ppt_kit.errors import UserError
from ppt_kit.schema import Config

# keys whose number has its owner in our configuration
OURS = {
    "train_batch_size": "batch_size", "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "gradient_clipping": "gradient_clipping",
    "fp16": "precision=fp16", "bf16": "precision=bf16", "optimizer": "optimizer.lr and its neighbours",
    "scheduler": "optimizer.warmup_steps",
}  # fmt: skip
PLAIN_KEYS = (
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "wall_clock_breakdown",
    "memory_breakdown", "dump_state", "seq_parallel_communication_data_type",
)  # fmt: skip
NESTED_KEYS = {
    "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
    "comms_logger": ("enabled", "verbose", "prof_all", "debug", "prof_ops"),
    "flops_profiler": (
        "enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file",
    ),
}  # fmt: skip


def check_settings(cfg: Config) -> dict:
    """The DeepSpeed settings of a configuration, before anything is built or written.

    Raises:
        UserError: no such file, a key that belongs to our configuration, or a combination known to be wrong.
    """
    path = _settings_file(cfg.deepspeed)
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    for name, owner in OURS.items():
        if name in settings:
            raise UserError(f"{path}: {name} belongs to the configuration. Delete it there and set {owner}.")
    _check_keys(settings, path)
    _check_combinations(cfg, stage_of(settings), name=path.stem)
    return settings


def whole_settings(cfg: Config) -> dict:
    """What DeepSpeed is started with: the checked file and the configuration's own numbers; raises as above."""
    return check_settings(cfg) | {
        "train_micro_batch_size_per_gpu": cfg.batch_size,
        "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
        "gradient_clipping": cfg.gradient_clipping,
        "bf16": {"enabled": cfg.precision == "bf16"},
        "fp16": {"enabled": cfg.precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        # its own Adam is compiled on the spot
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def stage_of(settings: dict) -> int:
    """The ZeRO stage, 0 to 3."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def offloads(settings: dict) -> bool:
    """Whether the optimizer's numbers lie in host memory."""
    return settings.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"


def _settings_file(name: str) -> Path:
    if name.endswith(".json") or "/" in name:
        if not Path(name).is_file():
            raise UserError(
                f"deepspeed={name}: no such file. Give the path of a DeepSpeed JSON, or a name in ds_configs/."
            )
        return Path(name)
    package = Path(__file__).parents[1]
    folders = [Path("ds_configs"), package.parent / "ds_configs", package / "ds_configs"]
    for folder in folders:
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.json")})
    raise UserError(f"deepspeed={name}: ds_configs/ has {', '.join(known)}.")


def _check_combinations(cfg: Config, stage: int, *, name: str) -> None:
    on_gpu = torch.cuda.is_available()
    if cfg.compile and stage == 3:
        raise UserError(
            "compile=true fails with ZeRO stage 3, whose weights come and go during a step. "
            "Set deepspeed=zero2, or compile=false."
        )
    if cfg.compile and not on_gpu and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("compile=true on a CPU needs a C++ compiler. Type apt-get install g++, or set compile=false.")
    if cfg.precision != "fp32" and stage == 0:
        raise UserError(
            f"precision={cfg.precision} with {name} (ZeRO stage 0) takes a wrong first optimizer step. "
            "Set deepspeed=zero1, or precision=fp32."
        )
    if cfg.precision == "fp16" and not on_gpu:
        raise UserError("precision=fp16 needs a GPU. Set precision=fp32 here, or precision=bf16 with deepspeed=zero1.")


def _check_keys(settings: dict, path: Path) -> None:
    """DeepSpeed accepts unknown keys of its JSON silently; here each level's are known."""
    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known: dict[str, Any] = dict.fromkeys(PLAIN_KEYS)
    known |= {name: dict.fromkeys(keys) for name, keys in NESTED_KEYS.items()}
    _check_level(settings, known | {"zero_optimization": DeepSpeedZeroConfig}, where=f"{path}: ")


def _check_level(values: dict, known: dict, *, where: str) -> None:
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(sorted(known))}."
            raise UserError(f"{where}{name} is no key of DeepSpeed's. {hint}")
        inner = known[name]
        if isinstance(value, dict) and inner is not None:
            deeper = inner if isinstance(inner, dict) else _fields(inner)
            _check_level(value, deeper, where=f"{where}{name}.")


def _fields(model: Any) -> dict[str, Any]:
    """Keys of one of DeepSpeed's pydantic models, each with the model nested in it or None."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        nested = [kind for kind in kinds if hasattr(kind, "model_fields")]
        found |= dict.fromkeys({name, field.alias or name}, nested[0] if nested else None)
    return found
