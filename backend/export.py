"""Tables as files: CSV, Parquet, JSON, Arrow. An array cell becomes a JSON list in CSV."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
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
    return column.dtype == object and any(isinstance(v, np.ndarray) for v in column)


def to_bytes(frame: pd.DataFrame, form: str, about: Mapping[str, Any] | None = None) -> bytes:
    """Return a table in one of FORMATS; Parquet and Arrow also carry `about` in their metadata. Raises BadInput."""
    if form == "parquet":
        sink = io.BytesIO()
        pq.write_table(_signed(arrow(frame), about), sink)
        return sink.getvalue()
    if form == "arrow":
        out = pa.BufferOutputStream()
        table = _signed(arrow(frame), about)
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        return out.getvalue().to_pybytes()
    if form == "csv":
        return _lists(frame, json.dumps).to_csv(index=False).encode()
    if form == "json":
        columns = [_plain(frame[name]) for name in frame]
        rows = [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]
        return json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()
    raise BadInput(f"Format {form!r}", "not one we write", f"Use one of {', '.join(FORMATS)}")


def _signed(table: pa.Table, about: Mapping[str, Any] | None) -> pa.Table:
    """Put where the numbers come from into the schema's metadata, under `phasescope`."""
    told = {b"phasescope": json.dumps(about, default=str).encode()} if about else {}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **told})


def _lists(frame: pd.DataFrame, dress: Callable[[list], Any]) -> pd.DataFrame:
    copy = frame.copy()
    for name in [c for c in frame if _holds_arrays(frame[c])]:
        copy[name] = [None if v is None else dress(_finite(v)) for v in frame[name]]
    return copy


def _plain(column: pd.Series) -> list[Any]:
    """Return what JSON can say of a column: every digit of a number, null for a hole, NaN or infinity."""
    if _holds_arrays(column):
        return [None if v is None else _finite(v) for v in column]
    if column.dtype.kind == "f":
        return _finite(column.to_numpy())
    if column.dtype.kind == "M":
        return [None if pd.isna(v) else v.isoformat() for v in column]
    return [None if v is None or v is pd.NA or v is pd.NaT or v != v else v for v in column.tolist()]


def _finite(values: Any) -> list[Any]:
    numbers = np.asarray(values)
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        return [v if math.isfinite(v) else None for v in numbers.astype(float).tolist()]
    return (numbers.astype(float) if numbers.dtype.kind == "f" else numbers).tolist()


def from_arrow(data: bytes) -> pd.DataFrame:
    """Read what `to_bytes(..., "arrow")` wrote."""
    return pa.ipc.open_stream(data).read_all().to_pandas()


def write(frame: pd.DataFrame, path: str, about: Mapping[str, Any] | None = None) -> None:
    """Write a table whole or not at all; the ending of the name chooses the format. Raises BadInput."""
    target = Path(path)
    data = to_bytes(frame, check_target(path), about)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BadInput(f"Write {path}", _words(error), "Choose another file") from None


def check_target(path: str) -> str:
    """Return the format that a file's ending names. Raises BadInput where it cannot be written, before any work."""
    target = Path(path)
    form = target.suffix.lstrip(".").lower()
    if form not in FORMATS:
        raise BadInput(f"Write {path}", f"the ending {target.suffix!r} is not a format we write",
                       f"End the name with one of {', '.join('.' + f for f in FORMATS)}")  # fmt: skip
    if os.path.isdir(target):  # not Path.is_dir, which raises for a name that is too long
        raise BadInput(f"Write {path}", "it is a folder", "Name a file")
    if not os.path.isdir(target.parent):
        raise BadInput(f"Write {path}", "no such folder", "Make the folder first")
    if not os.access(target.parent, os.W_OK):
        raise BadInput(f"Write {path}", "its folder may not be written", "Choose another folder")
    return form


def _words(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
