"""The bare library beside the app: build a model of GPT-2's shape, and time `run_with_cache` on it, one thread.

`python -m benchmarks.bare build FOLDER SHAPE` writes random weights without a tokenizer, so prompts are token ids;
`python -m benchmarks.bare time FOLDER LENGTH N` prints {"attention": [s, ...], "logit_lens": [s, ...]} as JSON.
Run apart from the app, so that what it holds in memory or warms up is not the app's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "gpt2-shape": {},  # transformers' defaults: 12 layers of 12 heads, d_model 768, 50 257 tokens, 124 M parameters
    "tiny": {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 500, "n_positions": 256},
}


def build(folder: Path, shape: str) -> None:
    """Save a random model of this shape as a Hugging Face folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**SHAPES[shape])).save_pretrained(folder)


def measure(folder: Path, length: int, n: int) -> dict[str, list[float]]:
    """Time what each page's numbers need of the library at least, a new random prompt each time."""
    import torch
    from transformers import GPT2LMHeadModel

    from backend.models import bridge

    torch.set_num_threads(1)
    view = bridge.hook_view(GPT2LMHeadModel.from_pretrained(folder).eval())
    layers = range(view.cfg.n_layers)
    patterns = [f"blocks.{n}.attn.hook_pattern" for n in layers]
    residuals = ["blocks.0.hook_resid_pre", *(f"blocks.{n}.hook_resid_post" for n in layers)]

    def attention(tokens: Any) -> None:
        view.run_with_cache(tokens, names_filter=patterns)

    def logit_lens(tokens: Any) -> None:
        cache = view.run_with_cache(tokens, names_filter=residuals)[1]
        for name in residuals:
            bridge.unembed(view, cache[name])

    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return {work.__name__: [_seconds(work, torch.randint(0, view.cfg.d_vocab, (1, length), generator=draw))
                                for _ in range(n + 2)][2:] for work in (attention, logit_lens)}  # fmt: skip


def _seconds(work: Callable[[Any], None], tokens: Any) -> float:
    began = time.perf_counter()
    work(tokens)
    return time.perf_counter() - began


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "build":
        build(Path(where), rest[0])
    else:
        print(json.dumps(measure(Path(where), *map(int, rest))))  # noqa: T201
