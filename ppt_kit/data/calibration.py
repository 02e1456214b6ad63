"""The calibration of stored cameras, checked: clouds that are made with a damaged one look like clouds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppt_kit.cameras import Camera, camera_to_world
from ppt_kit.errors import UserError

CONVENTIONS = ("opengl", "opencv", "opencv_extrinsic")
# how far a rotation that was stored as float32, or rounded to a few digits, is from one
TOLERANCE = 1e-2


def checked_camera(where: str, intrinsics: np.ndarray | None, pose: np.ndarray | None, *, convention: str) -> Camera:
    """A camera of a dataset.

    Args:
        where: file and place of its matrices, for messages.
        intrinsics: (3, 3) or (N, 3, 3), pixels.
        pose: (3, 4), (4, 4), (N, 3, 4) or (N, 4, 4).
        convention: as in `camera_to_world`.
    Raises:
        UserError: a matrix is not there, has another shape, holds a value that is not finite, or cannot be a camera's.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"{where}: camera_convention={convention}: takes {', '.join(CONVENTIONS)}.")
    if intrinsics is None or pose is None:
        lacks, has = ("intrinsics", "extrinsics") if intrinsics is None else ("extrinsics", "intrinsics")
        raise UserError(f"{where}: has {has} and no {lacks}. Copy it again, or take that folder away.")
    _check_matrices(where, intrinsics, pose)
    return Camera(intrinsics, camera_to_world(pose, convention=convention))


def check_cameras(path: Path, cameras: Mapping[str, Camera], *, rows: int) -> None:
    """
    Raises:
        UserError: as `checked_camera`, or a camera has neither one matrix nor one for each of the dataset's rows.
    """
    for name, camera in cameras.items():
        _check_matrices(f"{path}: the camera {name}", camera.intrinsics, camera.extrinsics)
        for what, values in (("intrinsics", camera.intrinsics), ("extrinsics", camera.extrinsics)):
            if values.ndim == 3 and len(values) != rows:
                raise UserError(
                    f"{path}: the camera {name} has {len(values)} {what} for {rows} rows: it takes one, or one a row."
                )


def _check_matrices(where: str, intrinsics: np.ndarray, pose: np.ndarray) -> None:
    _check(f"{where}/intrinsics", intrinsics, shapes=((3, 3),))
    _check(f"{where}/extrinsics", pose, shapes=((3, 4), (4, 4)))
    _check_intrinsics(f"{where}/intrinsics", intrinsics)
    _check_pose(f"{where}/extrinsics", pose)


def _check(where: str, matrix: np.ndarray, *, shapes: tuple[tuple[int, int], ...]) -> None:
    told = " or ".join(f"{shape} or (N, {shape[0]}, {shape[1]})" for shape in shapes)
    if matrix.dtype.kind not in "iuf" or matrix.ndim not in (2, 3) or matrix.shape[-2:] not in shapes:
        raise UserError(f"{where}: {matrix.dtype} of shape {matrix.shape}; it takes {told} numbers. {_REMEDY}")
    _refuse(where, matrix, ~np.isfinite(matrix).all((-2, -1)), "holds a value that is not finite")


def _check_intrinsics(where: str, matrix: np.ndarray) -> None:
    bad = (np.abs(matrix[..., [0, 1], [0, 1]]) < 1e-6).any(-1)
    _refuse(where, matrix, bad, "has a focal length of 0")
    off = (np.abs(matrix[..., 2, :] - np.array([0, 0, 1])) > TOLERANCE).any(-1)
    _refuse(where, matrix, off, "has another last row than 0, 0, 1 (is it transposed?)")


def _check_pose(where: str, matrix: np.ndarray) -> None:
    turn = matrix[..., :3, :3].astype(np.float64)
    square = turn @ np.swapaxes(turn, -1, -2)
    off = (np.abs(square - np.eye(3)) > TOLERANCE).any((-2, -1)) | (np.linalg.det(turn) < 0)
    _refuse(where, matrix, off, "is no rotation in its first three rows and columns")
    if matrix.shape[-2] == 4:
        last = (np.abs(matrix[..., 3, :] - np.array([0, 0, 0, 1])) > TOLERANCE).any(-1)
        _refuse(where, matrix, last, "has another last row than 0, 0, 0, 1 (is it transposed?)")


def _refuse(where: str, matrix: np.ndarray, bad: np.ndarray, what: str) -> None:
    if bad.any():
        row = f" of row {int(np.argmax(bad))}" if matrix.ndim == 3 else ""
        raise UserError(f"{where}{row} {what}. {_REMEDY}")


_REMEDY = "Mend it, or take that camera's calibration away."
