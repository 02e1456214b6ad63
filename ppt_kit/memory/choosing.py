"""Which stage to take, with which batch, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppt_kit.memory.activations import Activations
from ppt_kit.memory.ledger import Sizes, saving
from ppt_kit.memory.plan import GB, MemoryPlan, Room, Row, speed
from ppt_kit.schema import Config


def planned(
    cfg: Config, rows: Sequence[Row], sizes: Sizes, known: Mapping[str, Activations], *, room: Room
) -> MemoryPlan:
    """The plan of these rows."""
    best = choose(rows, cfg)
    choice: dict[str, Any] = {}
    if best is not None:
        size, steps = same_global_batch(cfg, largest=best.largest_batch)
        choice = {
            "deepspeed": best.deepspeed, "precision": best.setup.precision, "batch_size": size,
            "gradient_accumulation_steps": steps,
        }  # fmt: skip
    said = [
        _why(cfg, rows, best, choice, room),
        _measured(cfg, known),
        *_on_the_host(sizes, rows[0]),
        _unknown(rows[0]),
    ]
    return MemoryPlan(rows, room, cfg.batch_size, choice, "\n".join(said), rows[0].setup.ranks)


def advice(cfg: Config, found: MemoryPlan) -> str:
    """What to set after memory ran out: the same stage with smaller batches, and the choice if that is another."""
    if not found.fits:
        return _why(cfg, found.rows, None, {}, found.room)
    mine = next((row for row in found.rows if row.deepspeed == cfg.deepspeed), None)
    ways = []
    if mine is not None and 0 < mine.largest_batch < cfg.batch_size:
        size, steps = same_global_batch(cfg, largest=mine.largest_batch)
        ways.append(f"batch_size={size} gradient_accumulation_steps={steps}")
    if found.choice["deepspeed"] != cfg.deepspeed:
        ways.append(" ".join(f"{name}={value}" for name, value in found.choice.items() if name != "precision"))
    if not ways:
        size, steps = same_global_batch(cfg, largest=max(1, cfg.batch_size // 2))
        return (
            f"By the plan it fits, so something else took the rest: end that, or set batch_size={size} "
            f"gradient_accumulation_steps={steps}."
        )
    return f"By the plan this fits, with the same global batch: {', or '.join(ways)}."


def choose(rows: Sequence[Row], cfg: Config) -> Row | None:
    """The quickest row of the configuration's precision that its batch fits in; else the one with the largest batch.

    Of another precision where none of this one takes a batch at all; None where nothing does.
    """
    order = sorted(rows, key=lambda row: speed(row.deepspeed))
    mine = [row for row in order if row.setup.precision == cfg.precision]
    whole = [row for row in mine if row.largest_batch >= cfg.batch_size]
    if whole:
        return whole[0]
    for some in (mine, order):
        possible = [row for row in some if row.largest_batch]
        if possible:
            # a batch that is a fifth larger is not worth a slower stage
            best = min(cfg.batch_size, max(row.largest_batch for row in possible))
            return next(row for row in possible if row.largest_batch >= 0.8 * best)
    return None


def same_global_batch(cfg: Config, *, largest: int) -> tuple[int, int]:
    """(batch_size, gradient_accumulation_steps) of the same global batch, in micro batches that fit."""
    total = cfg.batch_size * cfg.gradient_accumulation_steps
    size = next(size for size in range(min(largest, cfg.batch_size), 0, -1) if total % size == 0)
    return size, total // size


def _why(cfg: Config, rows: Sequence[Row], best: Row | None, choice: Mapping[str, Any], room: Room) -> str:
    have = f"{room.bytes / GB:.1f} GB ({room.said})"
    if best is None:
        least = min(rows, key=lambda row: row.total)
        return (
            f"Nothing fits: {least.deepspeed} with {least.setup.precision} takes least, {least.total / GB:.1f} GB with "
            f"batch_size={cfg.batch_size}, of {have}. Take more GPUs (num_gpus), larger ones, or a smaller policy."
        )
    words = " ".join(f"{name}={value}" for name, value in choice.items())
    quicker = [
        row.deepspeed for row in rows
        if row.setup.precision == best.setup.precision and speed(row.deepspeed) < speed(best.deepspeed)
    ]  # fmt: skip
    if choice["batch_size"] == cfg.batch_size:
        why = f"batch_size={cfg.batch_size} fits with it"
        why += f" and not with {', '.join(quicker)}, which are quicker" if quicker else ", and no stage is quicker"
    else:
        why = f"batch_size={cfg.batch_size} fits with no stage; this has the same global batch in smaller parts"
    other = (
        f", and with precision={cfg.precision} not even one window fits"
        if best.setup.precision != cfg.precision
        else ""
    )
    return f"Choose {words}: {why}{other}. Each rank has {have}, of which {room.usable / GB:.1f} GB are for the run."


def _measured(cfg: Config, known: Mapping[str, Activations]) -> str:
    seen = known.get("bf16" if cfg.precision == "fp16" else cfg.precision) or next(iter(known.values()))
    sizes = " and ".join(str(size) for size in sorted(seen.measured))
    return (
        f"Activations are measured here ({seen.device}) on {sizes} windows: "
        f"{seen.per_window / 1e6:.2f} MB each, and {seen.fixed / 1e6:.1f} MB whatever the batch."
    )


def _on_the_host(sizes: Sizes, row: Row) -> list[str]:
    if not row.setup.on_gpu:
        return []
    return [
        f"In host memory rank 0 takes {saving(sizes, row.setup) / GB:.2f} GB to save, beside about 1 GB of a process; "
        "pages of the dataset are the system's, which takes them back."
    ]


def _unknown(row: Row) -> str:
    if row.setup.on_gpu:
        return (
            "Not counted: gaps between tensors, NCCL's buffers and cuDNN's workspace, for which a tenth is left free."
        )
    return "Not counted: gaps between tensors, for which a tenth is left free; pages of the dataset, which ranks share."
