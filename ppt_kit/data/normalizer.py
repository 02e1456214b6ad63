"""Statistics that bring states and actions to a common scale, fitted on the training episodes only.

Each number is normalised on its own: (value - offset) * scale. Statistics carry a fingerprint of what they were made
from, so that they are never taken for another dataset's, another order of keys or another representation of the action.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ppt_kit.data.dataset import KINDS, MultiTrajDataset
from ppt_kit.data.domain import Domain
from ppt_kit.data.store import check_finite
from ppt_kit.errors import UserError
from ppt_kit.schema import NORMALIZER_MODES, NormalizerConfig
from ppt_kit.spec import Spec

ROWS_AT_ONCE = 65_536
MOST_ROWS = 2_000_000  # that quantiles are taken from; of more rows, an even share
# a spread below this (times the magnitude, above 1) is noise: dividing by it would blow the noise up
NEAR_CONSTANT = 1e-4


@dataclass
class Stats:
    """normalised = (value - offset) * scale, element by element."""

    offset: list[float]
    scale: list[float]
    mode: list[str]
    constant: list[int]  # dimensions that hardly move: centred, not scaled


@dataclass
class _Column:
    """What is known of one kind of one domain after a pass over its rows."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    quantiles: np.ndarray  # (2, D): 1 and 99 %
    one_hot: dict[str, bool]
    unit: dict[str, bool]
    digest: str


def fit_normalizer(dataset: MultiTrajDataset, options: NormalizerConfig | None = None) -> dict[str, dict[str, Any]]:
    """{domain: {"state": Stats as a dict, "action": …, "fingerprint": …}} of the dataset's own split.

    "limits" takes the least and greatest value to -1 and 1, "quantiles" those of 1 and 99 %, "gaussian" the mean to 0
    and the standard deviation to 1, "identity" nothing.

    Args:
        options: `normalizer` of a configuration; keys are eef_pos, actions, or actions[3:7] for a part of one.
    Raises:
        UserError: a value is not finite (the line names file, column and episode), or a key is not there.
    """
    options = options or NormalizerConfig()
    per_domain = options.per_domain or {}
    for wanted in [
        options.mode,
        *(options.per_key or {}).values(),
        *(m for each in per_domain.values() for m in each.values()),
    ]:
        if wanted not in NORMALIZER_MODES:
            raise UserError(f"normalizer: mode {wanted} is none of {', '.join(NORMALIZER_MODES)}.")
    for name in per_domain:
        if name not in dataset.domains:
            raise UserError(f"normalizer: {name} is none of the domains {', '.join(dataset.domains)}.")
    return {
        name: _fit_domain(dataset, name, options, keys={**(options.per_key or {}), **per_domain.get(name, {})})
        for name in dataset.domains
    }


def check_stats(stats: Any, specs: Mapping[str, Spec], *, source: str) -> None:
    """Refuses statistics that were read from a file and cannot be those of these domains.

    Args:
        stats: what the file holds in place of what `fit_normalizer` gives.
        specs: domain -> its sizes; each needs statistics.
        source: the file, for the message.
    Raises:
        UserError: the first thing that is missing, of another kind or width, not finite, or a scale not above 0.
    """
    if not isinstance(stats, Mapping):
        raise _wrong(source, "are", f"{_short(stats)}, where domain -> statistics is read")
    for name, spec in specs.items():
        domain = stats.get(name)
        if not isinstance(domain, Mapping):
            known = ", ".join(map(str, stats)) or "none"
            what = f"{_short(domain)}" if name in stats else f"missing; there are some for {known}"
            raise _wrong(source, f"of {name} are", what)
        for kind in KINDS:
            _check_stats_of(domain.get(kind), getattr(spec, f"{kind}_dim"), where=f"of {name}/{kind}", source=source)
        _check_fingerprint(domain.get("fingerprint"), where=f"of {name}/fingerprint", source=source)


def _check_stats_of(stats: Any, width: int, *, where: str, source: str) -> None:
    if not isinstance(stats, Mapping) or not {"offset", "scale", "mode", "constant"} <= stats.keys():
        raise _wrong(source, where, f"{_short(stats)}, where offset, scale, mode and constant are read")
    for part in ("offset", "scale"):
        values = stats[part]
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != width:
            found = f"{len(values)} numbers" if numbers else _short(values)
            raise _wrong(source, f"{where}/{part} are", f"{found}, where a list of {width} numbers is read")
        bad = next((i for i, v in enumerate(values) if not np.isfinite(v) or (part == "scale" and v <= 0)), None)
        if bad is not None:
            rule = "finite numbers above 0" if part == "scale" else "finite numbers"
            raise _wrong(source, f"{where}/{part}[{bad}] are", f"{values[bad]}, where {rule} are read")
    if not isinstance(stats["mode"], list) or len(stats["mode"]) != width or set(stats["mode"]) - {*NORMALIZER_MODES}:
        raise _wrong(source, f"{where}/mode are", f"{_short(stats['mode'])}, where {width} modes are read")
    constant = stats["constant"]
    if not isinstance(constant, list) or not all(type(at) is int and 0 <= at < width for at in constant):
        raise _wrong(source, f"{where}/constant are", f"{_short(constant)}, where places below {width} are read")


def _check_fingerprint(told: Any, *, where: str, source: str) -> None:
    parts = {"dataset": str, "state_keys": list, "action": list}
    if not isinstance(told, Mapping) or not all(isinstance(told.get(part), kind) for part, kind in parts.items()):
        raise _wrong(source, f"{where} are", f"{_short(told)}, where {', '.join(parts)} are read")


def _wrong(source: str, what: str, found: str) -> UserError:
    return UserError(
        f"{source}: the normaliser's statistics {what} {found}. The file is damaged: take another, or fit them "
        "anew with normalizer.path=null."
    )


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 40 else f"{text[:40]}…"


def near_constant(stats: Mapping[str, Any], specs: Mapping[str, Spec]) -> list[str]:
    """Names of the dimensions that hardly move: `domain: eef_pos[2]`."""
    found = []
    for name, domain in stats.items():
        for kind in KINDS:
            for index in domain[kind]["constant"]:
                layout = specs[name].layout(kind)
                key, (first, _) = next((key, part) for key, part in layout.items() if part[0] <= index < part[1])
                found.append(f"{name}: {key}[{index - first}]")
    return found


def check_same_source(stored: Mapping[str, Any], now: Mapping[str, Any], *, any_dataset: bool = False) -> None:
    """Refuses statistics that were made from something else.

    Args:
        stored: what was fitted when the statistics were made.
        now: what `fit_normalizer` gives for the data at hand.
        any_dataset: other episodes are fine; keys and actions are not.
    Raises:
        UserError: the first difference: the dataset, the order of the keys, or the representation of the action.
    """
    for name, domain in now.items():
        if name not in stored:
            raise UserError(f"normalizer: no statistics for {name}; there are some for {', '.join(stored)}.")
        old, new = stored[name]["fingerprint"], domain["fingerprint"]
        told = {
            "state_keys": "the state's keys and their order",
            "action": "the representation of the action",
            "dataset": "the dataset's episodes",
        }
        for part, words in told.items():
            if old[part] != new[part] and not (part == "dataset" and any_dataset):
                remedy = " Set normalizer.any_dataset=true if that is meant." if part == "dataset" else ""
                raise UserError(
                    f"normalizer of {name}: {words} differ: {old[part]} when the statistics were made, "
                    f"{new[part]} now.{remedy}"
                )


def _fit_domain(
    dataset: MultiTrajDataset, name: str, options: NormalizerConfig, *, keys: Mapping[str, str]
) -> dict[str, Any]:
    domain = dataset.domains[name]
    seen = {kind: _scan(domain, dataset.rows(name), kind) for kind in KINDS}
    layouts = {kind: domain.spec.layout(kind) for kind in KINDS}
    leave = options.leave_alone
    asked = {**keys, **{text: "identity" for text in leave if text not in ("quaternions", "one_hot")}}
    for text in asked:
        _check_part(text, layouts, name=name)
    found: dict[str, Any] = {}
    for kind in KINDS:
        modes = np.full(len(seen[kind].low), options.mode, dtype=object)
        for key, (first, last) in layouts[kind].items():
            if ("quaternions" in leave and seen[kind].unit[key]) or ("one_hot" in leave and seen[kind].one_hot[key]):
                modes[first:last] = "identity"
        for text, wanted in asked.items():
            key, begin, end = _parse(text)
            if key in layouts[kind]:
                first, last = layouts[kind][key]
                modes[first:last][begin:end] = wanted
        found[kind] = asdict(_stats(seen[kind], modes))
    found["fingerprint"] = _fingerprint(domain, {kind: each.digest for kind, each in seen.items()})
    return found


def _check_part(text: str, layouts: Mapping[str, Mapping[str, tuple[int, int]]], *, name: str) -> None:
    key, begin, end = _parse(text)
    known = {key: part for layout in layouts.values() for key, part in layout.items()}
    if key not in known:
        raise UserError(
            f"normalizer: {name} has no {text}; it has {', '.join(sorted(known))}. A part of one is e.g. actions[3:7]."
        )
    first, last = next(layout[key] for layout in layouts.values() if key in layout)
    if begin is not None and end is not None and not begin < end <= last - first:
        raise UserError(
            f"normalizer: {text}: {key} of {name} has {last - first} numbers, a part is [begin:end] of them."
        )


def _fingerprint(domain: Domain, digests: Mapping[str, str]) -> dict[str, Any]:
    widths = {"state": domain.spec.state, "action": domain.spec.action}
    named = {kind: [f"{key}[{width}]" for key, width in each.items()] for kind, each in widths.items()}
    return {
        "dataset": hashlib.sha256(f"{digests['state']} {digests['action']}".encode()).hexdigest()[:12],
        "state_keys": named["state"],
        "action": [*named["action"], str(domain.store.attrs.get("action_representation", "as stored"))],
    }


def _stats(seen: _Column, modes: np.ndarray) -> Stats:
    low, high = seen.low, seen.high
    magnitude = np.maximum(1.0, np.abs((low + high) / 2))
    constant = (high - low) < NEAR_CONSTANT * magnitude
    q_low, q_high = seen.quantiles
    # moves in under 2 % of the rows: its limits are its range
    rare = (q_high - q_low) < NEAR_CONSTANT * magnitude
    q_low, q_high = np.where(rare, low, q_low), np.where(rare, high, q_high)
    offset, scale = np.zeros(len(low)), np.ones(len(low))
    for wanted, centre, width in (
        ("limits", (low + high) / 2, (high - low) / 2),
        ("quantiles", (q_low + q_high) / 2, (q_high - q_low) / 2),
        ("gaussian", seen.mean, seen.std),
    ):
        mine = modes == wanted
        offset[mine] = centre[mine]
        scale[mine] = 1.0 / np.where(constant, 1.0, width)[mine]
    named = np.flatnonzero(constant & (modes != "identity"))
    return Stats(offset.tolist(), scale.tolist(), modes.tolist(), named.tolist())


def _scan(domain: Domain, rows: np.ndarray, kind: str) -> _Column:
    layout = domain.spec.layout(kind)
    width = max((last for _, last in layout.values()), default=0)
    digest = hashlib.sha256(np.ascontiguousarray(rows[[0, -1]]).tobytes() + str(len(rows)).encode())
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    total, squares, shift = np.zeros(width), np.zeros(width), np.zeros(width)
    unit = {key: last - first == 4 for key, (first, last) in layout.items()}
    one_hot = {key: last - first > 1 for key, (first, last) in layout.items()}
    every, kept = -(-len(rows) // MOST_ROWS), []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        values = _finite_values(domain, rows[start : start + ROWS_AT_ONCE], kind)
        digest.update(values.tobytes())
        exact = values.astype(np.float64)
        if start == 0:
            # sums of squares around 0 would lose small spreads far from 0
            shift = exact[0]
        low, high = np.minimum(low, exact.min(0)), np.maximum(high, exact.max(0))
        total, squares = total + (exact - shift).sum(0), squares + np.square(exact - shift).sum(0)
        for key, (first, last) in layout.items():
            part = exact[:, first:last]
            unit[key] = unit[key] and bool((np.abs(np.square(part).sum(1) - 1) < 2e-3).all())
            one_hot[key] = one_hot[key] and bool(((part == 0) | (part == 1)).all() and (part.sum(1) == 1).all())
        kept.append(values[::every])
    mean = total / len(rows)
    return _Column(
        low=low, high=high, mean=mean + shift, std=np.sqrt(np.maximum(squares / len(rows) - mean**2, 0)),
        quantiles=np.quantile(np.concatenate(kept), [0.01, 0.99], axis=0).astype(np.float64),
        one_hot=one_hot, unit=unit, digest=digest.hexdigest(),
    )  # fmt: skip


def _finite_values(domain: Domain, rows: np.ndarray, kind: str) -> np.ndarray:
    values = domain.values(kind, rows)
    if not np.isfinite(values).all():
        for column in domain.columns[kind]:
            check_finite(domain.store, column, rows, domain.store.read(column, rows))
    return values


def _parse(text: str) -> tuple[str, int | None, int | None]:
    """`actions[3:7]` -> ("actions", 3, 7); `actions` -> ("actions", None, None)."""
    match = re.fullmatch(r"(.+?)(?:\[(\d+):(\d+)\])?", text)
    assert match is not None
    key, begin, end = match.groups()
    return key.removeprefix("obs/"), None if begin is None else int(begin), None if end is None else int(end)
