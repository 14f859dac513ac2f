"""NativeModels of several recipes: their first weights, and their Parameters by glossary name as live views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def build_plain(config: dict[str, Any], seed: int) -> nn.Module:
    """Build the bare model: matrices N(0, 0.02^2), norms at identity, attention biases zero and frozen."""
    from backend.models.bridge import build_native

    model = build_native(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        if weights.dim() == 2:
            torch.nn.init.normal_(weights, std=0.02, generator=generator)
        elif ".attn." in name:
            torch.nn.init.zeros_(weights)
            weights.requires_grad_(False)
    return model


def live_weights(model: Any) -> dict[str, Any]:
    """Return a one-norm-free-layer NativeModel's own Parameters, reshaped as `models.observe.weights` words them.

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
