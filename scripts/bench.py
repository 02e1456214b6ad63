"""Speed and memory, measured side by side in one run: python scripts/bench.py engine|loader|bigstore [key=value …]; ratios are what to read."""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli
import numpy as np
import torch
from omegaconf import DictConfig

from ppt_kit.config import load_config, typed
from ppt_kit.schema import key


@dataclass
class EngineBench:
    """Our engine against a bare torch (or DDP) loop of the same policy."""

    ranks: int = key(1, "processes", low=1)
    stages: list[int] = key([0, 1, 2], "ZeRO stages")
    batch_size: int = key(16, "windows per process", low=1)
    num_points: int = key(512, "points of a cloud", low=1)
    block: int = key(4, "steps measured at a time, ours and the bare loop's in turn", low=1)
    rounds: int = key(10, "such pairs", low=2)


@dataclass
class LoaderBench:
    """Our gathered batches against a bare numpy gather, and against a reader of single samples."""

    kind: str = key("all", "what is read", choices=("all", "pointcloud", "depth", "rgb"))
    episodes: int = key(50, "episodes of the generated store", low=1)
    length: int = key(100, "steps of an episode", low=1)
    batch_size: int = key(128, "windows", low=1)
    rounds: int = key(20, "batches of each way, in turn", low=2)
    sample_rounds: int = key(2, "batches of the sample-by-sample reader", low=1)


@dataclass
class BigStoreBench:
    """A store far larger than the memory a process may have: time to the first batch, and memory while it trains."""

    gigabytes: float = key(10.0, "size of the generated store (GB)", low=0.1)
    limit_gb: float = key(2.0, "address space of the process that trains (GB)", low=1)
    steps: int = key(300, "optimizer steps", low=10)
    batch_size: int = key(32, "windows", low=1)
    folder: str | None = key(None, "where the store goes, kept for the next time; null = a temporary folder")


def engine(cfg: DictConfig) -> int:
    if cfg.ranks > 1 and "RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={cfg.ranks}", *sys.argv]
        return subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": str(max(1, _cores() // cfg.ranks))}
        ).returncode
    from ppt_kit.engine import Engine, join_world
    from ppt_kit.models.policy import build_policy

    rank = int(os.environ.get("RANK", 0))
    world = join_world(rank=rank, local_rank=rank, world_size=cfg.ranks)
    train = load_config("", f"batch_size={cfg.batch_size}", f"dataset.num_points={cfg.num_points}")
    shapes = {"a": {"state": 4, "action": 4}}
    batch = _batch(cfg, rank, device=world.device)

    bare_policy = build_policy(train, shapes).to(world.device)
    if world.is_first:
        print(
            f"policy {sum(p.numel() for p in bare_policy.parameters()) / 1e6:.2f}M parameters, batch {cfg.batch_size} x {cfg.ranks}, {world.device}"
        )
        print(f"{'way':<22}{'bare ms':>9}{'ours ms':>9}{'ratio':>8}{'ratios min-max':>18}{'state MB':>10}")
    bare = _bare_loop(bare_policy, train, batch, distributed=cfg.ranks > 1)
    for stage in cfg.stages:
        settings = load_config(
            "", f"batch_size={cfg.batch_size}", f"deepspeed=zero{stage}", f"dataset.num_points={cfg.num_points}"
        )
        ours = Engine(build_policy(settings, shapes), typed(settings), world)
        pairs = _in_turn(
            lambda: bare(batch),
            lambda ours=ours: ours.train_step([batch], learning_rate=1e-4),
            block=cfg.block,
            rounds=cfg.rounds,
        )
        if world.is_first:
            _print_pairs(f"zero{stage}, {cfg.ranks} rank(s)", pairs, extra=f"{ours.optimizer_bytes() / 1e6:>10.1f}")
    return 0


def loader(cfg: DictConfig) -> int:
    print(
        f"{'kind':<12}{'windows/s':>10}{'of a bare gather':>18}{'x sample reader':>17}{'2 ranks: ours':>15}{'bare':>7}"
    )
    for kind in ("pointcloud", "depth", "rgb") if cfg.kind == "all" else (cfg.kind,):
        _loader_of(cfg, kind)
    print("of a bare gather: our rate over that of numpy's indexing into memory maps, the same rows of the same files.")
    print("x sample reader: our rate over that of a per-sample zarr reader, 1 frame a compressed chunk.")
    print("2 ranks: the rate of each of two processes that read at once, over the rate of one alone.")
    return 0


def _loader_of(cfg: DictConfig, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _write_bench_store(Path(folder), cfg, kind)
        data, batches = _bench_batches(folder, kind, cfg.batch_size)
        bare, plain = _bare_gather(data), _sample_reader(Path(folder) / "chunked.zarr", data)
        for batch in batches:  # the page cache is warm for everybody
            bare(batch)
        turns = iter(range(10**9))
        pick = lambda: batches[next(turns) % len(batches)]
        gathered = _in_turn(lambda: bare(pick()), lambda: data.__getitems__(pick()), block=1, rounds=cfg.rounds)
        sampled = _in_turn(lambda: plain(pick()), lambda: data.__getitems__(pick()), block=1, rounds=cfg.sample_rounds)
        alone = {way: _rates(folder, kind, cfg, way, ranks=1) for way in ("ours", "bare")}
        both = {way: _rates(folder, kind, cfg, way, ranks=2) for way in ("ours", "bare")}
    windows = cfg.batch_size / statistics.median(ours for _, ours in gathered)
    share = {way: both[way] / alone[way] for way in alone}
    print(
        f"{kind:<12}{windows:>10.0f}{1 / _ratio(gathered):>18.2f}{1 / _ratio(sampled):>17.0f}{share['ours']:>15.2f}{share['bare']:>7.2f}",
        flush=True,
    )


def _bench_batches(folder: str, kind: str, batch_size: int) -> tuple[Any, list[np.ndarray]]:
    from ppt_kit.data.dataset import MultiTrajDataset
    from ppt_kit.data.loader import epoch_order

    data = MultiTrajDataset(
        folder, "ours", observation_horizon=2, action_horizon=16, modalities=["state", kind], point_channels=3
    )
    order = epoch_order(len(data), seed=0, epoch=0)
    return data, [order[start : start + batch_size] for start in range(0, len(order) - batch_size, batch_size)]


def _rates(folder: str, kind: str, cfg: DictConfig, way: str, *, ranks: int) -> float:
    """Batches a second of each of `ranks` processes that read at once, the slowest."""
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(ranks), context.Queue()
    arguments = (folder, kind, cfg.batch_size, way, gate, results)
    readers = [context.Process(target=_read_for_a_while, args=arguments) for _ in range(ranks)]
    for reader in readers:
        reader.start()
    rates = [results.get() for _ in readers]
    for reader in readers:
        reader.join()
    return min(rates)


def _read_for_a_while(folder: str, kind: str, batch_size: int, way: str, gate: Any, results: Any) -> None:
    data, batches = _bench_batches(folder, kind, batch_size)
    read = _bare_gather(data) if way == "bare" else data.__getitems__
    for batch in batches:
        read(batch)
    gate.wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 1.5:
        read(batches[count % len(batches)])
        count += 1
    results.put(count / (time.perf_counter() - began))


def bigstore(cfg: DictConfig) -> int:
    """Writes the store here, then measures in a process of its own whose address space is limited."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(cfg.folder or temporary)
        if not (folder / "big.zarr").exists():
            _write_big_store(folder, cfg.gigabytes)
        size = sum(file.stat().st_size for file in (folder / "big.zarr").rglob("*") if file.is_file())
        print(
            f"store of {size / 1e9:.1f} GB; {cfg.limit_gb:g} GB of address space (RLIMIT_AS) for the process that reads and trains"
        )
        context = multiprocessing.get_context("spawn")
        reader = context.Process(
            target=_train_on_big_store, args=(str(folder), temporary, cfg.limit_gb, cfg.steps, cfg.batch_size)
        )
        reader.start()
        reader.join()
    return reader.exitcode or 0


def _write_big_store(folder: Path, gigabytes: float) -> None:
    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    steps, rng = 200, np.random.default_rng(0)
    clouds = rng.random((steps, 1024, 3), dtype=np.float32)
    images = rng.integers(0, 256, (steps, 128, 128, 3), dtype=np.uint8)
    count = int(gigabytes * 1e9 / (clouds.nbytes + images.nbytes))
    with ZarrWriter(folder / "big.zarr") as writer:
        for _ in range(count):
            low = {
                "actions": rng.normal(size=(steps, 4)).astype(np.float32),
                "obs/eef_pos": rng.normal(size=(steps, 3)).astype(np.float32),
                "obs/normalized_gripper_pos": rng.random((steps, 1), dtype=np.float32),
            }
            writer.append({**low, "obs/pointcloud/pos": clouds, "obs/images/front": images})


def _train_on_big_store(folder: str, output_dir: str, limit_gb: float, steps: int, batch_size: int) -> None:
    import resource

    import psutil

    from ppt_kit.data.dataset import MultiTrajDataset
    from ppt_kit.train.trainer import UnifiedTrainer

    resource.setrlimit(resource.RLIMIT_AS, (int(limit_gb * 1e9), int(limit_gb * 1e9)))
    rng, process = np.random.default_rng(1), psutil.Process()
    began = time.perf_counter()
    data = MultiTrajDataset(folder, "big", observation_horizon=2, action_horizon=16)
    data.__getitems__(rng.integers(0, len(data), batch_size))
    print(f"first batch of {batch_size} windows, all modalities: {time.perf_counter() - began:.2f} s after opening")
    before = process.memory_info().rss
    for _ in range(100):
        data.__getitems__(rng.integers(0, len(data), batch_size))
    print(
        f"resident memory after 1 and after 101 batches: {before / 1e6:.0f} and {process.memory_info().rss / 1e6:.0f} MB"
    )
    cfg = load_config(
        "quickstart", f"dataset_path={folder}", "domains=big", f"output_dir={output_dir}", "suffix=bench", f"train.total_iters={steps}",
        f"batch_size={batch_size}", "train.total_epochs=999", "train.val_interval=0", "wandb.mode=disabled", "policy.width=64", "policy.depth=1",
        "dataset.num_points=256", f"log_interval={steps // 10}",
    )  # fmt: skip
    run = UnifiedTrainer(cfg)
    held: list[float] = []
    run.listeners.append(lambda row: held.append(process.memory_info().rss / 1e6))
    code = run.run()
    print(
        f"trained {steps} steps, exit code {code}; resident memory at ten places (MB): {', '.join(f'{value:.0f}' for value in held[:10])}"
    )


def _bare_loop(policy: torch.nn.Module, train: DictConfig, batch: dict, *, distributed: bool) -> Callable[[dict], None]:
    model = torch.nn.parallel.DistributedDataParallel(policy) if distributed else policy
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)

    def step(batch: dict) -> None:
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), train.gradient_clipping)
        optimizer.step()

    return step


def _batch(cfg: DictConfig, rank: int, *, device: torch.device) -> dict:
    g, size = torch.Generator().manual_seed(rank), cfg.batch_size
    batch = {
        "obs": {"state": torch.randn(size, 2, 4, generator=g), "pointcloud": torch.rand(size, 2, cfg.num_points, 3, generator=g)},
        "action": torch.randn(size, 8, 4, generator=g), "action_is_pad": torch.zeros(size, 8, dtype=torch.bool),
        "domain": torch.zeros(size, dtype=torch.long),
    }  # fmt: skip
    from ppt_kit.data.loader import to_device

    return to_device(batch, device)


def _in_turn(one: Callable, two: Callable, *, block: int, rounds: int) -> list[tuple[float, float]]:
    """[(seconds a call of `one`, of `two`)], measured in turn, so that a machine that slows down slows both."""
    one(), two()
    pairs = []
    for _ in range(rounds):
        times = []
        for way in (one, two):
            began = time.perf_counter()
            for _ in range(block):
                way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append((time.perf_counter() - began) / block)
        pairs.append((times[0], times[1]))
    return pairs


def _ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(ours / bare for bare, ours in pairs)


def _print_pairs(name: str, pairs: list[tuple[float, float]], *, extra: str) -> None:
    bare, ours = (statistics.median(times) * 1e3 for times in zip(*pairs))
    ratios = sorted(ours / bare for bare, ours in pairs)
    print(
        f"{name:<22}{bare:>9.1f}{ours:>9.1f}{_ratio(pairs):>8.3f}{f'{ratios[0]:.2f}-{ratios[-1]:.2f}':>18}{extra}",
        flush=True,
    )


def _write_bench_store(folder: Path, cfg: DictConfig, kind: str) -> None:
    """The same episodes three times: as we write them, as the ancestor did (a compressed chunk a frame), and a file a key."""
    import zarr

    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter

    rng = np.random.default_rng(0)

    def episode() -> dict[str, np.ndarray]:
        steps = cfg.length
        arrays: dict[str, np.ndarray] = {
            "actions": rng.normal(size=(steps, 7)).astype(np.float32),
            "obs/eef_pos": rng.normal(size=(steps, 3)).astype(np.float32),
            "obs/normalized_gripper_pos": rng.random((steps, 1), dtype=np.float32),
        }
        if kind == "pointcloud":
            arrays["obs/pointcloud/pos"] = rng.random((steps, 512, 3), dtype=np.float32)
        elif kind == "depth":
            arrays["obs/depths/front"] = rng.random((steps, 128, 128, 1), dtype=np.float32)
        else:
            for camera in ("front", "wrist"):
                arrays[f"obs/images/{camera}"] = rng.integers(0, 256, (steps, 128, 128, 3), dtype=np.uint8)
        return arrays

    with ZarrWriter(folder / "ours.zarr") as writer:
        for _ in range(cfg.episodes):
            writer.append(episode())
    source: Any = zarr.open_group(str(folder / "ours.zarr"), mode="r")
    target: Any = zarr.open_group(str(folder / "chunked.zarr"), mode="w", zarr_format=2)
    from ppt_kit.data.formats import open_store

    for name in open_store(folder / "ours.zarr").keys():  # noqa: SIM118
        values = source[f"data/{name}"]
        (folder / "bare").mkdir(exist_ok=True)
        np.save(folder / "bare" / f"{name.replace('/', '.')}.npy", values[:])
        target.create_array(f"data/{name}", shape=values.shape, chunks=(1, *values.shape[1:]), dtype=values.dtype)[
            :
        ] = values[:]


def _bare_gather(data) -> Callable[[np.ndarray], dict]:
    """The least a loader can do: numpy indexes one memory-mapped file a key, and nothing else."""
    windows, folder = data._windows["ours"], data.stores["ours"].path.parent / "bare"
    maps = {file.stem: np.load(file, mmap_mode="r").view(np.ndarray) for file in folder.glob("*.npy")}

    def gather(batch: np.ndarray) -> dict:
        step, first, last = windows.steps[batch], windows.first[batch], windows.last[batch]
        seen = np.maximum(step[:, None] + np.arange(-1, 1), first[:, None])
        acted = np.minimum(step[:, None] + np.arange(16), last[:, None])
        return {name: values[acted if name == "actions" else seen] for name, values in maps.items()}

    return gather


def _sample_reader(path: Path, data) -> Callable[[np.ndarray], None]:
    """A reader of the ancestor's kind: per sample, per key, a slice of a chunked zarr behind a cache of compressed chunks, then collate."""
    import zarr
    from zarr.experimental.cache_store import CacheStore
    from zarr.storage import LocalStore, MemoryStore

    group: Any = zarr.open_group(CacheStore(LocalStore(str(path)), cache_store=MemoryStore()), mode="r", zarr_format=2)
    keys = [name for name in data.stores["ours"].keys() if name != "actions"]  # noqa: SIM118
    windows = data._windows["ours"]

    def read(batch: np.ndarray) -> None:
        samples = []
        for window in batch:
            step, first, last = windows.steps[window], windows.first[window], windows.last[window]
            rows = [max(first, step - 1), step]
            sample = {name: group[f"data/{name}"][rows[0] : rows[1] + 1] for name in keys}
            sample = {name: value if len(value) == 2 else np.repeat(value, 2, 0) for name, value in sample.items()}
            chunk = group["data/actions"][step : min(step + 16, last + 1)]
            sample["actions"] = np.concatenate([chunk, np.repeat(chunk[-1:], 16 - len(chunk), 0)])
            samples.append({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in sample.items()})
        torch.utils.data.default_collate(samples)

    return read


def _cores() -> int:
    from ppt_kit.engine import num_cores

    return num_cores()


WAYS = {"engine": (engine, EngineBench), "loader": (loader, LoaderBench), "bigstore": (bigstore, BigStoreBench)}

if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word in WAYS]
    if len(words) != 1 and not {"--help", "-h"} & set(sys.argv):
        sys.exit(
            print(
                f"error: say what to measure: python scripts/bench.py {'|'.join(WAYS)} [key=value …]", file=sys.stderr
            )
            or 2
        )
    main, schema = WAYS[words[0] if words else "engine"]
    cli.run(main, schema=schema, about=__doc__ or "", ignore=tuple(words))
