"""Columns of a table as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ppt_kit.errors import UserError

# the place of a row of the column, in words
Locate = Callable[[int], str]


def to_numpy(
    column: pa.ChunkedArray, shape: tuple[int, ...], dtype: np.dtype, *, where: str, locate: Locate
) -> np.ndarray:
    """(n, *shape) numbers of a parquet column, whose rows are numbers or lists of them.

    Args:
        where: file and column, for a message.
    Raises:
        UserError: values are missing, or are others than meta/info.json says.
    """
    count = len(column)
    values = _flat(column, where=where, locate=locate).to_numpy(zero_copy_only=False)
    if values.size != count * int(np.prod(shape)):
        raise UserError(
            f"{where}: {values.size // max(1, count)} numbers a row, meta/info.json says {list(shape)} ({locate(0)})."
        )
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, dtype, "same_kind"):
        raise UserError(f"{where}: holds {values.dtype}, meta/info.json says {dtype} ({locate(0)}).")
    return values.astype(dtype, copy=False).reshape(count, *shape)


def _flat(column: pa.ChunkedArray, *, where: str, locate: Locate) -> pa.Array:
    """The numbers of lists, however deep, one after the other."""
    array: Any = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        # of a table without rows there is no chunk at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    # values of one row
    width = 1
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            row = pc.index(pc.is_null(array), True).as_py() // width
            raise UserError(f"{where}: {array.null_count} values are missing, the first in {locate(row)}.")
        if not isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
            return array
        lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() != lengths.max():
            row = int(np.argmax(lengths != lengths[0])) // width
            raise UserError(
                f"{where}: its lists have {lengths.min()} to {lengths.max()} values, not the same; the first other "
                f"one is in {locate(row)}."
            )
        array, width = array.flatten(), max(1, width * int(lengths[0])) if len(lengths) else width
