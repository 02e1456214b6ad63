"""A run of ppt_learning as a run folder of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from ppt_kit.adopt.old import Old, epoch_of, files_of, read_config, read_old_policy
from ppt_kit.adopt.pictures import SIZE
from ppt_kit.adopt.seen import Seen, fingerprinted, plain_config, seen
from ppt_kit.adopt.whole import Adopted, adopt
from ppt_kit.config import from_mapping, typed
from ppt_kit.errors import UserError
from ppt_kit.migration.ancestor import Translated
from ppt_kit.models.policy import build_policy
from ppt_kit.torch_file import serialized

ENDING = "_ppt_kit"
# of the old configuration: what the weights themselves say, part by part
OF_WEIGHTS = ("network.", "head.", "stem.", "train.pretrained_dir")


@dataclass
class AdoptedRun:
    """Attributes:
    folder: where it goes.
    files: name -> what makes its bytes.
    lines: what holds, what does not and why, what was assumed.
    """

    folder: Path
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def told(self) -> str:
        return "\n".join(self.lines)


def adopted_run(
    asked: Path, *, project: Path, dataset_path: Path | None = None, half_noise: bool = False
) -> AdoptedRun:
    """What is to be written beside a folder of ppt_learning, or beside that of one file of weights.

    Args:
        asked: the folder, with config.yaml and model*.pth, or one of these.
        project: folder of ppt_learning.
        dataset_path: folder of its datasets; None = where its configuration says.
        half_noise: see adopt.heads.head.
    Raises:
        UserError: something is not there or damaged, needs code to be read, or is not of ppt_learning.
    """
    files = files_of(asked)
    source = (asked if asked.is_dir() else asked.parent).resolve()
    values, translated = read_config(source)
    read = lambda file: _read(file, values, translated, project=project, half_noise=half_noise)
    old, made = read(files["model.pth"])
    found = seen(old, made, dataset_path=dataset_path)
    config = plain_config(made)
    run = AdoptedRun(source.with_name(f"{source.name}{ENDING}"))
    for name, file in files.items():
        # each is read now, so that nothing is written where one is damaged, and again when it is written
        content_of(*((old, made) if file == files["model.pth"] else read(file)), found, config, epoch=epoch_of(name))
        run.files[name] = partial(_bytes, read, file, found, config, epoch=epoch_of(name))
    run.lines = [f"{run.folder.name}: {', '.join(run.files)} of {source}", *_told(old, made, found, translated)]
    text = "\n".join(run.lines) + "\n"
    run.files["config.yaml"] = lambda: yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    run.files["adopted.txt"] = text.encode
    return run


def content_of(old: Old, made: Adopted, found: Seen, config: Mapping[str, Any], *, epoch: int) -> dict[str, Any]:
    """What model.pth holds.

    Raises:
        UserError: the parts do not make a policy together.
    """
    content = {
        "ema": None, "config": dict(config), "step": 0, "epoch": epoch,
        "normalizer": fingerprinted(made.stats, found.views),
        "views": {name: view.plain() for name, view in found.views.items()}, "sources": found.sources,
        "encoders": {}, "architectures": {}, "parts": {}, "adopted_from": str(old.file),
    }  # fmt: skip
    if made.lacking:
        norms = {
            f"{kind}_norm.{name}.{part}": torch.tensor(stats[kind][part])
            for name, stats in made.stats.items()
            for kind in ("state", "action")
            for part in ("offset", "scale")
        }
        return {**content, "policy": {**made.tensors, **norms}, "lacking": made.lacking}
    with torch.random.fork_rng(devices=[]):
        policy = build_policy(typed(from_mapping(config)), {name: view.spec for name, view in found.views.items()})
    policy.set_normalizer(made.stats)
    own = {name: value for name, value in policy.state_dict().items() if name.split(".")[0].endswith("_norm")}
    try:
        policy.load_state_dict({**made.tensors, **own})
    except RuntimeError as error:
        raise UserError(
            f"{old.file}: its parts do not make a policy together: {str(error).splitlines()[-1].strip()}"
        ) from None
    return {**content, "policy": policy.state_dict()}


def _read(
    file: Path, values: Mapping[str, Any], translated: Translated, *, project: Path, half_noise: bool
) -> tuple[Old, Adopted]:
    old = read_old_policy(file, values, project=project)
    return old, adopt(old, translated.config, half_noise=half_noise)


def _bytes(
    read: Callable[[Path], tuple[Old, Adopted]], file: Path, found: Seen, config: Mapping[str, Any], *, epoch: int
) -> bytes:
    return serialized(content_of(*read(file), found, config, epoch=epoch))


def _told(old: Old, made: Adopted, found: Seen, translated: Translated) -> list[str]:
    counts: dict[str, int] = {}
    for name in made.tensors:
        first, *rest = name.split(".")
        part = ".".join([first, *rest[: {"stems": 2, "trunk": 0, "modality_embedding": 0}.get(first, 1)]])
        counts[part] = counts.get(part, 0) + 1
    lines = ["has the same outputs:"]
    lines += [f"  {part}: {count} tensor{'s' if count > 1 else ''}" for part, count in counts.items()]
    for domain, stats in made.stats.items():
        used = [kind for kind, each in stats.items() if "identity" not in each["mode"] and each["scale"]]
        lines.append(f"  statistics of {domain}: {', '.join(used) or 'none were applied'}")
    if made.lacking:
        lines.append("has no counterpart, so that no policy is made of the rest; train.pretrained_dir takes it:")
        lines += [f"  {part}: {reason}" for part, reason in made.lacking.items()]
    titled = (
        ("was said by", made.told), ("was not needed", made.left), ("is done in another way", _beside(made, found)),
    )  # fmt: skip
    for title, each in titled:
        if each:
            lines += [f"{title}:", *(f"  {name}: {reason}" for name, reason in each.items())]
    left = [(key, value, why) for key, value, why in translated.left if not key.startswith(OF_WEIGHTS)]
    if left:
        lines += ["of its config.yaml without a counterpart:", Translated(left=left).told()]
    return [*lines, *found.told]


def _beside(made: Adopted, found: Seen) -> dict[str, str]:
    """What the outputs depend on beside the weights, where it was done in another way."""
    policy, told = made.config["policy"], {}
    if "pointcloud" in policy["modalities"]:
        told["points of a cloud"] = (
            "ppt_learning drew some by farthest-point sampling, here they are taken evenly; equal clouds give the "
            "same actions"
        )
    stem = (policy.get("stems") or {}).get("pointcloud") or {}
    if stem.get("kind") == "hpt_pointnext" and stem["options"]["sampler"] == "random":
        told["random centres"] = (
            "its network gathers around points that are drawn at random, then as now: here by the seed of each chunk, "
            "so that an episode can be repeated; the same centres give the same actions"
        )
    sizes = {size for view in found.views.values() for size in view.spec.rgb.values()} - {(SIZE, SIZE)}
    if "rgb" in policy["modalities"] and sizes:
        told["pictures"] = (
            f"ppt_learning brought those of {', '.join(f'{h} x {w}' for h, w in sorted(sizes))} to {SIZE} x {SIZE} "
            "pixels by OpenCV, here each pixel is the mean of what it covers: actions differ by what that rounds"
        )
    options = policy.get("head", {}).get("options") or {}
    if policy.get("head", {}).get("kind") == "hpt_diffusion":
        told["noise"] = (
            f"sampled from noise of standard deviation {options.get('start', 1.0):g} with eta "
            f"{options.get('eta', 0.0):g}; versions of ppt_learning differ in it, and --half-noise says 0.5 and 0.5"
        )
    return told
