"""Every key of `optimizer` and of `train`: how long, from what on, what is kept, and what is measured meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from ppt_kit.keys import MAX_SEED, key
from ppt_kit.programs import to_type


@dataclass
class OptimizerConfig:
    lr: float = key(1e-4, "peak learning rate of AdamW", low=0, high=100)
    betas: list[float] = key([0.95, 0.999], "AdamW betas")
    eps: float = key(1e-8, "AdamW epsilon", low=0, high=1)
    weight_decay: float = key(1e-6, "AdamW weight decay", low=0, high=100)
    warmup_steps: int = key(500, "linear warm-up (optimizer steps), then cosine to zero", low=0)


@dataclass
class TrainConfig:
    total_epochs: int = key(100, "passes over the training windows", low=1)
    total_iters: int | None = key(None, "stop after this many optimizer steps; null = total_epochs decides", low=1)
    epoch_iters: int | None = key(
        None, "optimizer steps that count as one epoch; null = one pass over the windows", low=1
    )
    pretrained_dir: str | None = key(
        None, "run folder (or model*.pth) to start from; averaged weights where it has some"
    )
    pretrained_parts: list[str] = key(["trunk"], "what to take of it: trunk, stems, heads, encoders")
    pretrained_domain: str | None = key(
        None, "whose stems and heads to take where no domain has the same name; null = the only one's", is_name=True
    )
    freeze_trunk: bool = key(False, "keep the pretrained trunk as it is, without its dropout")
    freeze_stems: bool = key(False, "keep the pretrained stems as they are, without their dropout")
    resume: str = key(
        "never",
        "auto = go on from the run folder's newest checkpoint, or start if there is none",
        choices=("never", "auto"),
    )
    save_every_minutes: float = key(0.0, "minutes between saves beside save_interval; 0 = none", low=0)
    on_nan: str = key("stop", "a loss that is not finite: stop the run, or skip its batch", choices=("stop", "skip"))
    last_k_checkpoints: int = key(3, "model_{epoch}.pth files kept; 0 = all", low=0)
    best_metric: str | None = key(
        None,
        "also keep the model_{epoch}.pth that is best by this, and call it model_best.pth: the lowest loss, the "
        "highest success (of equal ones the later); null = success where train.eval_interval evaluates, else none",
        choices=(None, "loss", "val_loss", "success"),
    )
    safetensors: bool = key(False, "write model.safetensors beside model.pth (averaged weights where they are kept)")
    ema_decay: float = key(0.999, "decay of the averaged weights; 0 = none", low=0, high=0.99999)
    val_interval: int = key(10, "epochs between validation losses; 0 = never", low=0)
    eval_interval: int = key(
        0, "epochs between evaluations in simulation, beside training in processes of their own; 0 = never", low=0
    )
    eval_episodes: int = key(20, "episodes a domain of each of those evaluations", low=1, high=1_000_000)
    eval_procs: int = key(1, "processes of each of those evaluations, one thread each", low=1, high=1000)
    eval_seed: int = key(
        500_000,
        f"seed of their first episode: not those of {to_type('eval_sim')}, which measure what is chosen by these",
        low=0,
        high=MAX_SEED,
    )
    eval_max_steps: int | None = key(
        None, "longest of their episodes (control steps); null = as recorded", low=1, high=1_000_000
    )
    eval_execute_steps: int = key(4, "actions executed of each chunk in them", low=1, high=1000)
    eval_timeout_s: float = key(600.0, "longest time of one of them (s), beyond which it is an error", low=1)
