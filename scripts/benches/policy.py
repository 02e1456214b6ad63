"""Every head and every stem, side by side: training, acting, parameters, floating-point operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from ppt_kit.config import PACKAGE_CONFIGS, load_config, typed
from ppt_kit.errors import UserError
from ppt_kit.keys import key
from ppt_kit.schema import Config
from ppt_kit.spec import Spec


@dataclass
class PolicyBench:
    """Every head and every stem, side by side, in the quickstart policy."""

    heads: str = key("all", "of policy/head=…: all, none, or names with commas")
    stems: str = key("all", "of policy.stems.*.kind: all, none, or names with commas")
    batch_size: int = key(32, "windows of a training step", low=1)
    rounds: int = key(10, "times that each way is measured, all ways in turn", low=2)
    threads: int = key(1, "of torch", low=1)


# one way of building the policy, and what is measured of it
Row = tuple[str, dict[str, Callable[[], Any]], torch.nn.Module]
# what a policy is told to have each stem; the first word is the row's name
STEM_WORDS = {
    "mlp": "policy.stems.state.kind=mlp",
    "points": "policy.stems.pointcloud.kind=points",
    "dp3": "policy.stems.pointcloud.kind=dp3",
    "patches": "policy.stems.pointcloud.kind=patches",
    "pointnext": "policy.stems.pointcloud.kind=pointnext",
    "cnn": "policy.stems.rgb.kind=cnn",
    "hpt_state": "policy.stems.state.kind=hpt_state",
    "hpt_cloud": "policy.stems.pointcloud.kind=hpt_cloud",
    "hpt_pointnext": "policy.stems.pointcloud.kind=hpt_pointnext",
    "hpt_resnet": "policy.stems.rgb.kind=hpt_resnet",
    "maps": "policy.stems.rgb.kind=maps policy.encoders.rgb.kind=resnet18",
    "sentence": "policy.stems.language.kind=sentence policy.encoders.language.kind=minilm",
}
# milliseconds of acting that the quickstart policy is to stay within, at batch 1 on one core
LIMITS = {"regression": 5.0, "diffusion": 60.0, "meanflow": 8.0}
SPEC = Spec(
    state={"state": 4}, action={"action": 4}, points=512, channels=3, rgb={"camera": (96, 96)},
    depth={"camera": (96, 96)}, language=True,
)  # fmt: skip


def policy(cfg: DictConfig) -> int:
    """Prints a line a head and a line a stem."""
    torch.set_num_threads(cfg.threads)
    words = [f"policy/head={name}" for name in _asked(cfg.heads, _heads(), "heads")]
    words += [STEM_WORDS[name] for name in _asked(cfg.stems, list(STEM_WORDS), "stems")]
    rows = [row for row in (_row(word, cfg.batch_size) for word in words) if row is not None]
    seconds = _measured(rows, cfg.rounds)
    print(f"quickstart policy, {cfg.threads} thread(s), training batch {cfg.batch_size}, median of {cfg.rounds} rounds")
    columns = ("samples/s", "act 1 ms", "act 32 ms", "parameters", "of it", "MFLOP/act")
    print(f"{'what':<36}" + "".join(f"{name:>12}" for name in columns))
    for (word, ways, model), times in zip(rows, seconds):
        _print_row(word, ways, model, times, cfg.batch_size)
    print(
        "of it: parameters of the head, or of the stem and encoder. MFLOP/act: multiplications and additions, batch 1."
    )
    return 0


def _heads() -> list[str]:
    return sorted(path.stem for path in (PACKAGE_CONFIGS / "policy/head").glob("*.yaml"))


def _asked(said: str, known: list[str], option: str) -> list[str]:
    names = known if said == "all" else [] if said == "none" else said.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"{option}={said}: {name} is none of {', '.join(known)}; or all, or none.")
    return names


def _row(word: str, batch_size: int) -> Row | None:
    """None, with a line that says why, where something that it needs is not installed."""
    from ppt_kit.models.policy import build_policy

    settings = typed(load_config("quickstart", *word.split()))
    seen = SPEC.only(name for name in SPEC.modalities if name in ("state", "pointcloud") or f"stems.{name}." in word)
    torch.manual_seed(0)
    try:
        model, acting = (build_policy(settings, {"a": seen}) for _ in range(2))
    except UserError as error:
        print(f"{word}: left out: {error}")
        return None
    step = _training(model, settings, seen, batch_size)
    one, many = (_obs(seen, size) for size in (1, 32))
    return (
        word,
        {"train": step, "act 1": lambda: acting.act(one), "act 32": lambda: acting.act(many)},
        acting.eval().requires_grad_(False),
    )


def _training(model: torch.nn.Module, settings: Config, spec: Spec, size: int) -> Callable[[], None]:
    """One optimizer step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    steps, g = settings.dataset.action_horizon, torch.Generator().manual_seed(0)
    batch = {
        "obs": _obs(spec, size), "action": torch.rand(size, steps, spec.action_dim, generator=g) * 2 - 1,
        "action_is_pad": torch.zeros(size, steps, dtype=torch.bool), "domain": torch.zeros(size, dtype=torch.long),
        "noise_seed": torch.arange(size),
    }  # fmt: skip

    def step() -> None:
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()

    return step


def _obs(spec: Spec, size: int) -> dict[str, Any]:
    from ppt_kit.horizon import Horizon

    g = torch.Generator().manual_seed(size)

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(each) for name, each in value.items()}
        if not isinstance(value, torch.Tensor):
            return ["press the button"] * size
        if value.dtype == torch.uint8:
            return torch.randint(0, 256, value.shape, generator=g, dtype=torch.uint8)
        return torch.rand(value.shape, generator=g)

    return {name: filled(value) for name, value in replace(spec).blank(size, Horizon()).items()}


def _measured(rows: list[Row], rounds: int) -> list[dict[str, list[float]]]:
    """Seconds of each row's ways; all in turn, so that a machine that slows down slows all of them."""
    found: list[dict[str, list[float]]] = [{name: [] for name in ways} for _, ways, _ in rows]
    for round_ in range(rounds + 1):
        for (_, ways, _), times in zip(rows, found):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                # the first is warm-up
                if round_:
                    times[name].append(time.perf_counter() - began)
    return found


def _print_row(
    word: str, ways: dict[str, Callable], model: torch.nn.Module, times: dict[str, list[float]], batch_size: int
) -> None:
    median = {name: statistics.median(each) for name, each in times.items()}
    with FlopCounterMode(display=False) as counter:
        ways["act 1"]()
    parts = ("heads.",) if word.startswith("policy/head") else tuple(_part_of(word))
    own = sum(p.numel() for name, p in model.named_parameters() if name.startswith(parts))
    limit = LIMITS.get(word.removeprefix("policy/head=")) if word.startswith("policy/head") else None
    late = "" if limit is None else f"   at most {limit:g} ms: {'yes' if median['act 1'] * 1e3 <= limit else 'NO'}"
    name = word.split()[0]
    print(
        f"{name:<36}{batch_size / median['train']:>12.0f}{median['act 1'] * 1e3:>12.2f}{median['act 32'] * 1e3:>12.1f}"
        f"{sum(p.numel() for p in model.parameters()):>12,}{own:>12,}{counter.get_total_flops() / 1e6:>12.1f}{late}",
        flush=True,
    )


def _part_of(word: str) -> list[str]:
    modality = word.removeprefix("policy.stems.").split(".")[0]
    return [f"stems.a.{modality}.", f"encoders.{modality}."]
