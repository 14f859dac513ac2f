"""A transformer wired by hand that continues repeated blocks: what an induction circuit is, without training.

Attention only, no norms, two layers of `n_heads` heads. The residual stream has three blocks of coordinates: the token
(one-hot), the position (one-hot), and a slot for the previous token. L0H0 attends to the position before and writes
its token into the slot. L1H0 looks for the position whose slot holds the present token, that is the one after the
token's earlier occurrence, and raises the logit of the token it finds there. All other heads write nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from backend.contract import parse_spec
from backend.settings import Settings

#: scores of the wired heads, far above ln(visible keys): leakage of the softmax below 1e-30
SHARP = 100.0
LOGIT = 30.0


def config(d_vocab: int = 40, n_ctx: int = 32, n_layers: int = 2, n_heads: int = 2) -> dict[str, Any]:
    """Return the native config: wide enough for token, position and slot, each head as wide as all of it."""
    width = 2 * d_vocab + n_ctx
    return {"n_layers": n_layers, "d_model": width, "n_heads": n_heads, "d_head": width, "d_vocab": d_vocab,
            "n_ctx": n_ctx, "attn_only": True, "normalization_type": None, "positional_embedding_type": "standard",
            "use_attn_scale": False}  # fmt: skip


@torch.no_grad()
def wired_induction(d_vocab: int = 40, n_ctx: int = 32, n_layers: int = 2, n_heads: int = 2) -> Any:
    """Return the bare NativeModel. With one layer only the previous-token head is there: the control."""
    from backend.models.bridge import build_native

    model: Any = build_native(config(d_vocab, n_ctx, n_layers, n_heads))
    for weights in model.parameters():
        weights.zero_()
    width, scale = 2 * d_vocab + n_ctx, model.layers[0].attn.scale
    token, pos = torch.arange(d_vocab), torch.arange(n_ctx)
    slot = d_vocab + n_ctx + token
    model.tok_embed.weight[token, token] = 1
    model.pos.weight[pos, d_vocab + pos] = 1
    model.head.weight[token, token] = 1
    previous = model.layers[0].attn
    previous.q.weight[d_vocab + pos[:-1], d_vocab + pos[1:]] = SHARP * scale  # a query asks for the position before
    previous.k.weight[d_vocab + pos, d_vocab + pos] = 1
    previous.v.weight[token, token] = 1
    previous.o.weight[slot, token] = 1
    if n_layers > 1:
        induction = model.layers[1].attn
        induction.q.weight[token, token] = SHARP * scale
        induction.k.weight[token, slot] = 1
        induction.k.weight[token, d_vocab] = -1  # position 0 has only itself to attend to: its slot holds its own token
        induction.v.weight[token, token] = 1
        induction.o.weight[token, token] = LOGIT
    assert width == model.tok_embed.weight.shape[1]
    return model


def wired_run(folder: Path, bare: Any, sizes: dict[str, Any], training: dict[str, Any] | None = None) -> Any:
    """Write a run with this model as its only checkpoint and open it, as a user would, in float64."""
    import json

    from safetensors.torch import save_file

    from backend.models.open import open_model

    (folder / "checkpoints").mkdir(parents=True)
    state = {name: t.contiguous() for name, t in bare.state_dict().items()}
    save_file(state, folder / "checkpoints" / "step_00000000.safetensors")
    info = {"model": {"kind": "native", "config": sizes}, **(training or {})}
    (folder / "run.json").write_text(json.dumps(info))
    settings = Settings(cache=folder / "cache", runs=folder / "runs", device="cpu", dtype="float64")
    return open_model(parse_spec(f"run:{folder}"), settings)


def distinct_rows(d_vocab: int, n: int, rows: int, seed: int = 0) -> torch.Tensor:
    """Return rows [A; A] whose A repeats no token: the wired model then has one place to look."""
    dice = torch.Generator().manual_seed(seed)
    block = torch.stack([torch.randperm(d_vocab, generator=dice)[:n] for _ in range(rows)])
    return torch.cat([block, block], 1)
