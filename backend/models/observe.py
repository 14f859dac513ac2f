"""What monitors read of a bare module: one forward with patterns and residual, and the weights by glossary name.

Native modules and GPT-2 are spelled out here, without a hook view: a training loop can afford it at every reading,
and GPT-2's view would hold its own copies of Q, K and V. Other architectures are read through their view.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from backend.contract import Observation
from backend.models import bridge


def is_native(bare: nn.Module) -> bool:
    """Say whether this is a NativeModel of ours."""
    return isinstance(bare, bridge.NativeModel)


@torch.no_grad()
def observe(bare: nn.Module, tokens: Tensor, block: int = 0, with_weights: bool = True) -> Observation:
    """Run a native or GPT-2 module once on tokens [rows, pos]. Raises TypeError for another architecture."""
    run = _native if is_native(bare) else _gpt2
    logits, patterns, resid = run(bare, tokens)
    return Observation(tokens, logits, patterns, resid, weights(bare) if with_weights else {}, block)


def _native(bare: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    patterns: list[Tensor] = []
    last: list[Tensor] = []
    hooks = [b.attn.register_forward_hook(lambda _m, _i, out: patterns.append(out[1])) for b in bare.layers]
    hooks.append(bare.layers[-1].register_forward_hook(lambda _m, _i, out: last.append(out[0])))
    try:
        return bare(tokens), patterns, last[0]
    finally:
        for hook in hooks:
            hook.remove()


def _gpt2(bare: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    if not isinstance(bare, GPT2LMHeadModel):
        raise TypeError(f"{type(bare).__name__} is read through its hook view")
    last: list[Tensor] = []
    hook = bare.transformer.h[-1].register_forward_hook(
        lambda _m, _i, out: last.append(out if isinstance(out, Tensor) else out[0])
    )
    try:
        out = bare(tokens, output_attentions=True, use_cache=False)
    finally:
        hook.remove()
    return out.logits, list(out.attentions), last[0]


def weights(bare: nn.Module) -> dict[str, Any]:
    """Return the weights of a native or GPT-2 module, views where possible, as `contract.Model.weights` words them."""
    found = _native_weights(bare) if is_native(bare) else _gpt2_weights(bare)
    return {name: value for name, value in found.items() if value is not None and value != []}


def _native_weights(bare: Any) -> dict[str, Any]:
    cfg, layers = bare.cfg, list(bare.layers)
    mlps = [b.mlp for b in layers] if not cfg.attn_only else []
    kv = cfg.n_key_value_heads or cfg.n_heads
    found: dict[str, Any] = {
        "W_E": bare.tok_embed.weight.detach(),
        "W_pos": bare.pos.weight.detach() if getattr(bare, "pos", None) is not None else None,
        "W_U": bare.head.weight.detach().T,
        "W_O": [_heads_in(b.attn.o.weight.detach().T, cfg.n_heads) for b in layers],
        "W_in": [m.fc_in.weight.detach().T for m in mlps], "b_in": [m.fc_in.bias.detach() for m in mlps],
        "W_out": [m.fc_out.weight.detach().T for m in mlps], "b_out": [m.fc_out.bias.detach() for m in mlps],
    }  # fmt: skip
    for name, n in (("q", cfg.n_heads), ("k", kv), ("v", kv)):
        found[f"W_{name.upper()}"] = [_heads_out(getattr(b.attn, name).weight.detach().T, n) for b in layers]
    return found


def _gpt2_weights(bare: Any) -> dict[str, Any]:
    body, n = bare.transformer, bare.config.n_head
    joint = [h.attn.c_attn.weight.detach().chunk(3, 1) for h in body.h]
    found: dict[str, Any] = {
        "W_E": body.wte.weight.detach(), "W_pos": body.wpe.weight.detach(), "W_U": bare.lm_head.weight.detach().T,
        "W_O": [_heads_in(h.attn.c_proj.weight.detach(), n) for h in body.h],
        "W_in": [h.mlp.c_fc.weight.detach() for h in body.h], "b_in": [h.mlp.c_fc.bias.detach() for h in body.h],
        "W_out": [h.mlp.c_proj.weight.detach() for h in body.h], "b_out": [h.mlp.c_proj.bias.detach() for h in body.h],
    }  # fmt: skip
    for at, name in enumerate("QKV"):
        found[f"W_{name}"] = [_heads_out(parts[at], n) for parts in joint]
    return found


def _heads_out(matrix: Tensor, n: int) -> Tensor:
    """[d_model, head * d_head] -> [head, d_model, d_head]."""
    return matrix.unflatten(1, (n, -1)).transpose(0, 1)


def _heads_in(matrix: Tensor, n: int) -> Tensor:
    """[head * d_head, d_model] -> [head, d_head, d_model]."""
    return matrix.unflatten(0, (n, -1))


def live_weights(model: Any) -> dict[str, Any]:
    """Return a norm-free NativeModel's own Parameters, reshaped as `weights` words them.

    Unlike there nothing is detached, and the attention biases are among them.
    """
    n_heads, layers = model.cfg.n_heads, list(model.layers)
    found: dict[str, Any] = {
        "W_E": model.tok_embed.weight, "W_pos": model.pos.weight, "W_U": model.head.weight.T,
        "W_O": [b.attn.o.weight.T.unflatten(0, (n_heads, -1)) for b in layers],
        "b_O": [b.attn.o.bias for b in layers],
        "W_in": [b.mlp.fc_in.weight.T for b in layers], "b_in": [b.mlp.fc_in.bias for b in layers],
        "W_out": [b.mlp.fc_out.weight.T for b in layers], "b_out": [b.mlp.fc_out.bias for b in layers],
    }  # fmt: skip
    for name in "QKV":
        parts = [getattr(b.attn, name.lower()) for b in layers]
        found[f"W_{name}"] = [_by_head(part.weight, n_heads) for part in parts]
        found[f"b_{name}"] = [part.bias.unflatten(0, (n_heads, -1)) for part in parts]
    return found if model.head.bias is None else {**found, "b_U": model.head.bias}


def _by_head(weight: Tensor, n_heads: int) -> Tensor:
    """[head * d_head, d_model] -> [head, d_model, d_head]."""
    return weight.unflatten(0, (n_heads, -1)).transpose(1, 2)
