"""What is written into the stream, from any model: W_O and W_out by name, or read off attn_out and mlp_out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backend.analyses._work import Plan, parts
from backend.contract import Model
from backend.errors import Unfit

READ_BYTES = 64 * 2**20  # what the unit vectors of one forward may hold
LENGTH = 64  # positions of a row of unit vectors
LINEAR = {"float64": 1e-5, "float32": 1e-3}  # how far a sum may be from the sum, relative; other dtypes 0.05


def output_maps(model: Model) -> Iterator[tuple[Any, Any]]:
    """Yield (W_O [head, d_head, d_model], b_O [d_model]) layer by layer, at least float32.

    Where the weights are not known by name, z is replaced by unit vectors, one per position: attn_out is then a row of
    W_O plus b_O, and b_O itself where z is 0. That is exact where attn_out is affine in z, as the caller must check.
    """
    import torch

    card, known = model.card, named(model, "W_O")
    width = card.n_heads * card.d_head
    for layer in range(card.n_layers):
        rows = _read_off(model, layer, ("z", "attn_out"), width, range(width if known else 0, width + 1))
        wide = torch.promote_types(rows.dtype, torch.float32)
        b_O = rows[-1]  # noqa: N806 - the glossary's name
        W_O = known[layer] if known else (rows[:-1] - b_O).reshape(-1, card.d_head, rows.shape[-1])  # noqa: N806
        yield W_O.to(wide), b_O.to(wide)


def mlp_map(model: Model, layer: int) -> Any:
    """Return W_out [d_mlp, d_model] of a layer, by name or read off mlp_out as `output_maps` reads W_O.

    Raises Unfit where mlp_out is not affine in mlp_post (a norm stands between them, as in Gemma 2).
    """
    import torch

    known, width = named(model, "W_out"), model.card.d_mlp
    if known:
        return known[layer]
    rows = _read_off(model, layer, ("mlp_post", "mlp_out"), width, range(width + 1))
    both = _read_off(model, layer, ("mlp_post", "mlp_out"), width, [-1])[0]  # all neurons at once: the sum of the rows
    W_out = rows[:-1] - rows[-1]  # noqa: N806
    off = (both - rows[-1] - W_out.sum(0)).abs().max()
    if float(off) > LINEAR.get(model.card.dtype, 0.05) * float(W_out.abs().sum(0).max()):
        raise Unfit(f"W_out of {model.card.spec}", "a norm stands behind it", "Choose another model")
    return W_out.to(torch.promote_types(W_out.dtype, torch.float32))


def named(model: Model, name: str) -> Any:
    """Return weights by their glossary name, None where they are not known by name."""
    try:
        return model.weights().get(name)
    except Unfit:
        return None


def forwards_to_read(width: int, n_ctx: int) -> tuple[int, int, int]:
    """Return (forwards, rows, length) of tokens that reading a map of `width` inputs takes."""
    length = min(n_ctx, LENGTH, width + 1)
    rows = max(1, min(-(-(width + 1) // length), READ_BYTES // (4 * length * width)))
    return -(-(width + 1) // (rows * length)), rows, length


def plan_output_maps(plan: Plan) -> None:
    """Add the calls of `output_maps`: b_O is read off in any case, W_O where it has no name."""
    card = plan.card
    width = card.n_heads * card.d_head
    _plan_reads(plan, width, 1 if "named_weights" in card.capabilities else width + 1, card.n_layers)


def plan_mlp_map(plan: Plan, n: int = 1) -> None:
    """Add the calls of n times `mlp_map`."""
    if "named_weights" not in plan.card.capabilities:
        _plan_reads(plan, plan.card.d_mlp, plan.card.d_mlp + 1, n)
        _plan_reads(plan, plan.card.d_mlp, 1, n)


def _plan_reads(plan: Plan, width: int, units: int, n: int) -> None:
    _, most, length = forwards_to_read(width, plan.card.n_ctx)
    for some in parts(units, most * length):
        plan.call(-(-some // length), length, n, last=True)


def _read_off(model: Model, layer: int, points: tuple[str, str], width: int, units: Any) -> Any:
    """Return what the second point holds [unit, d_model] where the first is a unit vector.

    Unit `width` is the zero vector, -1 that of ones.
    """
    import torch

    _, most, length = forwards_to_read(width, model.card.n_ctx)
    wanted, found = torch.as_tensor(list(units)), []
    for part in wanted.split(most * length):
        copies = -(-len(part) // length)
        at = torch.zeros(copies * length, width)
        at[range(len(part)), part.clamp(0, width - 1)] = (part < width).float()
        at[: len(part)][part < 0] = 1.0
        tokens = torch.zeros(copies, length, dtype=torch.long, device=model.card.device)
        seen: list[Any] = []

        def put(tensor: Any, at: Any = at) -> Any:
            return at.to(tensor).reshape(tensor.shape)

        def look(out: Any, seen: list[Any] = seen) -> Any:
            seen.append(out.flatten(0, 1))
            return out

        model.run_with(tokens, {(points[0], layer): put, (points[1], layer): look}, last=True)
        found.append(seen[0][: len(part)])
    return torch.cat(found)
