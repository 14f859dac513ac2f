"""Tables as files: CSV, Parquet, JSON, Arrow. An array cell becomes a JSON list in CSV."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from backend.errors import BadInput

FORMATS = ("parquet", "csv", "json", "arrow")


def arrow(frame: pd.DataFrame) -> pa.Table:
    """Return the Arrow form; array columns become list<float>."""
    return pa.Table.from_pandas(frame, preserve_index=False)


def _holds_arrays(column: pd.Series) -> bool:
    return column.dtype == object and any(isinstance(v, np.ndarray) for v in column.head(1))


def to_bytes(frame: pd.DataFrame, form: str) -> bytes:
    """Return a table in one of FORMATS. Raises BadInput for another."""
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(arrow(frame), sink)
        return sink.getvalue()
    if form == "arrow":
        out = pa.BufferOutputStream()
        table = arrow(frame)
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        return out.getvalue().to_pybytes()
    if form == "csv":
        return _lists(frame, json.dumps).to_csv(index=False).encode()
    if form == "json":
        return _lists(frame, lambda x: x).to_json(orient="records", double_precision=15).encode()
    raise BadInput(f"Format {form!r}", "not one we write", f"Use one of {', '.join(FORMATS)}")


def _lists(frame: pd.DataFrame, dress: Callable[[list], Any]) -> pd.DataFrame:
    copy = frame.copy()
    for name in [c for c in frame if _holds_arrays(frame[c])]:
        copy[name] = [None if v is None else dress(np.asarray(v).astype(float).tolist()) for v in frame[name]]
    return copy


def from_arrow(data: bytes) -> pd.DataFrame:
    """Read what `to_bytes(..., "arrow")` wrote."""
    return pa.ipc.open_stream(data).read_all().to_pandas()


def write(frame: pd.DataFrame, path: str) -> None:
    """Write a table whole or not at all; the ending of the name chooses the format. Raises BadInput."""
    target = Path(path)
    data = to_bytes(frame, target.suffix.lstrip("."))
    if not target.parent.is_dir():
        raise BadInput(f"Write {path}", "no such folder", "Make the folder first")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(target)
