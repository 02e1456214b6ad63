"""A checkpoint's success rate in simulation: `eval_sim.py train.pretrained_dir=outputs/models/<domain>/<suffix>`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cli

from ppt_kit.errors import UserError
from ppt_kit.files import check_place
from ppt_kit.schema import EvaluateConfig
from ppt_kit.signals import stops_raise

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppt_kit.sim.evaluate import EvaluateOptions


def main(cfg: DictConfig) -> int:
    with stops_raise():
        return evaluated(cfg)


def evaluated(cfg: DictConfig) -> int:
    if not cfg.train.pretrained_dir:
        raise UserError(
            "train.pretrained_dir is empty. Type train.pretrained_dir=<run folder>, "
            "e.g. outputs/models/button-press-topdown/exp1."
        )
    from ppt_kit.checkpoint import load_policy
    from ppt_kit.checks import domain_names
    from ppt_kit.config import typed
    from ppt_kit.sim.evaluate import check_evaluation, run_evaluation
    from ppt_kit.sim.results import success_table

    folder = Path(cfg.train.pretrained_dir)
    policy = load_policy(folder, use_ema=cfg.use_ema)
    out_dir = (folder if folder.is_dir() else folder.parent) / "eval"
    check_place(out_dir, key="train.pretrained_dir")
    domains = domain_names(cfg.domains) if cfg.domains else policy.domains
    evaluations = [options_of(typed(cfg), domain=domain, out_dir=out_dir) for domain in domains]
    # the first is checked as it begins; what is wrong with another is told before hours of it
    for options in evaluations[1:]:
        check_evaluation(policy, options)
    results = [run_evaluation(policy, options) for options in evaluations]
    print(success_table(results).to_string(index=False, float_format="%.3f"))
    print(f"rows, summary and videos: {out_dir}")
    return 1 if all(row["error"] for result in results for row in result.rows) else 0


def options_of(cfg: EvaluateConfig, *, domain: str, out_dir: Path) -> EvaluateOptions:
    from ppt_kit.sim.evaluate import EvaluateOptions

    return EvaluateOptions(
        task=cfg.task, domain=domain, episodes=cfg.episodes, seed=cfg.seed, max_steps=cfg.max_steps,
        execute_steps=cfg.execute_steps, temporal_ensembling=cfg.temporal_ensembling, delay=cfg.delay,
        real_time_chunking=cfg.real_time_chunking, num_steps=cfg.num_steps, zero_keys=cfg.zero_keys,
        sentence=cfg.sentence, videos=cfg.videos, n_procs=cfg.n_procs if cfg.eval_mode == "parallel" else 1,
        log_name=cfg.eval_log_name, out_dir=out_dir,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(
        main,
        schema=EvaluateConfig,
        about="Runs a checkpoint in the simulator it was recorded in, on seeds that no demonstration had.",
    )
