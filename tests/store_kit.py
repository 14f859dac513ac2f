"""What the store's tests (and the processes they kill) make: two small analyses, requests and results of a seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from backend import tables
from backend.contract import Analysis, Axis, Params, Prompt, Request, Result, Value
from backend.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
ROOMY = 10**12
CARD = {"spec": "run:toy", "step": 3, "n_layers": 2, "tokenizer": {"kind": "chars", "symbols": ["a", "b"]}}


def _never(*_: Any) -> None:
    raise AssertionError("the store computes nothing")


def attention(dtype: str = "float16", version: int = 1) -> Analysis:
    """An analysis with an array column and a display copy, like attention."""
    return Analysis(
        "toy_attention",
        version,
        "Toy attention",
        "?",
        Prompt,
        Params,
        (Axis("layer", "l"), Axis("head", "h"), Axis("query_pos", "q")),
        (Value("entropy", "e", "nats"), Value("pattern", "p", kind="array", dtype=dtype, limits=(0.0, 1.0))),
        _never,
    )


def mixed(version: int = 1) -> Analysis:
    """An analysis with one column of each scalar kind."""
    return Analysis(
        "toy_mixed",
        version,
        "Toy mixed",
        "?",
        Prompt,
        Params,
        (Axis("pos", "p"), Axis("name", "n", kind="str")),
        (
            Value("count", "c", kind="int"),
            Value("value", "v"),
            Value("label", "t", kind="str"),
            Value("good", "g", kind="bool"),
        ),
        _never,
    )


def request(analysis: Analysis, i: int, spec: str = "run:toy", **more: Any) -> Request:
    """The i-th request; its key differs from every other's."""
    given = {"step": 3, "fingerprint": "f" * 8, "dtype": "float32", "device": "cpu", "params": {}} | more
    return Request(
        analysis=analysis.name,
        version=analysis.version,
        spec=spec,
        subject=Prompt(tokens=(1, 2, i)).model_dump(),
        **given,
    )


def attention_frame(seed: int, layers: int = 2, heads: int = 2, length: int = 8) -> pd.DataFrame:
    """Rows [layer, head, query_pos, entropy, pattern] with numbers that float16 holds exactly."""
    rng = np.random.default_rng(seed)
    layer, head, query = np.indices((layers, heads, length)).reshape(3, -1)
    frame = pd.DataFrame({"layer": layer, "head": head, "query_pos": query, "entropy": rng.random(layer.size)})
    frame["pattern"] = list(rng.integers(0, 1024, (layer.size, length)).astype(np.float32) / 1024)
    return frame


def packed(analysis: Analysis, frame: pd.DataFrame) -> Result:
    """A frame as a worker hands it back."""
    table, arrays = tables.pack(analysis, frame)
    return Result(table, arrays, {"seconds": 0.5, "device": "cpu", "seed": 0})


def put(store: Store, analysis: Analysis, i: int, **size: int) -> str:
    """Keep the i-th toy attention; return its key."""
    asked = request(analysis, i)
    store.put(analysis, asked, packed(analysis, attention_frame(i, **size)), card=CARD)
    return asked.key


def whole(store: Store, analysis: Analysis, key: str) -> pd.DataFrame:
    """The frame of a kept result."""
    return tables.unpack(analysis, store.table(analysis, key), store.arrays(key, "pattern"))


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Say whether two attention frames hold the same numbers in the same order."""
    scalars = list(one.columns[:-1])
    return one[scalars].equals(other[scalars]) and np.array_equal(np.stack(one["pattern"]), np.stack(other["pattern"]))


def child(code: str, *arguments: str) -> subprocess.Popen:
    """Start another Python on `code`, from the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
