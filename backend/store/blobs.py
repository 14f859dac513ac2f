"""Packed arrays on their way into the file and back: zstd inline, or safetensors beside it where they are large."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load, save

from backend.contract import PackedArray
from backend.errors import Broken
from backend.store.base import as_json

INLINE_BYTES = 8_000_000  # above, a blob is a file of its own
LEVEL = 1  # zstd: near memory speed; higher levels gain little on float16


@dataclass
class Stored:
    """One row of `arrays`, without key and number."""

    column_name: str
    part: str
    shape: str
    dtype: str
    codec: str
    data: bytes | None
    path: str | None
    size: int = 0


def encode(packed: PackedArray, key: str, tensors: Path) -> Stored:
    """Compress a blob, or write it under a name that nobody else has; the file is whole and synced on return."""
    if len(packed.data) != _size(packed.shape, packed.dtype):
        raise Broken(f"Keep {packed.column} {packed.part}", f"{len(packed.data)} bytes do not fill {packed.shape} "
                     f"{packed.dtype}", "Correct the packing")
    words = (packed.column, as_json(packed.part), json.dumps(list(packed.shape)), packed.dtype)
    if len(packed.data) > INLINE_BYTES:
        path = _write_file(packed, key, tensors)
        return Stored(*words, "safetensors", None, path.name, path.stat().st_size)
    pressed = zstandard.ZstdCompressor(level=LEVEL).compress(packed.data)
    if len(pressed) < len(packed.data):
        return Stored(*words, "zstd", pressed, None, len(pressed))
    return Stored(*words, "raw", packed.data, None, len(packed.data))


def decode(row: Stored, tensors: Path) -> PackedArray:
    """Return the blob of a row. Raises Broken where its bytes are damaged or its file is gone."""
    shape = tuple(json.loads(row.shape))
    try:
        data = _bytes(row, _size(shape, row.dtype), tensors)
    except (zstandard.ZstdError, SafetensorError, OSError, KeyError) as error:
        raise _damaged(row, str(error)) from None
    if len(data) != _size(shape, row.dtype):
        raise _damaged(row, f"{len(data)} bytes do not fill {shape} {row.dtype}")
    return PackedArray(row.column_name, json.loads(row.part), shape, row.dtype, data)


def _bytes(row: Stored, size: int, tensors: Path) -> bytes:
    if row.codec == "safetensors":
        return load((tensors / str(row.path)).read_bytes())["data"].tobytes()
    assert row.data is not None
    return zstandard.ZstdDecompressor().decompress(row.data, max_output_size=size) if row.codec == "zstd" else row.data


def _damaged(row: Stored, why: str) -> Broken:
    return Broken(f"Read {row.column_name} {row.part}", f"the kept copy is damaged ({why})",
                  "Delete the result and compute it again")


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _write_file(packed: PackedArray, key: str, tensors: Path) -> Path:
    tensors.mkdir(parents=True, exist_ok=True)
    path = tensors / f"{key}-{uuid4().hex[:12]}.safetensors"
    block = np.frombuffer(packed.data, dtype=packed.dtype).reshape(packed.shape)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(save({"data": block}))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    _sync_folder(tensors)
    return path


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(tensors: Path, names: list[str]) -> None:
    """Delete files by name; a missing one is no matter."""
    for name in names:
        (tensors / name).unlink(missing_ok=True)


def sweep(tensors: Path, kept: set[str]) -> int:
    """Delete what no row refers to (a crash came between file and row); return how many."""
    orphans = [p for p in tensors.glob("*") if p.suffix in (".safetensors", ".part") and p.name not in kept]
    remove(tensors, [p.name for p in orphans])
    return len(orphans)
