"""What does each head move from each token, rather than where does it look?

A head's output at a query is the sum over keys of P[query_pos, key_pos] v[key_pos] W_O. `contribution` is the norm of
each term: attention weighted by what the value writes. A key that draws much attention but holds a small value (often
the first token) counts little. Terms are vectors: they may cancel, so their norms do not sum to the output's norm.
`output_norm` = |z W_O|; `coherence` = output_norm / sum of contributions (1: all terms point one way, 0: they cancel);
`value_norm` = |v W_O| of this position as a key; `head_share` = projection of the head's output on attn_out over
|attn_out|^2: over heads it sums to 1 less the share of the output bias; `largest`, `layer_largest` = largest
contribution of the row, of the layer.
`difference` = total variation distance between attention and contributions, each row scaled to sum 1: 0 where all
values write alike. `difference_null` is the same with the value norms of the visible keys shuffled (mean over
`shuffles`), `difference_z` the distance from it in standard deviations over shuffles: beyond chance above, the head
attends most to keys that write unusually much or little.

Exact up to rounding (kept rows are float16: relative error at most 2^-11). W_O is the model's own where it is known by
name, else it is read off the model: attn_out of unit vectors put in the place of z, less that of zero. Either way the
terms, summed over keys and heads, plus the bias must be attn_out; where they are not (a norm after attention), the
model is refused.
Cost: one forward with pattern, v, z and attn_out per layer; for the bias another of one position, where W_O is
read off of d_model.
Source: Kobayashi et al. (2020), Attention is Not Only a Weight, section 3; Elhage et al. (2021), A Mathematical
Framework for Transformer Circuits ("value-weighted attention").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from backend.analyses._asking import prompt_tokens
from backend.analyses._output import output_maps, plan_output_maps
from backend.analyses._work import SHORTER, Plan
from backend.contract import Axis, Model, ModelCard, Params, Progress, Prompt, Value, View, analysis
from backend.costs import Work
from backend.errors import Unfit
from backend.figures import Panel, beside, panels
from backend.figures.cells import seen

HALF = 6e4  # what float16 can hold


class ValueWeightedParams(Params):
    """The null."""

    shuffles: int = Field(20, ge=2, le=200, description="shuffles of the value norms behind difference_null")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the shuffles")


@analysis(
    version=1, group="Attention", title="Value-weighted attention", subject=Prompt, params=ValueWeightedParams,
    asks="What does each head move from each token, rather than where does it look?",
    needs=["attention_patterns", "linear_attn_out"],
    axes=[Axis("layer", "layer, 0-based"), Axis("head", "head within the layer, 0-based"),
          Axis("query_pos", "position of the query token, 0-based", "token")],
    values=[
        Value("output_norm", "norm of the head's output z W_O", "norm"),
        Value("value_norm", "norm of v W_O at this position, as a key", "norm"),
        Value("coherence", "output_norm over the sum of contributions; NULL where nothing is written"),
        Value("head_share", "projection of the head's output on attn_out over |attn_out|^2; NULL where attn_out is 0"),
        Value("largest", "largest contribution of the row", "norm"),
        Value("layer_largest", "largest contribution of the layer", "norm"),
        Value("difference", "total variation distance between attention and scaled contributions (0 to 1); NULL where "
              "nothing is written"),
        Value("difference_null", "difference with the value norms of the visible keys shuffled"),
        Value("difference_z", "difference minus its null, in standard deviations over shuffles; NULL where all alike"),
        Value("contribution", "norm of P[query_pos, key_pos] v[key_pos] W_O over key positions", "norm", kind="array"),
        Value("pattern", "the attention row over key positions", "probability", kind="array", limits=(0.0, 1.0)),
    ],
)  # fmt: skip
def value_weighted(model: Model, subject: Prompt, params: ValueWeightedParams, progress: Progress) -> pd.DataFrame:
    """Return one row per (layer, head, query_pos)."""
    import torch

    dice = torch.Generator().manual_seed(params.seed)
    tokens = prompt_tokens(model, subject)
    parts: list[dict[str, Any]] = []
    causal = "causal" in model.card.capabilities
    for layer, (W_O, b_O) in enumerate(output_maps(model)):
        seen = model.capture(tokens, ["pattern", "v", "z", "attn_out"], [layer])
        pattern, v, z, out = (_wide(seen[name, layer][0]) for name in ("pattern", "v", "z", "attn_out"))
        written = _written(v, W_O, model.card.n_heads)  # [head, key, d_model]
        heads = torch.einsum("phd,hdm->hpm", z, W_O)
        _check_parts(layer, pattern, written, heads, out - b_O)
        parts.append(_rows(layer, pattern, written.norm(dim=-1), heads, out)
                     | _null(pattern, written.norm(dim=-1), causal, params, dice))  # fmt: skip
        progress((layer + 1) / model.card.n_layers, f"layer {layer + 1} of {model.card.n_layers}")
    columns = [a.name for a in value_weighted.axes] + [v.name for v in value_weighted.values]
    return pd.concat([pd.DataFrame(p)[columns] for p in parts], ignore_index=True)


def _wide(tensor: Any) -> Any:
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _written(v: Any, W_O: Any, n_heads: int) -> Any:
    """Return v W_O of every head and key [head, key, d_model]; v [key, key-value head, d_head] is shared by groups."""
    import torch

    return torch.einsum("khd,hdm->hkm", v.repeat_interleave(n_heads // v.shape[1], 1), W_O)


def _check_parts(layer: int, pattern: Any, written: Any, heads: Any, out: Any) -> None:
    """Refuse where the terms do not add up to the heads' outputs, or these to attn_out."""
    size = float(out.abs().max()) + 1e-6
    for found, wanted, words in (
        (pattern @ written, heads, "P v W_O summed over keys is not z W_O"),
        (heads.sum(0), out, "the heads' outputs do not sum to attn_out"),
    ):
        off = float((found - wanted).abs().max())
        if not off <= 0.02 * max(size, float(wanted.abs().max())):  # bfloat16 models differ by less
            raise Unfit(f"Value-weighted attention of layer {layer}", f"{words} (off by {off:.3g}): something else "
                        "than W_O stands behind attention", "Choose a model without a norm there")  # fmt: skip


def _rows(layer: int, pattern: Any, value_norm: Any, heads: Any, out: Any) -> dict[str, Any]:
    n_heads, length, _ = pattern.shape
    contribution = pattern * value_norm[:, None]
    if float(contribution.max()) > HALF:
        raise Unfit(f"Value-weighted attention of layer {layer}", f"contributions above {HALF:g}",
                    "They do not fit the kept float16; choose another layer or model")  # fmt: skip
    output_norm, total = heads.norm(dim=-1), contribution.sum(-1)
    scalars = {
        "output_norm": output_norm, "value_norm": value_norm, "coherence": output_norm / total,
        "head_share": (heads * out).sum(-1) / (out * out).sum(-1), "largest": contribution.amax(-1),
    }  # fmt: skip
    columns: dict[str, Any] = {"layer": np.full(n_heads * length, layer), "head": np.repeat(range(n_heads), length),
                               "query_pos": np.tile(np.arange(length), n_heads)}
    columns |= {name: _finite(values) for name, values in scalars.items()}
    columns["layer_largest"] = float(contribution.max())
    for name, block in (("contribution", contribution), ("pattern", pattern)):
        columns[name] = list(block.half().cpu().numpy().reshape(-1, length))
    return columns


def _finite(values: Any) -> np.ndarray:
    """Return [head * query_pos] with NaN for a division by 0."""
    flat = values.flatten().double().cpu().numpy()
    return np.where(np.isfinite(flat), flat, np.nan)


def _null(pattern: Any, value_norm: Any, causal: bool, params: ValueWeightedParams, dice: Any) -> dict[str, Any]:
    """Return `difference`, its null and z [head * query_pos]."""
    import torch

    from backend.maths import attending

    norms = value_norm[:, None].expand_as(pattern)
    found = _difference(pattern, norms)
    drawn = []
    for _ in range(params.shuffles):
        keys = attending.shuffled_keys(len(pattern), pattern.shape[-1], causal, dice).to(pattern.device)
        drawn.append(_difference(pattern, norms.gather(-1, keys)))
    mean, spread = torch.stack(drawn).mean(0), torch.stack(drawn).std(0)
    z = torch.where(spread > 1e-9, (found - mean) / spread, torch.nan)
    return {"difference": _finite(found), "difference_null": _finite(mean), "difference_z": _finite(z)}


def _difference(pattern: Any, norms: Any) -> Any:
    weighted = pattern * norms
    return (weighted / weighted.sum(-1, keepdim=True) - pattern).abs().sum(-1) / 2


@value_weighted.costs
def work(card: ModelCard, subject: Prompt, params: ValueWeightedParams) -> Work:
    """Two calls per layer: its output map and what it does; then products per head and key, and the shuffles."""
    plan, length = Plan(card), len(subject.tokens)
    plan_output_maps(plan)
    plan.call(1, length, card.n_layers)
    pairs, wide = card.n_heads * length**2, card.n_heads * length * card.d_model
    operations = card.n_layers * (2 * pairs * card.d_model + 4 * wide * card.d_head + 12 * params.shuffles * pairs)
    held = 4 * (9 * pairs + 5 * wide) + 4 * card.n_layers * pairs + 200 * card.n_layers * card.n_heads * length
    return plan.total(held, operations, SHORTER)


# ---------------------------------------------------------------- figures


@value_weighted.figure("Attention beside what it moves", choose=("layer", "head"))
def head(table: pd.DataFrame, view: View) -> Any:
    """Left the pattern, right the contributions with every row scaled to sum 1: one scale, 0 to 1, for both.

    The hover of the right map says the contribution itself, its title how large it gets beside the layer's heads.
    """
    rows = table[table["contribution"].notna()] if "contribution" in table else table[:0]
    layer, number = (int(view.chosen.get(axis, rows[axis].iloc[0])) for axis in ("layer", "head"))
    rows = rows[(rows["layer"] == layer) & (rows["head"] == number)].sort_values("query_pos")
    left, right = (np.stack(list(rows[name])).astype(np.float32) for name in ("pattern", "contribution"))
    words = view.tokens or [str(i) for i in range(len(left))]
    total = right.sum(1, keepdims=True)
    share = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
    most = f"norms up to {right.max():.3g}; in layer {layer} {rows['layer_largest'].iloc[0]:.3g}"
    moves = f"moves (share of its row)\n{most}"
    return beside({f"L{layer}H{number} looks\n(probability)": (seen(left), "attention"),
                   moves: (seen(share), "share of the row")}, more={moves: (right, "norm")}, limits=(0.0, 1.0), x=words,
                  y=words, x_title="key position (token)", y_title="query position (token)")  # fmt: skip


@value_weighted.figure("All heads")
def overview(table: pd.DataFrame, view: View) -> Any:
    """Layer by head, means over positions: share of attn_out, coherence, difference from the pattern and its null."""
    names = {"head_share": "share of attn_out", "coherence": "coherence", "difference": "difference",
             "difference_null": "difference, shuffled"}  # fmt: skip
    mean = table.groupby(["layer", "head"])[list(names)].mean()
    drawn = {words: Panel(mean[name].unstack("head").to_numpy(), (0.0, 1.0)) for name, words in names.items()}
    return panels(drawn, x_title="head", y_title="layer", value="mean over positions")
