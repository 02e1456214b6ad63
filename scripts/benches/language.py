"""One policy for several tasks that hears which one is meant: success per task, and when it is told another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benches.trial import Ledger, counts, markdown, rate, run_name, trained
from ppt_kit.errors import UserError
from ppt_kit.keys import key

# one set of weights, and a frozen sentence encoder
HEARS = [
    "policy.share=all", "policy.modalities=[state,pointcloud,language]", "policy.stems.language.kind=sentence",
    "policy.encoders.language.kind=minilm",
]  # fmt: skip


@dataclass
class LanguageBench:
    """One policy for several tasks, told the right sentence, another task's and none; what is done is not run again."""

    # the faucet's two look the same until it is said which way
    tasks: list[str] = key(
        ["button-press-topdown", "door-open", "drawer-open", "faucet-open", "faucet-close"],
        "tasks of the simulator; each is told the next one's sentence as the control",
    )
    head: str = key("regression", "head, by its config group (policy/head=…)")
    demos: int = key(10, "demonstrations a task", low=1)
    episodes: int = key(20, "fresh goals a task", low=1)
    seed: int = key(0, "training seed", low=0)
    eval_seed: int = key(100_000, "seed of the first goal", low=0)
    config: str = key("quickstart", "configuration to train")
    words: list[str] = key([], "further words of the training, e.g. [train.total_epochs=60]")
    simulator: str = key("metaworld", "where the tasks are")
    dataset_path: str = key("data", "folder of the demonstrations; those that are there are taken")
    output_dir: str = key("outputs/language", "folder of the run, of language.jsonl and language.md")


def language(cfg: DictConfig) -> int:
    """Trains once; each task is told its sentence, another's and none. Prints and writes the table after each."""
    import ppt_kit as ppt

    tasks = list(cfg.tasks)
    if len(set(tasks)) < 2:
        raise UserError(f"tasks={','.join(tasks)}: name at least two, or there is no other sentence to be told.")
    for task in tasks:
        ppt.collect(task, episodes=cfg.demos, simulator=cfg.simulator, dataset_path=cfg.dataset_path)
    name = run_name(cfg.head, cfg.seed, config=cfg.config, words=[*tasks, *cfg.words])
    run_dir, minutes = trained(cfg.config, [
        f"policy/head={cfg.head}", f"domains=[{','.join(tasks)}]", f"seed={cfg.seed}",
        f"suffix={name}", f"dataset_path={cfg.dataset_path}",
        f"output_dir={cfg.output_dir}", *HEARS, *cfg.words,
    ])  # fmt: skip
    policy = ppt.load_policy(run_dir)
    ledger = Ledger(Path(cfg.output_dir) / "language.jsonl")
    for task, other in zip(tasks, [*tasks[1:], tasks[0]]):
        trial = _trial(cfg, run_dir, task, other)
        if ledger.find(**trial) is None:
            ledger.add(trial | {"minutes": minutes} | _counted(cfg, policy, trial))
        _tell(ledger, Path(cfg.output_dir) / "language.md")
    return 0


def _trial(cfg: DictConfig, run_dir: Path, task: str, other: str) -> dict[str, Any]:
    """What a row is of."""
    return {
        "task": task, "other": other, "run_dir": str(run_dir), "head": cfg.head, "seed": cfg.seed, "demos": cfg.demos,
        "episodes": cfg.episodes, "eval_seed": cfg.eval_seed, "words": list(cfg.words),
    }  # fmt: skip


def _counted(cfg: DictConfig, policy: Any, trial: dict[str, Any]) -> dict[str, int]:
    """Successes told what is to be done, told what the other task is called, and told nothing."""
    import ppt_kit as ppt
    from ppt_kit.sim.env import close_env, make_env

    other = make_env({"simulator": cfg.simulator, "task": trial["other"]})
    others_words = other.description
    close_env(other)
    counted = {"errors": 0}
    for column, sentence in (("told", None), ("told_other", others_words), ("told_nothing", "")):
        rows = ppt.evaluate(
            policy, domain=trial["task"], episodes=cfg.episodes, seed=cfg.eval_seed, sentence=sentence,
            log_name=column, out_dir=Path(trial["run_dir"]) / "eval",
        ).rows  # fmt: skip
        counted[column], errors = counts(rows)
        counted["errors"] += errors
    return counted


def _tell(ledger: Ledger, path: Path) -> None:
    columns = [
        "task", "head", "told its sentence [95 %]", "told another's", "told nothing", "goals", "seed", "demos",
        "minutes of all",
    ]  # fmt: skip
    lines = [
        [
            row["task"], row["head"], rate(row["told"], row["episodes"]),
            f"{rate(row['told_other'], row['episodes'])} ({row['other']})", rate(row["told_nothing"], row["episodes"]),
            f"{row['episodes']} from {row['eval_seed']}", row["seed"], row["demos"], f"{row['minutes']:.1f}",
        ]
        for row in ledger.rows()
    ]  # fmt: skip
    table = markdown(columns, lines)
    path.write_text(table + "\n")
    print(f"\n{table}\none set of weights, its final checkpoint. {path}", flush=True)
