"""Between the tidy table of an analysis and the packed form of the store.

`pack` runs in the worker, `unpack` in the process that owns the store. numpy, pandas and pyarrow only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from backend.contract import Analysis, PackedArray
from backend.errors import Broken

ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
THUMBNAIL = 32  # px per side of a display copy


def pack(analysis: Analysis, frame: pd.DataFrame) -> tuple[pa.Table, list[PackedArray]]:
    """Split a tidy table into typed scalar columns and one blob per part of each array column.

    Raises Broken where the frame does not hold what the analysis declared.
    """
    declared = [a.name for a in analysis.axes] + [v.name for v in analysis.values]
    if list(frame.columns) != declared:
        raise Broken(f"Analysis {analysis.name}", f"returned columns {list(frame.columns)}", f"It declares {declared}")
    fields = [pa.field(c.name, ARROW[c.kind]) for c in analysis.scalars]
    columns = [pa.array(_plain(frame[f.name]), type=f.type, from_pandas=True) for f in fields]
    arrays = [blob for value in analysis.arrays for blob in _pack_column(analysis, value, frame)]
    return pa.table(columns, schema=pa.schema(fields)), arrays


def _plain(column: pd.Series) -> Any:
    if isinstance(column.dtype, pd.api.extensions.ExtensionDtype):
        return column  # Int64 with a hole as numpy would be float64: whole numbers above 2**53 would change
    return column.to_numpy() if column.dtype != object else column.tolist()


def _pack_column(analysis: Analysis, value: Any, frame: pd.DataFrame) -> list[PackedArray]:
    part_axes = [a.name for a in analysis.axes[:-1]]
    groups: Any = frame.groupby(part_axes, sort=False) if part_axes else [((), frame)]
    blobs = []
    for part, rows in groups:
        block = np.stack(list(rows[value.name])).astype(value.dtype)
        where = {a: int(p) for a, p in zip(part_axes, part, strict=True)}
        blobs.append(_blob(value.name, where, block))
        if value.limits is not None:
            blobs.append(_blob(f"{value.name}@display", where, thumbnail(block, value.limits)))
    return blobs


def _blob(column: str, part: dict[str, int], block: np.ndarray) -> PackedArray:
    return PackedArray(column, part, block.shape, str(block.dtype), np.ascontiguousarray(block).tobytes())


def thumbnail(block: np.ndarray, limits: tuple[float, float], size: int = THUMBNAIL) -> np.ndarray:
    """Max-pool a [rows, cols] block to at most size x size and scale `limits` to 0..255 (uint8).

    The maximum, so that a thin stripe stays visible.
    """
    rows = np.linspace(0, block.shape[0], min(size, block.shape[0]) + 1).astype(int)[:-1]
    cols = np.linspace(0, block.shape[1], min(size, block.shape[1]) + 1).astype(int)[:-1]
    pooled = np.maximum.reduceat(np.maximum.reduceat(block.astype(np.float32), rows, axis=0), cols, axis=1)
    low, high = limits
    return np.round(np.clip((pooled - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def block(packed: PackedArray) -> np.ndarray:
    """Return the array of a blob."""
    return np.frombuffer(packed.data, dtype=packed.dtype).reshape(packed.shape)


def unpack(analysis: Analysis, table: pd.DataFrame, arrays: list[PackedArray]) -> pd.DataFrame:
    """Join array columns back onto the scalar rows, in the declared column order."""
    frame = table.copy()
    part_axes = [a.name for a in analysis.axes[:-1]]
    for value in analysis.arrays:
        blocks = {tuple(p.part[a] for a in part_axes): block(p) for p in arrays if p.column == value.name}
        if not blocks:
            continue
        column: list[Any] = [None] * len(frame)
        seen: dict[tuple, int] = {}
        for i, part in enumerate(zip(*(frame[a] for a in part_axes), strict=True) if part_axes else [()] * len(frame)):
            if part in blocks:
                column[i] = blocks[part][seen.get(part, 0)]
                seen[part] = seen.get(part, 0) + 1
        frame[value.name] = pd.Series(column, index=frame.index, dtype=object)
    declared = [a.name for a in analysis.axes] + [v.name for v in analysis.values]
    return frame[[name for name in declared if name in frame]]
