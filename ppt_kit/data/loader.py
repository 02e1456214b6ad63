"""Which windows an optimizer step sees, on which rank, and the batches themselves, fetched ahead.

Everything is a function of (seed, step): the order of a pass, the share of a rank, the noise of a sample. So one
process with a batch of 2B, two with B, and a run resumed in the middle of an epoch see the same data.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.randomness import sample_seeds


@dataclass(frozen=True)
class BatchPlan:
    """Who sees what, when.

    A pass over the windows takes ceil(N / global batch) steps; the last one is filled up with windows of weight 0, so
    that every window counts exactly once a pass, whatever the number of ranks.
    """

    num_windows: int
    batch_size: int
    world_size: int = 1
    accumulation: int = 1
    seed: int = 0
    # (windows, weight) of each domain; empty = every window once a pass
    mixture: tuple[tuple[int, float], ...] = ()
    # (step, pass, window in it) where a run resumed with another global batch
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def global_batch(self) -> int:
        """Windows an optimizer step sees, over all ranks."""
        return self.batch_size * self.world_size * self.accumulation

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps until each window was seen once."""
        return -(-self.num_windows // self.global_batch)

    def locate(self, step: int) -> tuple[int, int]:
        """(pass, place in its order) of the first window of an optimizer step."""
        first_step, first_pass, offset = self.origin
        since, rest = step - first_step, -(-(self.num_windows - offset) // self.global_batch)
        if since < rest:
            return first_pass, offset + since * self.global_batch
        passes, inside = divmod(since - rest, self.steps_per_pass)
        return first_pass + 1 + passes, inside * self.global_batch

    def steps_until(self, passes: int) -> int:
        """Optimizer steps of a run that makes so many passes."""
        first_step, first_pass, offset = self.origin
        rest = -(-(self.num_windows - offset) // self.global_batch)
        return (
            first_step + rest + (passes - first_pass - 1) * self.steps_per_pass if passes > first_pass else first_step
        )

    def order(self, number: int) -> np.ndarray:
        """(N,) the windows of pass `number` in the order they are seen."""
        if self.mixture:
            return mixed_order(self.mixture, num_windows=self.num_windows, seed=self.seed, epoch=number)
        return epoch_order(self.num_windows, seed=self.seed, epoch=number)

    def step_windows(self, step: int) -> np.ndarray:
        """The windows of an optimizer step, over all ranks."""
        number, start = self.locate(step)
        return self.order(number)[start : start + self.global_batch]

    def micro_batch(self, step: int, *, rank: int, micro: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) windows and (B,) float32 weights of one rank's micro batch.

        Args:
            step: optimizer step, from 0.
            order: of the pass that the step belongs to.
        """
        _, start = self.locate(step)
        slots = np.arange(self.batch_size) * self.world_size + rank + micro * self.batch_size * self.world_size
        real = min(self.global_batch, self.num_windows - start)
        inside = slots < real
        windows = order[np.where(inside, start + slots, 0)]
        return windows, np.where(inside, self.global_batch / real, 0.0).astype(np.float32)


def epoch_order(num_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """(N,) int64 permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


def mixed_order(mixture: Sequence[tuple[int, float]], *, num_windows: int, seed: int, epoch: int) -> np.ndarray:
    """(N,) int64: a pass in which each domain has its exact share, a function of (seed, epoch) alone.

    A domain goes through its own windows in one shuffled round after the other, from pass to pass, so that none is seen
    again before all were seen.

    Args:
        mixture: (windows, weight) of each domain, in the dataset's order.
        num_windows: N, the length of a pass.
    """
    shares = _exact_shares([weight for _, weight in mixture], num_windows)
    parts, first_window = [], 0
    for domain, ((size, _), share) in enumerate(zip(mixture, shares)):
        start = epoch * share
        rounds = range(start // size, (start + share - 1) // size + 1) if share else range(0)
        stream = [np.random.default_rng([seed, domain, number]).permutation(size) for number in rounds]
        if stream:
            begin = start - rounds[0] * size
            parts.append(first_window + np.concatenate(stream)[begin : begin + share])
        first_window += size
    return np.random.default_rng([seed, epoch]).permutation(np.concatenate(parts))


def _exact_shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the ratio of `weights` that add up to `total`: largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares.tolist()


def epoch_indices(dataset: MultiTrajDataset, *, rank: int, world_size: int, seed: int = 0, epoch: int = 0) -> list[int]:
    """The windows one rank sees in a pass: the ranks' lists partition the dataset."""
    return epoch_order(len(dataset), seed=seed, epoch=epoch)[rank::world_size].tolist()


class Loader:
    """Batches of the steps `first_step` to `last_step` for one rank, fetched ahead by threads while a step computes.

    Iterating gives (step, [micro batches]); a micro batch is the contract's batch plus "weight" (B,) float32,
    "noise_seed" (B,) int64 and, of several domains, "rows": each one's (n,) int64 rows, in host memory. One thread
    reads plain bytes faster than any step computes; where rows have to be decoded there are up to four.

    Attributes:
        last_step: may be set to another one while a step computes, until after the last.
    """

    def __init__(
        self,
        dataset: MultiTrajDataset,
        plan: BatchPlan,
        *,
        rank: int,
        first_step: int,
        last_step: int,
        pin: bool,
        ahead: int = 2,
    ):
        self.dataset, self.plan, self.rank, self.pin = dataset, plan, rank, pin
        self.first_step, self.last_step = first_step, last_step
        self._threads = min(4, os.cpu_count() or 1) if dataset.has_to_decode() else 1
        self._ahead = max(ahead, self._threads)
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, list[dict]]]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="ppt_kit-loader")
        coming = deque[Future]()
        try:
            for step in count(self.first_step):
                if step >= self.last_step:
                    return
                self._ask_ahead(pool, coming, step)
                batches = coming.popleft().result()
                self._ask_ahead(pool, coming, step + 1)
                yield step, batches
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask_ahead(self, pool: ThreadPoolExecutor, coming: deque[Future], step: int) -> None:
        """Has the batches from `step` on fetched that are not yet among the `coming`, which begin with it."""
        for following in range(step + len(coming), min(step + self._ahead, self.last_step)):
            coming.append(pool.submit(self._fetch, following))

    def _fetch(self, step: int) -> list[dict]:
        number = self.plan.locate(step)[0]
        with self._lock:
            if number not in self._orders:
                self._orders = {kept: order for kept, order in self._orders.items() if kept >= number - 1}
                self._orders[number] = self.plan.order(number)
            order = self._orders[number]
        return self.batches(step, order)

    def batches(self, step: int, order: np.ndarray) -> list[dict]:
        """The micro batches of one step."""
        return [self._micro_batch(step, micro, order) for micro in range(self.plan.accumulation)]

    def _micro_batch(self, step: int, micro: int, order: np.ndarray) -> dict:
        windows, weights = self.plan.micro_batch(step, rank=self.rank, micro=micro, order=order)
        batch = self.dataset.__getitems__(windows)
        batch["weight"] = torch.from_numpy(weights)
        batch["noise_seed"] = torch.from_numpy(sample_seeds(self.plan.seed, step, windows))
        batch = pin_memory(batch) if self.pin else batch
        if len(self.dataset.domains) > 1:
            # a list, which stays in host memory: reading "domain" on a GPU would wait for it
            batch["rows"] = [pin_memory(rows) if self.pin else rows for rows in self._rows(batch["domain"])]
        return batch

    def _rows(self, domain: torch.Tensor) -> list[torch.Tensor]:
        """(n,) int64 rows of each domain."""
        return [(domain == number).nonzero().squeeze(1) for number in range(len(self.dataset.domains))]


def pin_memory(tree: Any) -> Any:
    """The batch in page-locked memory, so that its copy to a GPU does not block."""
    if isinstance(tree, dict):
        return {name: pin_memory(value) for name, value in tree.items()}
    return tree.pin_memory() if isinstance(tree, torch.Tensor) else tree


def to_device(tree: Any, device: torch.device) -> Any:
    """The batch on `device`; tensors only, sentences stay."""
    if isinstance(tree, dict):
        return {name: to_device(value, device) for name, value in tree.items()}
    return tree.to(device, non_blocking=True) if isinstance(tree, torch.Tensor) else tree
