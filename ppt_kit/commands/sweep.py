"""Trains every combination of lists: sweep.py [--config-name=NAME] sweep.optimizer.lr=[1e-3,3e-4] sweep.seed=[0,1,2]"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.runs.keys import OF_THE_SWEEP, SweepConfig
from ppt_kit.schema import DEFAULT_CONFIG

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    from omegaconf import OmegaConf

    from ppt_kit.runs.sweep import sweep

    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    of_runs = {name: value for name, value in plain.items() if name not in OF_THE_SWEEP}
    result = sweep(OmegaConf.create(of_runs), plain["sweep"], jobs=cfg.jobs, metric=cfg.metric)
    print(result)
    return result.exit_code


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=SweepConfig,
        config_name=DEFAULT_CONFIG,
        about="Trains every combination of the lists in sweep.KEY=[…], several runs at a time; the same words go on.",
    )


if __name__ == "__main__":
    run()
