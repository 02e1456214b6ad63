"""A folder of ppt_learning goes on with ppt_kit: migrate_train_scripts.py --project=DIR --backup --create-wrappers"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppt_kit.commands import cli
from ppt_kit.errors import UserError
from ppt_kit.migration.keys import MigrateConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ppt_kit.migration.folder import Change


def main(cfg: DictConfig) -> int:
    from ppt_kit.migration.folder import alone, check_project

    project = Path(cfg.project).expanduser()
    try:
        check_project(project, writes=not cfg.dry_run)
        with alone(project):
            return changed(cfg, project)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or project}: {error.strerror or error}. Nothing more was changed.") from None


def changed(cfg: DictConfig, project: Path) -> int:
    """Makes or takes back what the words ask for; the exit code."""
    from ppt_kit.migration.folder import make, said

    if cfg.undo:
        if asked_for(cfg):
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


def planned(cfg: DictConfig, project: Path) -> list[Change]:
    """What the words ask for, in order."""
    from ppt_kit.migration import convert, folder

    if not asked_for(cfg):
        raise UserError(
            "nothing is asked for. Type --backup, --create-wrappers, --convert-config=FILE, "
            "--convert-checkpoint=FOLDER or --undo."
        )
    into = folder.new_backup_folder(project)
    changes: list[Change] = []
    if cfg.backup:
        changes += folder.backups(project, into)
    if cfg.create_wrappers:
        changes += folder.wrappers(project, into)
    if cfg.convert_config:
        asked = Path(cfg.convert_config).expanduser()
        path, text, done = convert.converted_config(asked if asked.exists() else project / asked)
        print(convert.told(done))
        changes += folder.writes(project, path, text, folder=into)
    if cfg.convert_checkpoint:
        changes += converted_checkpoint(cfg, project)
    elif cfg.dataset_path or cfg.half_noise:
        name = "dataset-path" if cfg.dataset_path else "half-noise"
        raise UserError(f"--{name} is of --convert-checkpoint=FOLDER, which is not given.")
    return list(dict.fromkeys(changes))


def asked_for(cfg: DictConfig) -> bool:
    """Whether the words ask for something to be made."""
    return bool(cfg.backup or cfg.create_wrappers or cfg.convert_config or cfg.convert_checkpoint)


def converted_checkpoint(cfg: DictConfig, project: Path) -> list[Change]:
    """The files of a run folder of ours; says what holds in it, and what does not."""
    from ppt_kit.adopt.run import adopted_run
    from ppt_kit.migration.folder import makes

    asked = Path(cfg.convert_checkpoint).expanduser()
    data = Path(cfg.dataset_path).expanduser() if cfg.dataset_path else None
    run = adopted_run(
        asked if asked.exists() else project / asked, project=project, dataset_path=data, half_noise=cfg.half_noise
    )
    print(run.told())
    return [change for name, content in run.files.items() for change in makes(project, run.folder / name, content)]


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
        about="Backs up the scripts of ppt_learning, writes ones in their place that hand over, converts "
        "configurations and trained policies.",
    )


if __name__ == "__main__":
    run()
