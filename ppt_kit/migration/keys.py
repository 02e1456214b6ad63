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
    dry_run: bool = key(False, "list what would change, and change nothing")
    undo: bool = key(False, "put back what stood there before, and take away what was written")
