"""What batches hold of each stored column, and what to type so that they hold it."""

from __future__ import annotations

from ppt_kit.data.columns import CLOUD, DEPTHS, IMAGES, means
from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.data.store import EpisodeStore

# the least height and width of a picture; below, it is an array like any other
SMALLEST_PICTURE = 8


def uses_of(data: MultiTrajDataset, name: str) -> dict[str, str]:
    """{stored column: "action", "state", "rgb", …, or "no: " and what to type} of one domain."""
    domain, uses = data.domains[name], dict[str, str]()
    for kind, columns in domain.columns.items():
        uses |= dict.fromkeys(columns, kind)
    made = domain.view.made_from
    if made is not None:
        uses |= {f"obs/depths/{camera}": uses.get(f"obs/depths/{camera}", "pointcloud") for camera in made.cameras}
    return {key: uses.get(key) or f"no: {_remedy(data, domain.store, key)}" for key in domain.store.columns}


def _remedy(data: MultiTrajDataset, store: EpisodeStore, key: str) -> str:
    short = key.removeprefix("obs/")
    if any(means(store, text, key) for text in data.options.ignored_keys):
        return f"take {short} out of dataset.ignored_keys"
    for folder, kind in ((IMAGES, "rgb"), (DEPTHS, "depth"), (CLOUD, "pointcloud")):
        if key.startswith(folder):
            return _remedy_of_part(data, short, kind)
    like = _looks_like(store, key)
    if like:
        folder = IMAGES if like == "rgb" else DEPTHS
        return (
            f"it looks like {like}: a format of yours (dataset.format, CONTRIBUTING.md) can open it and call the "
            f"column {folder}{short.replace('/', '_')}; dataset.state_keys=[{short}] takes its numbers as they are"
        )
    return f"name {short} in dataset.state_keys, or in dataset.action_key if it is the action"


def _remedy_of_part(data: MultiTrajDataset, short: str, kind: str) -> str:
    if kind not in data.modalities:
        return f"name {kind} in modalities=[…]; for a policy, in policy.modalities"
    channels = {"pointcloud/colors": "6 or 7", "pointcloud/seg": "5"}.get(short)
    return f"dataset.point_channels={channels}" if channels else f"no part of {kind}"


def _looks_like(store: EpisodeStore, key: str) -> str:
    """ "rgb" or "depth" where the shape is a picture's, "" else."""
    shape, kind = store.shape(key)[1:], store.dtype(key).kind
    if len(shape) not in (2, 3) or min(shape[:2]) < SMALLEST_PICTURE:
        return ""
    if len(shape) == 3 and shape[-1] == 3:
        return "rgb"
    return "depth" if kind in "fu" and shape[2:] in ((), (1,)) else ""
