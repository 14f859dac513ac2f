"""Identity of a model: a hash of its weights and config, the same wherever the files lie. No torch at import.

fingerprint = first 32 hex digits of sha256 over the canonical config JSON, then for tensors sorted by name:
name, dtype, shape, raw little-endian bytes. Sharding, file order, paths and tokenizers are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import BadInput

#: config fields that say where a model came from, how it was initialised or loaded, not what it computes
VOLATILE = frozenset({  # fmt: skip
    "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "device", "model_name",
    "n_devices", "seed", "init_mode", "init_weights", "initializer_range", "use_cache", "output_attentions",
    "output_hidden_states", "_commit_hash", "attn_implementation", "_attn_implementation", "tokenizer_name",
    "tokenizer_class",
})
CHUNK = 1 << 24  # bytes hashed at a time


def _config_bytes(config: Mapping[str, Any]) -> bytes:
    kept = {k: v for k, v in config.items() if k not in VOLATILE}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str).encode()


def _head(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    return json.dumps([name, dtype, list(shape)], separators=(",", ":")).encode() + b"\n"


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return ({tensor: {dtype, shape, data_offsets}}, byte where the data begin) of a safetensors file.

    Raises BadInput where the file is truncated or no safetensors file at all.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(path, f"truncated or no safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise _damaged(path, "no safetensors file (its header is not JSON)") from None
    header.pop("__metadata__", None)
    end = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
    if end != size:
        raise _damaged(path, f"truncated or damaged ({size} of {end} bytes)")
    return header, 8 + length


def _damaged(path: Path, found: str) -> BadInput:
    return BadInput(f"Weights {path.name}", found, "Copy or download the file again")


def fingerprint_safetensors(paths: Sequence[Path], config: Mapping[str, Any]) -> str:
    """Return the fingerprint of the tensors in these files, streamed from disk. Raises BadInput for damaged files."""
    where = {}
    for path in paths:
        header, start = read_header(Path(path))
        where.update({name: (Path(path), start, entry) for name, entry in header.items()})
    digest = hashlib.sha256(_config_bytes(config))
    for name in sorted(where):
        path, start, entry = where[name]
        digest.update(_head(name, entry["dtype"], entry["shape"]))
        for chunk in _stream(path, start + entry["data_offsets"][0], start + entry["data_offsets"][1]):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def _stream(path: Path, begin: int, end: int) -> Iterator[bytes]:
    if begin == end:  # an empty tensor; an empty map is refused by the system
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for at in range(begin, end, CHUNK):
            yield data[at : min(at + CHUNK, end)]


def fingerprint_state_dict(state: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the fingerprint of tensors in memory: the same as that of a safetensors file holding them."""
    import torch

    digest = hashlib.sha256(_config_bytes(config))
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(_head(name, _dtype_name(tensor.dtype), tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:32]


def _dtype_name(dtype: Any) -> str:
    """Return the safetensors spelling of a torch dtype: torch.float32 -> F32."""
    name = str(dtype).removeprefix("torch.")
    special = {"bool": "BOOL", "bfloat16": "BF16", "uint8": "U8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
               "complex64": "C64"}  # fmt: skip
    return special.get(name) or name.replace("uint", "U").replace("int", "I").replace("float", "F")
