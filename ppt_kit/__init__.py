"""ppt_kit: from demonstrations to a robot policy with a measured success rate.

The map: a room imports from its own line and from lines above it; a | stands between rooms that are strangers.

    ground   errors files parts lfs horizon keys randomness cameras upgrade signals tables programs  what all may know
    words    torch_file model_keys train_keys spec schema checks words yaml_files config migration help  typed words
    rooms    data | models | augment | engine | tracking               batches | the policy | noise | DeepSpeed | rows
    joined   checkpoint | jobs | sim | zero | memory      weights | processes | episodes | DeepSpeed's folders | bytes
    run      train | verify targets comparing | runs | adopt | installation    one run | evaluating | sweeps | old ones
    face     notebook commands __main__ __init__                       what people see and type

The names below are what a notebook types. Each is imported when it is first used: `import ppt_kit` starts neither
deepspeed nor wandb nor mujoco. CONTRIBUTING.md has the paths of a batch and of a command.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_WHERE = {
    "load_config": "config",
    "UserError": "errors",
    "load_dataset": "data.dataset",
    "open_dataset": "data.dataset",
    "MultiTrajDataset": "data.dataset",
    "describe": "data.describe",
    "doctor": "data.describe",
    "to_zarr": "data.convert",
    "to_lerobot": "data.convert",
    "Head": "models.heads",
    "Stem": "models.stems",
    "Encoder": "models.encoders",
    "Actor": "models.actor",
    "Execution": "models.chunks",
    "UnifiedTrainer": "notebook.trainer",
    "plan": "train.planning",
    "sweep": "runs.sweep",
    "launch": "notebook.launching",
    "attach": "notebook.launching",
    "jobs": "jobs.listing",
    "load_policy": "checkpoint",
    "checkpoints": "checkpoint",
    "read_metrics": "tracking",
    "Env": "sim.realtime.env",
    "PolicyRunner": "sim.realtime.runner",
    "ThreadSampler": "sim.realtime.sampling",
    "collect": "sim.collect",
    "tasks": "sim.simulators.tasks",
    "evaluate": "sim.evaluate",
    "success_table": "sim.results",
    "checkpoint_table": "sim.results",
    "compare": "comparing",
    "plan_evaluation": "sim.compare.plan",
    "protocol": "sim.compare.protocol",
    "verify_card": "verify",
    "check_installation": "installation",
    "ds_checkpoints": "zero",
    "ds_to_weights": "zero",
    "plot_metrics": "notebook.plots",
    "plot_episode": "notebook.plots",
    "plot_success": "notebook.plots",
    "plot_checkpoints": "notebook.plots",
    "show_videos": "notebook.videos",
    "plot_comparison": "notebook.comparison",
    "compare_runs": "notebook.runs.compare",
    "pick_runs": "notebook.runs.picker",
    "live": "notebook.live",
    "inspect": "notebook.inspect.door",
}
__all__ = sorted(_WHERE)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"ppt_kit has no {name!r}; it has {', '.join(__all__)}")
    if "IPython" in sys.modules and "ppt_kit.notebook.display" not in sys.modules:
        importlib.import_module("ppt_kit.notebook.display").install()
    return getattr(importlib.import_module(f"ppt_kit.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
