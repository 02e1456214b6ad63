"""Whether domains can share a batch: the same modalities, cameras of one size, clouds with as many points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ppt_kit.data.columns import Columns, check_ignored
from ppt_kit.data.domain import Domain, seen_through
from ppt_kit.data.store import EpisodeStore
from ppt_kit.errors import UserError
from ppt_kit.model_keys import MODALITIES
from ppt_kit.schema import DatasetConfig

WHERE_FROM = {
    "pointcloud": "Clouds are stored as obs/pointcloud/pos (N, P, 3) in metres, or made from obs/depths/<camera> where "
    "that camera's intrinsics and extrinsics are stored.",
    "state": "Type dataset.state_keys=null for every observation that is numbers.",
}
# of clouds that are made from depth, when no number is asked for
DEFAULT_POINTS = 512


def compatible_domains(
    stores: Mapping[str, EpisodeStore], options: DatasetConfig, *, modalities: Sequence[str] | None
) -> dict[str, Domain]:
    """Each store as a Domain whose batches fit those of the others.

    Args:
        modalities: what batches hold; None = all that any domain has.
    Raises:
        UserError: one of them lacks a modality, colours or points, or two cameras of one name differ in size.
    """
    check_ignored(stores, options.ignored_keys, may_be_absent=options.ignore_absent)
    columns = {name: Columns(store, options) for name, store in stores.items()}
    chosen = modalities
    if chosen is None:
        chosen = [kind for kind in MODALITIES if any(each.has(kind) for each in columns.values())]
    _check_modalities(columns, chosen)
    _check_shapes(columns, chosen)
    for kind in ("rgb", "depth"):
        if kind in chosen:
            _check_cameras(columns, kind)
    points = channels = 0
    if "pointcloud" in chosen:
        points, channels = _points(columns, options), _channels(columns, options)
        _check_clouds(columns, points=points, channels=channels)
    return {
        name: seen_through(name, each, options, modalities=chosen, points=points, channels=channels)
        for name, each in columns.items()
    }


def shared_modalities(stores: Mapping[str, EpisodeStore], options: DatasetConfig, *, among: Iterable[str]) -> list[str]:
    """Those of `among` that every store has.

    Raises:
        UserError: there is none.
    """
    columns = {name: Columns(store, options) for name, store in stores.items()}
    shared = [kind for kind in among if all(each.has(kind) for each in columns.values())]
    if not shared:
        has = "; ".join(f"{name} has {', '.join(each.modalities()) or 'none'}" for name, each in columns.items())
        raise UserError(f"the policy sees nothing of what every domain has: {has}. It can see {', '.join(among)}.")
    return shared


def _points(columns: Mapping[str, Columns], options: DatasetConfig) -> int:
    return options.num_points or min(map(_stored_points, columns.values()))


def _stored_points(columns: Columns) -> int:
    return columns.store.shape(columns.cloud["pos"])[1] if "pos" in columns.cloud else DEFAULT_POINTS


def _channels(columns: Mapping[str, Columns], options: DatasetConfig) -> int:
    return options.point_channels or (6 if all(each.has_color() for each in columns.values()) else 3)


def _check_modalities(columns: Mapping[str, Columns], chosen: Sequence[str]) -> None:
    for modality in chosen:
        others = [name for name, each in columns.items() if each.has(modality)]
        for each in columns.values():
            if each.has(modality):
                continue
            remedy = WHERE_FROM.get(modality, "")
            if others:
                remedy = (
                    f"{', '.join(others)} has it: leave it out there with dataset.ignored_keys=[{modality}], "
                    "or modalities=[…]."
                )
            store = each.store
            rest = [kind for kind in chosen if each.has(kind)]
            without = f"A policy does without it by policy.modalities=[{','.join(rest)}]." if rest else ""
            raise UserError(
                f"{store.path} has no {modality}; it has {', '.join(each.modalities())}, of the columns "
                f"{', '.join(store.columns)}. {remedy} {without}".rstrip()
            )


def _check_shapes(columns: Mapping[str, Columns], chosen: Iterable[str]) -> None:
    """Whether pictures, depths and clouds have the axes that the contract says."""
    for each in columns.values():
        for kind in ("rgb", "depth"):
            for camera, column in getattr(each, kind).items() if kind in chosen else ():
                shape, behind = each.store.shape(column), [(3,)] if kind == "rgb" else [(), (1,)]
                if len(shape) < 3 or shape[3:] not in behind or 0 in shape:
                    takes = "(N, H, W, 3) or (N, 3, H, W)" if kind == "rgb" else "(N, H, W) or (N, H, W, 1)"
                    raise _misshapen(each, column, f"{kind} of the camera {camera} takes {takes}")
        if "pointcloud" in chosen and "pos" in each.cloud:
            _check_cloud_shape(each)


def _check_cloud_shape(each: Columns) -> None:
    shape = each.store.shape(each.cloud["pos"])
    if len(shape) != 3 or shape[-1] < 3 or 0 in shape:
        raise _misshapen(each, each.cloud["pos"], "the positions of clouds take (N, P, 3), or (N, P, 6) with colours")
    takes: dict[str, list[tuple[int, ...]]] = {"colors": [(3,)], "seg": [(), (1,)]}
    for part, behind in takes.items():
        column = each.cloud.get(part)
        fits = [(*shape[:2], *last) for last in behind]
        if column is not None and each.store.shape(column) not in fits:
            raise _misshapen(each, column, f"{part} of these clouds takes {' or '.join(map(str, fits))}")


def _misshapen(each: Columns, column: str, takes: str) -> UserError:
    store = each.store
    return UserError(
        f"{store.path}: {store.columns[column].stored_as} has the shape {store.shape(column)}; {takes}. Store it so, "
        f"or leave it out with dataset.ignored_keys=[{column.removeprefix('obs/')}]."
    )


def _check_cameras(columns: Mapping[str, Columns], kind: str) -> None:
    """A camera that two domains have must have one size in both: their images stand in one array."""
    seen: dict[str, Columns] = {}
    for each in columns.values():
        for camera, column in getattr(each, kind).items():
            other = seen.setdefault(camera, each)
            here, there = (_size(one, kind, camera) for one in (each, other))
            if here != there:
                raise UserError(
                    f"{kind} camera {camera}: {other.store.path} has {there}, {each.store.path} has {here} pixels: one "
                    "batch cannot hold both. Resize one dataset, or leave the camera out with "
                    f"dataset.ignored_keys=[{column.removeprefix('obs/')}]."
                )


def _size(columns: Columns, kind: str, camera: str) -> str:
    height, width = columns.store.shape(getattr(columns, kind)[camera])[1:3]
    return f"{height}x{width}"


def _check_clouds(columns: Mapping[str, Columns], *, points: int, channels: int) -> None:
    for each in columns.values():
        path = each.store.path
        if channels >= 6 and not each.has_color():
            raise UserError(
                f"dataset.point_channels={channels} needs colours, {path} has none. "
                "Collect with use_color=true, or set dataset.point_channels=3."
            )
        if channels == 5 and "seg" not in each.cloud:
            raise UserError(
                f"dataset.point_channels=5 needs a segmentation, {path} has none. Set dataset.point_channels=3 or 4."
            )
        stored = _stored_points(each) if "pos" in each.cloud else points
        if stored < points:
            raise UserError(
                f"dataset.num_points={points}: {path} has clouds of {stored} points. Set dataset.num_points={stored}."
            )
