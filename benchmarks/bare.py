"""The bare library beside the app: build a model of GPT-2's shape, and time `run_with_cache` on it, one thread.

`python -m benchmarks.bare build FOLDER SHAPE` writes random weights without a tokenizer, so prompts are token ids;
`python -m benchmarks.bare serve FOLDER LENGTH` answers each line, `attention` or `logit_lens`, with the seconds that
one new random prompt took. It is as nice as the app's workers are, so that a busy machine slows both alike.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NICE = 7  # as backend/jobs/dask_worker.py
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


def serve(folder: Path, length: int) -> None:
    """Time what each page's numbers need of the library at least."""
    import torch
    from transformers import GPT2LMHeadModel

    from backend.models import bridge

    os.nice(NICE)
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

    known, draw = {"attention": attention, "logit_lens": logit_lens}, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for line in sys.stdin:
            tokens = torch.randint(0, view.cfg.d_vocab, (1, length), generator=draw)
            print(_seconds(known[line.strip()], tokens), flush=True)  # noqa: T201


def _seconds(work: Callable[[Any], None], tokens: Any) -> float:
    began = time.perf_counter()
    work(tokens)
    return time.perf_counter() - began


if __name__ == "__main__":
    what, where, last = sys.argv[1:]
    if what == "build":
        build(Path(where), last)
    else:
        serve(Path(where), int(last))
