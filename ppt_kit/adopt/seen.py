"""How an old policy saw its domains: by their data where it is still there, and by the weights alone where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ppt_kit.adopt.old import Old
from ppt_kit.adopt.whole import Adopted
from ppt_kit.checks import domain_names
from ppt_kit.config import from_mapping, typed
from ppt_kit.data.dataset import MultiTrajDataset, open_stores
from ppt_kit.data.formats import find_domain
from ppt_kit.data.store import EpisodeStore
from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.migration.parts import STATE_KEYS
from ppt_kit.schema import Config


@dataclass
class Seen:
    """Attributes:
    views: domain -> how it is seen.
    sources: domain -> the simulator that its data was recorded in, and the seeds.
    told: lines about what had to be assumed.
    """

    views: dict[str, View] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def seen(old: Old, made: Adopted, *, dataset_path: Path | None) -> Seen:
    """Of every domain.

    Args:
        dataset_path: folder of the datasets; None = where the configuration says.
    """
    found, keys = Seen(), made.config.get("dataset", {}).get("state_keys")
    # what is wrong in it is not the data's
    plain_config(made)
    for domain in old.domains:
        try:
            dataset = _opened(old, made, domain, folder=dataset_path, keys=keys)
            _check_widths(dataset, old, made)
            found.views[domain], found.sources[domain] = dataset.view, dataset.source()
            made.put({"dataset.state_keys": [name.removeprefix("obs/") for name in dataset.view.state] or None})
        except UserError as reason:
            if {"rgb", "depth"} & set(made.config["policy"]["modalities"]) and not made.lacking:
                raise UserError(
                    f"{old.file}: sees pictures, whose sizes and cameras only its data says, and that cannot be read. "
                    f"Give --dataset-path=<folder of the datasets>. ({reason})"
                ) from None
            found.views[domain], found.sources[domain] = _by_weights(old, made, domain), {"env": None, "seeds": []}
            found.told.append(
                f"{domain}: which columns its state and action are made of is not known, since its data cannot be "
                f"read: the policy acts on given observations, and in no simulator. --dataset-path=<folder of the "
                f"datasets> says where it is. ({reason})"
            )
    return found


def _opened(old: Old, made: Adopted, domain: str, *, folder: Path | None, keys: list[str] | None) -> Any:
    """The domain as the old policy saw it.

    Raises:
        UserError: its data is not there, or not as it was.
    """
    cfg: Config = typed(from_mapping(made.config))
    # a relative path of the old configuration is of its project, whatever lies where this is typed
    place = (folder or old.project / Path(cfg.dataset_path).expanduser()).resolve()
    path = _found(place, [domain, *domain_names(cfg.domains)], format=cfg.dataset.format)
    stores = open_stores({domain: path}, cfg.dataset)
    cfg.dataset.state_keys = keys or [name for name in STATE_KEYS if f"obs/{name}" in stores[domain].columns]
    cfg.dataset.val_ratio = 0.0
    cfg.dataset.num_points = _fewer(stores[domain], cfg.dataset.num_points)
    made.put({"dataset.num_points": cfg.dataset.num_points, "dataset_path": str(place)})
    return MultiTrajDataset(stores, cfg.dataset, modalities=made.config["policy"]["modalities"]).domains[domain]


def _fewer(store: EpisodeStore, asked: int | None) -> int | None:
    """Points of a cloud: ppt_learning took all of those that had fewer."""
    stored = store.columns.get("obs/pointcloud/pos")
    return asked if stored is None or asked is None else min(asked, stored.shape[1])


def _found(folder: Path, names: list[str], *, format: str | None) -> Path:
    """The dataset of a domain; ppt_learning called several by the name of their folder."""
    reasons = []
    for name in names:
        try:
            return find_domain(folder, name, format=format)
        except UserError as reason:
            reasons.append(reason)
    raise reasons[0]


def _check_widths(dataset: Any, old: Old, made: Adopted) -> None:
    stats = made.stats[dataset.name]
    for kind in ("state", "action"):
        has, wanted = getattr(dataset.spec, f"{kind}_dim"), len(stats[kind]["scale"])
        if has != wanted:
            raise UserError(
                f"its {kind} has {wanted} numbers in the weights, and {has} in {dataset.store.path} "
                f"({', '.join(getattr(dataset.spec, kind))})"
            )


def _by_weights(old: Old, made: Adopted, domain: str) -> View:
    """A view of one column each, as wide as the weights say; pictures have no size that they could say."""
    widths = {kind: len(values["scale"]) for kind, values in made.stats[domain].items()}
    dataset = made.config.get("dataset", {})
    sees_clouds = "pointcloud" in made.config["policy"]["modalities"]
    return View(
        state={"obs/state": widths["state"]} if widths["state"] else {}, action={"actions": widths["action"]},
        cloud={"pos": "obs/pointcloud/pos"} if sees_clouds else {},
        points=dataset.get("num_points", 512) if sees_clouds else 0,
        channels=dataset.get("point_channels", 3) if sees_clouds else 0,
    )  # fmt: skip


def fingerprinted(stats: Mapping[str, Any], views: Mapping[str, View]) -> dict[str, Any]:
    """Statistics with what they belong to, as a run's own have it."""
    told = {}
    for domain, each in stats.items():
        spec = views[domain].spec
        keys = {kind: [f"{key}[{width}]" for key, width in getattr(spec, kind).items()] for kind in ("state", "action")}
        prints = {"dataset": "ppt_learning", "state_keys": keys["state"], "action": [*keys["action"], "as stored"]}
        told[domain] = {**each, "fingerprint": prints}
    return told


def plain_config(made: Adopted) -> dict[str, Any]:
    """The whole configuration, with its defaults.

    Raises:
        UserError: it does not fit together.
    """
    return OmegaConf.to_container(from_mapping(made.config), resolve=True)  # type: ignore[return-value]
