"""A folder of ppt_learning goes on with ppt_kit: migrate_train_scripts.py --project=DIR --backup --create-wrappers"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.migration.keys import MigrateConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppt_kit.migration.folder import Copy, Write


def main(cfg: DictConfig) -> int:
    from ppt_kit.migration.folder import check_project, make, said

    project = Path(cfg.project).expanduser()
    check_project(project)
    if cfg.undo:
        if cfg.backup or cfg.create_wrappers or cfg.convert_config:
            raise UserError("--undo takes back what was made, and makes nothing itself. Type it alone.")
        return undone(project, dry_run=cfg.dry_run)
    changes = planned(cfg, project)
    for change in changes:
        print(said(change, project))
    if not changes:
        print("nothing is to be changed")
    elif cfg.dry_run:
        print("nothing was changed (--dry-run)")
    else:
        for change in changes:
            make(change, project)
        print("done; --undo takes it back")
    return 0


def planned(cfg: DictConfig, project: Path) -> list[Copy | Write]:
    """What the words ask for, in order."""
    from ppt_kit.migration import convert, folder

    if not (cfg.backup or cfg.create_wrappers or cfg.convert_config):
        raise UserError("nothing is asked for. Type --backup, --create-wrappers, --convert-config=FILE or --undo.")
    into = folder.new_backup_folder(project)
    changes: list[Copy | Write] = []
    if cfg.backup:
        changes += folder.backups(project, into)
    if cfg.create_wrappers:
        changes += folder.wrappers(project, into)
    if cfg.convert_config:
        asked = Path(cfg.convert_config).expanduser()
        path, text, done = convert.converted_config(asked if asked.exists() else project / asked)
        print(convert.told(done))
        changes += folder.writes(project, path, text, folder=into)
    return list(dict.fromkeys(changes))


def undone(project: Path, *, dry_run: bool) -> int:
    """Takes back what can be; 1 where something cannot."""
    from ppt_kit.migration.folder import returns, take_back

    found = returns(project)
    for each in found:
        print(each.said(project))
    if dry_run:
        print("nothing was changed (--dry-run)")
    else:
        for each in found:
            take_back(each, project)
        print("done; the backups stay where they are")
    return 1 if any(each.why_not for each in found) else 0


def run() -> None:
    """Of the shell's words; ends with an exit code."""
    cli.run(
        main,
        schema=MigrateConfig,
        about="Backs up the scripts of ppt_learning, writes ones in their place that hand over, converts files.",
    )


if __name__ == "__main__":
    run()
