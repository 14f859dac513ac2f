"""The Parameters of a NativeModel by glossary name, as views through which gradients reach them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
