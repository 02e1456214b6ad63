"""The JSON files of DeepSpeed: found, checked key by key, and completed with the configuration's own numbers."""

from __future__ import annotations

import difflib
import json
import math
import shutil
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import torch

from ppt_kit.engine.quiet import import_deepspeed, quiet
from ppt_kit.errors import UserError
from ppt_kit.schema import Config

# keys whose number has its owner in our configuration
OURS = {
    "train_batch_size": "batch_size", "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "gradient_clipping": "gradient_clipping",
    "fp16": "precision=fp16", "bf16": "precision=bf16", "optimizer": "optimizer.lr and its neighbours",
    "scheduler": "optimizer.warmup_steps",
}  # fmt: skip
# keys that DeepSpeed reads without a model of its own, and what each takes
PLAIN_KEYS: dict[str, Any] = {
    "communication_data_type": Literal["fp32", "fp16", "bf16"], "prescale_gradients": bool,
    "gradient_predivide_factor": float, "wall_clock_breakdown": bool, "memory_breakdown": bool, "dump_state": bool,
    "seq_parallel_communication_data_type": Literal["fp32", "fp16", "bf16"],
}  # fmt: skip
NESTED_KEYS: dict[str, dict[str, Any]] = {
    "aio": {
        "block_size": int, "queue_depth": int, "intra_op_parallelism": int, "single_submit": bool,
        "overlap_events": bool, "use_gds": bool,
    },
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "debug": bool, "prof_ops": list[str]},
    "flops_profiler": {
        "enabled": bool, "recompute_fwd_factor": float, "profile_step": int, "module_depth": int, "top_modules": int,
        "detailed": bool, "output_file": str | None,
    },
    # float16 would need the scaler's numbers in resume files
    "torch_autocast": {
        "enabled": bool, "dtype": Literal["bfloat16", "bf16"], "lower_precision_safe_modules": list[str],
    },
}  # fmt: skip
# precisions that round the weights themselves
HALF = ("bf16", "fp16")
# no gradient is rounded on its way through the reduction: ranks give what one process gives
AUTOCAST = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text"}


def check_settings(cfg: Config) -> dict:
    """The DeepSpeed settings of a configuration, before anything is built or written.

    Raises:
        UserError: no such file, a key that belongs to our configuration, or a combination known to be wrong.
    """
    path = _settings_file(cfg.deepspeed)
    settings = _read(path)
    for name, owner in OURS.items():
        if name in settings:
            raise UserError(f"{path}: {name} belongs to the configuration. Delete it there and set {owner}.")
    _check_keys(settings, path)
    _check_zero(settings, path)
    _check_combinations(cfg, stage_of(settings), name=path.stem)
    _check_autocast(cfg, settings, path)
    return settings


def whole_settings(cfg: Config) -> dict:
    """What DeepSpeed is started with: the checked file and the configuration's own numbers; raises as above."""
    settings = check_settings(cfg)
    if cfg.precision == "autocast" or settings.get("torch_autocast", {}).get("enabled"):
        settings["torch_autocast"] = AUTOCAST | settings.get("torch_autocast", {})
    return settings | {
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


def zero_numbers(name: str) -> dict[str, Any]:
    """What a DeepSpeed file says of ZeRO, with DeepSpeed's own defaults where it says nothing.

    Args:
        name: in ds_configs/, or a path, as `deepspeed` of a configuration.
    Raises:
        UserError: no such file, or one that DeepSpeed would not take.
    """
    path = _settings_file(name)
    settings = _read(path)
    _check_keys(settings, path)
    _check_zero(settings, path)
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    with quiet():
        return DeepSpeedZeroConfig(**settings.get("zero_optimization", {})).model_dump()


def stage_of(settings: dict) -> int:
    """The ZeRO stage, 0 to 3."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def offloads(settings: dict) -> bool:
    """Whether the optimizer's numbers lie in host memory."""
    offload = settings.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def _settings_file(name: str) -> Path:
    if name.endswith(".json") or "/" in name:
        if not Path(name).is_file():
            why = "is a folder" if Path(name).is_dir() else "no such file"
            raise UserError(f"deepspeed={name}: {why}. Give the path of a DeepSpeed JSON, or a name in ds_configs/.")
        return Path(name)
    package = Path(__file__).parents[1]
    folders = [Path("ds_configs"), package.parent / "ds_configs", package / "ds_configs"]
    for folder in folders:
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.json")})
    raise UserError(f"deepspeed={name}: ds_configs/ has {', '.join(known)}.")


def _read(path: Path) -> dict:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, is no JSON, no object, or gives a key twice.
    """

    def take(pairs: list[tuple[str, Any]]) -> dict:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: {twice} is given twice. Give it once.")
        return dict(pairs)

    def refuse(word: str) -> Any:
        raise UserError(f"{path}: {word} is no number of JSON. Write one that is finite.")

    try:
        text = path.read_bytes().decode("utf-8-sig")
        settings = json.loads(text, object_pairs_hook=take, parse_constant=refuse)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8. Save it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from None
    # thousands of brackets in each other, or of digits
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not a file of settings: {str(error).splitlines()[0]}.") from None
    if not isinstance(settings, dict):
        raise UserError(f'{path}: must be an object of keys, e.g. {{"zero_optimization": {{"stage": 1}}}}.')
    return settings


def _check_combinations(cfg: Config, stage: int, *, name: str) -> None:
    on_gpu = torch.cuda.is_available()
    if cfg.compile and stage == 3:
        raise UserError(
            "compile=true fails with ZeRO stage 3, whose weights come and go during a step. "
            "Set deepspeed=zero2, or compile=false."
        )
    if cfg.compile and not on_gpu and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("compile=true on a CPU needs a C++ compiler. Type apt-get install g++, or set compile=false.")
    if cfg.precision in HALF and stage == 0:
        raise UserError(
            f"precision={cfg.precision} with {name} (ZeRO stage 0) takes a wrong first optimizer step. "
            "Set deepspeed=zero1, or precision=fp32."
        )
    if cfg.precision == "fp16" and not on_gpu:
        raise UserError("precision=fp16 needs a GPU. Set precision=fp32 here, or precision=bf16 with deepspeed=zero1.")


def _check_autocast(cfg: Config, settings: dict, path: Path) -> None:
    asked = settings.get("torch_autocast", {})
    if asked.get("enabled") and cfg.precision in HALF:
        raise UserError(
            f"{path}: torch_autocast is enabled, and precision={cfg.precision} casts the weights: it is one or the "
            "other. Set precision=autocast, or delete torch_autocast there."
        )
    if cfg.precision == "autocast" and asked.get("enabled") is False:
        raise UserError(
            f"precision=autocast, but {path} has torch_autocast.enabled=false. Delete it there, or set precision=fp32."
        )


def _check_keys(settings: dict, path: Path) -> None:
    """DeepSpeed accepts unknown keys of its JSON silently, and words as numbers; here each level's are known."""
    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    _check_level(settings, PLAIN_KEYS | NESTED_KEYS | {"zero_optimization": DeepSpeedZeroConfig}, where=f"{path}: ")


def _check_level(values: dict, known: dict[str, Any], *, where: str) -> None:
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(sorted(known))}."
            raise UserError(f"{where}{name} is no key of DeepSpeed's. {hint}")
        kind = known[name]
        inner = kind if isinstance(kind, dict) else _fields(kind)
        if inner is not None and isinstance(value, dict):
            _check_level(value, inner, where=f"{where}{name}.")
        elif not _fits(value, kind) or (inner is not None and value is not None):
            said = json.dumps(value)
            takes = "an object {…} of keys" if inner is not None else _kind_name(kind)
            raise UserError(f"{where}{name}={said if len(said) < 60 else said[:60] + '…'}: takes {takes}.")


def _check_zero(settings: dict, path: Path) -> None:
    """Ranges and combinations of the ZeRO keys, by DeepSpeed's own model of them."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    values = settings.get("zero_optimization", {})
    stage, where = values.get("stage", 0), f"{path}: zero_optimization"
    if type(stage) is not int or not 0 <= stage <= 3:
        raise UserError(f"{where}.stage={json.dumps(stage)}: takes 0, 1, 2 or 3.")
    try:
        with quiet():
            DeepSpeedZeroConfig(**values)
    # ValueError: pydantic's own; the others are raised by DeepSpeed's functions in it
    except (ValueError, TypeError, AssertionError) as error:
        # the model itself says what is wrong, in a table of several lines
        first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error).split("\n")[0]}
        name = "".join(f".{part}" for part in first["loc"])
        raise UserError(f"{where}{name}: {first['msg']}.") from None


def _fields(kind: Any) -> dict[str, Any] | None:
    """Keys of one of DeepSpeed's pydantic models, each with what it takes; None of another kind."""
    model = next((each for each in (kind, *typing.get_args(kind)) if hasattr(each, "model_fields")), None)
    if model is None:
        return None
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        found |= dict.fromkeys({name, field.alias or name}, field.annotation)
    return found


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind; 5e8 is a whole number, "5" and true are none."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value in choices
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, choices[0]) for each in value)
    if choices:
        return any(_fits(value, each) for each in choices)
    if value is None or isinstance(value, bool) or kind in (bool, type(None)):
        return kind is type(value)
    if kind is int:
        return (isinstance(value, int) or (isinstance(value, float) and value.is_integer())) and abs(
            value
        ) <= sys.maxsize
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) < math.inf
    if kind in (str, Path):
        return isinstance(value, str)
    # an enumeration: its own model knows its words
    return isinstance(value, (str, int))


def _kind_name(kind: Any) -> str:
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(choices)
    if typing.get_origin(kind) is list:
        return "a list of texts"
    return " or ".join(
        KIND_NAMES.get(each, "null" if each is type(None) else "one of its words") for each in choices or (kind,)
    )
