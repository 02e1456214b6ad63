"""Demonstrations by a simulator's scripted expert: `collect_demos.py task=button-press-topdown episodes=10`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.schema import CollectConfig
from ppt_kit.signals import stops_raise

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    if cfg.list_tasks:
        from ppt_kit.sim.simulators.tasks import tasks

        print(tasks(cfg.simulator).to_string(index=False))
        return
    with stops_raise():
        from ppt_kit.sim.collect import collect_demos

        done = collect_demos(cfg)
    print(
        f"{done.path}: {done.episodes} demonstrations, {done.steps} steps, "
        f"{done.discarded} failed expert episodes discarded"
    )


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(main, schema=CollectConfig, about="Records successful episodes of a task's scripted expert.")


if __name__ == "__main__":
    run()
