"""Trains a policy: python scripts/train.py [--config-name=NAME] [key=value …]; also under deepspeed and torchrun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.schema import DEFAULT_CONFIG, Config

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    from ppt_kit.train.trainer import UnifiedTrainer

    return UnifiedTrainer(cfg).run()


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=Config,
        config_name=DEFAULT_CONFIG,
        about="Trains a policy; one process, or one rank of a launched job.",
    )


if __name__ == "__main__":
    run()
