"""Git LFS: a repository that was cloned without it has notes of a hundred bytes where its large files should be."""

from __future__ import annotations

from pathlib import Path

from ppt_kit.errors import UserError

MARK = b"version https://git-lfs"
# the specification's bound of a note
LARGEST = 1024


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a note of Git LFS in place of its content; false where there is no file."""
    try:
        if path.is_dir() or path.stat().st_size >= LARGEST:
            return False
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def refuse_lfs_pointer(path: Path) -> None:
    """
    Raises:
        UserError: the file is a note of Git LFS.
    """
    if is_lfs_pointer(path):
        raise UserError(lfs_line(path))


def lfs_line(path: Path) -> str:
    """What to say of such a file, and what to type."""
    return (
        f"{path}: a note of Git LFS, not the file itself. Fetch the files: type `git lfs pull` in that repository "
        "(or `huggingface-cli download`), and open it again."
    )
