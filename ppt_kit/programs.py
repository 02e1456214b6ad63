"""What is typed for each command: a script of the clone, or the program that an installation has put beside python."""

from __future__ import annotations

from pathlib import Path

# by module of commands/, which is the script's name too; pyproject.toml installs these
PROGRAMS = {
    "train": "ppt-train", "sweep": "ppt-sweep", "eval_sim": "ppt-eval", "collect_demos": "ppt-collect",
    "convert_dataset": "ppt-convert", "verify_card": "ppt-verify-card", "ds_checkpoint": "ppt-ds-checkpoint",
    "migrate_train_scripts": "ppt-migrate", "quickstart": "ppt-quickstart",
}  # fmt: skip


def clone() -> Path | None:
    """The folder of the repository that this package is used from; None where it was installed by itself."""
    folder = Path(__file__).parents[1]
    return folder if (folder / "scripts/train.py").is_file() and (folder / "pyproject.toml").is_file() else None


def to_type(command: str) -> str:
    """`python scripts/train.py` for "train" in a clone, `ppt-train` without one.

    Args:
        command: of PROGRAMS.
    """
    return PROGRAMS[command] if clone() is None else f"python scripts/{command}.py"


def to_type_anywhere(command: str) -> str:
    """As `to_type`, outside of the clone too."""
    return PROGRAMS[command] if clone() is None else f"python {clone()}/scripts/{command}.py"
