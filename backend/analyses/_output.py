"""The output maps of attention, from any model: W_O by name, or read off attn_out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backend.contract import Described, Model
from backend.errors import Unfit


def output_maps(model: Model) -> Iterator[tuple[Any, Any]]:
    """Yield (W_O [head, d_head, d_model], b_O [d_model]) layer by layer, at least float32.

    Where the weights are not known by name, z is replaced by unit vectors, one per position: attn_out is then a row of
    W_O plus b_O, and b_O itself where z is 0. That is exact where attn_out is affine in z, as the caller must check.
    """
    import torch

    try:
        known = model.weights().get("W_O")
    except Unfit:
        known = None
    for layer in range(model.card.n_layers):
        W_O, b_O = _read_off(model, layer, bias_only=bool(known))
        if known:
            W_O = known[layer]
        wide = torch.promote_types(b_O.dtype, torch.float32)
        yield W_O.to(wide), b_O.to(wide)


def unit_rows(model: Described, bias_only: bool) -> tuple[int, int]:
    """Return (rows, tokens) of the call that reads off a layer: a token per unit vector and one for the bias."""
    width = model.card.n_heads * model.card.d_head if not bias_only else 0
    length = min(model.card.n_ctx, 64, width + 1)
    return -(-(width + 1) // length), length


def _read_off(model: Model, layer: int, bias_only: bool) -> tuple[Any, Any]:
    """Return (W_O, b_O) from unit vectors in the place of z; or b_O alone."""
    import torch

    card, seen = model.card, []
    width = card.n_heads * card.d_head if not bias_only else 0
    copies, length = unit_rows(model, bias_only)
    units = torch.zeros(copies * length, width or card.n_heads * card.d_head)
    units[range(width), range(width)] = 1.0
    tokens = torch.zeros(copies, length, dtype=torch.long, device=card.device)

    def put(z: Any) -> Any:
        return units.to(z).reshape(z.shape)

    def look(out: Any) -> Any:
        seen.append(out.reshape(copies * length, -1))
        return out

    model.run_with(tokens, {("z", layer): put, ("attn_out", layer): look})
    rows = seen[0]
    b_O = rows[width]
    return (rows[:width] - b_O).reshape(-1, card.d_head, rows.shape[-1]) if width else None, b_O
