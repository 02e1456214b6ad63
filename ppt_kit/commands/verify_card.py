"""Whether an evaluation's episodes go here as they went there: `verify_card.py outputs/models/<domain>/<suffix>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.programs import to_type
from ppt_kit.schema import VerifyConfig
from ppt_kit.signals import stops_raise

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    if not cfg.card:
        raise UserError(f"card is empty. Type {to_type('verify_card')} <card.json, its folder or a run folder>.")
    from ppt_kit.verify import verify_card

    with stops_raise():
        found = verify_card(
            cfg.card, episodes=cfg.episodes, eval_log_name=cfg.eval_log_name, checkpoint=cfg.checkpoint,
            dataset_path=cfg.dataset_path,
        )  # fmt: skip
    print(found)
    return 0 if found.same else 1


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=VerifyConfig,
        about="Replays episodes of an evaluation from its card.json: exit code 0 of the same to the bit, 1 of others.",
        first=("card",),
    )


if __name__ == "__main__":
    run()
