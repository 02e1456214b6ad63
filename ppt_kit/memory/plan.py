"""What a plan says: a row for each stage and precision, the largest batch of each, which to take and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppt_kit.memory.activations import Activations
from ppt_kit.memory.ledger import Setup, Sizes, most, parts_of, saving
from ppt_kit.tables import Table, shown

GB = 1e9
# files of ds_configs/, the quickest first: a step of 5 million parameters took 1.1, 1.3, 1.4 and 2.3 times plain DDP's
FILES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload")
# larger batches than that are not looked for
LARGEST_BATCH = 1 << 20


@dataclass(frozen=True)
class Room:
    """What there is for one rank.

    Attributes:
        bytes: of the device, or of the host divided among its ranks where there is no GPU.
        taken: by the process before it has a policy: CUDA's context, or Python and its libraries on a CPU.
        spare: share that is left free: gaps of the allocator, buffers of NCCL.
        said: where these numbers come from.
    """

    bytes: float
    taken: float
    spare: float
    said: str

    @property
    def usable(self) -> float:
        """For what the plan counts."""
        return max(0.0, self.bytes * (1 - self.spare) - self.taken)


@dataclass(frozen=True)
class Row:
    """One way to train: a file of DeepSpeed's and a precision.

    Attributes:
        setup: what they mean.
        parts: bytes of each part of a rank, with the configuration's own batch, at the moment when most is held.
        largest_batch: windows of a micro batch that fit; 0 = none.
    """

    deepspeed: str
    setup: Setup
    parts: Mapping[str, float]
    largest_batch: int

    @property
    def total(self) -> float:
        """Bytes of a rank beside what the process takes by itself."""
        return sum(self.parts.values())


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """What a run takes. In a notebook it shows itself; `print(plan)` says the same.

    Attributes:
        table: a row for each file of ds_configs/ and precision: deepspeed, precision, GB (1e9 bytes) of a rank in
            weights, gradients, optimizer, averaged, activations and work (buffers and copies), on a CPU also in what
            rank 0 saves; their total, whether that fits, and the largest batch that does.
        choice: deepspeed, precision, batch_size and gradient_accumulation_steps to set; empty where nothing fits.
        said: what to choose and why, and what is not known, in words.
        num_gpus: ranks that were planned for.
    """

    rows: Sequence[Row]
    room: Room
    batch_size: int
    choice: Mapping[str, Any]
    said: str
    num_gpus: int

    @property
    def table(self) -> Table:
        """See above."""
        return Table([self._line(row) for row in self.rows])

    @property
    def words(self) -> list[str]:
        """The choice as words of a configuration."""
        return [f"{name}={value}" for name, value in self.choice.items()]

    @property
    def fits(self) -> bool:
        """Whether anything does."""
        return bool(self.choice)

    def row(self, deepspeed: str, precision: str) -> Row:
        """One row.

        Raises:
            KeyError: it was not planned.
        """
        for row in self.rows:
            if (row.deepspeed, row.setup.precision) == (deepspeed, precision):
                return row
        raise KeyError(f"{deepspeed} with {precision}: not in this plan")

    def __repr__(self) -> str:
        table = self.table.to_string(index=False, float_format=lambda value: f"{value:.3g}")
        return f"{table}\n{self.said}"

    def _repr_html_(self) -> str:
        return shown(self.table, above=self.said.splitlines())

    def _line(self, row: Row) -> dict[str, Any]:
        amounts = {f"{name}_gb": round(count / GB, 6) for name, count in row.parts.items()}
        return {
            "deepspeed": row.deepspeed, "precision": row.setup.precision, **amounts,
            "total_gb": round(row.total / GB, 6), "fits": row.largest_batch >= self.batch_size,
            "largest_batch": row.largest_batch,
        }  # fmt: skip


def row_of(deepspeed: str, setup: Setup, sizes: Sizes, activations: Activations, *, room: Room, batch_size: int) -> Row:
    """The row of one way to train."""
    parts = parts_of(sizes, setup, activations.of(batch_size))
    usable = room.usable
    if not setup.on_gpu:
        # a thread writes them while the run trains on
        parts["saving"] = saving(sizes, setup)
        usable -= parts["saving"]
    return Row(deepspeed, setup, parts, largest_batch(sizes, setup, activations, usable=usable))


def largest_batch(sizes: Sizes, setup: Setup, activations: Activations, *, usable: float) -> int:
    """Windows of the largest micro batch that fits; 0 = not even one."""

    def fits(count: int) -> bool:
        return most(sizes, setup, activations.of(count)) <= usable

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= LARGEST_BATCH and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def speed(deepspeed: str) -> int:
    """Smaller = quicker; a file of the user's own is asked first."""
    return FILES.index(deepspeed) if deepspeed in FILES else -1
