"""A configuration of ppt_learning in today's keys: what is taken over, and what is left out with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.keys import leaves_of, show, unwrap
from ppt_kit.migration.arithmetic import RESOLVER, with_own_resolver
from ppt_kit.migration.network import take_head, take_stems
from ppt_kit.migration.parts import STATE_KEYS, is_dataset, last_name
from ppt_kit.migration.reasons import reason_for
from ppt_kit.model_keys import PRETRAINED_PARTS
from ppt_kit.programs import to_type
from ppt_kit.schema import Config

# keys, and groups of `defaults`, that a configuration of ours cannot have
TELLING = {
    "network", "stem", "head", "dataloader", "val_dataloader", "warmup_lr", "lr_scheduler", "rollout_runner", "wb_tag",
    "script_name", "parallel_eval", "hydra", "datasetsize", "env",
}  # fmt: skip
MOVED = {
    "dataset.dataset_path": "dataset_path",
    "dataset.pcd_channels": "dataset.point_channels",
    "network.embed_dim": "policy.width",
    "network.num_blocks": "policy.depth",
    "network.num_heads": "policy.num_heads",
    "network.no_trunk": "policy.no_trunk",
    "network.openloop_steps": "train.eval_execute_steps",
    "warmup_lr.step": "optimizer.warmup_steps",
    "lr_scheduler.num_warmup_steps": "optimizer.warmup_steps",
    "dataloader.batch_size": "batch_size",
    "pretrained_dir": "train.pretrained_dir",
}
# of dataset.ignored_keys: what policy.modalities says, and what no dataset here offers as an observation
SEEN_OTHERWISE = {"language", "images", "image", "depths", "depth", "color", "pointcloud", "initial_state", "states"}
# how OmegaConf tells what its resolvers raise
OURS = "UserError raised while resolving interpolation: "
DECAYS = ("CosineAnnealingLR", "get_scheduler", "get_cosine_schedule_with_warmup", "cosine")


@dataclass
class Translated:
    """Attributes:
    config: nested, of today's keys.
    moved: (old key, new key, its value).
    left: (old key, its value, the reason), in the order of the file.
    """

    config: dict[str, Any] = field(default_factory=dict)
    moved: list[tuple[str, str, Any]] = field(default_factory=list)
    left: list[tuple[str, Any, str]] = field(default_factory=list)

    def put(self, old: str, new: str, value: Any) -> None:
        """Sets a key of today; where another old key has set it to something else, the later one is left out."""
        within, names = self.config, new.split(".")
        for name in names[:-1]:
            within = within.setdefault(name, {})
        if within.setdefault(names[-1], value) == value:
            self.moved.append((old, new, value))
        else:
            self.leave(old, value, f"{new} is {show(within[names[-1]])} already")

    def leave(self, old: str, value: Any, reason: str) -> None:
        self.left.append((old, value, reason))

    def told(self) -> str:
        """What is left out, keys of one reason in one line."""
        together: dict[str, list[str]] = {}
        for old, value, reason in self.left:
            together.setdefault(reason, []).append(
                old if _is_nothing(value) else f"{old}={' '.join(show(value).split())[:60]}"
            )
        return "\n".join(f"  {', '.join(keys)}: {reason}" for reason, keys in together.items())


def is_ancestors(values: Mapping) -> bool:
    """Whether a YAML file's plain values are a configuration of ppt_learning."""
    if TELLING & set(values):
        return True
    named = values.get("defaults")
    groups = {
        str(group).split("@")[0].split(" ")[-1].strip("/")
        for entry in (named if isinstance(named, list) else [])
        for group in (entry if isinstance(entry, Mapping) else ())
    }
    return bool(TELLING & groups) or any(
        isinstance(part, Mapping) and str(part.get("_target_", "")).startswith("ppt_learning.")
        for part in values.values()
    )


def translated(values: dict, *, origin: str) -> Translated:
    """The composed configuration in today's keys.

    Args:
        values: plain, with its interpolations.
        origin: the file, for errors.
    Raises:
        UserError: an `${eval:…}` is more than arithmetic.
    """
    found, done = dict(_resolved(values, origin)), Translated()
    for dotted, value in found.items():
        if isinstance(value, _Unresolved):
            _take_unresolved(done, dotted, value)
    known = {dotted: value for dotted, value in found.items() if not isinstance(value, _Unresolved)}
    # today's own names first: they win over what only means the same
    rest = {dotted: value for dotted, value in known.items() if not _taken_as_is(done, dotted, value)}
    for take in (_take_classes, take_head, take_stems):
        taken = take(done, rest)
        rest = {dotted: value for dotted, value in rest.items() if dotted not in taken}
    for dotted, value in rest.items():
        if dotted in MOVED and value not in ("", None):
            done.put(dotted, MOVED[dotted], value)
        else:
            done.leave(dotted, value, "empty" if dotted in MOVED else reason_for(dotted, value))
    _take_other_run(done)
    _say_what_is_other(done)
    order = list(found)
    done.left.sort(key=lambda each: order.index(each[0]) if each[0] in order else -1)
    return done


def plain_values(values: dict, *, origin: str) -> dict[str, Any]:
    """{dotted key: value} of a composed configuration of ppt_learning, less what does not resolve here.

    Raises:
        UserError: an `${eval:…}` is more than arithmetic.
    """
    return {key: value for key, value in _resolved(values, origin) if not isinstance(value, _Unresolved)}


@dataclass
class _Unresolved:
    """An interpolation that stands for nothing here."""

    text: str
    why: str


def _resolved(values: dict, origin: str) -> Iterator[tuple[str, Any]]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = with_own_resolver(values)
    tree = OmegaConf.create(plain)
    for dotted, text in _leaves(plain):
        # without one that the run's own folder or the clock answers
        if re.search(r"\$\{(now|hydra):", str(text)):
            yield dotted, _Unresolved(str(text), "Hydra's own folder or clock is in it")
            continue
        try:
            value = OmegaConf.select(tree, dotted)
            yield dotted, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            said = str(error).splitlines()[0]
            if said.startswith(OURS):
                raise UserError(f"{origin}: {dotted}: {said.removeprefix(OURS)}") from None
            text = str(text).replace(RESOLVER, "eval")
            yield dotted, _Unresolved(text, f"{text} does not resolve ({said[:80]})")


def _leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        # names of datasets may have dots
        if isinstance(value, dict) and value and dotted not in ("domains", "hydra"):
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted, value


def _take_unresolved(done: Translated, dotted: str, value: _Unresolved) -> None:
    kept = "/".join(part for part in value.text.split("/") if "${" not in part)
    if dotted == "output_dir" and kept:
        done.put(dotted, dotted, kept)
        done.leave(dotted, value.text, f"{kept} is kept; the time a run starts is its suffix where none is given")
    else:
        done.leave(dotted, value.text, value.why)


def _taken_as_is(done: Translated, dotted: str, value: Any) -> bool:
    """Takes a key that has the same name and meaning today."""
    leaves = leaves_of(Config)
    owner = next((name for name in leaves if dotted == name or dotted.startswith(f"{name}.")), None)
    if owner is None:
        return False
    optional, inner = unwrap(leaves[owner][0])
    if dotted == "domains" and not isinstance(value, dict):
        parts = value if isinstance(value, list) else str(value).split(",")
        value = ",".join(str(part).strip() for part in parts if str(part).strip())
    elif dotted == "dataset.ignored_keys":
        _take_ignored(done, value or [])
        return True
    elif dotted == "train.total_epochs" and value == 0:
        done.leave(dotted, value, f"stood for evaluation alone: {to_type('eval_sim')} evaluates")
        return True
    elif value == "" and (optional or dotted == "dataset.action_key"):
        value = None
    elif inner in (int, float) and isinstance(value, str):
        value = _number(value, inner)
    if value is None and not optional:
        done.leave(dotted, value, "empty: the default holds")
    else:
        done.put(dotted, dotted, value)
    return True


def _take_ignored(done: Translated, names: list) -> None:
    """Cameras and numbers stay left out; what no observation here can be, or policy.modalities says, is listed."""
    kept = [name for name in names if name not in SEEN_OTHERWISE]
    if kept:
        done.put("dataset.ignored_keys", "dataset.ignored_keys", kept)
        # ppt_learning passed over those that a dataset had not
        done.put("dataset.ignored_keys", "dataset.ignore_absent", True)
    for name in names:
        if name in SEEN_OTHERWISE:
            done.leave(f"dataset.ignored_keys[{name}]", None, "policy.modalities says what is seen")


def _take_other_run(done: Translated) -> None:
    """ppt_learning took another policy whole."""
    train, policy = done.config.get("train", {}), done.config.get("policy", {})
    if train.get("pretrained_dir") and "pretrained_parts" not in train:
        parts = [part for part in PRETRAINED_PARTS if part != "trunk" or not policy.get("no_trunk")]
        done.put("train.pretrained_dir", "train.pretrained_parts", parts)


def _say_what_is_other(done: Translated) -> None:
    """Of keys that hold, or are not there at all, what they come to here."""
    dataset, train = done.config.get("dataset", {}), done.config.get("train", {})
    if train.get("epoch_iters"):
        done.leave(
            "train.epoch_iters", train["epoch_iters"],
            "nothing in ppt_learning read it, an epoch was all windows once; here it counts, null is as before",
        )  # fmt: skip
    if not dataset.get("state_keys") and "dataset" in done.config:
        done.leave(
            "dataset.state_keys", None,
            f"was not set: ppt_learning saw {', '.join(STATE_KEYS[:-1])} and {STATE_KEYS[-1]}, here null takes all "
            "columns of numbers; name those to be seen",
        )  # fmt: skip


def _take_classes(done: Translated, rest: dict[str, Any]) -> set[str]:
    """Classes that are here under another name, or that nothing else stands for."""
    taken = set()
    for dotted, value in rest.items():
        name = last_name(value)
        if dotted == "dataset._target_":
            good, reason = is_dataset(value), "datasets are read in place, whatever their format: dataset.format"
        elif dotted == "optimizer._target_":
            good, reason = name == "AdamW", "every policy is trained by AdamW; optimizer has its numbers"
        elif dotted in ("lr_scheduler", "lr_scheduler._target_"):
            good, reason = name in DECAYS, "after the warm-up the rate falls as a cosine, once, to zero"
        elif dotted == "network._target_":
            good, reason = name == "Policy", "a policy is made of stems, trunk and head: policy"
        elif dotted in ("dataset.normalize_state", "stem.normalize_state", "head.normalize_action") and value is False:
            good, reason = False, "statistics are applied always; normalizer.per_key={KEY: identity} leaves a key alone"
        else:
            continue
        taken.add(dotted)
        if good:
            done.moved.append((dotted, dotted.split(".")[0], value))
        else:
            done.leave(dotted, value, reason)
    return taken


def _number(text: str, kind: type) -> Any:
    """1e-4, which is a text in YAML, as a number; anything else as it is."""
    try:
        return kind(text)
    except ValueError:
        return text


def _is_nothing(value: Any) -> bool:
    return value is None or value == "" or value == []
