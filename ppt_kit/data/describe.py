"""What is in a dataset, and how fast it can be read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from ppt_kit.data.dataset import MultiTrajDataset, open_dataset
from ppt_kit.data.disk.rows import bytes_under, spread
from ppt_kit.data.formats.wanted import Wanted
from ppt_kit.data.store import Column, ConvertedColumn, EpisodeStore, NotFinite, decoded_part
from ppt_kit.data.uses import uses_of
from ppt_kit.programs import to_type
from ppt_kit.tables import Table, shown

# of a column, to give its range; of a larger one an eighth of this
BYTES_READ = 1 << 30
DECODED_BYTES_READ = 64 << 20
ROWS_AT_LEAST = 24
# of a column in memory at a time
BYTES_AT_ONCE = 64 << 20
# a batch that takes longer than a common training step
STARVING_MS = 20.0
BATCHES = 8
# the columns of `describe`, as they are shown
SHOWN = (
    "format", "episodes", "steps", "length_min", "length_median", "length_max", "shape", "dtype", "min", "max", "nans",
    "infs", "rows_read", "languages", "language", "stored_as", "layout", "used",
)  # fmt: skip

Source = MultiTrajDataset | str | Path | Mapping[str, str | Path]


class Description(Table):
    """What `describe` gives: a notebook shows what is of a whole domain above the table, and of a column in it."""

    def _repr_html_(self) -> str:
        if not set(SHOWN) <= set(self.columns) or list(self.index.names) != ["domain", "key"]:
            return shown(self)
        lines = [_said(str(name), part.iloc[0]) for name, part in self.groupby(level="domain", sort=False)]
        table = pd.DataFrame(self.reset_index())
        names = ["domain"] if len(lines) > 1 else []
        columns = [*names, "key", "used", "shape", "dtype", "min", "max", "nans", "infs"]
        return shown(table[columns], above=lines)


def describe(dataset: Source) -> Description:
    """What a dataset holds, one line a stored column.

    Ranges and counts of values that are not finite are those of `rows_read` rows: all, unless the column is large or
    has to be decoded; then evenly spread ones, and nans and infs are <NA> where none was seen among them. Of columns
    that the dataset was opened without (ignored_keys, modalities) none is read: their files need not be there.

    Args:
        dataset: an opened one, or what `open_dataset` takes.
    Returns:
        A table indexed by (domain, key): format, episodes, steps, length_min, length_median, length_max, shape (of one
        row), dtype, min, max, nans, infs, rows_read, languages (distinct), language (the first), stored_as, layout,
        used: what batches hold of it ("state", "rgb", …), or what to type so that they do. What the dataset holds
        and is no column (texts, shapes that differ) has a line without numbers.
    """
    data = dataset if isinstance(dataset, MultiTrajDataset) else open_dataset(dataset)
    wanted = Wanted(ignored_keys=data.options.ignored_keys, modalities=data.modalities)
    lines = []
    for name, domain in data.domains.items():
        store, uses = domain.store, uses_of(data, name)
        for key, column in store.columns.items():
            numbers = _column_line(column, read=wanted.reads(store, key))
            lines.append({"domain": name, "key": key, **_store_line(store), **numbers, "used": uses[key]})
        for key, why in store.left_out.items():
            nothing = {"shape": (), "dtype": "", "min": np.nan, "max": np.nan, "nans": pd.NA, "infs": pd.NA}
            where = {"rows_read": 0, "stored_as": key, "layout": "", "used": f"no: {why}"}
            lines.append({"domain": name, "key": key, **_store_line(store), **nothing, **where})
    return Description(pd.DataFrame(lines).set_index(["domain", "key"])[list(SHOWN)])


def doctor(dataset: Source, *, batch_size: int = 64) -> pd.DataFrame:
    """Prints how a dataset lies on disk, how fast batches come, where the time goes, and what to change.

    Args:
        dataset: an opened one, or what `open_dataset` takes.
        batch_size: windows a batch.
    Returns:
        What was measured, one line a stage: domain, stage, columns, layout, gigabytes, ms_first (the first batch, as
        cold as the caches are), ms (median of the later batches), advice.
    """
    data = dataset if isinstance(dataset, MultiTrajDataset) else open_dataset(dataset)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, len(data), batch_size) for _ in range(BATCHES)]
    lines = [line for name in data.domains for line in _stages(data, name, batches)]
    began = time.perf_counter()
    for batch in batches:
        data.__getitems__(batch)
    seconds = (time.perf_counter() - began) / BATCHES
    table = Table(lines)
    print(_report(data, table, batch_size=batch_size, seconds=seconds))
    return table


def _said(name: str, line: Any) -> str:
    """What is known of a domain, in one sentence."""
    told = f"; {line.languages} sentence(s), e.g. “{line.language}”" if line.languages else ""
    lengths = f"{line.length_min} to {line.length_max}, median {line.length_median:g}"
    return f"{name}: {line.format}, {line.episodes} episodes, {line.steps} steps ({lengths} each){told}"


def _store_line(store: EpisodeStore) -> dict[str, Any]:
    lengths, sentences = np.diff(store.episode_ends, prepend=0), store.sentences or []
    return {
        "format": store.format,
        "episodes": len(lengths),
        "steps": int(store.episode_ends[-1]),
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_max": int(lengths.max()),
        "languages": len(set(sentences)),
        "language": sentences[0] if sentences else "",
    }


def _stored_values(column: Column, rows: np.ndarray) -> np.ndarray:
    try:
        return column.read(rows)
    except NotFinite:
        return column.source.read(rows) if isinstance(column, ConvertedColumn) else column.read(rows)


def _column_line(column: Column, *, read: bool) -> dict[str, Any]:
    rows = _rows_to_read(column) if read else np.arange(0)
    low, high, nans, infs = np.inf, -np.inf, 0, 0
    for part in np.array_split(rows, max(1, len(rows) * _row_bytes(column) // BYTES_AT_ONCE)):
        values = _stored_values(column, part)
        if values.dtype.kind not in "biuf" or not values.size:
            continue
        nans, infs = nans + int(np.isnan(values).sum()), infs + int(np.isinf(values).sum())
        fine = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if fine.size:
            low, high = min(low, float(fine.min())), max(high, float(fine.max()))
    known, sampled = high >= low, len(rows) < column.shape[0]
    return {
        "shape": column.shape[1:],
        "dtype": str(column.dtype),
        "min": low if known else np.nan,
        "max": high if known else np.nan,
        "nans": pd.NA if sampled and not nans else nans,
        "infs": pd.NA if sampled and not infs else infs,
        "rows_read": len(rows),
        "stored_as": column.stored_as,
        "layout": column.layout,
    }


def _stages(data: MultiTrajDataset, name: str, batches: list[np.ndarray]) -> list[dict]:
    """Reading of each modality of one domain, timed on the rows that the batches' windows need."""
    store, lines = data.domains[name].store, []
    for stage, keys in data.domains[name].columns.items():
        times = _read_times(data, name, keys, batches, actions=stage == "action")
        later = float(np.median(times[1:])) if len(times) > 1 else float("nan")
        columns = [store.columns[key] for key in keys]
        lines.append(
            {
                "domain": name,
                "stage": stage,
                "columns": ", ".join(keys),
                "layout": "; ".join(sorted({column.layout for column in columns})),
                "gigabytes": sum(_decoded_bytes(column) for column in columns) / 1e9,
                "ms_first": times[0] if times else float("nan"),
                "ms": later,
                "advice": _advice(store, columns, ms=later),
            }
        )
    return lines


def _read_times(
    data: MultiTrajDataset, name: str, keys: Iterable[str], batches: list[np.ndarray], *, actions: bool
) -> list[float]:
    """How long the rows of each batch take that the domain has a part in (ms)."""
    times = []
    for batch in batches:
        rows = data.window_rows(batch).get(name)
        if rows is None:
            continue
        wanted = rows[1 if actions else 0].ravel()
        began = time.perf_counter()
        for key in keys:
            data.domains[name].store.read(key, wanted)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def _advice(store: EpisodeStore, columns: list[Column], *, ms: float) -> str:
    decoded = [part for part in map(decoded_part, columns) if part is not None]
    if not decoded:
        return ""
    size = sum(_decoded_bytes(column) for column in decoded)
    caches = [column.cache for column in decoded if column.cache is not None]
    if not caches:
        return f"decoded every time: set dataset.cache_gb above {size / 1e9:.1f} to keep what was decoded"
    share, limit = float(np.mean([cache.share() for cache in caches])), caches[0].folder.limit
    if size > limit:
        return (
            f"{size / 1e9:.1f} GB when decoded, the cache takes {limit / 1e9:.1f}: "
            f"set dataset.cache_gb={int(np.ceil(size / 1e9 * 1.2))}, or convert to zarr"
        )
    if share < 1 and ms > STARVING_MS:
        return (
            f"{share:.0%} of it is in the cache {caches[0].folder.root}: faster once a pass has been made, or after "
            f"`{to_type('convert_dataset')} source={store.path} target=… to=zarr`"
        )
    return ""


def _report(data: MultiTrajDataset, table: pd.DataFrame, *, batch_size: int, seconds: float) -> str:
    lines = []
    for name in data.domains:
        store = data.domains[name].store
        lines.append(
            f"{name}: {store.format}, {bytes_under(store.path) / 1e9:.2f} GB in {store.path}, "
            f"{len(store.episode_ends)} episodes, {store.episode_ends[-1]} steps"
        )
    stages = table.to_dict("records")
    for line in stages:
        lines.append(
            f"  {line['domain']} {line['stage']:<10} {line['gigabytes']:8.2f} GB  "
            f"first batch {line['ms_first']:8.1f} ms, then {line['ms']:8.1f} ms  {line['layout']}"
        )
    lines.append(
        f"batches of {batch_size} windows: {seconds * 1e3:.1f} ms each, {batch_size / seconds:.0f} windows/s "
        "with one loader"
    )
    unused = {
        name: [key for key, use in uses_of(data, name).items() if use.startswith("no")] + list(domain.store.left_out)
        for name, domain in data.domains.items()
    }
    lines += [f"{name}: not in batches: {', '.join(keys)}; see ppt.describe" for name, keys in unused.items() if keys]
    advice = [f"{line['domain']} {line['stage']}: {line['advice']}" for line in stages if line["advice"]]
    free, held = psutil.virtual_memory().available, float(table["gigabytes"].sum()) * 1e9
    if held > free:
        advice.append(
            f"{held / 1e9:.1f} GB are read and {free / 1e9:.1f} GB of memory are free for the page cache: passes read "
            "from the disk; leave modalities out with dataset.ignored_keys, or use fewer episodes"
        )
    lines += ["to change:", *(f"  {text}" for text in advice)] if advice else ["nothing to change"]
    return "\n".join(lines)


def _rows_to_read(column: Column) -> np.ndarray:
    most = DECODED_BYTES_READ if decoded_part(column) else BYTES_READ
    count = column.shape[0]
    if _decoded_bytes(column) > most:
        count = max(ROWS_AT_LEAST, most // 8 // _row_bytes(column))
    return spread(count, column.shape[0])


def _row_bytes(column: Column) -> int:
    return int(np.prod(column.shape[1:], dtype=np.int64)) * column.dtype.itemsize


def _decoded_bytes(column: Column) -> int:
    return column.shape[0] * _row_bytes(column)
