"""Success rates by task, head and what is seen: few demonstrations, the final checkpoint, fresh goals, the control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benches.published import evaluate_checkpoints, saves, seeds_of, side_by_side, task_names, tell
from benches.trial import Ledger, counts, group_names, markdown, rate, run_name, trained
from ppt_kit.keys import key


@dataclass
class SuccessBench:
    """Success rates by task, head and what is seen; what is done is not run again."""

    heads: list[str] = key(["regression"], "heads, by their config group (policy/head=…); all = every one")
    tasks: list[str] = key(
        ["button-press-topdown"], "tasks of the simulator; of metaworld also easy, medium, hard, very-hard or all"
    )
    modalities: list[str] = key([], "what is seen, e.g. [state+pointcloud,state+rgb]; [] = as the configuration says")
    stems: list[str] = key([], "stems of the cloud, by config group; all = every one, [] = as the configuration says")
    seeds: Any = key([0], "training seeds: how many (3 = 0, 1 and 2), or which, as [0,7]")
    checkpoints: int = key(
        0, "checkpoints of each run that are evaluated too: 5 or more for the literature's mean of the best 5", low=0
    )
    demos: int = key(10, "demonstrations a task", low=1)
    episodes: int = key(20, "fresh goals a policy", low=1)
    eval_seed: int = key(100_000, "seed of the first goal", low=0)
    execute_steps: int = key(4, "actions executed of each chunk", low=1)
    config: str = key("quickstart", "configuration to train")
    words: list[str] = key([], "further words of the training, e.g. [train.total_epochs=60]")
    simulator: str = key("metaworld", "where the tasks are")
    dataset_path: str = key("data", "folder of the demonstrations; those that are there are taken")
    output_dir: str = key("outputs/success", "folder of the runs, of success.jsonl and success.md")
    n_procs: int = key(1, "processes that evaluate", low=1)


def success(cfg: DictConfig) -> int:
    """Runs what is not done yet; prints and writes the table after each."""
    ledger = Ledger(Path(cfg.output_dir) / "success.jsonl")
    for trial in _trials(cfg):
        if ledger.find(**trial) is None:
            ledger.add(trial | _result(cfg, trial))
            _tell(ledger, Path(cfg.output_dir) / "success.md")
    _tell(ledger, Path(cfg.output_dir) / "success.md")
    _tell_published(cfg, ledger)
    return 0


def _trials(cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """What each row is of."""
    tasks, seeds = task_names(cfg.tasks, simulator=cfg.simulator), seeds_of(cfg.seeds)
    heads = group_names("policy/head", cfg.heads, key="heads")
    stems = group_names("policy/stems/pointcloud", cfg.stems, key="stems") or [""]
    for task, seen, stem, head, seed in product(tasks, cfg.modalities or [""], stems, heads, seeds):
        yield {
            "task": task, "head": head, "seen": seen, "stem": stem, "seed": seed, "demos": cfg.demos,
            "episodes": cfg.episodes, "eval_seed": cfg.eval_seed, "execute_steps": cfg.execute_steps,
            "config": cfg.config, "words": list(cfg.words), "simulator": cfg.simulator,
            **({"checkpoints": cfg.checkpoints} if cfg.checkpoints else {}),
        }  # fmt: skip


def _result(cfg: DictConfig, trial: dict[str, Any]) -> dict[str, Any]:
    import ppt_kit as ppt
    from ppt_kit.sim.runner.controls import zeroed_by

    domain = _collected(cfg, trial)
    parts = [f"policy.modalities=[{trial['seen'].replace('+', ',')}]"] if trial["seen"] else []
    parts += [f"policy/stems/pointcloud={trial['stem']}"] if trial["stem"] else []
    parts += saves(trial["config"], trial["words"], checkpoints=cfg.checkpoints) if cfg.checkpoints else []
    named = [trial["head"], trial["seen"], trial["stem"], trial["seed"]]
    named += [f"{cfg.checkpoints}-checkpoints"] if cfg.checkpoints else []
    name = run_name(*named, config=trial["config"], words=trial["words"])
    run_dir, minutes = trained(trial["config"], [
        f"policy/head={trial['head']}", f"domains={domain}", f"seed={trial['seed']}", f"suffix={name}",
        f"dataset_path={cfg.dataset_path}", f"output_dir={cfg.output_dir}", *parts, *trial["words"],
    ])  # fmt: skip
    options = {name: trial[name] for name in ("episodes", "execute_steps")} | {"seed": trial["eval_seed"]}
    if cfg.checkpoints:
        evaluate_checkpoints(run_dir, options={**options, "n_procs": cfg.n_procs})
    policy = ppt.load_policy(run_dir)
    blind = list(zeroed_by("blind", policy))
    counted: dict[str, Any] = {"errors": 0}
    for column, zero_keys in (("successes", []), ("control", blind)):
        rows = ppt.evaluate(policy, **options, zero_keys=zero_keys, n_procs=cfg.n_procs, out_dir=run_dir / "eval").rows
        counted[column], errors = counts(rows)
        counted["errors"] += errors
    return counted | {
        "minutes": minutes, "parameters": sum(p.numel() for p in policy.parameters()), "zeroed": blind,
        "run_dir": str(run_dir),
    }  # fmt: skip


def _collected(cfg: DictConfig, trial: dict[str, Any]) -> str:
    """The dataset of a trial, collected where it is not there."""
    import ppt_kit as ppt

    pictures = bool({"rgb", "depth"} & set(trial["seen"].split("+")))
    domain = f"{trial['task']}_images" if pictures else trial["task"]
    images = {"save_images": True} if pictures else {}
    ppt.collect(
        trial["task"], domain=domain, episodes=trial["demos"], simulator=trial["simulator"],
        dataset_path=cfg.dataset_path, **images,
    )  # fmt: skip
    return domain


def _tell(ledger: Ledger, path: Path) -> None:
    columns = [
        "task", "head", "sees", "success [95 %]", "control", "goals", "seed", "demos", "minutes", "parameters", "words",
    ]  # fmt: skip
    lines = [
        [
            row["task"], row["head"], " ".join(filter(None, (row["seen"], row["stem"]))) or "default",
            rate(row["successes"], row["episodes"]),
            f"{100 * row['control'] / row['episodes']:.0f} %", f"{row['episodes']} from {row['eval_seed']}",
            row["seed"], row["demos"], f"{row['minutes']:.1f}", f"{row['parameters'] / 1e6:.2f}M",
            " ".join([*([row["config"]] if row["config"] != "quickstart" else []), *row["words"]]) or "-",
        ]
        for row in sorted(ledger.rows(), key=lambda row: (row["task"], row["seen"], row["head"], row["seed"]))
    ]  # fmt: skip
    table = markdown(columns, lines)
    path.write_text(table + "\n")
    print(f"\n{table}\nfinal checkpoints; control: blind, all that shows the scene zeroed. {path}", flush=True)


def _tell_published(cfg: DictConfig, ledger: Ledger) -> None:
    """Beside the published figures: one table for each head and what it sees."""
    if cfg.simulator != "metaworld":
        return
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for trial in _trials(cfg):
        row = ledger.find(**trial)
        if row is not None:
            runs = groups.setdefault((trial["head"], trial["seen"], trial["stem"]), {})
            runs.setdefault(trial["task"], []).append(Path(row["run_dir"]))
    for parts, runs in groups.items():
        tell(side_by_side(runs), Path(cfg.output_dir), name="-".join(filter(None, ("published", *parts))))
