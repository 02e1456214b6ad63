"""DeepSpeed's checkpoints, whoever wrote them: python scripts/ds_checkpoint.py inspect|to-weights FOLDER"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.programs import to_type
from ppt_kit.schema import DeepSpeedFolderConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    if not cfg.folder:
        raise UserError(f"folder is empty. Type {to_type('ds_checkpoint')} inspect FOLDER, or to-weights FOLDER.")
    from ppt_kit.zero import ds_checkpoints, ds_to_weights

    if cfg.action == "to-weights":
        path = ds_to_weights(cfg.folder, tag=cfg.tag, out=cfg.out, overwrite=cfg.overwrite)
        print(f"{path}: {path.stat().st_size} bytes, read again and the same")
        return 0
    for name in ("out", "overwrite"):
        if cfg[name]:
            raise UserError(f"{name}={cfg[name]}: inspect writes nothing. Leave it out, or type to-weights.")
    found = ds_checkpoints(cfg.folder, tag=cfg.tag)
    print(found)
    return 0 if found.loads else 1


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=DeepSpeedFolderConfig,
        about="What is in a checkpoint folder of DeepSpeed (exit code 1 where what latest names is not whole), "
        "or one step's weights as safetensors. No code in the files is run.",
        first=("action", "folder"),
    )


if __name__ == "__main__":
    run()
