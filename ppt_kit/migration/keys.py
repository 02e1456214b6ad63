"""What scripts/migrate_train_scripts.py reads."""

from __future__ import annotations

from dataclasses import dataclass

from ppt_kit.keys import key


@dataclass
class MigrateConfig:
    """A folder of ppt_learning, and what is to be done in it."""

    project: str = key(".", "folder of ppt_learning")
    backup: bool = key(False, "copy its old scripts into a new dated folder")
    create_wrappers: bool = key(
        False, "write run.py, run_ddp.py, run_train.py and run_eval_sim.py that hand over; old ones are backed up first"
    )
    convert_config: str | None = key(
        None, "write this YAML file of ppt_learning in today's keys beside it, as NAME_ppt_kit.yaml"
    )
    convert_checkpoint: str | None = key(
        None,
        "write a run folder of ppt_kit beside this one of ppt_learning (config.yaml, model*.pth), as FOLDER_ppt_kit; "
        "a single .pth file will do",
    )
    dataset_path: str | None = key(
        None, "--convert-checkpoint: folder of its datasets; null = where its config.yaml says"
    )
    half_noise: bool = key(
        False, "--convert-checkpoint: its diffusion head sampled from noise of 0.5 with eta=0.5, as late versions did"
    )
    dry_run: bool = key(False, "list what would change, and change nothing")
    undo: bool = key(False, "put back what stood there before, and take away what was written")
