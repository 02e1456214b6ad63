"""Our gathered batches against a bare numpy gather, and against a reader of single samples."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from benches.in_turn import in_turn, ratio
from benches.stores import write_loader_store
from ppt_kit.keys import key


@dataclass
class LoaderBench:
    """Our gathered batches against a bare numpy gather, and against a reader of single samples."""

    kind: str = key("all", "what is read", choices=("all", "pointcloud", "depth", "rgb"))
    episodes: int = key(50, "episodes of the generated store", low=1)
    length: int = key(100, "steps of an episode", low=1)
    batch_size: int = key(128, "windows", low=1)
    rounds: int = key(20, "batches of each way, in turn", low=2)
    sample_rounds: int = key(2, "batches of the sample-by-sample reader", low=1)


def loader(cfg: DictConfig) -> int:
    """Prints a line a kind of observation."""
    heads = f"{'of a bare gather':>18}{'x sample reader':>17}{'2 ranks: ours':>15}{'bare':>7}"
    print(f"{'kind':<12}{'windows/s':>10}{heads}")
    for kind in ("pointcloud", "depth", "rgb") if cfg.kind == "all" else (cfg.kind,):
        _measure(cfg, kind)
    print("of a bare gather: our rate over that of numpy's indexing into memory maps, the same rows of the same files.")
    print("x sample reader: our rate over that of a per-sample zarr reader, 1 frame a compressed chunk.")
    print("2 ranks: the rate of each of two processes that read at once, over the rate of one alone.")
    return 0


def _measure(cfg: DictConfig, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_loader_store(Path(folder), kind=kind, episodes=cfg.episodes, length=cfg.length)
        data, batches = _opened(folder, kind, cfg.batch_size)
        bare, plain = _bare_gather(data), _sample_reader(Path(folder) / "chunked.zarr", data)
        # the page cache is warm for everybody
        for batch in batches:
            bare(batch)
        turns = itertools.cycle(batches)
        ours = lambda: data.__getitems__(next(turns))
        gathered = in_turn(lambda: bare(next(turns)), ours, block=1, rounds=cfg.rounds)
        sampled = in_turn(lambda: plain(next(turns)), ours, block=1, rounds=cfg.sample_rounds)
        rates = {way: [_rate(folder, kind, cfg.batch_size, way, ranks=n) for n in (1, 2)] for way in ("ours", "bare")}
    windows = cfg.batch_size / statistics.median(ours for _, ours in gathered)
    share = {way: both / alone for way, (alone, both) in rates.items()}
    ratios = f"{1 / ratio(gathered):>18.2f}{1 / ratio(sampled):>17.0f}"
    print(f"{kind:<12}{windows:>10.0f}{ratios}{share['ours']:>15.2f}{share['bare']:>7.2f}", flush=True)


def _opened(folder: str, kind: str, batch_size: int) -> tuple[Any, list[np.ndarray]]:
    """(the dataset, the window numbers of an epoch's batches)."""
    import ppt_kit as ppt
    from ppt_kit.data.loader import epoch_order

    data = ppt.open_dataset(
        Path(folder) / "ours.zarr", state_keys=["eef_pos", "normalized_gripper_pos"], action_horizon=16,
        modalities=["state", kind], point_channels=3,
    )  # fmt: skip
    order = epoch_order(len(data), seed=0, epoch=0)
    return data, [order[start : start + batch_size] for start in range(0, len(order) - batch_size, batch_size)]


def _rate(folder: str, kind: str, batch_size: int, way: str, *, ranks: int) -> float:
    """Batches a second of each of `ranks` processes that read at once, the slowest."""
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(ranks), context.Queue()
    arguments = (folder, kind, batch_size, way, gate, results)
    readers = [context.Process(target=_read_for_a_while, args=arguments) for _ in range(ranks)]
    for reader in readers:
        reader.start()
    rates = [results.get() for _ in readers]
    for reader in readers:
        reader.join()
    return min(rates)


def _read_for_a_while(folder: str, kind: str, batch_size: int, way: str, gate: Any, results: Any) -> None:
    data, batches = _opened(folder, kind, batch_size)
    read = _bare_gather(data) if way == "bare" else data.__getitems__
    for batch in batches:
        read(batch)
    gate.wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 1.5:
        read(batches[count % len(batches)])
        count += 1
    results.put(count / (time.perf_counter() - began))


def _bare_gather(data: Any) -> Callable[[np.ndarray], dict]:
    """The least a loader can do: numpy indexes one memory-mapped file a key, and nothing else."""
    store = data.domains["ours"].store
    folder = store.path.parent / "bare"
    maps = {file.stem: np.load(file, mmap_mode="r").view(np.ndarray) for file in folder.glob("*.npy")}
    steps = data.window_rows(np.arange(len(data)))["ours"][0][:, -1]
    firsts, lasts = np.array([store.bounds(store.episode_of(step)) for step in steps]).T - [[0], [1]]

    def gather(batch: np.ndarray) -> dict:
        step, first, last = steps[batch], firsts[batch], lasts[batch]
        seen = np.maximum(step[:, None] + np.arange(-1, 1), first[:, None])
        acted = np.minimum(step[:, None] + np.arange(16), last[:, None])
        return {name: values[acted if name == "actions" else seen] for name, values in maps.items()}

    return gather


def _sample_reader(path: Path, data: Any) -> Callable[[np.ndarray], None]:
    """A reader of the ancestor's kind.

    Per sample, per key, a slice of a chunked zarr behind a cache of compressed chunks, then collate.
    """
    import zarr
    from zarr.experimental.cache_store import CacheStore
    from zarr.storage import LocalStore, MemoryStore

    group: Any = zarr.open_group(CacheStore(LocalStore(str(path)), cache_store=MemoryStore()), mode="r", zarr_format=2)
    seen, acted = data.window_rows(np.arange(len(data)))["ours"]
    rows_of = {name: acted if name == "actions" else seen for name in data.domains["ours"].store.keys()}  # noqa: SIM118

    def read_key(name: str, rows: np.ndarray) -> torch.Tensor:
        values = group[f"data/{name}"][rows[0] : rows[-1] + 1]
        # what an edge repeats is read once
        whole = values if len(values) == len(rows) else values[rows - rows[0]]
        return torch.from_numpy(np.ascontiguousarray(whole))

    def read(batch: np.ndarray) -> None:
        samples = [{name: read_key(name, rows[window]) for name, rows in rows_of.items()} for window in batch]
        torch.utils.data.default_collate(samples)

    return read
