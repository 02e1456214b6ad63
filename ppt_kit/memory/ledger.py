"""What a rank holds while it trains, by what DeepSpeed 0.19 allocates: bytes of each part at the fullest moment.

The terms are those of its sources (runtime/engine.py, runtime/zero/stage_1_and_2.py and stage3.py), and were compared
with what torch's allocator counted at every stage. tests/test_plan.py compares them with what processes really take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ppt_kit.engine.settings import HALF

# bytes of a number
WHOLE, HALVED = 4, 2
# numbers that stage 0 joins into one buffer for the reduction; it has no setting for it
JOINED = 500_000_000
# of all weights, what stage 3 leaves whole beside the shards in full precision
LEFT_WHOLE = 0.4
# of all, what the C library's heap holds beside what is in use: on a CPU processes held 0 to 16 % more
HEAP = 0.09


@dataclass(frozen=True)
class Sizes:
    """How many numbers a policy holds.

    Attributes:
        trained: of weights that are trained.
        frozen: of weights that are not, and of buffers.
        largest: of the largest trained tensor.
    """

    trained: int
    frozen: int
    largest: int

    @classmethod
    def of(cls, policy: nn.Module) -> Sizes:
        """Those of a policy that DeepSpeed does not have yet."""
        trained = [p.numel() for p in policy.parameters() if p.requires_grad]
        others = [p.numel() for p in policy.parameters() if not p.requires_grad] + [b.numel() for b in policy.buffers()]
        return cls(sum(trained), sum(others), max(trained, default=0))


@dataclass(frozen=True)
class Setup:
    """What of a configuration decides how much is held.

    Attributes:
        stage: ZeRO, 0 to 3.
        precision: fp32, autocast, bf16 or fp16.
        ranks: over all nodes.
        accumulates: gradients stay from one micro step to the next.
        averages: the run keeps averaged weights.
        on_gpu: AdamW is one kernel there; without one, a rank holds in the same memory what it offloads.
        zero: keys of `zero_optimization`, with DeepSpeed's defaults where a file leaves them out.
    """

    stage: int
    precision: str
    ranks: int
    accumulates: bool
    averages: bool
    on_gpu: bool
    zero: Mapping[str, Any]

    @property
    def each(self) -> int:
        """Bytes of a weight, and of a gradient."""
        return HALVED if self.precision in HALF else WHOLE

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's numbers lie in host memory."""
        return bool(self.zero["offload_optimizer"])

    @property
    def elsewhere(self) -> bool:
        """Whether that is another memory than the one planned for."""
        return self.offloads and self.on_gpu


def parts_of(sizes: Sizes, setup: Setup, activations: float) -> dict[str, float]:
    """Bytes of each part at the moment of a step when a rank holds most.

    Args:
        activations: of a micro batch.
    Returns:
        weights, optimizer (moments and full-precision copies), averaged, gradients, activations, work (buffers of the
        reduction, and copies that the optimizer makes).
    """
    fullest = max(_moments(sizes, setup, activations), key=lambda moment: sum(moment.values()))
    kept = _kept(sizes, setup)
    order = ("weights", "gradients", "optimizer", "averaged", "activations", "work")
    parts = {name: kept.get(name, 0.0) + fullest.get(name, 0.0) for name in order}
    if not setup.on_gpu:
        parts["work"] += HEAP * sum(parts.values())
    return parts


def most(sizes: Sizes, setup: Setup, activations: float) -> float:
    """Their sum."""
    return sum(parts_of(sizes, setup, activations).values())


def offloaded(sizes: Sizes, setup: Setup) -> float:
    """Bytes that a rank's optimizer takes in host memory, where it is offloaded: copies, gradients, two moments."""
    return (4 * WHOLE + setup.each) * sizes.trained / setup.ranks if setup.offloads else 0.0


def saving(sizes: Sizes, setup: Setup) -> float:
    """Bytes of host memory that rank 0 fills to save: whole weights, averages and moments in full precision."""
    return WHOLE * (sizes.frozen + sizes.trained * (3 + setup.averages))


def _kept(sizes: Sizes, setup: Setup) -> dict[str, float]:
    """What stays from step to step."""
    trained, share = sizes.trained, sizes.trained / setup.ranks
    cut = setup.stage == 3
    kept = {
        "weights": setup.each * (sizes.trained + sizes.frozen) / (setup.ranks if cut else 1),
        "averaged": WHOLE * (share if cut else trained) * setup.averages,
    }
    if setup.stage == 0:
        return {**kept, "optimizer": 2 * WHOLE * trained}
    if setup.zero.get("offload_param") and setup.on_gpu:
        kept["weights"] = 0.0
    if setup.offloads:
        return {**kept, "optimizer": 0.0 if setup.elsewhere else offloaded(sizes, setup)}
    # 1 and 2 always keep a flat copy in full precision; 3 trains the weights themselves where they are that
    copies = 0 if cut and setup.each == WHOLE else 1
    if cut:
        kept["gradients"] = setup.each * share
    if cut and not copies:
        # measured, with one rank and with two: a second flat shard stays, and a part of the weights as they were
        kept |= {"gradients": 2 * setup.each * share, "work": LEFT_WHOLE * setup.each * trained}
    return {**kept, "optimizer": (2 + copies) * WHOLE * share}


def _moments(sizes: Sizes, setup: Setup, activations: float) -> Iterator[dict[str, float]]:
    """What comes and goes: at the end of the forward pass, at the reduction, and as the optimizer steps."""
    trained, cut = sizes.trained, setup.stage >= 2
    # offloaded, they leave the GPU as they come: in the buckets
    leave = setup.stage == 3 or (cut and setup.elsewhere)
    gradients = 0.0 if leave else setup.each * trained / (setup.ranks if cut else 1)
    forward = {"activations": activations, "gradients": gradients if setup.accumulates else 0.0}
    back = {"gradients": gradients}
    copies = _copies(sizes, setup)
    if setup.stage == 3 and setup.ranks > 1:
        gathered = setup.each * min(trained, setup.zero["max_live_parameters"])
        # measured on CPUs: what they are gathered from is copied once more, in full precision
        gathered += 0.0 if setup.on_gpu else WHOLE * trained / setup.ranks
        forward["weights"] = back["weights"] = gathered
    if setup.on_gpu and setup.averages and setup.each < WHOLE:
        # the averages are fed with full-precision copies
        yield {"work": WHOLE * trained / (setup.ranks if setup.stage == 3 else 1)}
    if setup.on_gpu:
        yield from (forward, {**back, "work": copies[0]}, {"work": copies[1]})
        return
    # the C library keeps what freed blocks leave and fills little of it with blocks of another size: they add up
    yield {**forward, **back, "work": max(copies)}


def _copies(sizes: Sizes, setup: Setup) -> tuple[float, float]:
    """Bytes beside the gradients as they are reduced and joined; and as the optimizer steps, when they are gone."""
    each, trained, own = setup.each, sizes.trained, WHOLE * sizes.trained / setup.ranks
    if setup.stage == 0:
        # each tensor steps by itself, and AdamW by single operations has two copies of it; the gradients stay
        step = 0.0 if setup.on_gpu else 2 * WHOLE * sizes.largest
        return each * min(JOINED, trained), each * trained * setup.on_gpu + step
    bucket = _bucket(sizes, setup)
    if setup.elsewhere:
        return bucket, bucket
    joined = own + (each * trained / setup.ranks if each < WHOLE else 0.0)
    if setup.offloads:
        # its gradients are there already
        return bucket, bucket + 2 * own
    return bucket + joined, bucket + own + (0.0 if setup.on_gpu else 2 * own)


def _bucket(sizes: Sizes, setup: Setup) -> float:
    """Bytes of the buffers in which gradients are reduced."""
    size = setup.zero["reduce_bucket_size"]
    if setup.zero.get("contiguous_gradients") or setup.offloads:
        # made whole, however small the policy is: 2 GB of a file that leaves reduce_bucket_size to DeepSpeed
        return setup.each * size * (2 if setup.zero.get("overlap_comm") else 1)
    return 2 * setup.each * min(size, sizes.trained)
