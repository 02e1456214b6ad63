"""What a configuration must hold beyond its types: choices, ranges, and keys that only make sense together."""

from __future__ import annotations

import difflib
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppt_kit.errors import UserError
from ppt_kit.files import LONGEST_NAME
from ppt_kit.keys import leaves_of, show
from ppt_kit.model_keys import check_normalizer, check_policy, check_pretrained
from ppt_kit.schema import PART_WIDTHS, CollectConfig, Config, EvaluateConfig

# what a path, a shell or another system reads as more than a letter
NO_NAME = '/\\:*?"<>|~$'
# of names: room for what is written behind them, as _press_100000.mp4.writing-12345
LONGEST = 150
# of numbers that have no bound of their own
LARGEST = 10**9
# bytes: what Linux takes as a path
LONGEST_PATH = 4096
# GB that a process of ours takes at least, with torch and a simulator or a policy in it
PROCESS_GB = 0.3
# how files of ours, and datasets, end
ENDINGS = (
    ".zarr.zip", ".zarr", ".zip", ".hdf5", ".h5", ".pth", ".pt", ".jsonl", ".json", ".yaml", ".txt", ".log", ".mp4",
)  # fmt: skip


def domain_names(domains: Any) -> list[str]:
    """Names in `domains`, whether it is "a,b", a list, or a mapping of name to weight.

    Raises:
        UserError: none, or one of them twice.
    """
    if isinstance(domains, int) and not isinstance(domains, bool):
        names = [str(domains)]
    elif isinstance(domains, str):
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


def check_name(name: str, *, key: str) -> None:
    """Refuses what cannot be the name of one file or folder of ours.

    Args:
        key: what the user sets it with.
    Raises:
        UserError: it is a path, has an ending that a file of ours has, or is more than a plain name.
    """
    said = f"{key}={name[:60] + '…' if len(name) > 60 else name!r}"
    if not isinstance(name, str):
        raise UserError(f"{said}: must be a text, e.g. {key}=exp1.")
    if not name or name != name.strip() or name[0] in ".-":
        raise UserError(f"{said}: must be a plain name that starts with a letter or a digit, e.g. {key}=exp1.")
    strange = next((letter for letter in name if not letter.isprintable() or letter in NO_NAME), None)
    if strange is not None:
        raise UserError(f"{said}: must be one plain name, without {strange!r}, e.g. {key}=exp1.")
    if len(name.encode()) > LONGEST:
        raise UserError(f"{said}: has {len(name)} characters; a name has at most {LONGEST}.")
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)
    if ending is not None:
        raise UserError(f"{said}: is a name, not a file. Type {key}={name[: -len(ending)] or 'exp1'}.")


def check_task(task: str, *, key: str = "task") -> None:
    """Refuses what is neither a plain name nor several with / or : between them, as gym_pusht/PushT-v0.

    Raises:
        UserError: see `check_name`.
    """
    for part in re.split("[/:]", task) if isinstance(task, str) else [task]:
        check_name(part, key=key)


def domain_of(task: str) -> str:
    """What the dataset of a task is called: its name, with - for / and :."""
    return re.sub("[/:]", "-", task)


def part_names(parts: Any) -> list[str]:
    """Names in `augment.action_parts` or one entry of `augment.state_parts`: "a,b" or a list."""
    if isinstance(parts, str):
        return [part.strip() for part in parts.split(",") if part.strip()]
    return [str(part) for part in parts] if isinstance(parts, (list, tuple)) or OmegaConf.is_list(parts) else []


def moves_world(augment: Any) -> bool:
    """Whether an AugmentConfig, or its part of a configuration, turns or shifts the world."""
    return any(augment.rotation_deg) or any(augment.translation_m)


def check_values(tree: DictConfig, schema: type = Config) -> None:
    """Choices, ranges, names and keys that only make sense together.

    Raises:
        UserError: the first that does not hold.
    """
    for dotted, (kind, leaf) in leaves_of(schema).items():
        value = OmegaConf.select(tree, dotted)
        if dotted.endswith("options") and not OmegaConf.is_dict(value):
            raise UserError(f"{dotted}={show(value)}: takes options by name, e.g. {dotted}.wind=0.3.")
        if kind is not Any:
            check_value(dotted, list(value) if OmegaConf.is_list(value) else value, leaf.metadata)
    if schema is Config:
        _check_together(tree)
    if schema is CollectConfig:
        _check_collecting(tree)
    if schema is EvaluateConfig:
        _check_evaluating(tree)


def check_value(dotted: str, value: Any, takes: Mapping[str, Any]) -> None:
    """One value of the right type.

    Args:
        takes: the metadata of its key.
    Raises:
        UserError: it is none of the choices, out of range, no name, or no text that a disk or a screen takes.
    """
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            _check_text(dotted, each)
        elif isinstance(each, (int, float)) and not isinstance(each, bool):
            _check_range(dotted, each, low=takes["low"], high=takes["high"])
    _check_choice(dotted, value, takes["choices"])
    if takes["is_name"] and value is not None:
        check_name(value, key=dotted)


def check_processes(number: int, *, key: str) -> None:
    """Raises UserError when this machine cannot hold `number` processes at once; `key` is what sets it."""
    needs, has = number * PROCESS_GB, memory_gb()
    if needs > has:
        raise UserError(
            f"{key}={number}: that many processes take {needs:.0f} GB at least, and this machine has {has:.0f} GB. "
            f"Set {key}={max(1, int(has / PROCESS_GB / 2))} or fewer."
        )


def check_fits(cfg: DictConfig) -> None:
    """Whether this machine could hold the policy and a batch of a Config: a bound from below, no promise.

    Raises:
        UserError: it could not.
    """
    policy, has = cfg.policy, memory_gb()
    # a transformer block: four square matrices of attention, two of four times the width behind it
    parameters = 12 * policy.width**2 * policy.depth
    # weights, gradients and both of AdamW's moments, which ZeRO-3 divides among the ranks
    ranks = max(cfg.world_size, env_number(os.environ, "WORLD_SIZE") or 1)
    gigabytes = parameters * 16 / ranks / 1e9
    if gigabytes > has:
        raise UserError(
            f"policy.width={policy.width} with policy.depth={policy.depth} are {parameters / 1e9:.1f} billion "
            f"parameters: {gigabytes:.0f} GB to train them, and this machine has {has:.0f} GB. Set one of them lower."
        )
    frames = cfg.dataset.observation_horizon
    sees_clouds = policy.stems.pointcloud.kind and (policy.modalities is None or "pointcloud" in policy.modalities)
    points = (cfg.dataset.num_points if sees_clouds else 1) or 1
    # three float32 a point
    gigabytes = 12 * cfg.batch_size * frames * points / 1e9
    if gigabytes > has:
        raise UserError(
            f"batch_size={cfg.batch_size}: windows of {frames} frame(s) with {points} point(s) take {gigabytes:.0f} GB "
            f"at least, and this machine has {has:.0f} GB. Set batch_size lower."
        )


def memory_gb() -> float:
    """Of the machine, whatever part of it is free."""
    import psutil

    return psutil.virtual_memory().total / 1e9


def env_number(env: Mapping[str, str], name: str, *, low: int = 0, high: int = LARGEST) -> int | None:
    """A variable of the environment that is a whole number; None = it is not set.

    Raises:
        UserError: it is something else, or out of range.
    """
    text = env.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise UserError(
            f"{name}={text[:60]!r} in the environment: takes a whole number from {low} to {high}. "
            f"A launcher sets it; type unset {name} to start without one."
        )
    return int(text)


def _check_collecting(cfg: DictConfig) -> None:
    if cfg.domain is None:
        check_task(cfg.task)
    own = next((name for name in cfg.options if name in cfg), None)
    if own is not None:
        raise UserError(f"options.{own}: {own} is a key itself. Type {own}={show(cfg.options[own])[:60]}.")


def _check_evaluating(cfg: DictConfig) -> None:
    if cfg.task is not None:
        check_task(cfg.task)
    for name in domain_names(cfg.domains) if cfg.domains is not None else ():
        check_name(name, key="domains")
    for name in cfg.env_names:
        check_task(name, key="env_names")
    if cfg.env_names and cfg.task is not None:
        raise UserError(f"task={cfg.task} and env_names={show(cfg.env_names)}: both say what to run. Give one of them.")
    if cfg.n_procs is not None and cfg.eval_mode != "sequential":
        check_processes(min(cfg.n_procs, cfg.episodes), key="n_procs")


def _check_choice(dotted: str, value: Any, choices: tuple) -> None:
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{dotted}={str(value)[:80]}: takes {', '.join(show(choice) for choice in choices)}.{hint}")


def _check_range(dotted: str, value: float, *, low: float | None, high: float | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{dotted}={value}: takes a finite number.")
    low, high = -LARGEST if low is None else low, LARGEST if high is None else high
    if low <= value <= high:
        return
    said = str(value) if abs(value) < 10**40 else "…"
    raise UserError(f"{dotted}={said}: must be at {f'least {low}' if value < low else f'most {high}'}.")


def _check_text(dotted: str, text: str) -> None:
    """Raises UserError for what no disk takes as a path and no terminal as a line."""
    # controls, ends of lines, and bytes that were no UTF-8
    strange = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")), None)
    if strange is not None:
        raise UserError(f"{dotted}={text[:60]!r}: has {strange!r} in it. Give a text of one line.")
    parts = max(len(part.encode()) for part in text.split("/"))
    if len(text.encode()) > LONGEST_PATH or parts > LONGEST_NAME:
        raise UserError(
            f"{dotted}={text[:60]}…: has {len(text)} characters; "
            f"a path takes {LONGEST_PATH} bytes, each of its names {LONGEST_NAME}."
        )


def _check_together(cfg: DictConfig) -> None:
    _check_domains(cfg.domains)
    if cfg.dataset.point_channels not in (3, 4, 5, 6, 7):
        raise UserError(f"dataset.point_channels={cfg.dataset.point_channels}: takes 3, 4, 5, 6 or 7.")
    check_normalizer(cfg, domain_names(cfg.domains))
    if cfg.dataset.crop_box is not None:
        _check_crop_box(list(cfg.dataset.crop_box))
    _check_horizons(cfg.dataset)
    if len(cfg.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in cfg.optimizer.betas):
        raise UserError(f"optimizer.betas={list(cfg.optimizer.betas)}: takes two numbers in [0, 1), e.g. [0.95,0.999].")
    _check_env(cfg.dataset.env)
    check_policy(cfg.policy)
    check_pretrained(cfg.train, cfg.policy)
    _check_train(cfg)
    _check_augment(cfg.augment, domain_names(cfg.domains))


def _check_domains(domains: Any) -> None:
    names = domain_names(domains)
    for name in names:
        check_name(name, key="domains")
    joined = len("+".join(names).encode())
    if joined > LONGEST_NAME:
        raise UserError(
            f"domains: {len(names)} names joined by + name the run's folder, and have {joined} bytes; "
            f"a name takes {LONGEST_NAME}. Give the datasets shorter names, or fewer."
        )
    if not isinstance(domains, str) and OmegaConf.is_dict(domains):
        for name, weight in domains.items():
            if not _positive(weight):
                raise UserError(f"domains: the weight of {name} is {weight!r}. Weights are numbers above 0.")


def _check_env(env: Any) -> None:
    named = OmegaConf.is_dict(env) and all(isinstance(env.get(name), str) for name in ("simulator", "task"))
    if not named and (not OmegaConf.is_dict(env) or env):
        raise UserError(
            f"dataset.env={show(env)[:80]}: takes simulator, task and options of a simulator by name, e.g. "
            "dataset.env.simulator=gymnasium dataset.env.task=gym_pusht/PushT-v0."
        )


def _check_crop_box(box: list[float]) -> None:
    if len(box) != 6:
        raise UserError(f"dataset.crop_box={box}: takes six numbers, x0,y0,z0,x1,y1,z1.")
    if not all(low < high for low, high in zip(box[:3], box[3:])):
        raise UserError(
            f"dataset.crop_box={box}: the lower corner comes first, x0,y0,z0,x1,y1,z1 with x0 < x1, y0 < y1, z0 < z1."
        )


def _check_horizons(dataset: DictConfig) -> None:
    if dataset.hist_action_cond and dataset.action_horizon < dataset.observation_horizon:
        raise UserError(
            "dataset.hist_action_cond=true starts the chunk at t-To+1, "
            f"but dataset.action_horizon={dataset.action_horizon} ends before t. Set dataset.action_horizon "
            f"to at least dataset.observation_horizon={dataset.observation_horizon}."
        )


def _check_train(cfg: DictConfig) -> None:
    if cfg.activation_checkpointing and cfg.policy.no_trunk:
        raise UserError(
            "activation_checkpointing=true recomputes the trunk, and policy.no_trunk=true has none. Leave one out."
        )
    if cfg.train.best_metric == "val_loss" and not (cfg.train.val_interval and cfg.dataset.val_ratio):
        raise UserError(
            "train.best_metric=val_loss, but nothing is validated. "
            "Set train.val_interval and dataset.val_ratio above 0."
        )
    if cfg.train.best_metric == "success" and not cfg.train.eval_interval:
        raise UserError("train.best_metric=success, but nothing is evaluated. Set train.eval_interval above 0.")
    if cfg.train.eval_interval:
        check_processes(min(cfg.train.eval_procs, cfg.train.eval_episodes), key="train.eval_procs")
    if cfg.train.resume == "auto" and cfg.suffix is None:
        raise UserError(
            "train.resume=auto, but suffix is empty: no run folder to resume. Type suffix=<the run's name>."
        )


def _check_augment(augment: DictConfig, domains: list[str]) -> None:
    for name in ("rotation_deg", "translation_m", "rotation_center"):
        least = -math.inf if name == "rotation_center" else 0
        if len(augment[name]) != 3 or not all(least <= value < math.inf for value in augment[name]):
            raise UserError(
                f"augment.{name}={show(augment[name])}: takes three numbers, for x, y and z, "
                f"{'' if name == 'rotation_center' else 'not negative, '}e.g. [0,0,0.1]."
            )
    if augment.blur_sigma and not augment.blur_probability:
        raise UserError(
            f"augment.blur_sigma={augment.blur_sigma:g}, but augment.blur_probability=0: "
            "nothing would be blurred. Set it above 0."
        )
    if not OmegaConf.is_dict(augment.state_parts):
        raise UserError(
            f"augment.state_parts={show(augment.state_parts)}: takes {{state key: parts}}, e.g. {{eef_pos: position}}."
        )
    for state_key, parts in augment.state_parts.items():
        _check_parts(parts, f"augment.state_parts.{state_key}")
    _check_action_parts(augment, domains)


def _check_action_parts(augment: DictConfig, domains: list[str]) -> None:
    given = augment.action_parts
    if OmegaConf.is_dict(given):
        if set(given) != set(domains):
            raise UserError(
                f"augment.action_parts={show(given)}: as {{domain: parts}} it takes one entry "
                f"for each of {', '.join(domains)}."
            )
        for domain, parts in given.items():
            _check_parts(parts, f"augment.action_parts.{domain}")
    elif given is not None:
        _check_parts(given, "augment.action_parts")
    elif moves_world(augment):
        raise UserError(
            "augment.rotation_deg or augment.translation_m moves the world, "
            "but augment.action_parts is empty: how the actions follow is not known. "
            "Type e.g. augment.action_parts=[displacement,none] for steps of the hand and a gripper, "
            "[position,quaternion_xyzw,none] for its poses. "
            "Joint actions cannot follow: set rotation and translation to [0,0,0], "
            "or type augment.action_parts=none if the actions hold in any frame."
        )


def _check_parts(parts: Any, name: str) -> None:
    """Raises UserError unless `parts` names parts."""
    names = part_names(parts)
    wrong = next((part for part in names if part not in PART_WIDTHS), None)
    if wrong is not None or not names:
        near = difflib.get_close_matches(str(wrong), PART_WIDTHS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{name}={show(parts)}: takes a list of {', '.join(PART_WIDTHS)}.{hint}")


def _positive(weight: Any) -> bool:
    return isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight <= LARGEST
